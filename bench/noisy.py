"""A noisy tenant beside a quiet one: what its requests take while the other asks for 50 times its rate.

    python -m bench.noisy [--rate 100] [--times 50] [--connections 64] [--rounds 20] [--seconds 1]

The quiet tenant sends one request after the other on one connection, a GET and a PUT of 4 KiB in turn with a
pause after each: alone, beside the other tenant at its rate, and beside it at `times` its rate, in turns on
one server. The noisy one has a limit of `rate` requests a second; each of its connections asks again at once
when it is answered. What counts is the quiet one's p99 of all rounds beside the noise, in p99s of all rounds
alone; no request of its own may fail. The turns beside the other at its rate tell
what of it is work that is paid for.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import re
import select
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as `bench/noisy.py`.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.load import Endpoint
from bench.metering import on_core_ns
from bench.rows import KIB, percentile
from bench.sigv4 import UNSIGNED, Credentials, Signer
from bench.targets import ROOT, Target, TargetFailed, objstore

BAR = 1.5  # Of the quiet one's p99 alone.
SIZE = 4 * KIB
KEYS = 64
SETTLE_S = 1.0  # The other is at work, or at rest, for so long before the quiet one is measured.
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STALL_S = 60.0


def requests_of(endpoint: Endpoint, bucket: str) -> list[bytes]:
    """Whole requests, PUT and GET of each key in turn. Good for 15 minutes."""
    signer = Signer(endpoint.credentials, endpoint.host)
    body = bytes(range(256)) * (SIZE // 256)
    found = []
    for number in range(KEYS):
        path = f"/{bucket}/{number}"
        found.append(signer.head("PUT", path, payload_sha256=UNSIGNED, size=SIZE) + body)
        found.append(signer.head("GET", path))
    return found


class Answers:
    """What comes back on one connection, one answer at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = b""

    def receive(self) -> int:
        """Take what is there; the status of an answer that is whole now, 0 if none is. Raises: OSError."""
        data = self.sock.recv(65_536)
        if not data:
            raise ConnectionResetError("closed by the server")
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return 0
        length = _LENGTH.search(self._data, 0, end + 2)
        if len(self._data) < end + 4 + (int(length[1]) if length else 0):
            return 0
        status = int(self._data[9:12])
        self._data = b""
        return status


@dataclass(slots=True)
class Quiet:
    """What the quiet tenant saw."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"PUT": [], "GET": []})
    failures: Counter[int] = field(default_factory=Counter)  # By status; 0: a broken connection.

    def take(self, endpoint: Endpoint, requests: list[bytes], seconds: float, pause_s: float) -> None:
        """Ask for so long."""
        with contextlib.closing(socket.create_connection(endpoint.address, timeout=_STALL_S)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = Answers(sock)
            end = time.monotonic() + seconds
            index = 0
            while time.monotonic() < end:
                request = requests[index % len(requests)]
                index += 1
                began = time.perf_counter()
                sock.sendall(request)
                while not (status := answers.receive()):
                    pass
                taken = time.perf_counter() - began
                if status == 200:
                    self.seconds[request[:3].decode()].append(taken)
                else:
                    self.failures[status] += 1
                time.sleep(pause_s)

    def p99_ms(self, method: str) -> float:
        return percentile(sorted(self.seconds[method]), 0.99) * 1_000

    def p50_ms(self, method: str) -> float:
        return percentile(sorted(self.seconds[method]), 0.5) * 1_000


def make_noise(pipe: Connection, endpoint: Endpoint, bucket: str, connections: int) -> None:
    """In a process of its own: told a rate, it asks as often until the next word, then says what it saw."""
    requests = requests_of(endpoint, bucket)
    noise = Noise(endpoint, connections)
    while (rate := pipe.recv()) is not None:
        seen: Counter[int] = Counter()
        began, sent = time.monotonic(), 0
        while not pipe.poll():
            noise.connect()
            allowed = int((time.monotonic() - began) * rate) - sent
            for _ in range(min(allowed, len(noise.idle))):
                noise.send(requests[sent % len(requests)])
                sent += 1
            seen += noise.receive()
        pipe.recv()
        pipe.send(seen)


class Noise:
    """Connections that each ask again when they are answered."""

    def __init__(self, endpoint: Endpoint, connections: int) -> None:
        self._endpoint = endpoint
        self._connections = connections
        self._poller = select.epoll()
        self._open: dict[int, Answers] = {}
        self.idle: list[Answers] = []

    def connect(self) -> None:
        """Open some of those that are missing."""
        for _ in range(min(8, self._connections - len(self._open))):
            sock = socket.create_connection(self._endpoint.address, timeout=_STALL_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poller.register(sock.fileno(), select.EPOLLIN)
            answers = self._open[sock.fileno()] = Answers(sock)
            self.idle.append(answers)

    def send(self, request: bytes) -> None:
        self.idle.pop().sock.sendall(request)

    def receive(self) -> Counter[int]:
        """What comes within two milliseconds: answers by status; 0: a connection that was closed."""
        seen: Counter[int] = Counter()
        for number, _ in self._poller.poll(0.002):
            answers = self._open[number]
            try:
                status = answers.receive()
            except OSError:
                self._poller.unregister(number)
                del self._open[number]
                if answers in self.idle:
                    self.idle.remove(answers)
                answers.sock.close()
                seen[0] += 1
                continue
            if status:
                seen[status] += 1
                self.idle.append(answers)
        return seen


def ask_admin(target: Target, method: str, path: str, content: dict[str, Any]) -> dict[str, Any]:
    """Raises: TargetFailed."""
    assert target.directory is not None
    state = json.loads((target.directory / "run" / "state.json").read_text())
    token = (target.directory / "admin.token").read_text().strip()
    address = str(state["admin_listen"]).rpartition(":")
    with contextlib.closing(
        http.client.HTTPConnection(address[0], int(address[2]), timeout=60)
    ) as connection:
        connection.request(method, path, json.dumps(content), {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        body = answer.read()
    if answer.status // 100 != 2:
        raise TargetFailed(f"{method} {path}: {answer.status} {body[:300]!r}")
    found: dict[str, Any] = json.loads(body)
    return found


def rent(target: Target, tenant: str, rate: int | None) -> Endpoint:
    """A tenant with a user, a key, a bucket of its name with all keys in it, and a limit of its rate."""
    ask_admin(target, "POST", "/api/v1/users", {"name": tenant, "tenant": tenant, "role": "owner"})
    key = ask_admin(target, "POST", "/api/v1/keys", {"user": tenant})
    endpoint = Endpoint(
        url=target.endpoint.url, credentials=Credentials(key["access_key"], key["secret_key"])
    )
    own = Target(name=tenant, endpoint=endpoint)
    own.must("PUT", f"/{tenant}")
    for number in range(KEYS):
        own.must("PUT", f"/{tenant}/{number}", body=bytes(SIZE))
    if rate is not None:
        ask_admin(target, "PATCH", f"/api/v1/tenants/{tenant}/quota", {"requests_per_s": rate})
    return endpoint


@contextlib.contextmanager
def neighbour(endpoint: Endpoint, bucket: str, connections: int) -> Iterator[Connection]:
    """The noisy one's process (`make_noise`)."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(
        target=make_noise, args=(theirs, endpoint, bucket, connections), daemon=True
    )
    process.start()
    try:
        yield ours
    finally:
        process.terminate()
        process.join(10)


