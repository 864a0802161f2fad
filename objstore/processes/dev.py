"""`objstore dev cluster`: a whole cluster as processes of this machine, to try it and to test it.

    gateway     objstore gateway: S3, admin and cluster port; more of them where metadata is in PostgreSQL
    node-1..N   objstore node: one data directory, its disks in it; sites by turns

The very commands that machines of a cluster run, on loopback, each with its own log file. It is one machine
and one device: it shows how a cluster behaves, and survives nothing. Whoever starts it ends it, each process
by its id.

Blocking, one thread.
"""

import contextlib
import http.client
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from objstore.admin.snippets import SNIPPETS
from objstore.config import load
from objstore.processes.cluster import MASTER_NAME, CannotStart
from objstore.processes.founding import AUTHORITY_NAME, init
from objstore.processes.supervisor import die_with_parent

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 45.0  # A gateway drains for 30.
GONE_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.1
ADMIN_SECONDS: Final = 10.0
LOG_LINES: Final = 20  # Shown of a process that ended when it should not have.
HOST: Final = "127.0.0.1"
# Below those that Linux gives to connections: what is started again finds its port free.
PORTS: Final = range(10_000, 32_768)


class Running(Protocol):
    """A process that was started: what of `subprocess.Popen` is used here."""

    pid: int

    def poll(self) -> object:
        """None while it runs."""

    def wait(self, timeout: float | None = None) -> object:
        """Raises: subprocess.TimeoutExpired."""

    def kill(self) -> None: ...

    def send_signal(self, sig: int) -> None: ...


@dataclass(slots=True)
class Process:
    """One machine of the cluster, as it were."""

    name: str
    command: list[str]
    data: Path
    log: Path
    ports: list[int] = field(default_factory=list)  # Of a gateway: S3, admin, cluster.
    host: str = HOST
    running: Running | None = None

    @property
    def pid(self) -> int:
        """0 if it does not run."""
        return self.running.pid if self.running is not None and self.running.poll() is None else 0

    @property
    def joined(self) -> bool:
        """Whether it is a member of a cluster."""
        return (self.data / "tls" / "identity.pem").exists()

    def children(self) -> list[int]:
        """Process ids of its children, by what its supervisor last wrote."""
        try:
            state = json.loads((self.data / "run" / "state.json").read_text())
            return [child["pid"] for child in state["children"].values() if child["pid"]]
        except (OSError, ValueError, KeyError):
            return []

    def words(self) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        except OSError:
            return ""


