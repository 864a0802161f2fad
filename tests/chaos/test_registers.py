"""Objects as registers, by S3 alone, while everything happens to a cluster: linearizable key by key.

Reads, writes and compare-and-sets (If-Match, If-None-Match) through all gateways, while nodes, gateways,
workers and committers are killed, machines are cut off from each other, wall clocks jump, and a disk's files
move to the others and back. Only in the long form (`make chaos`); the short form has the engines alone:
test_lmdb_histories.py and test_postgres_histories.py of tests/meta.

Where that is allowed each machine has a network namespace (tests/namespaces.py): its link goes down, or what
it sends to another one is lost, in both directions or in one. Elsewhere, and where OBJSTORE_TEST_NETWORK is
`proxies`, proxies on loopback swallow everything.

Concurrency: a thread for each caller, one for the proxies' loop; what happens is decided by the test's own.
"""

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import random
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from bench.sigv4 import Credentials, Signer
from objstore.processes.dev import HOST, LocalCluster, Process, Running
from tests import postgres
from tests.chaos.workload import RESTLESS
from tests.linearizability import CAS, DONE, FOREVER, READ, REFUSED, UNKNOWN, WRITE, Operation, violations
from tests.namespaces import SUBNET, Switch, refused
from tests.preload import preload_library
from tests.proxy import Proxy
from tests.seed import SEED

LONG = bool(os.environ.get("OBJSTORE_LONG"))
# The operations of a history, about 250 on a key; and acknowledged ones between two events.
OPERATIONS = int(os.environ.get("OBJSTORE_TEST_OPERATIONS") or 100_000)
KEYS, BETWEEN = max(8, OPERATIONS // 250), 300
CALLERS = 6
NODES, CODEC = 4, "2+1"  # One more than k+m: what is cut off or killed leaves enough to write on.
ANSWER_S = 30.0
QUIET_S = 120.0  # For acknowledgements to come again after an event.
CLOCK_OFF_S = 300  # Signatures are good for 15 minutes either way.
BUCKET = "registers"
NOBODY, STRANGE = "nobody listens", "strange"  # Outcomes that no history has.
GATEWAYS = ("gateway", "gateway-2")  # As a LocalCluster names its machines.
METADATA = "metadata"

Door = tuple[str, int]  # Host and port of a gateway's S3.


class Registers:
    """The callers and their history."""

    def __init__(self, credentials: Credentials, doors: list[Door]) -> None:
        self.credentials = credentials
        self.doors = doors
        self.history: list[Operation] = []  # list.append is atomic.
        self._done: list[str] = []  # Keys of acknowledged operations,
        self._doubtful: list[str] = []  # and of those of unknown outcome.
        self.strange: list[str] = []  # Answers that no outcome explains: each one fails the test.
        self.stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(number,), daemon=True) for number in range(CALLERS)
        ]

    def __enter__(self) -> "Registers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(2 * ANSWER_S)

    def work_until(self, more: int) -> None:
        """Until so many more operations were acknowledged."""
        _wait_for_more(self._done, more, "nothing is acknowledged any more")

    def doubt_until(self, more: int) -> None:
        """Until so many more operations have ended without anyone knowing how."""
        _wait_for_more(self._doubtful, more, "nothing is in doubt")

    def _call(self, number: int) -> None:
        chance = random.Random(f"{SEED} {number}")
        seen: dict[str, str | None] = {}
        caller = _Caller(self.credentials)
        at = 0
        while not self.stopping.is_set():
            at += 1
            key = f"r{chance.randrange(KEYS)}"
            kind = chance.choice([READ, READ, WRITE, CAS, CAS])
            expected = seen.get(key) if kind == CAS else None
            wrote = None if kind == READ else f"{number}-{at}"
            door = chance.choice(self.doors)
            began = time.monotonic_ns()
            outcome, found = caller.once(door, kind, key, expected, wrote)
            ended = time.monotonic_ns() if outcome != UNKNOWN else FOREVER
            if outcome == NOBODY:  # Nothing was sent.
                time.sleep(0.05)
                continue
            if outcome == STRANGE:
                self.strange.append(f"{kind} {key}: {found}")
                continue
            if kind == READ:
                wrote = found
            if outcome == DONE:
                seen[key] = wrote
                self._done.append(key)
            elif outcome == REFUSED:  # Somebody else was quicker: the next one is to have a chance.
                known, found = caller.once(door, READ, key, None, None)
                seen |= {key: found} if known == DONE else {}
            else:
                self._doubtful.append(key)
            self.history.append(Operation(key, kind, expected, wrote, outcome, began, ended))

    def read_all(self) -> None:
        """Once, at the end: what was acknowledged last has to be there."""
        caller = _Caller(self.credentials)
        for number in range(KEYS):
            limit = time.monotonic() + QUIET_S
            while True:
                began = time.monotonic_ns()
                outcome, found = caller.once(self.doors[0], READ, f"r{number}", None, None)
                if outcome == DONE:
                    break
                assert time.monotonic() < limit, f"seed {SEED}: r{number} cannot be read: {found}"
            ended = time.monotonic_ns()
            self.history.append(Operation(f"r{number}", READ, None, found, DONE, began, ended))


