"""A storage node's process: which disks it takes, what it never formats, how it starts, serves and ends."""

import json
import os
import shutil
import signal
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from objstore.config import Config, Disks, Server
from objstore.node import authority as ca
from objstore.node import tls
from objstore.node.authority import NODE, Name
from objstore.node.identity import make_identity, read_identity
from objstore.node.local import format_disk
from objstore.node.membership import Machine, Registered, Registration
from objstore.node.syscalls import RealSyscalls
from objstore.node.tls import Credentials, Trust
from objstore.processes import node as node_process
from objstore.processes.cluster import CannotStart
from objstore.processes.dev import LocalCluster, Process
from objstore.processes.founding import init
from objstore.processes.joining import NoGateway
from objstore.processes.node import NodeDisk
from tests.processes.test_gateway import check, request, store
from tests.server import run_command, wait_gone

CLUSTER = bytes(range(16))
ABOUT = Machine(name="n1", addresses=["127.0.0.1:9"])
OS = RealSyscalls()
WAIT_S = 60.0


class FakeGateway:
    """Numbers disks as they come, and remembers what it was told."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.formatted: set[str] = set()
        self.away = False
        self.asked = 0

    def register(self, credentials: Credentials, request: Registration) -> Registered:
        self.asked += 1
        if self.away:
            raise NoGateway("connection refused")
        request.check()
        for disk in request.disks:
            self.numbers.setdefault(disk.uuid, len(self.numbers) + 1)
            if disk.formatted:
                self.formatted.add(disk.uuid)
        known = {disk.uuid: self.numbers[disk.uuid] for disk in request.disks}
        return Registered(numbers=known, checksum_secret="00000000000000ff", epoch=5)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    fake = FakeGateway()
    monkeypatch.setattr(node_process.joining, "register", fake.register)
    return fake


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    now_us = time.time_ns() // 1000
    authority = ca.make_authority(CLUSTER, 7, now_us)
    key = ca.make_key()
    directory = tmp_path / "data" / "tls"
    directory.mkdir(parents=True)
    issued = authority.issue(key.public_key(), Name(CLUSTER, NODE, b"\1" * 16), now_us)
    tls.save_identity(directory, ca.key_to_pem(key), ca.to_pem(issued))
    root = authority.signing
    tls.save_trust(directory, Trust(cluster=CLUSTER.hex(), number=0, roots=[root.pem], signer=root.name))
    return Credentials(directory)


@pytest.fixture
def disks(tmp_path: Path, credentials: Credentials) -> Callable[..., list[NodeDisk]]:
    def open_with(*paths: Path) -> list[NodeDisk]:
        config = Config(server=Server(), disks=Disks(paths=[str(path) for path in paths]))
        return node_process._disks(config, tmp_path / "data", credentials, ABOUT)

    return open_with


Open = Callable[..., list[NodeDisk]]


def numbers(found: list[NodeDisk]) -> list[int]:
    return [disk.number for disk in found]


# Which disks.


def test_new_paths_get_numbers_and_identities_without_the_master_key(
    gateway: FakeGateway, disks: Open, tmp_path: Path
) -> None:
    found = disks(tmp_path / "a", tmp_path / "b")
    assert numbers(found) == [1, 2]
    for disk in found:
        identity = read_identity(disk.path, OS)
        assert (identity.number, identity.uuid, identity.cluster_id) == (disk.number, disk.uuid, CLUSTER)
        assert (identity.secret, identity.master_key, identity.epoch) == (255, "", 5)
        assert [peer.number for peer in identity.peers] == [3 - disk.number]
    assert gateway.formatted == {disk.uuid for disk in found}


def test_a_later_start_needs_no_gateway_and_no_paths(
    gateway: FakeGateway, disks: Open, tmp_path: Path
) -> None:
    first = disks(tmp_path / "a", tmp_path / "b")
    gateway.away = True
    asked = gateway.asked
    assert disks() == first
    assert disks(tmp_path / "b", tmp_path / "a") == first
    assert gateway.asked == asked


def test_a_disk_is_added_by_naming_its_path_at_a_later_start(
    gateway: FakeGateway, disks: Open, tmp_path: Path
) -> None:
    disks(tmp_path / "a")
    assert numbers(disks(tmp_path / "a", tmp_path / "b")) == [1, 2]
    assert numbers(disks(tmp_path / "c")) == [1, 2, 3]
    gateway.away = True
    with pytest.raises(CannotStart, match="new disks no numbers: connection refused"):
        disks(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_path_that_has_lost_its_disk_is_never_formatted(
    gateway: FakeGateway, disks: Open, tmp_path: Path
) -> None:
    disks(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    (tmp_path / "a").mkdir()  # As an empty mount point.
    for _ in range(2):
        # Also not when another, new disk is formatted in the same start.
        found = disks(tmp_path / "a", tmp_path / "b", tmp_path / "c")
        assert numbers(found) == [1, 2, 3]
        assert os.listdir(tmp_path / "a") == []
    # And where it turned up, it is known again.
    moved = disks(tmp_path / "elsewhere", tmp_path / "b")
    assert next(disk.path for disk in moved if disk.number == 1) == str(tmp_path / "elsewhere")


@pytest.mark.parametrize("step", ["register", "format", "record", "register again"])
def test_a_first_start_cut_short_at_any_step_is_finished_by_the_next(
    gateway: FakeGateway, disks: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Cut(Exception):
        pass

    def cut(*_: Any) -> Any:
        raise Cut

    with monkeypatch.context() as patch:
        if step == "register":
            patch.setattr(node_process.joining, "register", cut)
        elif step == "format":
            real = node_process.format_disk

            def second(path: str, identity: Any) -> None:
                if path.endswith("b"):
                    raise Cut
                real(path, identity)

            patch.setattr(node_process, "format_disk", second)
        else:
            written, registered = node_process._write_record, gateway.register
            calls: list[int] = []

            def nth(function: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any) -> Any:
                    calls.append(1)
                    if len(calls) == 2:
                        raise Cut
                    return function(*arguments)

                return call

            if step == "record":
                patch.setattr(node_process, "_write_record", nth(written))
            else:
                patch.setattr(node_process.joining, "register", nth(registered))
        with pytest.raises(Cut):
            disks(tmp_path / "a", tmp_path / "b")
    before = dict(gateway.numbers)
    found = disks(tmp_path / "a", tmp_path / "b")
    assert numbers(found) == [1, 2]
    for disk in found:
        assert read_identity(disk.path, OS).number == disk.number
    assert before.items() <= gateway.numbers.items()
    assert len(gateway.numbers) == 2, "no number was spent on the start that was cut short"
    if step in ("record", "register again"):  # Nothing is left to do before the port opens: the server tells.
        assert gateway.formatted == set()
    else:
        assert gateway.formatted == {disk.uuid for disk in found}


def test_what_is_not_this_clusters_or_holds_something_else_is_left_alone(
    gateway: FakeGateway, disks: Open, tmp_path: Path
) -> None:
    foreign, full = tmp_path / "foreign", tmp_path / "full"
    format_disk(str(foreign), make_identity(cluster=b"o" * 16, uuid=b"u" * 16, number=1, checksum_secret=1))
    full.mkdir()
    (full / "thesis").write_text("mine")
    with pytest.raises(CannotStart, match="belongs to another store"):
        disks(foreign)
    with pytest.raises(CannotStart, match="holds something else"):
        disks(full)
    with pytest.raises(CannotStart, match="names the same directory twice"):
        disks(tmp_path / "a", tmp_path / "b" / ".." / "a")
    with pytest.raises(CannotStart, match="at least one disk"):
        disks()
    assert gateway.asked == 0


def test_a_disk_of_the_cluster_that_was_carried_here_keeps_its_number(
    gateway: FakeGateway, disks: Open, tmp_path: Path
) -> None:
    disks(tmp_path / "a")
    uuid = b"\7" * 16
    format_disk(
        str(tmp_path / "carried"), make_identity(cluster=CLUSTER, uuid=uuid, number=9, checksum_secret=255)
    )
    assert numbers(disks(tmp_path / "a", tmp_path / "carried")) == [1, 9]


def test_a_gateway_that_numbers_a_disk_twice_is_not_believed(
    gateway: FakeGateway, disks: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks(tmp_path / "a")
    uuid = read_identity(str(tmp_path / "a"), OS).uuid
    gateway.numbers[uuid] = 4
    with pytest.raises(CannotStart, match=r"numbers .*/a 4, but it is disk 1"):
        disks(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


# Starts that are refused.


def test_a_first_start_without_a_good_token_says_what_to_do(tmp_path: Path) -> None:
    data = tmp_path / "data"
    now_us = time.time_ns() // 1000
    good = ca.make_authority(CLUSTER, 7, now_us).token(NODE, ["127.0.0.1:1"], now_us)
    for token, words in (
        ("", "--join TOKEN"),
        ("hunter2", "not a join token"),
        (good, "no gateway answers"),
    ):
        with pytest.raises(CannotStart, match=words) as refused:
            node_process._member(data, token, ABOUT)
        assert good not in str(refused.value), "a token is a secret"
    started = run_command(
        "node", f"--data={data}", f"--disk={tmp_path / 'd'}", "--listen=127.0.0.1:0", check=False
    )
    assert started.returncode == 1
    assert "--join TOKEN" in started.stderr
    assert not (tmp_path / "d").exists()


def test_a_node_whose_certificate_has_ended_joins_again_and_says_so_without_a_token(
    credentials: Credentials,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, joined = tmp_path / "data", []
    monkeypatch.setattr(node_process.joining, "join", lambda *given: joined.append(given) or credentials.name)
    node_process._member(data, "osjoin1.x", ABOUT)
    assert "not used" in capsys.readouterr().out
    monkeypatch.setattr(Credentials, "ended", property(lambda self: True))
    assert node_process._member(data, "", ABOUT).name == credentials.name
    assert "objstore cluster token --for n1" in capsys.readouterr().out
    assert joined == []
    node_process._member(data, "osjoin1.x", ABOUT)
    assert joined == [("osjoin1.x", data / "tls", ABOUT, NODE)]


def test_a_gateways_data_directory_is_no_nodes_and_is_not_founded_twice(tmp_path: Path) -> None:
    run_command("cluster", "init", f"--data={tmp_path}")
    for path in (tmp_path / "master.key", tmp_path / "authority.json", tmp_path / "tls" / "identity.pem"):
        assert path.stat().st_mode & 0o077 == 0, path
    config = Config(server=Server(data=str(tmp_path)))
    with pytest.raises(CannotStart, match="already"):
        init(config, tmp_path)
    refused = run_command("node", f"--data={tmp_path}", "--listen=127.0.0.1:0", check=False)
    assert refused.returncode == 1
    assert "data directory of a gateway" in refused.stderr


# Processes.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One for all tests below, the one that removes a node last."""
    made = LocalCluster(
        directory=tmp_path_factory.mktemp("node") / "cluster",
        nodes=3,
        codec="1+1",
        bound=True,
        environment={
            "OBJSTORE_CLUSTER__AWAY_SECONDS": "2",
            "OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.02",  # A disk that is back is verified within a second.
            "OBJSTORE_SERVER__DRAIN_SECONDS": "2",
        },
    )
    try:
        made.start()
        yield made
    finally:
        for process in [made.gateway, *made.members]:
            made.kill(process)


