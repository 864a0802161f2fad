"""Two sites: what is pinned to one never lies on the other, whatever is written, lost or planned anew."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from objstore.processes.dev import LocalCluster
from tests.processes.test_gateway import content, request
from tests.server import environment_for, run_command

SITES, NODES = 2, 6  # Three nodes a site: one more than 1+1 needs.
WAIT_S = 120.0
LONG = bool(os.environ.get("OBJSTORE_LONG"))
QUICK = {
    "OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.01",
    "OBJSTORE_UPKEEP__REPAIR_GRACE_SECONDS": "0",
    "OBJSTORE_CLUSTER__AWAY_SECONDS": "3",
    "OBJSTORE_META__SITES": "site-1",
}
PINNED = b"<CreateBucketConfiguration><LocationConstraint>%s</LocationConstraint></CreateBucketConfiguration>"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    made = LocalCluster(
        directory=tmp_path / "cluster",
        nodes=NODES,
        sites=SITES,
        codec="1+1",
        environment=QUICK,
    )
    try:
        made.start()
        yield made
    finally:
        made.close()


def told(cluster: LocalCluster, *words: str, check: bool = True) -> str:
    """What the command line says to people."""
    done = run_command(
        *words, "--data", str(cluster.gateway.data), environment=environment_for(), check=check
    )
    return done.stdout + done.stderr


def asked(cluster: LocalCluster, path: str) -> Any:
    status, answer = cluster.admin("GET", path)
    assert status == 200, (status, answer)
    return answer


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def files_at(cluster: LocalCluster, site: int) -> set[str]:
    """Fragment files on the disks of a site's nodes: an inventory of directories, not of metadata."""
    members = cluster.members[site - 1 :: SITES]
    return {path.name for member in members for path in member.data.glob("disk*/fragments/*/*")}


def journals_at(cluster: LocalCluster, site: int) -> list[str]:
    members = cluster.members[site - 1 :: SITES]
    return [str(path) for member in members for path in member.data.glob("disk*/logs/journal.*")]


def pinned(cluster: LocalCluster) -> dict[int, dict[str, Any]]:
    """The volumes of the policy site-2."""
    rows = asked(cluster, "/api/v1/volumes")["volumes"]
    shown = {row["volume"]: asked(cluster, f"/api/v1/volumes/{row['volume']}") for row in rows}
    return {volume: one for volume, one in shown.items() if one["facts"]["policy"] == "site-2"}


def names(volumes: dict[int, dict[str, Any]]) -> set[str]:
    return {f"{volume}.{file['file']}" for volume, one in volumes.items() for file in one["files"]}


def site_of_disks(cluster: LocalCluster) -> dict[int, str]:
    machines = {row["machine"]: row["site"] for row in asked(cluster, "/api/v1/layout")["machines"]}
    return {row["disk"]: machines[row["node"]] for row in asked(cluster, "/api/v1/disks")["disks"]}


def lose_a_node(cluster: LocalCluster) -> None:
    """What it held is made anew at the same site, although the other has room."""
    cluster.stop([cluster.gateway])  # It seals its volumes.
    cluster.start_gateway()
    victim = next(iter(pinned(cluster).values()))["files"][0]["disk"]
    node = next(row["node"] for row in asked(cluster, "/api/v1/disks")["disks"] if row["disk"] == victim)
    cluster.kill(next(member for member in cluster.members if member.name == node))

    def repaired() -> bool:
        return all(file["disk"] != victim for one in pinned(cluster).values() for file in one["files"])

    until(repaired, "the lost files of the site were not made anew")
    assert names(pinned(cluster)).isdisjoint(files_at(cluster, 1))
    for number in range(6):
        assert request(cluster, "GET", f"/pinned/{number}") == (200, content(number))


def follow_the_layout(cluster: LocalCluster) -> None:
    """Sealed volumes go where the layout says."""

    def moved() -> bool:
        sites = site_of_disks(cluster)
        used = {file["disk"] for one in pinned(cluster).values() for file in one["files"]}
        return {sites[number] for number in used} == {"site-1"}

    until(moved, "the volumes did not follow the layout")
    assert names(pinned(cluster)) <= files_at(cluster, 1)


@pytest.mark.timeout(900 if LONG else 280)
def test_a_bucket_of_a_site_lies_there_and_is_written_elsewhere_only_when_the_layout_says_so(
    cluster: LocalCluster,
) -> None:
    assert request(cluster, "PUT", "/pinned", PINNED % b"site-2")[0] == 200
    status, answer = request(cluster, "PUT", "/nowhere", PINNED % b"site-9")
    assert (status, b"LocationConstraint" in answer) == (400, True)
    assert request(cluster, "PUT", "/bucket")[0] == 200
    for number in range(6):
        assert request(cluster, "PUT", f"/pinned/{number}", content(number))[0] == 200
        assert request(cluster, "PUT", f"/bucket/{number}", content(number))[0] == 200

    volumes = pinned(cluster)
    assert volumes
    assert names(volumes) <= files_at(cluster, 2)
    assert names(volumes).isdisjoint(files_at(cluster, 1))
    assert journals_at(cluster, 1)
    assert journals_at(cluster, 2) == [], "keys and names are metadata, which is kept to site-1"

    if LONG:
        lose_a_node(cluster)

    # Another layout: staged, planned, applied; only now the bytes move.
    assert "version 1 is staged" in told(cluster, "layout", "policy", "site-2", "--sites", "site-1")
    plan = json.loads(told(cluster, "layout", "plan", "-o", "json"))[0]
    rows = {row["policy"]: row for row in plan["policies"]}
    assert rows["site-2"]["files_to_move"] == len(names(pinned(cluster)))
    assert rows["site-2"]["buckets"] == 1
    assert names(pinned(cluster)).isdisjoint(files_at(cluster, 1)), "a plan moves nothing"
    assert "not 7" in told(cluster, "layout", "apply", "--version", "7", check=False)
    assert "version 1 is in force" in told(cluster, "layout", "apply", "--version", "1")

    def written_there() -> bool:
        assert request(cluster, "PUT", "/pinned/new", content(1))[0] == 200
        return not names(pinned(cluster)).isdisjoint(files_at(cluster, 1))

    until(written_there, "open volumes did not leave the disks that they may not be on any more")
    if LONG:
        follow_the_layout(cluster)
    for number in range(6):
        assert request(cluster, "GET", f"/pinned/{number}") == (200, content(number))
    assert "site none, rack none, node spare" in told(cluster, "layout", "show")