@dataclass(slots=True, kw_only=True)
class LocalCluster:
    """Starts and ends the processes. Used by `objstore dev cluster`, and by tests.

    Args:
        directory: everything lies in it. One that holds a cluster already is started again.
        port: of S3; admin, the cluster port and the nodes follow it. 0: free ones, kept from start to start.
        bound: the processes die with the thread that started them.
        gateway_count: more than one needs `url`.
        url: of PostgreSQL; empty: metadata is in LMDB and a journal on the nodes.
        hosts: where processes listen, by name; by default on loopback.
    """

    directory: Path
    nodes: int
    sites: int = 1
    disks: int = 1  # Of each node.
    codec: str = "4+2"
    port: int = 0
    workers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    bound: bool = False
    gateway_count: int = 1
    url: str = field(default="", repr=False)
    hosts: Mapping[str, str] = field(default_factory=dict)
    gateways: list[Process] = field(init=False)
    members: list[Process] = field(init=False)
    _root: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        assert self.nodes >= 1
        assert self.sites >= 1
        assert self.gateway_count == 1 or self.url
        self.directory.mkdir(parents=True, exist_ok=True)
        ports = self._ports()
        self._root = self._root_key()
        log = self.directory / "log"
        log.mkdir(exist_ok=True)
        self.gateways = []
        for number in range(self.gateway_count):
            name = f"gateway-{number + 1}" if number else "gateway"
            data, host = self.directory / name, self.hosts.get(name, HOST)
            s3, admin, cluster = ports[3 * number : 3 * number + 3]
            command = [
                "gateway",
                f"--data={data}",
                f"--listen={host}:{s3}",
                f"--admin-listen={host}:{admin}",
                f"--cluster-listen={host}:{cluster}",
                f"--workers={self.workers}",
                f"--codec={self.codec}",
            ]
            served = [s3, admin, cluster]
            self.gateways.append(Process(name, command, data, log / f"{name}.log", served, host))
        self.members = []
        for number in range(1, self.nodes + 1):
            name, data = f"node-{number}", self.directory / f"node-{number}"
            host = self.hosts.get(name, HOST)
            command = [
                "node",
                f"--data={data}",
                f"--listen={host}:{ports[3 * self.gateway_count + number - 1]}",
                f"--name={name}",
                f"--site=site-{1 + (number - 1) % self.sites}",
                *(f"--disk={data}/disk{disk}" for disk in range(1, self.disks + 1)),
            ]
            self.members.append(Process(name, command, data, log / f"{name}.log", host=host))

    @property
    def gateway(self) -> Process:
        """The first."""
        return self.gateways[0]

    @property
    def port_of_s3(self) -> int:
        return self.gateway.ports[0]

    @property
    def endpoint(self) -> str:
        return f"http://{self.gateway.host}:{self.port_of_s3}"

    @property
    def root(self) -> tuple[str, str]:
        """Access key and secret key."""
        return self._root

    # All of it.

    def start(self) -> None:
        """Found it if need be, start everything, wait until it takes objects. Raises: CannotStart."""
        self.found()
        joined = [node for node in self.members if node.joined]
        for node in joined:  # They hold the gateway's metadata.
            self.start_node(node)
        self.start_gateway()
        for node in self.members:
            if node not in joined:
                self.start_node(node)
        self.wait_for_disks(self.nodes * self.disks)
        for gateway in self.gateways[1:]:
            self.start_gateway(gateway=gateway)

    def found(self) -> None:
        """Make its authority, if it has none. Raises: CannotStart."""
        if (self.gateway.data / AUTHORITY_NAME).exists():
            return
        self.gateway.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags: dict[str, tuple[str, object]] = {
            "server.data": ("--data", str(self.gateway.data)),
            "blobs.codec": ("--codec", self.codec),
        }
        init(load(None, {}, flags).config, self.gateway.data)

    def close(self) -> None:
        """End everything, the gateway first: what it drains needs the nodes."""
        self.stop(self.gateways)
        self.stop(self.members)

    # One process.

    def start_gateway(self, *arguments: str, gateway: Process | None = None, wait: bool = True) -> None:
        """The first one by default; another joins, if it has not. Raises: CannotStart if it is not ready."""
        gateway = gateway or self.gateway
        if gateway is not self.gateway and not (gateway.data / AUTHORITY_NAME).exists():
            arguments = (*arguments, f"--join={self._token('gateway')}")
        self._run(gateway, arguments)
        if wait:
            self.wait_for_gateway(gateway)

    def wait_for_gateway(self, gateway: Process, seconds: float = READY_SECONDS) -> None:
        def ready() -> bool:
            try:
                state = json.loads((gateway.data / "run" / "state.json").read_text())
            except (OSError, ValueError):
                return False
            children = state["children"].values()
            return (
                state["pid"] == gateway.pid and state["ready"] and all(child["ready"] for child in children)
            )

        self._wait(ready, f"the {gateway.name} is not ready", seconds, [gateway])

    def start_node(self, node: Process, member: str = "") -> None:
        """Start it; with a join token if it has never joined.

        Args:
            member: the name or id of the node that it is to be again, without its credentials.
        """
        arguments: list[str] = []
        if not node.joined:
            arguments.append(f"--join={self._token('node', member)}")
        self._run(node, arguments)

    def _token(self, role: str, member: str = "") -> str:
        status, answer = self.admin("POST", "/api/v1/cluster/tokens", {"role": role, "member": member})
        if status != 201:
            raise CannotStart(f"the gateway gives no join token: {status} {answer}")
        return str(answer["token"])

    def kill(self, *processes: Process) -> None:
        """As a power cut takes them, all at once: without a word, their children with them."""
        killed = [one for process in processes if (one := process.running) is not None]
        children = [pid for process in processes if process.running is not None for pid in process.children()]
        for one in killed:
            one.kill()
        for one in killed:
            one.wait()
        # They die with it, but a moment later; until then they hold their port.
        limit = time.monotonic() + GONE_SECONDS
        while any(map(_lives, children)) and time.monotonic() < limit:
            time.sleep(0.01)

    def stop(self, processes: Sequence[Process]) -> None:
        """SIGTERM, then SIGKILL for those that take too long."""
        running = [one.running for one in processes if one.running is not None and one.pid]
        for one in running:
            one.send_signal(signal.SIGTERM)
        limit = time.monotonic() + STOP_SECONDS
        for one in running:
            try:
                one.wait(max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()

    def wait_for_disks(self, count: int, seconds: float = READY_SECONDS) -> None:
        """Until so many disks of nodes are healthy, and no other is left. Raises: CannotStart."""

        def there() -> bool:
            status, answer = self.admin("GET", "/api/v1/disks")
            return status == 200 and [row["state"] for row in answer["disks"]] == ["healthy"] * count

        self._wait(there, f"there are no {count} healthy disks", seconds, [self.gateway])

    # Questions.

    def admin(
        self, method: str, path: str, content: object = None, *, gateway: Process | None = None
    ) -> tuple[int, Any]:
        """(status, JSON) of the admin API; (0, why) if it does not answer."""
        gateway = gateway or self.gateway
        connection = http.client.HTTPConnection(gateway.host, gateway.ports[1], timeout=ADMIN_SECONDS)
        try:
            token = (gateway.data / "admin.token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}"}
            connection.request(method, path, None if content is None else json.dumps(content), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException) as failure:
            return 0, str(failure)
        finally:
            connection.close()

    # Within.

    def _run(self, process: Process, arguments: Sequence[str]) -> None:
        assert not process.pid, f"{process.name} runs already"
        (process.data / "run" / "state.json").unlink(missing_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OBJSTORE_")}
        package = str(Path(__file__).resolve().parents[2])
        environment = kept | {"PYTHONPATH": package} | dict(self.environment)
        if process in self.gateways:
            environment |= {
                "OBJSTORE_ROOT_ACCESS_KEY": self._root[0],
                "OBJSTORE_ROOT_SECRET_KEY": self._root[1],
                "OBJSTORE_CLUSTER__NAME": process.name,
            }
            if self.url:
                environment["OBJSTORE_META__URL"] = self.url
            if process is not self.gateway:
                environment["OBJSTORE_SECURITY__MASTER_KEY_FILE"] = str(self.gateway.data / MASTER_NAME)
        process.running = self._launch(process, [*process.command, *arguments], environment)

    def _launch(self, process: Process, arguments: Sequence[str], environment: Mapping[str, str]) -> Running:
        """Begin `objstore` with these arguments, its words going into the process's log."""
        parent = os.getpid()
        with process.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603  (Ourselves.)
                [sys.executable, "-m", "objstore.cli.main", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: we know the order.
                preexec_fn=(lambda: die_with_parent(parent)) if self.bound else None,
            )

    def _wait(self, true: Callable[[], bool], words: str, seconds: float, watched: Sequence[Process]) -> None:
        limit = time.monotonic() + seconds
        while not true():
            for process in watched:
                if not process.pid:
                    raise CannotStart(f"{process.name} has ended:\n{process.words()}")
            if time.monotonic() > limit:
                everyone = [*self.gateways, *self.members]
                shown = "\n".join(f"--- {one.name}\n{one.words()}" for one in everyone)
                raise CannotStart(f"{words} after {seconds:.0f} s\n{shown}")
            time.sleep(LOOK_SECONDS)

    def _ports(self) -> list[int]:
        """Chosen once: a node that comes back is where it was."""
        place = self.directory / "ports.json"
        try:
            ports: list[int] = json.loads(place.read_text())
        except FileNotFoundError:
            count = 3 * self.gateway_count + self.nodes
            ports = list(range(self.port, self.port + count)) if self.port else free_ports(count)
            place.write_text(json.dumps(ports))
        if len(ports) != 3 * self.gateway_count + self.nodes:
            raise CannotStart(f"{self.directory} holds a cluster of another size")
        return ports

    def _root_key(self) -> tuple[str, str]:
        place = self.directory / "root.json"
        try:
            access_key, secret_key = json.loads(place.read_text())
        except FileNotFoundError:
            access_key, secret_key = f"AK{secrets.token_hex(8).upper()}", secrets.token_hex(20)
            with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump([access_key, secret_key], file)
        return access_key, secret_key


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now, all different. Raises: CannotStart."""
    free: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):  # Others may be looking, too.
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((HOST, port))
            free.append(port)
        if len(free) == count:
            return free
    raise CannotStart(f"there are no {count} free ports from {PORTS.start} to {PORTS.stop - 1}")


def run(cluster: LocalCluster, announce: Callable[[str], None], *, keeps: bool) -> int:
    """Start it, say how to use it, and wait for Ctrl-C or SIGTERM. Returns the exit code.

    Args:
        keeps: its directory stays.

    Raises: CannotStart.
    """
    with _until_signal() as stopped:
        try:
            sites = f" on {cluster.sites} sites" if cluster.sites > 1 else ""
            announce(f"Starting {cluster.gateway_count} gateway(s) and {cluster.nodes} nodes{sites} ...")
            cluster.start()
            for line in described(cluster, keeps=keeps):
                announce(line)
            ended: set[str] = set()
            while not stopped():
                time.sleep(LOOK_SECONDS)
                for process in [*cluster.gateways, *cluster.members]:
                    if not process.pid and process.name not in ended:
                        ended.add(process.name)
                        announce(f"{process.name} has ended; its log: {process.log}")
            announce("Stopping gateways, then nodes ...")
        finally:
            cluster.close()
    announce("Stopped.")
    return 0


def described(cluster: LocalCluster, *, keeps: bool) -> Iterator[str]:
    """What an operator wants to know of a cluster that runs."""
    access_key, secret_key = cluster.root
    endpoints = ", ".join(f"http://{gateway.host}:{gateway.ports[0]}" for gateway in cluster.gateways)
    yield f"\nA cluster of {cluster.nodes} nodes, codec {cluster.codec}, S3 at {endpoints}\n"
    for tool, snippet in SNIPPETS.items():
        text = snippet(cluster.endpoint, "us-east-1", access_key, secret_key).replace("\n", "\n  ")
        yield f"{tool}:\n  {text}\n"
    yield "processes (kill -9 one, or kill -STOP it, and see what becomes of reads and writes):"
    for process in [*cluster.gateways, *cluster.members]:
        yield f"  {process.name:10} pid {process.pid:<8} log {process.log}"
    data = cluster.gateway.data
    yield ""
    for command in ("status", "cluster nodes", "disk list"):
        yield f"objstore {command} --data {data}"
    yield f"\nCtrl-C ends all{'' if keeps else ', and removes what they stored'}."


@contextlib.contextmanager
def _until_signal() -> Iterator[Callable[[], bool]]:
    """While inside, SIGINT and SIGTERM only make the function say True."""
    seen: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: seen.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