def state(node: Process) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((node.data / "run" / "state.json").read_text())
    return found


def serves(node: Process) -> bool:
    try:
        found = state(node)
    except (OSError, ValueError):
        return False
    return bool(found["pid"] == node.pid and found["children"]["server"]["ready"])


def until(true: Callable[[], bool], what: str, *shown: Process) -> None:
    limit = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < limit, f"{what}: " + "\n".join(one.words() for one in shown)
        time.sleep(0.05)


def members(cluster: LocalCluster) -> dict[str, dict[str, Any]]:
    status, answer = cluster.admin("GET", "/api/v1/cluster/members")
    assert status == 200, answer
    return {member["name"]: member for member in answer["members"]}


def hexed(content: bytes) -> bytes:
    return content.hex().encode()


def root_name(identity: bytes) -> str:
    """Of the root that issued the certificate of an identity.pem."""
    text = identity.decode()
    return ca.common_name(ca.from_pem(text[text.index("-----BEGIN CERTIFICATE") :]).issuer)


def command(cluster: LocalCluster, *arguments: str, check: bool = True) -> Any:
    return run_command(*arguments, "--data", str(cluster.gateway.data), check=check)


def test_the_authority_is_renewed_under_running_processes(cluster: LocalCluster) -> None:
    [before] = json.loads(command(cluster, "cluster", "status", "-o", "json").stdout)
    identities = {node.name: (node.data / "tls" / "identity.pem").read_bytes() for node in cluster.members}
    restarts = {name: child["restarts"] for name, child in state(cluster.gateway)["children"].items()}
    command(cluster, "cluster", "renew")
    refused = command(cluster, "cluster", "renew", check=False)
    assert refused.returncode == 4

    def alone() -> bool:
        status, facts = cluster.admin("GET", "/api/v1/cluster")
        return status == 200 and facts["renewal"] == "" and facts["authority"] != before["authority"]

    until(alone, "the authority is not alone", cluster.gateway, *cluster.members)
    for node in cluster.members:
        assert (node.data / "tls" / "identity.pem").read_bytes() != identities[node.name]
        trust = json.loads((node.data / "tls" / "trust.json").read_text())
        assert trust["signer"] not in (root_name(identities[node.name]), "")
    assert all(row["state"] == "joined" for row in members(cluster).values())
    for name, child in state(cluster.gateway)["children"].items():
        assert child["restarts"] == restarts[name], f"{name} was restarted for it: {cluster.gateway.words()}"
    cluster.wait_for_disks(3)


