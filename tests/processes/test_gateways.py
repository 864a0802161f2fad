"""Several gateways on the same nodes, their metadata in PostgreSQL: no committer, no disk of their own."""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from objstore.blobs.volumes import NOBODY, VolumeState
from objstore.meta.kv_postgres import PostgresKv
from objstore.objects.ledger import MetaLedger
from objstore.processes.dev import LocalCluster, Process
from tests.chaos.workload import RESTLESS
from tests.postgres import PostgresServer
from tests.processes.test_gateway import another_machine, content, ended, request

NODES = 6
MOVED_S = 90.0  # A claim is taken after 15 s of silence, a writer is dead after 30.


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    server = PostgresServer()
    made: LocalCluster | None = None
    try:
        server.start()
        made = LocalCluster(
            directory=tmp_path / "cluster",
            nodes=NODES,
            gateway_count=2,
            url=server.url(),
            environment=RESTLESS,
        )
        made.start()
        yield made
    finally:
        if made is not None:
            made.close()
        server.remove()


def through(cluster: LocalCluster, gateway: Process, method: str, path: str, body: bytes = b"") -> Any:
    """One request to this gateway."""
    return request(cluster, method, path, body, port=gateway.ports[0])


def upkeep(cluster: LocalCluster, gateway: Process) -> dict[str, Any]:
    status, answer = cluster.admin("GET", "/api/v1/upkeep", gateway=gateway)
    return answer if status == 200 else {"claim_held": None, "intents": None}


def writers(gateway: Process) -> set[bytes]:
    """Of the processes of a gateway that runs."""
    state = json.loads((gateway.data / "run" / "state.json").read_text())
    return {bytes.fromhex(child["note"]) for child in state["children"].values()}


def open_volumes(url: str, writers: set[bytes]) -> list[int]:
    """Volumes that these writers could go on writing to, or that are just being sealed for one."""

    async def ask() -> list[int]:
        kv = PostgresKv(url, readers=1)
        await kv.start()
        try:
            records = await MetaLedger(kv).volumes(0)
        finally:
            await kv.close()
        return [
            one.id for one in records if one.state == VolumeState.OPEN and one.writer in {*writers, NOBODY}
        ]

    return asyncio.run(ask())


@pytest.mark.timeout(300)
def test_gateways_share_everything_and_when_one_dies_another_does_its_repairs(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    first, second = cluster.gateways
    for gateway in cluster.gateways:
        assert "committer" not in (gateway.data / "run" / "state.json").read_text()
        assert not list(gateway.data.glob("disk*"))

    # What one has acknowledged, the other has.
    assert through(cluster, first, "PUT", "/bucket")[0] == 200
    for number in range(24):
        here, there = (first, second) if number % 2 else (second, first)
        assert through(cluster, here, "PUT", f"/bucket/{number}", content(number))[0] == 200
        assert through(cluster, there, "GET", f"/bucket/{number}") == (200, content(number))
    assert through(cluster, second, "DELETE", "/bucket/0")[0] == 204
    assert through(cluster, first, "GET", "/bucket/0")[0] == 404

    # One of them holds the claim on the upkeep.
    held = [gateway for gateway in cluster.gateways if upkeep(cluster, gateway)["claim_held"]]
    assert len(held) == 1
    [holder] = held
    [other] = [gateway for gateway in cluster.gateways if gateway is not holder]
    dead = writers(holder)
    assert open_volumes(cluster.url, dead)
    cluster.kill(holder)
    for number in range(24, 30):
        assert through(cluster, other, "PUT", f"/bucket/{number}", content(number))[0] == 200
    lost = cluster.members[0]
    cluster.kill(lost)
    shutil.rmtree(lost.data / "disk1" / "fragments")
    for low in range(256):
        (lost.data / "disk1" / "fragments" / f"{low:02x}").mkdir(parents=True)
    cluster.start_node(lost)
    # What lives seals its damaged volumes in 30 s; one that ends in peace does it at once.
    state = json.loads((other.data / "run" / "state.json").read_text())
    dead.add(bytes.fromhex(state["children"]["worker-1"]["note"]))
    os.kill(state["children"]["worker-1"]["pid"], signal.SIGTERM)

    def mended() -> bool:
        status, damaged = cluster.admin("GET", "/api/v1/volumes?damaged=true", gateway=other)
        found = upkeep(cluster, other)
        return (
            bool(found["claim_held"])
            and found["intents"] == 0
            and not open_volumes(cluster.url, dead)
            and (status, damaged) == (200, {"volumes": []})
        )

    limit = time.monotonic() + MOVED_S
    while not mended():
        assert time.monotonic() < limit, f"{upkeep(cluster, other)}\n{other.words()}"
        time.sleep(0.2)
    for node in cluster.members[1:3]:  # Any two others: what was rebuilt counts.
        cluster.kill(node)
    for number in range(1, 30):
        assert through(cluster, other, "GET", f"/bucket/{number}") == (200, content(number))
    for node in cluster.members[1:3]:
        cluster.start_node(node)

    # The dead one comes back, as one of two.
    cluster.start_gateway(gateway=holder)
    assert through(cluster, holder, "GET", "/bucket/1") == (200, content(1))
    assert through(cluster, holder, "PUT", "/bucket/back", b"again")[0] == 200
    assert through(cluster, other, "GET", "/bucket/back") == (200, b"again")

    # Who would take over from a journal is told that there is none.
    address = cluster.members[0].command[2].removeprefix("--listen=")
    alone = another_machine(cluster, tmp_path / "alone")
    alone.start_gateway(f"--recover={address}", wait=False)
    assert ended(alone.gateway) == 1
    assert "this cluster's metadata is in PostgreSQL" in alone.gateway.words()

    # Removed while it serves, it stops, and harms nobody: the nodes take nothing from it.
    assert holder.running is not None
    assert cluster.admin("POST", f"/api/v1/cluster/members/{holder.name}/remove", {}, gateway=other)[0] == 200
    assert holder.running.wait(MOVED_S) == 1
    assert "was removed from the cluster" in holder.words()
    assert through(cluster, other, "PUT", "/bucket/after", b"alone")[0] == 200