@dataclass(slots=True)
class Turns:
    """All turns beside the same."""

    quiet: Quiet = field(default_factory=Quiet)
    noise: Counter[int] = field(default_factory=Counter)  # Answers to the other one by status.
    noise_s: float = 0.0
    cores: list[float] = field(default_factory=list)  # That the server used, of each turn.


def measure(options: argparse.Namespace) -> list[Turns]:
    """The turns alone, beside the other at its rate, and beside the noise. Raises: TargetFailed, OSError."""
    scratch = Path(options.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    found = [Turns(), Turns(), Turns()]
    rates = (0, options.rate, options.rate * options.times)
    with objstore(scratch, options.workers, scratch / "noisy.log") as target:
        quiet = rent(target, "quiet", None)
        noisy = rent(target, "noisy", options.rate)
        requests = requests_of(quiet, "quiet")
        Quiet().take(quiet, requests, 2 * SETTLE_S, options.pause)  # Nobody is measured cold.
        with neighbour(noisy, "noisy", options.connections) as pipe:
            for number in range(options.rounds):
                for turn in range(len(found)):
                    which = (number + turn) % len(found)
                    _take_turn(options, target, quiet, requests, pipe, rates[which], found[which])
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return found


def _take_turn(
    options: argparse.Namespace,
    target: Target,
    quiet: Endpoint,
    requests: list[bytes],
    pipe: Connection,
    rate: int,
    turns: Turns,
) -> None:
    pipe.send(rate)
    began = time.monotonic()
    time.sleep(SETTLE_S)
    before = on_core_ns(target)
    turns.quiet.take(quiet, requests, options.seconds, options.pause)
    turns.cores.append((on_core_ns(target) - before) / options.seconds / 1e9)
    pipe.send(0)
    turns.noise += pipe.recv()
    turns.noise_s += time.monotonic() - began


def verdict(found: list[Turns]) -> tuple[bool, list[str]]:
    """Whether the noisy one was held to its share, and lines that say so."""
    alone = found[0].quiet
    good = True
    lines = []
    for name, turns in zip(("alone", "at its rate", "noisy"), found, strict=True):
        answers = ", ".join(
            f"{count / turns.noise_s:.0f}/s of {status}" for status, count in sorted(turns.noise.items())
        )
        lines.append(
            f"{name:12} server {statistics.median(turns.cores):.2f} cores; the other {answers or 'rests'}"
        )
        for method in ("GET", "PUT"):
            p50, p99 = turns.quiet.p50_ms(method), turns.quiet.p99_ms(method)
            times = p99 / alone.p99_ms(method)
            lines.append(
                f"    {method}  p50 {p50:7.2f} ms   p99 {p99:7.2f} ms, {times:.2f} times"
                f"   ({len(turns.quiet.seconds[method])} requests)"
            )
            good = good and (turns is not found[-1] or times <= BAR)
        lines.append(f"    refused {dict(turns.quiet.failures) or 'nothing'}")
        good = good and not turns.quiet.failures
    lines.append(f"noisy at most {BAR} times, nothing refused: {'holds' if good else 'MISSED'}")
    return good, lines


def main(arguments: list[str] | None = None) -> int:
    """0: it is held to its share. 1: it is not. 2: something went wrong."""
    parser = argparse.ArgumentParser(
        prog="bench.noisy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=100, help="the noisy one's limit, requests a second")
    parser.add_argument("--times", type=int, default=50, help="how many times that it asks for")
    parser.add_argument("--connections", type=int, default=64, help="that it has")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument(
        "--pause", type=float, default=0.002, help="seconds after each request of the quiet one"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scratch", default=str(ROOT / "bench" / "out" / "scratch"))
    options = parser.parse_args(arguments)
    if min(options.rate, options.times, options.connections, options.rounds, options.workers) < 1:
        parser.error("--rate, --times, --connections, --rounds and --workers are 1 or more")
    try:
        found = measure(options)
    except (TargetFailed, OSError, EOFError) as failure:
        print(f"stopped: {failure}", file=sys.stderr)
        return 2
    good, lines = verdict(found)
    print("\n".join(lines))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
