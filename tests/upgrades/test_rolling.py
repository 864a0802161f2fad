"""A cluster of the previous release becomes one of today's, process by process, under load.

Nodes first, one at a time, then gateways, as docs/operations.md says. The previous release is the code in the
newest frozen sample, run with today's packages. On PostgreSQL it begins with that sample's cluster, whose
objects have to be there afterwards as they were; clusters of earlier samples are opened by today's release.
The long form does the same with metadata in LMDB and a journal on the nodes, and goes back again in the same
way: going back is possible until a release's notes say otherwise.
"""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.sigv4 import Credentials
from objstore import __version__
from objstore.processes.dev import LocalCluster, Process
from tests import postgres
from tests.chaos.workload import RESTLESS, Load
from tests.seed import SEED
from tests.upgrades.samples import (
    CODEC,
    NODES,
    Release,
    Sample,
    accounts,
    client_of,
    found_cluster,
    newest,
    opened,
    previous_release,
    samples,
    seen,
    write_on,
)

LONG = bool(os.environ.get("OBJSTORE_LONG"))
WRITES = 400 if LONG else 20  # Acknowledged between two steps.
ATTEMPTS_MAX = 5  # What boto3 makes of one request by default,
PAUSE_S = 1.0  # and about how long it waits before it repeats one.
SHOWN_SECONDS = 60.0  # For the heartbeats to have asked everyone.
# The trash stays: what is in it is part of a sample.
SOON = {**RESTLESS, "OBJSTORE_UPKEEP__TRASH_DAYS": "36500"}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return previous_release(tmp_path_factory.mktemp("release") / "code")


def wait_for_versions(cluster: LocalCluster, version: str) -> None:
    """Until every machine has said of itself that it runs this release."""
    count = NODES + len(cluster.gateways)
    limit = time.monotonic() + SHOWN_SECONDS
    while True:
        status, answer = cluster.admin("GET", "/api/v1/cluster/members")
        if status == 200:
            # The sample's gateway of then is a member still, and away.
            shown = Counter(row["version"] for row in answer["members"])
            if shown[version] == count:
                assert set(shown) <= {version, ""}, f"seed {SEED}: {shown}"
                return
        assert time.monotonic() < limit, f"seed {SEED}: not all run {version}: {answer}"
        time.sleep(0.1)


def replace_one(cluster: LocalCluster, process: Process, load: Load) -> None:
    """Stop it in peace and start it with the code that `cluster.environment` names."""
    if process in cluster.members:
        cluster.stop([process])
        cluster.start_node(process)
        cluster.wait_for_disks(NODES)
        return
    others = [gateway for gateway in cluster.gateways if gateway is not process]
    if others:  # The load balancer sends no more to it. Its open connections are its own to end.
        load.port = others[0].ports[0]
    cluster.stop([process])
    cluster.start_gateway(gateway=process)
    # The first of two: both serve, one of either release, and each reads what the other has written.
    for one in others if process is cluster.gateway else []:
        for here, there in ((process, one), (one, process)):
            turn_to(here, load)
            load.work_until(WRITES)
            turn_to(there, load)
            load.check_everything()


def turn_to(gateway: Process, load: Load) -> None:
    """All clients' next connections go to this gateway."""
    with load.pause():
        load.port = gateway.ports[0]
        for client in load.clients:
            client.disconnect()


def roll(cluster: LocalCluster, processes: list[Process], load: Load) -> None:
    findings = load.findings
    for process in processes:
        before = findings.acknowledged
        replace_one(cluster, process, load)
        load.work_until(WRITES)
        assert findings.acknowledged >= before + WRITES, f"seed {SEED}: no writes after {process.name}"
        assert findings.broken == [], f"seed {SEED}: {process.name}: {findings.broken[:5]}"
    load.check_everything()
    assert findings.broken == [], f"seed {SEED}: {findings.broken[:5]}"


def upgrade(cluster: LocalCluster, before: Release, environment: dict[str, str]) -> None:
    """From `before` to today's release, under load; in the long form also back, and forth again."""
    print(f"seed {SEED}")
    forth = [*cluster.members, *cluster.gateways]
    back = [*cluster.gateways, *cluster.members]
    wait_for_versions(cluster, before.name)
    load = Load(
        port=cluster.port_of_s3,
        credentials=Credentials(*cluster.root),
        seed=SEED,
        clients=3,
        keys=10,
        multipart=LONG,
        pause_s=PAUSE_S,
    )
    rounds = 3 if LONG else 1
    with load:
        load.work_until(WRITES)
        for number in range(rounds):
            version = before.name if number % 2 else __version__
            cluster.environment = environment | before.environment if number % 2 else environment
            roll(cluster, back if number % 2 else forth, load)
            wait_for_versions(cluster, version)
    findings = load.findings
    print(f"{len(forth)} processes, {rounds} rounds: {load.report()}")
    assert findings.broken == [], f"seed {SEED}: {findings.broken[:5]}"
    if len(cluster.gateways) > 1:
        # "... s: METHOD /path: why". No key was asked for in vain more often than one request is repeated.
        failed = [*findings.read_failures, *findings.write_failures]
        attempts = Counter(line.split(" s: ", 1)[1].split(": ", 1)[0] for line in failed)
        assert all(count < ATTEMPTS_MAX * rounds for count in attempts.values()), f"seed {SEED}: {attempts}"


@pytest.mark.timeout(3600 if LONG else 300)
@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.name)
def test_a_cluster_of_every_release_reads_back_byte_for_byte_and_the_last_ones_is_upgraded_under_load(
    sample: Sample, before: Release, tmp_path: Path
) -> None:
    wanted = sample.manifest["cluster"]
    rolls = sample == newest()
    environment = SOON | before.environment if rolls else SOON
    with (
        postgres.database() as url,
        opened(sample, tmp_path / "cluster", url, gateways=2 if rolls else 1, environment=environment) as it,
    ):
        if rolls:
            upgrade(it, before, SOON)
        assert seen(client_of(it), but={"chaos"}) == wanted["seen"]
        assert accounts(it.admin) == wanted["accounts"]
        write_on(client_of(it))


if LONG:

    @pytest.mark.timeout(3600)
    def test_nodes_and_the_gateway_with_the_journal_are_upgraded_one_by_one_under_load(
        before: Release, tmp_path: Path
    ) -> None:
        cluster = LocalCluster(
            directory=tmp_path / "cluster",
            nodes=NODES,
            codec=CODEC,
            environment=RESTLESS | before.environment,
        )
        found_cluster(cluster, before)
        try:
            cluster.start()
            upgrade(cluster, before, RESTLESS)
        finally:
            cluster.close()
