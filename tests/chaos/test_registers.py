"""Objects as registers, by S3 alone, while everything happens to a cluster: linearizable key by key.

Reads, writes and compare-and-sets (If-Match, If-None-Match) through all gateways, while nodes, gateways,
workers and committers are killed, nodes and metadata are cut off by a network that swallows, wall clocks
jump, and a disk's files move to the others and back. Only in the long form (`make chaos`); the short
one is that of the engines without machines around them: test_lmdb_histories.py and test_postgres_histories.py
of tests/meta.

Concurrency: a thread for each caller, one for the network's loop; what happens is decided by the test's own.
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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.sigv4 import Credentials, Signer
from objstore.processes.dev import LocalCluster, Process
from tests import postgres
from tests.chaos.workload import RESTLESS
from tests.linearizability import CAS, DONE, FOREVER, READ, REFUSED, UNKNOWN, WRITE, Operation, violations
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


class Registers:
    """The callers and their history."""

    def __init__(self, credentials: Credentials, ports: list[int]) -> None:
        self.credentials = credentials
        self.ports = ports
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
            port = chance.choice(self.ports)
            began = time.monotonic_ns()
            outcome, found = caller.once(port, kind, key, expected, wrote)
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
                known, found = caller.once(port, READ, key, None, None)
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
                outcome, found = caller.once(self.ports[0], READ, f"r{number}", None, None)
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
        self, port: int, kind: str, key: str, expected: str | None, wrote: str | None
    ) -> tuple[str, str | None]:
        """(outcome, value read or words)."""
        body = (wrote or "").encode()
        more: dict[str, str] = {}
        if kind == CAS:
            more = {"If-None-Match": "*"} if expected is None else {"If-Match": f'"{_md5(expected)}"'}
        method = "GET" if kind == READ else "PUT"
        try:
            status, answer = self.ask(port, method, f"/{BUCKET}/{key}", body, more)
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

    def ask(self, port: int, method: str, path: str, body: bytes, more: dict[str, str]) -> tuple[int, bytes]:
        signer = Signer(self._credentials, f"127.0.0.1:{port}")
        digest = hashlib.sha256(body).hexdigest()
        head = signer.head(method, path, payload_sha256=digest, size=len(body)).decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        try:
            connection.request(method, path, body or None, headers | more)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _md5(value: str) -> str:
    return hashlib.md5(value.encode(), usedforsecurity=False).hexdigest()


class Network:
    """Proxies on a loop of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._proxies: list[Proxy] = []

    def before(self, port: int) -> Proxy:
        proxy = Proxy(port)
        asyncio.run_coroutine_threadsafe(proxy.start(), self._loop).result(10)
        self._proxies.append(proxy)
        return proxy

    def swallow(self, proxy: Proxy) -> None:
        self._loop.call_soon_threadsafe(proxy.swallow)

    def heal(self, proxy: Proxy) -> None:
        """What was held is lost: it must not arrive hours later and be taken for new."""
        self._loop.call_soon_threadsafe(proxy.reset)
        self._loop.call_soon_threadsafe(proxy.open)

    def close(self) -> None:
        for proxy in self._proxies:
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(proxy.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


Event = Callable[[Registers], None]


class World:
    """A cluster, the network between its machines, and a clock for each of them."""

    def __init__(self, place: Path, library: Path, url: str) -> None:
        self.chance = random.Random(SEED)
        self.network = Network()
        self._clocks = place / "clocks"
        self._clocks.mkdir()
        self._library = library
        self.cluster = LocalCluster(
            directory=place / "cluster",
            nodes=NODES,
            codec=CODEC,
            gateway_count=2 if url else 1,
            url=url,
        )
        self.to_nodes: dict[str, Proxy] = {}
        for node in self.cluster.members:
            [listen] = [word for word in node.command if word.startswith("--listen=")]
            proxy = self.network.before(int(listen.rpartition(":")[2]))
            node.command.append(f"--address=127.0.0.1:{proxy.port}")
            self.to_nodes[node.name] = proxy
        self.to_metadata = {
            gateway.name: self.network.before(int(url.rpartition(":")[2].partition("/")[0]))
            for gateway in self.cluster.gateways
            if url
        }
        self._database = url.rpartition("/")[2]

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
        if self.to_metadata and process.name in self.to_metadata:
            port = self.to_metadata[process.name].port
            self.cluster.url = f"postgresql://objstore@127.0.0.1:{port}/{self._database}"

    def settle(self) -> None:
        self.cluster.wait_for_disks(NODES, QUIET_S)

    def close(self) -> None:
        for proxy in [*self.to_nodes.values(), *self.to_metadata.values()]:
            self.network.heal(proxy)
        self.cluster.close()
        self.network.close()

    # What happens. Each ends with everything as it was.

    def node_dies(self, registers: Registers) -> None:
        node = self.chance.choice(self.cluster.members)
        self.cluster.kill(node)
        registers.work_until(BETWEEN)
        self.start_node(node)
        self.settle()

    def node_is_cut_off(self, registers: Registers) -> None:
        proxy = self.to_nodes[self.chance.choice(self.cluster.members).name]
        self.network.swallow(proxy)
        registers.work_until(BETWEEN)
        self.network.heal(proxy)
        self.settle()

    def gateway_dies(self, registers: Registers) -> None:
        gateway = self.chance.choice(self.cluster.gateways)
        self.cluster.kill(gateway)
        if len(self.cluster.gateways) > 1:
            registers.work_until(BETWEEN)
        self.start_gateway(gateway)

    def metadata_are_cut_off(self, registers: Registers) -> None:
        """From one gateway: it must say that it does not know, and never what it last knew."""
        proxy = self.to_metadata[self.chance.choice(self.cluster.gateways).name]
        self.network.swallow(proxy)
        # Half of all requests wait for seconds now, and every caller soon has one of them. The others go on.
        registers.doubt_until(2 * CALLERS)
        registers.work_until(CALLERS)
        self.network.heal(proxy)

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
        return [*found, self.metadata_are_cut_off] if self.to_metadata else found


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes wall clocks jump."""
    return preload_library(Path(__file__).with_name("clock.c"), tmp_path_factory.mktemp("library"))


@contextlib.contextmanager
def world(place: Path, clock: Path, url: str) -> Iterator[World]:
    made = World(place, clock, url)
    try:
        made.start()
        yield made
    finally:
        made.close()


if LONG:

    @pytest.mark.timeout(14_400)
    @pytest.mark.parametrize("engine", ["lmdb", "postgres"])
    def test_objects_are_linearizable_registers_whatever_happens_to_the_machines(
        engine: str, clock: Path, tmp_path: Path
    ) -> None:
        print(f"seed {SEED}")
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(postgres.database()) if engine == "postgres" else ""
            it = stack.enter_context(world(tmp_path, clock, url))
            ports = [gateway.ports[0] for gateway in it.cluster.gateways]
            registers = Registers(Credentials(*it.cluster.root), ports)
            assert _Caller(registers.credentials).ask(ports[0], "PUT", f"/{BUCKET}", b"", {})[0] == 200
            happened: dict[str, int] = {}
            with registers:
                registers.work_until(BETWEEN)
                while len(registers.history) < OPERATIONS:
                    events = it.events()
                    it.chance.shuffle(events)
                    for event in events:
                        name = getattr(event, "__name__", "event")
                        happened[name] = happened.get(name, 0) + 1
                        event(registers)
                        registers.work_until(BETWEEN)
            registers.read_all()
        history = registers.history
        outcomes = {name: sum(one.outcome == name for one in history) for name in (DONE, REFUSED, UNKNOWN)}
        print(f"{engine}: {len(history)} operations, {outcomes}, {happened}")
        assert registers.strange == [], f"seed {SEED}: {registers.strange[:5]}"
        assert any(one.kind == CAS and one.outcome == DONE for one in history)
        assert violations(history) == [], f"seed {SEED}"