def _wait_for_more(done: list[str], more: int, otherwise: str) -> None:
    goal = len(done) + more
    limit = time.monotonic() + QUIET_S
    while len(done) < goal:
        assert time.monotonic() < limit, f"seed {SEED}: {otherwise}"
        time.sleep(0.05)


class _Caller:
    """One connection at a time; nothing is repeated: an attempt without an answer is of unknown outcome."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def once(
        self, door: Door, kind: str, key: str, expected: str | None, wrote: str | None
    ) -> tuple[str, str | None]:
        """(outcome, value read or words)."""
        body = (wrote or "").encode()
        more: dict[str, str] = {}
        if kind == CAS:
            more = {"If-None-Match": "*"} if expected is None else {"If-Match": f'"{_md5(expected)}"'}
        method = "GET" if kind == READ else "PUT"
        try:
            status, answer = self.ask(door, method, f"/{BUCKET}/{key}", body, more)
        except ConnectionRefusedError as failure:
            return NOBODY, repr(failure)
        except (OSError, http.client.HTTPException) as failure:
            return UNKNOWN, repr(failure)
        if status == 200:
            return DONE, answer.decode() if kind == READ else None
        if kind == READ and status == 404:
            return DONE, None
        # If-Match on a key that is not there is refused as 404.
        if kind == CAS and status in (404, 412):
            return REFUSED, None
        if status >= 500 or (status == 409 and kind != READ):
            return UNKNOWN, str(status)
        return STRANGE, f"{status} {answer[:200]!r}"

    def ask(self, door: Door, method: str, path: str, body: bytes, more: dict[str, str]) -> tuple[int, bytes]:
        host, port = door
        signer = Signer(self._credentials, f"{host}:{port}")
        digest = hashlib.sha256(body).hexdigest()
        head = signer.head(method, path, payload_sha256=digest, size=len(body)).decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
        try:
            connection.request(method, path, body or None, headers | more)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _md5(value: str) -> str:
    return hashlib.md5(value.encode(), usedforsecurity=False).hexdigest()


class Network(Protocol):
    """What is between the machines, which are known by their names."""

    kind: str
    hosts: Mapping[str, str]  # Where they listen; empty: on loopback.

    def within(self, name: str) -> contextlib.AbstractContextManager[None]:
        """What is started there is on that machine; "": on the callers'."""

    def metadata(self) -> contextlib.AbstractContextManager[str]:
        """The URL of a fresh database."""

    def connect(self, cluster: LocalCluster) -> None:
        """Before any machine of the cluster is started."""

    def url_for(self, gateway: str) -> str:
        """Of that database as this gateway reaches it."""

    def cut_node(self, name: str, chance: random.Random) -> str:
        """Between it and the gateways, in one of the ways that there are. Returns which."""

    def cut_metadata(self, gateway: str, chance: random.Random) -> str: ...

    def cut_gateway(self, name: str, chance: random.Random) -> str:
        """Between it and all nodes; empty if that would cut the other gateways, too."""

    def heal(self) -> None: ...

    def close(self) -> None: ...


