"""Disks that come and go while the store runs, as an operator does it."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.server import Server, running_server

QUICK = {
    "OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.01",  # Repair every 0.6 s.
    "OBJSTORE_UPKEEP__REPAIR_GRACE_SECONDS": "3600",  # What goes sooner went because somebody said so.
}
# A committer that is told of a disk begins anew; on a starved machine that takes longer than a request waits.
PATIENT = {"mode": "standard", "max_attempts": 10}
WAIT_SECONDS = 120.0  # A starved machine; seconds otherwise (a volume is sealed 30 s after its last put).


def paths(root: Path, count: int) -> list[Path]:
    return [root / f"d{number}" for number in range(1, count + 1)]


def disks(server: Server) -> dict[int, dict[str, Any]]:
    status, found = server.admin("GET", "/api/v1/disks")
    assert status == 200, found
    return {disk["disk"]: disk for disk in found["disks"]}


def until(server: Server, done: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + WAIT_SECONDS
    while not done():
        assert time.monotonic() < limit, f"{what}: {disks(server)}\n{server.text()[-4000:]}"
        time.sleep(0.1)


def fill(server: Server, prefix: str, count: int = 12) -> dict[str, bytes]:
    s3 = server.boto3(retries=PATIENT)
    if not s3.list_buckets()["Buckets"]:
        s3.create_bucket(Bucket="kept")
    bodies = {f"{prefix}{n}": os.urandom(1 if n == 0 else 150_000 * (n % 3) + 9_000) for n in range(count)}
    for key, body in bodies.items():
        s3.put_object(Bucket="kept", Key=key, Body=body)
    return bodies


def seal(server: Server) -> None:
    """End workers and upkeep, and let others begin: a writer that ends seals its volumes."""
    before = server.children()
    for name, pid in before.items():
        if name != "committer":
            os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + WAIT_SECONDS
    while any(server.children()[name] == pid for name, pid in before.items() if name != "committer"):
        assert time.monotonic() < limit, server.text()[-4000:]
        time.sleep(0.05)
    server.wait_ready()


def check(server: Server, bodies: dict[str, bytes]) -> None:
    s3 = server.boto3()
    for key, body in bodies.items():
        assert s3.get_object(Bucket="kept", Key=key)["Body"].read() == body, key


def test_a_disk_is_added_replaced_drained_and_removed_while_the_store_serves(tmp_path: Path) -> None:
    root = tmp_path / "disks"
    places = paths(root, 9)
    with running_server(tmp_path, disks=places[:3], codec="1+2", environment=QUICK) as server:
        bodies = fill(server, "before")

        # Add: what holds something else is refused, whatever it is.
        places[3].mkdir()
        (places[3] / "somebody's").write_text("thesis")
        refused = server.command("disk", "add", str(places[3]), check=False)
        assert refused.returncode == 4, refused
        assert "holds something else (somebody's)" in refused.stderr
        (places[3] / "somebody's").unlink()
        assert server.command("disk", "add", str(places[0]), check=False).returncode == 4
        assert server.admin("POST", "/api/v1/disks", {"path": "relative"})[0] == 400
        [added] = json.loads(server.command("disk", "add", str(places[3]), "-o", "json").stdout)
        assert (added["disk"], added["state"], added["files"]) == (4, "healthy", 0)
        assert server.command("disk", "add", str(places[3]), check=False).returncode == 4, "it is one already"

        # Drain: the files move, reads go on, and no new ones come.
        server.command("disk", "drain", "2")
        assert disks(server)[2]["state"] == "draining"
        assert server.command("disk", "remove", "2", check=False).returncode == 4, "it is not empty"
        seal(server)  # Or half a minute after their last put.
        until(server, lambda: disks(server)[2]["files"] == 0, "the drained disk is not empty")
        bodies |= fill(server, "during")
        assert disks(server)[2]["files"] == 0
        assert disks(server)[4]["files"] > 0
        check(server, bodies)
        server.command("disk", "remove", "2")
        assert sorted(disks(server)) == [1, 3, 4]

        seal(server)
        # Replace a disk that is lost: the grace of an hour does not apply, since an operator said so.
        shutil.rmtree(places[0])
        until(server, lambda: disks(server)[1]["state"] == "missing", "the loss is not noticed")
        replaced = server.command("disk", "replace", "1", str(places[4]), "--wait", str(WAIT_SECONDS))
        assert "disk 1:" in replaced.stderr
        assert disks(server)[5]["state"] == "healthy", "a number of its own"
        assert disks(server)[5]["files"] > 0
        check(server, bodies)
        server.command("disk", "remove", "1")
        assert sorted(disks(server)) == [3, 4, 5]

    # What was done stands after a start, and a removed disk is not taken back unasked.
    with running_server(tmp_path, environment=QUICK, codec="1+2") as server:
        assert {number: disk["state"] for number, disk in disks(server).items()} == {
            3: "healthy", 4: "healthy", 5: "healthy"
        }  # fmt: skip
        check(server, bodies)
        check(server, fill(server, "after"))
        for place in (places[2], places[3], places[4]):
            identity = json.loads((place / "objstore.id").read_text())
            assert sorted([identity["number"], *(peer["number"] for peer in identity["peers"])]) == [3, 4, 5]
        assert server.admin("POST", "/api/v1/disks", {"path": str(places[5])})[1]["disk"] == 6, "not 1, not 2"
        server.kill()
    with running_server(tmp_path, environment=QUICK, codec="1+2") as server:
        assert sorted(disks(server)) == [3, 4, 5, 6]
        check(server, bodies)


def test_an_added_disk_takes_writes_of_every_worker_and_a_store_without_cluster_json_finds_it(
    tmp_path: Path,
) -> None:
    places = paths(tmp_path / "disks", 4)
    with running_server(tmp_path, disks=places[:3], codec="2+2", workers=2, environment=QUICK) as server:
        fill(server, "narrow", 3)
        committer = server.children()["committer"]
        server.command("disk", "add", str(places[3]))
        until(server, lambda: server.children()["committer"] not in (0, committer), "the journal stays")
        server.wait_ready()
        assert server.state["children"]["committer"]["restarts"] == 0, "started anew, not dead"
        # 2+2 needs four: new volumes get them, once the narrow ones are left.
        server.command("disk", "drain", "1")
        server.command("disk", "drain", "1", "--undo")
        assert disks(server)[1]["state"] == "healthy"
    with running_server(tmp_path, disks=places[:3], environment=QUICK, codec="2+2") as server:
        bodies = fill(server, "wide")
        assert disks(server)[4]["files"] > 0
    (tmp_path / "data" / "cluster.json").unlink()
    with running_server(tmp_path, disks=places, environment=QUICK, codec="2+2") as server:
        assert sorted(disks(server)) == [1, 2, 3, 4]
        check(server, bodies)


def test_a_lost_disk_is_forgotten_only_when_the_words_are_typed(tmp_path: Path) -> None:
    places = paths(tmp_path / "disks", 5)
    with running_server(tmp_path, disks=places[:5], codec="2+2", environment=QUICK) as server:
        bodies = fill(server, "b", 4)
        seal(server)
        refused = server.command("disk", "forget", "1", check=False)
        assert refused.returncode == 4
        assert "drain it instead" in refused.stderr
        places[0].rename(places[0].with_name("away"))
        until(server, lambda: disks(server)[1]["state"] == "missing", "the loss is not noticed")
        for confirm in ((), ("--confirm", "yes"), ("--confirm", "forget disk 2")):
            refused = server.command("disk", "forget", "1", *confirm, check=False)
            assert refused.returncode == 4, refused
            assert disks(server)[1]["state"] == "missing"
        done = server.command("disk", "forget", "1", "--confirm", "forget disk 1")
        assert "volumes have a fragment file on it" in done.stderr
        assert disks(server)[1]["state"] == "failed"
        until(server, lambda: disks(server)[1]["files"] == 0, "its files are not rebuilt elsewhere")
        check(server, bodies)

        # It comes back too late: not as what it was, and not as a new one before it is empty.
        places[0].with_name("away").rename(places[0])
        back = server.command("disk", "add", str(places[0]), check=False)
        assert (back.returncode, "disk 1, which was given up or removed" in back.stderr) == (4, True), back
        assert "objstore disk remove 1; restart the store" in back.stderr
        server.command("disk", "remove", "1")
        back = server.command("disk", "add", str(places[0]), check=False)
        assert "To make it a new disk: restart the store" in back.stderr, back
        assert json.loads(server.command("volume", "list", "--damaged", "-o", "json").stdout) == []
        [volume, *_] = json.loads(server.command("volume", "list", "-o", "json").stdout)
        shown = json.loads(server.command("volume", "show", str(volume["volume"]), "-o", "json").stdout)[0]
        assert [file["disk"] for file in shown["files"]] == volume["disks"]
        assert shown["facts"]["promise"] == "there is a device whose loss loses data"
        assert server.command("volume", "show", "4711", check=False).returncode == 1
        checked = json.loads(server.command("volume", "check", str(volume["volume"]), "-o", "json").stdout)[0]
        assert (checked["state"], checked["lost"], checked["checked"]) == ("done", [], 1)
    with running_server(tmp_path, environment=QUICK, codec="2+2") as server:
        assert sorted(disks(server)) == [2, 3, 4, 5]
        shutil.rmtree(places[0])
        places[0].mkdir()
        [new] = json.loads(server.command("disk", "add", str(places[0]), "-o", "json").stdout)
        assert (new["disk"], new["state"]) == (6, "healthy")
        check(server, bodies)
