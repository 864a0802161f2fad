"""A tenant's end in a real store: what was in its files is in none of them any more.

Short form: what is refused. Long form (OBJSTORE_LONG=1): until it is proven, which takes some rounds of every
service; on one machine, on storage nodes, and behind two gateways on PostgreSQL.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner, Result

from objstore.cli.main import app
from objstore.processes.dev import LocalCluster
from tests.chaos.workload import RESTLESS
from tests.clusters import ENGINES, NODES, Front, fronts_of, running_cluster
from tests.preload import preload_library
from tests.server import ROOT, Server, running_server
from tests.waiting import wait_until

MIB: Final = 1024 * 1024
MARK: Final = b"what the leaving tenant has stored, again and again. " * 400
OURS: Final = os.urandom(30_000)


def run(server: Server | Front, *words: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, [*words, "--data", str(server.data)], input=typed)


def say(server: Server | Front, *words: str) -> Any:
    done = run(server, *words, "-o", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)[0]


def leave(server: Server | Front, tenant: str) -> Any:
    """A customer with an object, whose time to take it along is over; a client of its own."""
    say(server, "seller", "create", f"seller-of-{tenant}", "--set", "name=S", "--set", "address=1",
        "--set", "country=DZ", "--set", "reversibility_days=0")  # fmt: skip
    say(server, "tenant", "create", tenant, "--kind", "tpe_pme", "--set", f"seller=seller-of-{tenant}")
    say(server, "user", "create", f"user-of-{tenant}", "--tenant", tenant)
    key = say(server, "key", "create", f"user-of-{tenant}")
    s3 = server.boto3(key["access_key"], key["secret_key"])
    s3.create_bucket(Bucket=f"bucket-of-{tenant}")
    for number in range(20):
        s3.put_object(Bucket=f"bucket-of-{tenant}", Key=f"secret-name/{number}", Body=MARK)
    return s3


def test_only_who_is_terminating_is_purged_and_only_once_its_name_was_typed(store_server: Server) -> None:
    leave(store_server, "hasty")
    refused = run(store_server, "tenant", "purge", "hasty", "--yes")
    assert (refused.exit_code, "only who is terminating" in str(refused.exception)) == (1, True)
    say(store_server, "tenant", "state", "hasty", "terminating", "--yes")
    unasked = run(store_server, "tenant", "purge", "hasty")
    assert (unasked.exit_code, "20 objects in 1 buckets" in unasked.output) == (4, True)
    shown = store_server.admin("GET", "/api/v1/tenants/hasty/purge")[1]
    assert (shown["state"], shown["proof"]) == ("none", None)
    assert run(store_server, "tenant", "state", "hasty", "purged", "--yes").exit_code != 0
    assert store_server.admin("GET", "/api/v1/tenants/hasty")[1]["use"]["objects"] == 20


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_it_had_stored_is_in_no_fragment_file_any_more(tmp_path: Path) -> None:
    with running_server(tmp_path, environment=RESTLESS) as server:
        ours = server.boto3()
        ours.create_bucket(Bucket="ours")
        leave(server, "leaving")
        for number in range(20):
            ours.put_object(Bucket="ours", Key=str(number), Body=OURS)
        assert holding(tmp_path) > 0
        say(server, "tenant", "state", "leaving", "terminating", "--yes")
        place = tmp_path / "proof.json"
        done = run(server, "tenant", "purge", "leaving", "--yes", "--wait", "600", "--proof", str(place))
        assert done.exit_code == 0, done.output
        proof = json.loads(place.read_text())
        assert (proof["verdict"], proof["held"]["objects"]) == ("proven", 20)
        assert holding(tmp_path) == 0
        for number in range(20):
            assert ours.get_object(Bucket="ours", Key=str(number))["Body"].read() == OURS
        assert say(server, "tenant", "show", "leaving")["state"] == "purged"


def holding(place: Path) -> int:
    """Fragment files, trash among them, that hold bytes of the tenant's objects."""
    return len(files_with(place, "fragments/*/*", MARK[:53]))


def files_with(place: Path, pattern: str, mark: bytes) -> list[str]:
    """Names of files that hold it, of each disk's."""
    found = []
    for path in place.rglob(pattern):
        try:
            if mark in path.read_bytes():
                found.append(path.name)
        except FileNotFoundError:
            continue  # Removed meanwhile.
    return found


# Clusters.

# Slower than RESTLESS: seven processes look at each other.
SOON: Final = {name: value for name, value in RESTLESS.items() if name != "OBJSTORE_UPKEEP__SCRUB_DAYS"} | {
    "OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.01",
    "OBJSTORE_CLUSTER__AWAY_SECONDS": "3",
}
NEWS_S: Final = 240.0


