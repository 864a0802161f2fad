"""The residency audit of two sites: proven, until somebody copies a file to where it must not lie."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from objstore.processes.dev import LocalCluster
from tests.processes.test_gateway import content, request
from tests.server import environment_for, run_command
from tests.waiting import LIMIT_S

SITES, NODES = 2, 4  # Two nodes a site: as many as 1+1 needs.
PIN = b"<CreateBucketConfiguration><LocationConstraint>%s</LocationConstraint></CreateBucketConfiguration>"
FRAGMENT = re.compile(r"([0-9]+)\.([0-9]+)")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    # Nothing removes a copy before it is looked for.
    calm = {"OBJSTORE_UPKEEP__ENABLED": "false"}
    made = LocalCluster(
        directory=tmp_path / "cluster", nodes=NODES, sites=SITES, codec="1+1", environment=calm
    )
    try:
        made.start()
        yield made
    finally:
        made.close()


def audited(cluster: LocalCluster, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the document."""
    done = run_command(
        "audit", "residency", *words, "--json", "--data", str(cluster.gateway.data),
        environment=environment_for(), check=False,
    )  # fmt: skip
    assert done.returncode in (0, 3, 4), done.stderr
    return done.returncode, json.loads(done.stdout)


def on_disks(cluster: LocalCluster) -> int:
    """Fragment files in the directories of all disks."""
    return sum(
        FRAGMENT.fullmatch(path.name) is not None
        for member in cluster.members
        for path in member.data.glob("disk*/fragments/*/*")
    )


def settled(cluster: LocalCluster) -> dict[str, Any]:
    """An inventory that is what lies in the directories: small bodies come there with a delay."""
    limit = time.monotonic() + LIMIT_S
    while True:
        code, found = audited(cluster)
        if found["counts"]["files"] == on_disks(cluster):
            assert code == 0
            return found
        assert time.monotonic() < limit, (found["counts"], on_disks(cluster))


def disk_of(cluster: LocalCluster, site: int) -> Path:
    """A disk of the first node at a site."""
    return cluster.members[site - 1].data / "disk1"


@pytest.mark.timeout(300)
def test_what_is_pinned_to_a_site_is_proven_to_lie_there_until_it_does_not(cluster: LocalCluster) -> None:
    assert request(cluster, "PUT", "/pinned", PIN % b"site-2")[0] == 200
    assert request(cluster, "PUT", "/free")[0] == 200
    for number in range(4):
        assert request(cluster, "PUT", f"/pinned/{number}", content(number))[0] == 200
        assert request(cluster, "PUT", f"/free/{number}", content(number))[0] == 200

    found = settled(cluster)
    assert (found["verdict"], found["reasons"]) == ("proven", [])
    pinned = [row for row in found["volumes"] if row["sites"] == ["site-2"]]
    assert pinned
    assert {file["site"] for row in pinned for file in row["files"]} == {"site-2"}
    assert any(file["name"].startswith("journal.") for file in found["metadata"])
    code, of_bucket = audited(cluster, "--bucket", "pinned")
    assert (code, of_bucket["sites"]) == (0, ["site-2"])
    assert {row["volume"] for row in of_bucket["volumes"]} == {row["volume"] for row in pinned}

    # A fragment file is copied by hand to a node of the other site; then it is trash there.
    volume, index = pinned[0]["volume"], pinned[0]["files"][0]["index"]
    [source] = [
        path for member in cluster.members for path in member.data.glob(f"disk*/fragments/*/{volume}.{index}")
    ]
    copy = disk_of(cluster, 1) / "fragments" / source.parent.name / source.name
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(source, copy)
    for trash in (False, True):
        if trash:
            copy.with_name(f"{copy.name}.retired.1").touch()
        code, found = audited(cluster)
        assert (code, found["verdict"]) == (4, "violated")
        [one] = found["forbidden"]
        assert (one["volume"], one["index"], one["site"], one["trash"]) == (volume, index, "site-1", trash)
        assert audited(cluster, "--bucket", "free")[0] == 0, "it is no file of that bucket"
    for path in copy.parent.glob(f"{copy.name}*"):
        path.unlink()

    # A node that does not answer leaves the proof open, and so does a file that is nobody's.
    nobodys = copy.with_name("999999.1")
    nobodys.write_bytes(b"whose?")
    cluster.stop([cluster.members[3]])
    code, found = audited(cluster)
    assert (code, found["verdict"]) == (3, "incomplete")
    assert [(one["volume"], one["site"]) for one in found["unknown"]] == [(999999, "site-1")]
    [away] = [place for place in found["places"] if place["unreachable"]]
    assert away["site"] == "site-2"