def test_a_node_is_emptied_used_again_and_stops_only_where_it_may(cluster: LocalCluster) -> None:
    assert request(cluster, "PUT", "/bucket")[0] == 200
    store(cluster, range(1, 6))
    until(lambda: safe(cluster, "node-1") == 0, "node-1 is not safe to stop", cluster.gateway)
    refused = command(cluster, "safe-to-stop", "node-1", "node-2", check=False)
    assert refused.returncode == 1
    assert "not safe to stop now" in refused.stdout
    assert "buckets could not be written to" in refused.stdout
    assert command(cluster, "safe-to-stop", "nobody", check=False).returncode == 2

    refused = command(cluster, "node", "remove", "node-3", check=False)
    assert refused.returncode == 4
    assert "objstore node drain node-3 --wait" in refused.stderr
    said = command(cluster, "node", "drain", "node-3", "--wait", "--timeout", "60")
    assert "node node-3: " in said.stderr
    [row] = [row for row in nodes(cluster) if row["name"] == "node-3"]
    assert (row["state"], row["files"]) == ("empty", 0)
    check(cluster, range(1, 6))
    [shown] = json.loads(command(cluster, "node", "show", "node-3", "-o", "json").stdout)
    assert [disk["state"] for disk in shown["disks"]] == ["draining"]
    refused = command(cluster, "node", "drain", "node-2", check=False)
    assert refused.returncode == 4
    assert "only 1 disks take writes; 2 are needed" in refused.stderr
    command(cluster, "node", "undrain", "node-3")
    [row] = [row for row in nodes(cluster) if row["name"] == "node-3"]
    assert row["state"] == "joined"

    refused = command(cluster, "node", "remove", "node-1", "--force", check=False)
    assert refused.returncode == 4
    assert "fragment files" in refused.stderr
    assert "not confirmed" in refused.stderr