class Proxies:
    """On a loop of their own, before every node and, for each gateway, before the database."""

    kind = "proxies"
    hosts: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._to: dict[str, Proxy] = {}  # By node, and for the database by gateway.
        self._url = ""

    def within(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def metadata(self) -> Iterator[str]:
        with postgres.database() as self._url:
            yield self._url

    def connect(self, cluster: LocalCluster) -> None:
        for node in cluster.members:
            [listen] = [word for word in node.command if word.startswith("--listen=")]
            proxy = self._before(node.name, int(listen.rpartition(":")[2]))
            node.command.append(f"--address={HOST}:{proxy.port}")
        if self._url:
            for gateway in cluster.gateways:
                self._before(gateway.name, int(self._url.rpartition(":")[2].partition("/")[0]))

    def url_for(self, gateway: str) -> str:
        if not self._url:
            return ""
        return f"postgresql://objstore@{HOST}:{self._to[gateway].port}/{self._url.rpartition('/')[2]}"

    def cut_node(self, name: str, chance: random.Random) -> str:
        self._loop.call_soon_threadsafe(self._to[name].swallow)
        return "node swallowed"

    def cut_metadata(self, gateway: str, chance: random.Random) -> str:
        self._loop.call_soon_threadsafe(self._to[gateway].swallow)
        return "metadata swallowed"

    def cut_gateway(self, name: str, chance: random.Random) -> str:
        return ""

    def heal(self) -> None:
        """What was held is lost: it must not arrive hours later and be taken for new."""
        for proxy in self._to.values():
            if proxy.swallows:
                self._loop.call_soon_threadsafe(proxy.reset)
                self._loop.call_soon_threadsafe(proxy.open)

    def close(self) -> None:
        for proxy in self._to.values():
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(proxy.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _before(self, name: str, port: int) -> Proxy:
        proxy = self._to[name] = Proxy(port)
        asyncio.run_coroutine_threadsafe(proxy.start(), self._loop).result(10)
        return proxy


class Namespaces:
    """Every machine has a network namespace, the callers have one, and the database."""

    kind = "network namespaces"

    def __init__(self) -> None:
        self._nodes = [f"node-{number}" for number in range(1, NODES + 1)]
        self._switch = Switch([*GATEWAYS, *self._nodes, METADATA])
        self.hosts: Mapping[str, str] = self._switch.addresses
        self._gateways: list[str] = []
        self._url = ""

    def within(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self._switch.within(name) if name else self._switch.home.entered()

    @contextlib.contextmanager
    def metadata(self) -> Iterator[str]:
        server = postgres.PostgresServer()
        try:
            server.configure("listen_addresses = '*'")
            with (server.data / "pg_hba.conf").open("a") as file:
                file.write(f"host all all {SUBNET}.0/24 trust\n")
            with self.within(METADATA):
                server.start()
                server.sql("CREATE DATABASE registers")
            self._url = f"postgresql://objstore@{self.hosts[METADATA]}:{server.port}/registers"
            yield self._url
        finally:
            server.remove()

    def connect(self, cluster: LocalCluster) -> None:
        self._gateways = [gateway.name for gateway in cluster.gateways]

    def url_for(self, gateway: str) -> str:
        return self._url

    def cut_node(self, name: str, chance: random.Random) -> str:
        how = chance.choice(["node's link down", "node unheard", "node deaf", "node and one gateway parted"])
        if how == "node's link down":
            self._switch.take_down(name)
        elif how == "node unheard":
            self._lose([name], self._gateways)
        elif how == "node deaf":
            self._lose(self._gateways, [name])
        else:
            self._part(name, chance.choice(self._gateways))
        return how

    def cut_metadata(self, gateway: str, chance: random.Random) -> str:
        how = chance.choice(["metadata parted", "metadata unheard", "metadata deaf"])
        if how == "metadata parted":
            self._part(METADATA, gateway)
        elif how == "metadata unheard":
            self._lose([METADATA], [gateway])
        else:
            self._lose([gateway], [METADATA])
        return how

    def cut_gateway(self, name: str, chance: random.Random) -> str:
        if len(self._gateways) == 1:
            return ""
        how = chance.choice(["gateway unheard", "gateway deaf"])
        if how == "gateway unheard":
            self._lose([name], self._nodes)
        else:
            self._lose(self._nodes, [name])
        return how

    def heal(self) -> None:
        self._switch.heal()

    def close(self) -> None:
        self._switch.close()

    def _lose(self, senders: Sequence[str], receivers: Sequence[str]) -> None:
        for sender in senders:
            for receiver in receivers:
                self._switch.lose(sender, receiver)

    def _part(self, one: str, other: str) -> None:
        self._switch.lose(one, other)
        self._switch.lose(other, one)


def network() -> Network:
    """The best that is allowed here."""
    wish = os.environ.get("OBJSTORE_TEST_NETWORK", "namespaces")
    assert wish in ("namespaces", "proxies"), wish
    why_not = refused() if wish == "namespaces" else "it was asked for"
    if why_not:
        print(f"partitions by proxies: {why_not}")
        return Proxies()
    print("partitions by network namespaces")
    return Namespaces()


@dataclass(slots=True, kw_only=True)
class Placed(LocalCluster):
    """Each process on its machine."""

    network: Network

    def _launch(self, process: Process, arguments: Sequence[str], environment: Mapping[str, str]) -> Running:
        with self.network.within(process.name):
            return LocalCluster._launch(self, process, arguments, environment)


Event = Callable[[Registers], None]


class World:
    """A cluster, the network between its machines, and a clock for each of them."""

    def __init__(self, place: Path, library: Path, network: Network, url: str) -> None:
        self.chance = random.Random(SEED)
        self.network = network
        self.happened: Counter[str] = Counter()
        self._clocks = place / "clocks"
        self._clocks.mkdir()
        self._library = library
        self._url = url
        self.cluster = Placed(
            directory=place / "cluster",
            nodes=NODES,
            codec=CODEC,
            gateway_count=len(GATEWAYS) if url else 1,
            url=url,
            hosts=network.hosts,
            bound=True,
            network=network,
        )
        network.connect(self.cluster)

    @property
    def doors(self) -> list[Door]:
        return [(gateway.host, gateway.ports[0]) for gateway in self.cluster.gateways]

    def start(self) -> None:
        """As `LocalCluster.start`, each process with a clock and a way to its metadata of its own."""
        self._dress(self.cluster.gateway)
        self.cluster.found()
        self.start_gateway(self.cluster.gateway)
        for node in self.cluster.members:
            self.start_node(node)
        self.settle()
        for gateway in self.cluster.gateways[1:]:
            self.start_gateway(gateway)

    def start_gateway(self, gateway: Process) -> None:
        self._dress(gateway)
        self.cluster.start_gateway(gateway=gateway)

    def start_node(self, node: Process) -> None:
        self._dress(node)
        self.cluster.start_node(node)

    def _dress(self, process: Process) -> None:
        clock = self._clocks / process.name
        if not clock.exists():
            clock.write_bytes(struct.pack("<q", 0))
        self.cluster.environment = RESTLESS | {"LD_PRELOAD": str(self._library), "TEST_CLOCK": str(clock)}
        if process in self.cluster.gateways:
            self.cluster.url = self.network.url_for(process.name)

    def settle(self) -> None:
        self.cluster.wait_for_disks(NODES, QUIET_S)

    def close(self) -> None:
        self.network.heal()
        self.cluster.close()

    # What happens. Each ends with everything as it was.

    def node_dies(self, registers: Registers) -> None:
        node = self.chance.choice(self.cluster.members)
        self.cluster.kill(node)
        registers.work_until(BETWEEN)
        self.start_node(node)
        self.settle()

    def node_is_cut_off(self, registers: Registers) -> None:
        node = self.chance.choice(self.cluster.members)
        self.happened[self.network.cut_node(node.name, self.chance)] += 1
        registers.work_until(BETWEEN)
        self.network.heal()
        self.settle()

    def gateway_is_cut_off(self, registers: Registers) -> None:
        """From the nodes, and from nothing else: others serve."""
        gateway = self.chance.choice(self.cluster.gateways)
        if how := self.network.cut_gateway(gateway.name, self.chance):
            self.happened[how] += 1
            self._work_beside_a_lame_gateway(registers)
            self.network.heal()
            self.settle()

    def gateway_dies(self, registers: Registers) -> None:
        gateway = self.chance.choice(self.cluster.gateways)
        self.cluster.kill(gateway)
        if len(self.cluster.gateways) > 1:
            registers.work_until(BETWEEN)
        self.start_gateway(gateway)

    def metadata_are_cut_off(self, registers: Registers) -> None:
        """From one gateway: it must say that it does not know, and never what it last knew."""
        gateway = self.chance.choice(self.cluster.gateways)
        self.happened[self.network.cut_metadata(gateway.name, self.chance)] += 1
        self._work_beside_a_lame_gateway(registers)
        self.network.heal()

    def _work_beside_a_lame_gateway(self, registers: Registers) -> None:
        """Half of all requests wait for seconds, and every caller soon has one of them. The others go on."""
        registers.doubt_until(2 * CALLERS)
        registers.work_until(CALLERS)

    def child_dies(self, registers: Registers) -> None:
        gateway = self.chance.choice(self.cluster.gateways)
        state = json.loads((gateway.data / "run" / "state.json").read_text())
        name = self.chance.choice(sorted(state["children"]))
        with contextlib.suppress(ProcessLookupError):
            os.kill(state["children"][name]["pid"], signal.SIGKILL)

    def clock_jumps(self, registers: Registers) -> None:
        for clock in sorted(self._clocks.iterdir()):
            with clock.open("r+b") as file:
                file.write(struct.pack("<q", self.chance.choice([-CLOCK_OFF_S, 0, CLOCK_OFF_S])))

    def disk_moves(self, registers: Registers) -> None:
        """Its files go to the other nodes and new ones come again."""
        status, answer = self.cluster.admin("GET", "/api/v1/disks")
        assert status == 200, answer
        number = self.chance.choice([row["disk"] for row in answer["disks"]])
        for verb in ("drain", "undrain"):
            status, answer = self.cluster.admin("POST", f"/api/v1/disks/{number}/{verb}")
            assert status == 200, answer
            registers.work_until(BETWEEN)
        self.settle()

    def events(self) -> list[Event]:
        found: list[Event] = [self.node_dies, self.node_is_cut_off, self.gateway_dies, self.child_dies]
        found += [self.clock_jumps, self.disk_moves]
        return [*found, self.gateway_is_cut_off, self.metadata_are_cut_off] if self._url else found


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes wall clocks jump."""
    return preload_library(Path(__file__).with_name("clock.c"), tmp_path_factory.mktemp("library"))


@contextlib.contextmanager
def world(place: Path, clock: Path, engine: str) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        between = network()
        stack.callback(between.close)
        url = stack.enter_context(between.metadata()) if engine == "postgres" else ""
        stack.enter_context(between.within(""))
        made = World(place, clock, between, url)
        stack.callback(made.close)
        made.start()
        yield made


if LONG:

    @pytest.mark.timeout(14_400)
    @pytest.mark.parametrize("engine", ["lmdb", "postgres"])
    def test_objects_are_linearizable_registers_whatever_happens_to_the_machines(
        engine: str, clock: Path, tmp_path: Path
    ) -> None:
        print(f"seed {SEED}")
        with world(tmp_path, clock, engine) as it:
            registers = Registers(Credentials(*it.cluster.root), it.doors)
            made, _ = _Caller(registers.credentials).ask(it.doors[0], "PUT", f"/{BUCKET}", b"", {})
            assert made == 200
            with registers:
                registers.work_until(BETWEEN)
                while len(registers.history) < OPERATIONS:
                    events = it.events()
                    it.chance.shuffle(events)
                    for event in events:
                        it.happened[getattr(event, "__name__", "event")] += 1
                        event(registers)
                        registers.work_until(BETWEEN)
            registers.read_all()
        history = registers.history
        outcomes = {name: sum(one.outcome == name for one in history) for name in (DONE, REFUSED, UNKNOWN)}
        print(f"{engine}: {len(history)} operations, {outcomes}, {dict(it.happened)}")
        assert registers.strange == [], f"seed {SEED}: {registers.strange[:5]}"
        assert any(one.kind == CAS and one.outcome == DONE for one in history)
        assert violations(history) == [], f"seed {SEED}"
