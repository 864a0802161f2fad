"""A gateway with its disks on storage nodes: real processes, real mutual TLS, on the loopback."""

import hashlib
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.sigv4 import Credentials, Signer
from objstore.processes.dev import LocalCluster, Process
from tests.server import environment_for, run_command

NODES = 6
REFUSED_S = 60.0


def request(
    cluster: LocalCluster, method: str, path: str, body: bytes = b"", *, port: int = 0
) -> tuple[int, bytes]:
    """One signed request, one attempt. `port`: of another gateway than the first."""
    port = port or cluster.port_of_s3
    digest = hashlib.sha256(body).hexdigest()
    signer = Signer(Credentials(*cluster.root), f"127.0.0.1:{port}")
    head = signer.head(method, path, query="", payload_sha256=digest, size=len(body)).decode()
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def content(number: int) -> bytes:
    """Small ones that share stripes, and some of several stripes."""
    size = 9_000_000 if number % 10 == 0 else 1 + number * 997
    return hashlib.shake_128(b"%d" % number).digest(size)


def put(cluster: LocalCluster, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """As a client does: again where the store is not able to for the moment. A committer that is told of new
    disks begins anew, and on a starved machine that takes longer than a request waits for it."""
    limit = time.monotonic() + REFUSED_S
    while True:
        status, answer = request(cluster, "PUT", path, body)
        if status != 503 or time.monotonic() > limit:
            return status, answer
        time.sleep(0.1)


def store(cluster: LocalCluster, numbers: range) -> None:
    for number in numbers:
        status, answer = put(cluster, f"/bucket/{number}", content(number))
        assert status == 200, (number, status, answer[:300])


def check(cluster: LocalCluster, numbers: range) -> None:
    for number in numbers:
        status, answer = request(cluster, "GET", f"/bucket/{number}")
        assert status == 200, (number, status, answer[:300])
        assert answer == content(number), f"object {number} has other bytes"


def another_machine(old: LocalCluster, directory: Path) -> LocalCluster:
    """A gateway machine without anything but what an operator keeps of the old one."""
    data = directory / "gateway"
    data.mkdir(parents=True)
    for name in ("authority.json", "master.key"):
        shutil.copy(old.gateway.data / name, data / name)
    shutil.copy(old.directory / "root.json", directory / "root.json")
    made = LocalCluster(directory=directory, nodes=NODES, codec=old.codec)
    made.members = old.members
    return made


def ended(process: Process, seconds: float = 60.0) -> int:
    assert isinstance(process.running, subprocess.Popen)
    try:
        return process.running.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{process.name} does not end by itself:\n{process.words()}")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    made = LocalCluster(directory=tmp_path / "cluster", nodes=NODES)
    try:
        made.start()
        assert put(made, "/bucket")[0] == 200
        yield made
    finally:
        made.close()


@pytest.mark.timeout(240)
def test_what_a_gateway_acknowledged_lies_on_nodes_and_is_there_after_any_restart(
    cluster: LocalCluster,
) -> None:
    store(cluster, range(25))
    check(cluster, range(25))

    # Nothing of an object and nothing of the journal is needed from the gateway's machine.
    data = cluster.gateway.data
    assert list(data.glob("disk*/fragments/*/*")) == []
    for node in cluster.members:
        assert list(node.data.glob("disk1/fragments/*/*")) != [], f"no fragments on {node.name}"
    journals = [node.name for node in cluster.members if list(node.data.glob("disk1/logs/journal.*"))]
    assert len(journals) == 3, "m+1 copies of the journal, on nodes"

    cluster.stop([cluster.gateway])
    cluster.start_gateway()
    check(cluster, range(25))

    cluster.kill(cluster.gateway)
    shutil.rmtree(data / "meta")  # LMDB: the journal has it.
    cluster.start_gateway()
    check(cluster, range(25))

    # All at once, as a power cut takes them.
    for process in [cluster.gateway, *cluster.members]:
        cluster.kill(process)
    for node in cluster.members:
        cluster.start_node(node)
    cluster.start_gateway()
    cluster.wait_for_disks(NODES)
    check(cluster, range(25))
    store(cluster, range(25, 30))
    check(cluster, range(30))


def committer(cluster: LocalCluster) -> tuple[int, bool]:
    """Which process it is, and whether it is ready: new disks are told to a committer by starting it anew."""
    state = json.loads((cluster.gateway.data / "run" / "state.json").read_text())
    child = state["children"]["committer"]
    return child["pid"], child["ready"]


@pytest.mark.timeout(180)
def test_a_store_takes_and_gives_objects_from_when_the_last_node_that_it_needs_says_that_it_is_ready(
    tmp_path: Path,
) -> None:
    new = LocalCluster(directory=tmp_path, nodes=3, codec="1+2", workers=2)
    settings = environment_for(OBJSTORE_BLOBS__CODEC=new.codec)
    run_command("cluster", "init", "--data", str(new.gateway.data), environment=settings)
    try:
        new.start_gateway()
        assert request(new, "PUT", "/bucket")[0] == 200
        assert request(new, "PUT", "/bucket/0", content(1))[0] == 503, "there is no disk for it yet"
        for node in new.members:
            new.start_node(node)
        limit = time.monotonic() + 60
        while not all("Ready after" in node.log.read_text() for node in new.members):
            assert time.monotonic() < limit, [node.words() for node in new.members]
            time.sleep(0.01)
        stored = 0
        while stored < 20:  # Each request over a connection of its own: both workers get some.
            before = committer(new)
            status, answer = request(new, "PUT", f"/bucket/{stored}", content(stored))
            if status == 503 and (before != committer(new) or not before[1]):
                assert time.monotonic() < limit
                continue  # For want of a committer, not of disks: on a slow machine it may be away for long.
            assert status == 200, (stored, answer)
            check(new, range(stored, stored + 1))
            stored += 1
    finally:
        new.close()


@pytest.mark.timeout(240)
def test_another_machine_takes_over_with_every_object_and_the_one_before_stops(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    store(cluster, range(12))

    # The machine is lost with all its data but the two files.
    second = another_machine(cluster, tmp_path / "second")
    cluster.kill(cluster.gateway)
    shutil.rmtree(cluster.gateway.data)
    address = cluster.members[3].command[2].removeprefix("--listen=")
    try:
        second.start_gateway(f"--recover={address}")
        check(second, range(12))
        store(second, range(12, 15))

        # And now a machine that is not lost: both run.
        third = another_machine(second, tmp_path / "third")
        try:
            third.start_gateway(f"--recover={address}")
            check(third, range(15))
            assert ended(second.gateway) == 1
            assert "another gateway machine has taken over" in second.gateway.log.read_text()
            store(third, range(15, 18))

            # Started again by itself, as by systemd, it does not take the cluster back.
            second.start_gateway(wait=False)
            assert ended(second.gateway) == 1
            check(third, range(18))

            third.stop([third.gateway])
            third.start_gateway()  # No --recover: it is the cluster's gateway now.
            check(third, range(18))
        finally:
            third.stop([third.gateway])
    finally:
        second.stop([second.gateway])


@pytest.mark.timeout(180)
def test_a_store_of_one_machine_becomes_a_cluster_with_disks_here_and_there(tmp_path: Path) -> None:
    grown = LocalCluster(directory=tmp_path, nodes=3)
    as_gateway = grown.gateway.command
    alone = ["serve", *(word for word in as_gateway[1:] if not word.startswith("--cluster-listen"))]
    try:
        grown.gateway.command = alone
        grown.start_gateway()
        assert request(grown, "PUT", "/bucket")[0] == 200
        store(grown, range(12))
        grown.stop([grown.gateway])

        run_command("cluster", "init", "--data", str(grown.gateway.data))
        grown.gateway.command = as_gateway
        grown.start_gateway()
        for node in grown.members:
            grown.start_node(node)
        grown.wait_for_disks(6 + 3)
        store(grown, range(12, 20))
        check(grown, range(20))
        grown.stop([grown.gateway])

        # Its journal names a term now; without it nobody would be fenced.
        grown.gateway.command = alone
        grown.start_gateway(wait=False)
        assert ended(grown.gateway) != 0
        assert "start it with objstore gateway" in grown.gateway.words()

        # All metadata goes, the journal too; what the disks of nodes hold is found with the rest.
        grown.gateway.command = as_gateway
        done = run_command("meta", "rebuild", "--yes", "--data", str(grown.gateway.data), check=False)
        assert "objects\t20" in done.stdout, done.stdout + done.stderr
    finally:
        grown.close()


@pytest.mark.timeout(120)
def test_a_gateway_without_its_authority_or_with_a_node_that_does_not_answer_says_what_is_missing(
    tmp_path: Path,
) -> None:
    alone = LocalCluster(directory=tmp_path, nodes=1)
    alone.start_gateway(wait=False)
    assert ended(alone.gateway) != 0
    assert "objstore cluster init" in alone.gateway.words()

    alone.start_gateway("--recover=127.0.0.1:1", wait=False)
    assert ended(alone.gateway) != 0
    assert "master key" in alone.gateway.words()

    (alone.gateway.data / "master.key").write_text("00" * 32 + "\n")
    alone.start_gateway("--recover=127.0.0.1:1", wait=False)
    assert ended(alone.gateway) != 0
    assert "authority.json" in alone.gateway.words()