def safe(cluster: LocalCluster, *names: str) -> int:
    code: int = command(cluster, "safe-to-stop", *names, check=False).returncode
    return code


def nodes(cluster: LocalCluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command(cluster, "node", "list", "-o", "json").stdout)
    return found


def test_nodes_join_serve_come_back_and_are_removed(cluster: LocalCluster) -> None:
    first, second, _ = cluster.members
    found = members(cluster)
    assert {"node-1", "node-2"} < set(found)
    for name in ("node-1", "node-2"):
        assert (found[name]["role"], found[name]["state"], found[name]["site"]) == (
            "node",
            "joined",
            "site-1",
        )
        assert len(found[name]["disks"]) == 1
        assert found[name]["size"] > 0
    table = command(cluster, "cluster", "nodes").stdout
    assert "node-1" in table
    [facts] = json.loads(command(cluster, "cluster", "status", "-o", "json").stdout)
    assert (facts["nodes"], facts["gateways"], facts["away"]) == (3, 1, "")

    # No secret lies where it should not: not on a node, not in a log.
    bundle = (cluster.gateway.data / "authority.json").read_bytes()
    master = (cluster.gateway.data / "master.key").read_text().strip()
    authority = ca.decode_authority(bundle, bytes.fromhex(master))
    scalar = authority.signing.key.private_numbers().private_value.to_bytes(32, "big")
    secrets = [
        form(secret) for secret in (scalar, bytes.fromhex(master)) for form in (bytes, hexed, b64encode)
    ]
    for node in cluster.members:
        for path in node.data.rglob("*"):
            if path.is_file() and path.stat().st_size < 1 << 20:
                content = path.read_bytes()
                assert not any(secret in content for secret in secrets), path
        assert not (node.data / "master.key").exists()
    for process in (cluster.gateway, *cluster.members):
        log = process.log.read_text()
        assert master not in log
        assert "osjoin1." not in log
        assert "PRIVATE KEY" not in log

    # The server dies: another one takes its place, and the lock is held all the while.
    child = state(first)["children"]["server"]["pid"]
    os.kill(child, signal.SIGKILL)
    until(lambda: serves(first) and state(first)["children"]["server"]["pid"] != child, "no server", first)

    # A second process on the same data is refused.
    again = run_command(*first.command, check=False)
    assert again.returncode == 1
    assert "another objstore serves" in again.stderr

    # A later start needs no gateway, and a disk that is not there is not made anew.
    cluster.stop([cluster.gateway])
    cluster.stop([first])
    assert isinstance(first.running, subprocess.Popen)
    assert first.running.returncode == 0, first.words()
    assert "Stopped." in first.words()
    wait_gone([child])
    disk = first.data / "disk1"
    disk.rename(first.data / "unmounted")
    cluster.start_node(first)
    until(lambda: serves(first), "the node does not serve", first)
    assert "is not at" in first.words()
    assert not disk.exists()
    cluster.stop([first])
    (first.data / "unmounted").rename(disk)
    cluster.start_node(first)
    until(lambda: serves(first), "the node does not serve", first)
    assert "disk1" in run_command("node", "status", "--data", str(first.data)).stdout
    cluster.start_gateway()
    until(lambda: members(cluster)["node-1"]["state"] == "joined", "node-1 is not back", cluster.gateway)
    cluster.wait_for_disks(3)

    # A node that lost all but its disks comes back as itself, with a token for it.
    identity = found["node-2"]["id"]
    cluster.stop([second])
    until(lambda: members(cluster)["node-2"]["state"] == "away", "node-2 is not away", cluster.gateway)
    shutil.rmtree(second.data / "tls")
    (second.data / "node.json").unlink()
    token = command(cluster, "cluster", "token", "--for", "node-2").stdout.strip()
    cluster._run(second, [f"--join={token}"])
    until(lambda: serves(second), "the node does not serve", second)
    until(lambda: members(cluster)["node-2"]["state"] == "joined", "node-2 is not back", cluster.gateway)
    assert members(cluster)["node-2"]["id"] == identity
    cluster.wait_for_disks(3)

    # Removing: refused while it has disks, then for good.
    refused = command(cluster, "cluster", "remove", "node-2", check=False)
    assert refused.returncode == 4
    assert "has disks" in refused.stderr
    refused = command(cluster, "cluster", "remove", "node-2", "--lost", check=False)
    assert refused.returncode == 4
    assert "not confirmed" in refused.stderr
    command(cluster, "cluster", "remove", "node-2", "--lost", "--confirm", "remove node-2")
    assert members(cluster)["node-2"]["state"] == "removed"
    trust = first.data / "tls" / "trust.json"
    until(lambda: json.loads(trust.read_text())["denied"] == [identity], "node-1 was not told", first)