HOURS_S: Final = 2 * 3_600  # Parts of uploads are swept an hour later, whatever the periods.


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """By how many seconds the clocks of a cluster are ahead."""
    place = tmp_path / "clock"
    place.write_bytes(bytes(8))
    return place


@pytest.fixture(params=ENGINES)
def cluster(request: pytest.FixtureRequest, tmp_path: Path, clock: Path) -> Iterator[LocalCluster]:
    library = preload_library(ROOT / "tests" / "chaos" / "clock.c", tmp_path)
    environment = SOON | {"LD_PRELOAD": str(library), "TEST_CLOCK": str(clock)}
    with running_cluster(request.param, tmp_path / "cluster", environment=environment) as made:
        yield made


def step(clock: Path, seconds: int) -> None:
    with clock.open("r+b") as file:  # It is mapped.
        file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


def purge_of(front: Front, tenant: str) -> Any:
    """How far it is; nothing while nobody answers."""
    status, found = front.admin("GET", f"/api/v1/tenants/{tenant}/purge")
    return found if status == 200 else {"state": "", "waiting": "", "proof": None}


def leads(front: Front) -> bool:
    """Whether it does the upkeep."""
    status, found = front.admin("GET", "/api/v1/upkeep")
    return status == 200 and bool(found["claim_held"])


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_on_storage_nodes_nothing_is_proven_before_every_node_has_answered(
    cluster: LocalCluster, clock: Path
) -> None:
    fronts = fronts_of(cluster)
    first, last = fronts[0], fronts[-1]
    ours = first.boto3()
    ours.create_bucket(Bucket="ours")
    s3 = leave(first, "leaving")
    elsewhere = last.boto3(*key_of(s3))
    for number in range(20):
        ours.put_object(Bucket="ours", Key=str(number), Body=OURS)
        elsewhere.put_object(Bucket="bucket-of-leaving", Key=f"secret-name/there/{number}", Body=MARK)
    upload_parts(elsewhere, "bucket-of-leaving")
    assert holding(cluster.directory) > 0

    away = cluster.members[0]
    cluster.kill(away)
    say(last, "tenant", "state", "leaving", "terminating", "--yes")
    assert run(last, "tenant", "purge", "leaving", "--yes").exit_code == 3

    def found() -> Any:
        return purge_of(last, "leaving")

    wait_until(lambda: found()["state"] == "clearing", found, limit_s=NEWS_S)
    step(clock, HOURS_S)
    wait_until(lambda: "did not answer" in found()["waiting"], found, limit_s=NEWS_S)
    assert found()["state"] == "clearing"
    if len(fronts) > 1:  # Another one goes on with it.
        leading = next(one for one in fronts if leads(one))
        cluster.kill(leading.gateway)
        last = next(one for one in fronts if one is not leading)
        wait_until(lambda: leads(last), last.gateway.words, limit_s=NEWS_S)
    cluster.start_node(away)
    wait_until(lambda: found()["state"] == "proven", found, limit_s=NEWS_S)

    proof = found()["proof"]
    assert (proof["verdict"], proof["held"]["objects"]) == ("proven", 41)
    assert proof["inventory"]["disks"] == NODES
    assert holding(cluster.directory) == 0
    named = {words.partition(": ")[2] for words in proof["remains"]["files_of_metadata"]}
    logs = files_with(cluster.directory, "logs/*", b"secret-name")
    assert len(logs) <= proof["remains"]["their_number"]
    if proof["remains"]["their_number"] == len(proof["remains"]["files_of_metadata"]):  # All are named.
        assert set(logs) <= named
    assert (proof["metadata"] == "PostgreSQL") == bool(cluster.url)
    assert bool(named) == (not cluster.url)
    step(clock, 0)  # As the client's.
    reader = last.boto3()
    for number in range(20):
        assert reader.get_object(Bucket="ours", Key=str(number))["Body"].read() == OURS
    assert say(last, "tenant", "show", "leaving")["state"] == "purged"


def key_of(s3: Any) -> tuple[str, str]:
    """What a client signs with."""
    given = s3._request_signer._credentials
    return given.access_key, given.secret_key


def upload_parts(s3: Any, bucket: str) -> None:
    """An object of two parts, and two parts of an upload that is never completed."""
    part = MARK * (5 * MIB // len(MARK) + 1)
    for complete in (True, False):
        of = {"Bucket": bucket, "Key": f"secret-name/parts/{complete}"}
        of["UploadId"] = s3.create_multipart_upload(**of)["UploadId"]
        sent = [
            {"PartNumber": number, "ETag": s3.upload_part(**of, PartNumber=number, Body=part)["ETag"]}
            for number in (1, 2)
        ]
        if complete:
            s3.complete_multipart_upload(**of, MultipartUpload={"Parts": sent})
