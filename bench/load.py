"""The load generator: prepared requests over raw keep-alive sockets, one epoll loop a process.

It has to be light, because it shares the machine with the server it measures: request heads are signed before
the clock starts, bodies go out with sendfile from a memory file and large answers are dropped by the kernel
(MSG_TRUNC), so a request costs the generator two system calls and a few microseconds. What is received is
still checked: every status, every length, every body up to 64 KiB, and one large body in sixteen byte by
byte.

It knows HTTP and nothing of S3; requests are made by compare.py's recipes through `sigv4`.

Concurrency: a `Generator` owns processes, each with a pipe; a job is prepared in every process, then all
start at once. Each process counts for itself; nothing is shared while the clock runs.
"""

import contextlib
import gc
import hashlib
import multiprocessing
import os
import random
import re
import select
import socket
import ssl
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from urllib.parse import urlsplit

from bench.shares import open_in_equal_shares
from bench.sigv4 import UNSIGNED, Credentials, Signer

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_ETAG = re.compile(rb"\r\netag: *([^\r]+)", re.IGNORECASE)
_RECEIVE_SIZE = 1024 * 1024
SMALL_SIZE_MAX = 64 * 1024  # Bodies up to here are compared every time; a 64 KiB compare costs 6 us.
_SENDFILE_SIZE_MIN = 256 * 1024  # Below, one gathered send is cheaper than two calls.
_STALL_S = 60.0  # A server that sends nothing for so long has stalled: the row fails instead of hanging.


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    url: str
    credentials: Credentials

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return (parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80))

    @property
    def tls(self) -> bool:
        return urlsplit(self.url).scheme == "https"


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """The bytes that every request of a job sends, or expects back. Made in each process from the seed."""

    size: int
    seed: int = 1

    def make(self) -> bytes:
        # Not compressible and not zero: neither a sparse file nor a compressing disk may flatter
        # the row. The block
        # is no power of two, so that no two aligned megabytes are alike.
        block = random.Random(self.seed).randbytes(min(self.size, 1_000_003))
        return (block * (self.size // max(len(block), 1) + 1))[: self.size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row's work for one process."""

    method: str
    paths: Sequence[str]  # Encoded; each is requested once, or again and again when `cycle`.
    queries: Sequence[str] = ()  # Parallel to `paths`, canonical; or empty.
    payload: Payload | None = None  # Sent (PUT, POST).
    expect: Payload | None = None  # Received (GET).
    unsigned_payload: bool = False
    connections: int
    seconds: float | None  # None: until every path has been requested once.
    warmup_s: float = 0.0  # What ends before it is not counted.
    cycle: bool = False
    collect_etags: bool = False
    read_rate: int | None = None  # Bytes a second and connection, for slow readers.
    worker_pids: Sequence[int] = ()  # Local server processes that must hold equal shares of the connections.


@dataclass(slots=True)
class Outcome:
    """What one process, or all together, saw."""

    operations: int = 0  # Answered as they should be, warm-up excluded.
    attempted: int = 0  # Requests answered at all, warm-up included.
    seconds: float = 0.0
    latencies: "array[float]" = field(
        default_factory=lambda: array("d")
    )  # Seconds, one per counted operation.
    bytes_received: int = 0
    errors: dict[str, int] = field(default_factory=dict)  # What went wrong, how often.
    etags: dict[int, str] = field(default_factory=dict)  # Index of the path -> ETag.
    reconnects: int = 0
    generator_cpu_s: float = 0.0
    shares: dict[int, int] = field(default_factory=dict)  # Server process -> connections at the start.
    done: int = 0  # Paths 0..done-1 have been requested (once at least).

    def note(self, what: str) -> None:
        self.errors[what] = self.errors.get(what, 0) + 1


class _Conn:
    __slots__ = (
        "body_left", "chunked", "compare", "index", "received", "rest", "send_body",
        "send_offset", "sent_head", "sock", "started", "status", "tail", "writing",
    )  # fmt: skip

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.index = -1  # Request under way; -1 when idle.
        self.started = 0.0
        self.rest = b""  # Received, not yet a whole head.
        self.body_left = -1  # Bytes of the answer's body still to come; -1 while the head is awaited.
        self.received = 0
        self.status = b""
        self.chunked = False
        self.tail = b""
        self.compare = False
        self.writing = False
        self.sent_head = b""
        self.send_offset = 0
        self.send_body = False


class _Run:
    """One job in one process."""

    def __init__(self, endpoint: Endpoint, job: Job) -> None:
        self.endpoint = endpoint
        self.job = job
        self.outcome = Outcome()
        self.payload = job.payload.make() if job.payload else b""
        self.expected = job.expect.make() if job.expect else None
        digest = UNSIGNED if job.unsigned_payload else hashlib.sha256(self.payload).hexdigest()
        signer = Signer(endpoint.credentials, endpoint.host)
        size = len(self.payload)
        queries: Sequence[str] = job.queries or [""] * len(job.paths)
        self.heads = [
            signer.head(job.method, path, query=query, payload_sha256=digest, size=size)
            for path, query in zip(job.paths, queries, strict=True)
        ]
        self.memory_file = -1
        if size >= _SENDFILE_SIZE_MIN and not endpoint.tls:
            self.memory_file = os.memfd_create("bench-payload")
            view = memoryview(self.payload)
            while view:
                view = view[os.write(self.memory_file, view) :]
        self.next_index = 0
        self.stopping = False
        self.conns: dict[int, _Conn] = {}
        self.epoll = select.epoll()
        self.buffer = bytearray(_RECEIVE_SIZE)
        self.view = memoryview(self.buffer)
        self.counted_from = self.last = 0.0

    # -- connections -------------------------------------------------------------------------------------

    def connect(self) -> None:
        host, port = self.endpoint.address
        if self.job.worker_pids:
            socks, self.outcome.shares = open_in_equal_shares(
                (host, port), self.job.connections, self.job.worker_pids, self._open
            )
        else:
            socks = [self._open() for _ in range(self.job.connections)]
        for sock in socks:
            self._add(sock)

    def _open(self) -> socket.socket:
        sock = socket.create_connection(self.endpoint.address, timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.job.read_rate:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        if self.endpoint.tls:
            context = ssl.create_default_context()
            context.check_hostname = False  # A measurement against a test certificate is the common case.
            context.verify_mode = ssl.CERT_NONE
            sock = context.wrap_socket(sock, server_hostname=self.endpoint.address[0])
        sock.setblocking(False)
        return sock

    def _add(self, sock: socket.socket) -> _Conn:
        conn = _Conn(sock)
        self.conns[sock.fileno()] = conn
        self.epoll.register(sock.fileno(), select.EPOLLIN)
        return conn

    def _drop(self, conn: _Conn) -> None:
        fd = conn.sock.fileno()
        self.epoll.unregister(fd)
        del self.conns[fd]
        conn.sock.close()

    def _fail(self, conn: _Conn, why: str, now: float) -> None:
        """The connection is lost in mid-request: count it, open another, go on."""
        self.outcome.note(why)
        self._drop(conn)
        if sum(self.outcome.errors.values()) > 1_000:
            self.stopping = True  # Refused connections would otherwise spin until the deadline.
        if self.stopping:
            return
        try:
            fresh = self._add(self._open())
        except OSError as failure:
            self.outcome.note(f"connect: {failure}")
            return
        self.outcome.reconnects += 1
        self._begin(fresh, now)

    # -- sending -----------------------------------------------------------------------------------------

    def _begin(self, conn: _Conn, now: float) -> None:
        index = self.next_index
        if self.stopping:
            conn.index = -1
            return
        if index >= len(self.heads):
            if not self.job.cycle:
                conn.index = -1
                return
            index %= len(self.heads)
        self.next_index += 1
        conn.index = index
        conn.started = now
        conn.body_left = -1
        conn.received = 0
        conn.compare = self.expected is not None and (
            len(self.expected) <= SMALL_SIZE_MAX or self.next_index % 16 == 1
        )
        head = self.heads[index]
        try:
            if not self.payload:
                sent = conn.sock.send(head)
                if sent == len(head):
                    return
                conn.sent_head, conn.send_offset, conn.send_body = head, sent, False
            elif self.memory_file < 0:
                whole = len(head) + len(self.payload)
                if self.endpoint.tls:
                    sent = conn.sock.send(head + self.payload)
                else:
                    sent = conn.sock.sendmsg((head, self.payload))
                if sent == whole:
                    return
                conn.sent_head, conn.send_offset, conn.send_body = head, sent, True
            else:
                # MSG_MORE keeps head and the first of the body in one segment.
                sent = conn.sock.send(head, socket.MSG_MORE)
                conn.sent_head, conn.send_offset, conn.send_body = head, sent, True
                self._send_rest(conn)
                return
        except (BlockingIOError, ssl.SSLWantWriteError):
            conn.sent_head, conn.send_offset, conn.send_body = head, 0, bool(self.payload)
        except OSError as failure:
            self._fail(conn, f"send: {failure}", now)
            return
        self._want_write(conn, True)

    def _send_rest(self, conn: _Conn) -> None:
        head_size = len(conn.sent_head)
        total = head_size + (len(self.payload) if conn.send_body else 0)
        try:
            while conn.send_offset < total:
                if conn.send_offset < head_size:
                    conn.send_offset += conn.sock.send(conn.sent_head[conn.send_offset :])
                elif self.memory_file >= 0:
                    offset = conn.send_offset - head_size
                    conn.send_offset += os.sendfile(
                        conn.sock.fileno(), self.memory_file, offset, total - conn.send_offset
                    )
                else:
                    rest = memoryview(self.payload)[conn.send_offset - head_size :]
                    conn.send_offset += conn.sock.send(rest)
        except (BlockingIOError, ssl.SSLWantWriteError):
            self._want_write(conn, True)
            return
        self._want_write(conn, False)

    def _want_write(self, conn: _Conn, wanted: bool) -> None:
        if wanted != conn.writing:
            conn.writing = wanted
            self.epoll.modify(
                conn.sock.fileno(), select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN
            )

    # -- receiving ---------------------------------------------------------------------------------------

    def _receive(self, conn: _Conn, now: float) -> None:
        if conn.body_left > 0:
            self._receive_body(conn, now)
            return
        try:
            count = conn.sock.recv_into(self.view)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as failure:
            self._fail(conn, f"receive: {failure}", now)
            return
        if count == 0:
            if conn.index < 0:
                self._drop(conn)  # An idle connection may be closed: no request is lost.
            else:
                self._fail(conn, "closed by the server in mid-request", now)
            return
        data = conn.rest + self.buffer[:count] if conn.rest else bytes(self.view[:count])
        if conn.chunked:
            self._receive_chunked(conn, data, now)
            return
        end = data.find(b"\r\n\r\n")
        while end >= 0 and data[9:12] == b"100":
            data = data[end + 4 :]
            end = data.find(b"\r\n\r\n")
        if end < 0:
            conn.rest = data
            return
        conn.rest = b""
        head = data[:end]
        conn.status = data[9:12]
        body = data[end + 4 :]
        if self.job.method == "HEAD" or conn.status in (b"204", b"304"):
            length = 0
        else:
            found = _LENGTH.search(head)
            if found:
                length = int(found[1])
            elif _CHUNKED.search(head):
                conn.chunked = True
                conn.tail = head
                conn.received = 0
                self._receive_chunked(conn, body, now)
                return
            else:
                self._fail(conn, "an answer without a length", now)
                return
        if self.job.collect_etags:
            tag = _ETAG.search(head)
            if tag:
                self.outcome.etags[conn.index] = tag[1].decode()
        conn.tail = head
        conn.body_left = length
        self._take(conn, body)
        if conn.body_left <= 0:
            self._finish(conn, now)

    def _receive_body(self, conn: _Conn, now: float) -> None:
        try:
            if conn.compare or self.endpoint.tls or conn.status[:1] != b"2":
                count = conn.sock.recv_into(self.view, min(conn.body_left, len(self.view)))
                self._take(conn, self.view[:count])
            else:
                # Dropped in the kernel: copying 64 MiB would cost the generator more than the server.
                count = conn.sock.recv_into(self.view, min(conn.body_left, len(self.view)), socket.MSG_TRUNC)
                conn.body_left -= count
                conn.received += count
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as failure:
            self._fail(conn, f"receive: {failure}", now)
            return
        if count == 0:
            self._fail(conn, "closed by the server in mid-body", now)
        elif conn.body_left <= 0:
            self._finish(conn, now)

    def _receive_chunked(self, conn: _Conn, data: bytes, now: float) -> None:
        while True:
            line = data.find(b"\r\n")
            if line < 0:
                break
            size = int(data[:line].split(b";")[0], 16)
            if len(data) < line + 4 + size:
                break
            if size == 0:
                conn.chunked = False
                conn.rest = b""
                conn.body_left = 0
                self._finish(conn, now)
                return
            self._take(conn, data[line + 2 : line + 2 + size])
            data = data[line + 4 + size :]
        conn.rest = data

    def _take(self, conn: _Conn, part: bytes | memoryview) -> None:
        size = len(part)
        if not size:
            return
        expected = self.expected
        if conn.compare and expected is not None and conn.status[:1] == b"2":
            at = conn.received
            # bytes against bytes is one memcmp; memoryviews are compared element by element, a
            # hundred times slower.
            whole = part if isinstance(part, bytes) else bytes(part)
            if whole != (expected if size == len(expected) else expected[at : at + size]):
                self.outcome.note("WRONG BYTES")
        elif conn.status[:1] != b"2" and conn.received == 0:
            conn.tail = bytes(part[:300])
        conn.received += size
        conn.body_left -= size

    def _finish(self, conn: _Conn, now: float) -> None:
        outcome = self.outcome
        outcome.attempted += 1
        outcome.bytes_received += conn.received
        good = conn.status[:1] == b"2"
        if not good:
            code = re.search(rb"<Code>([^<]*)", conn.tail)
            outcome.note(f"{conn.status.decode()} {code[1].decode() if code else ''}".strip())
        elif self.expected is not None and conn.received != len(self.expected):
            outcome.note(f"{conn.received} bytes instead of {len(self.expected)}")
            good = False
        if good and now >= self.counted_from:
            outcome.operations += 1
            outcome.latencies.append(now - conn.started)
        self.last = now
        if _CLOSE.search(conn.tail):
            self._drop(conn)
            if not self.stopping:
                conn = self._add(self._open())
                outcome.reconnects += 1
                self._begin(conn, now)
            return
        if conn.writing:  # An early answer: the rest of the request was never sent.
            self._fail(conn, "answered before the request was sent", now)
            return
        self._begin(conn, now)

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        clock = time.perf_counter
        started = self.last = clock()
        cpu = time.process_time()
        self.counted_from = started + self.job.warmup_s
        deadline = started + self.job.seconds if self.job.seconds is not None else float("inf")
        for conn in list(self.conns.values()):
            self._begin(conn, clock())
        pace = self._pace() if self.job.read_rate else None
        heard = clock()
        while self.conns and not (self.stopping and all(conn.index < 0 for conn in self.conns.values())):
            events = self.epoll.poll(0.25, 256) if pace is None else next(pace)
            now = clock()
            if events:
                heard = now
            elif now - heard > _STALL_S and pace is None:
                self.outcome.note(f"no answer for {_STALL_S:.0f} s")
                break
            if now >= deadline:
                if not self.stopping:
                    self.stopping = True
                if pace is not None:
                    break
            for fd, event in events:
                active = self.conns.get(fd)
                if active is None:
                    continue
                if event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    self._receive(active, clock())
                if event & select.EPOLLOUT and self.conns.get(fd) is active and active.writing:
                    try:
                        self._send_rest(active)
                    except OSError as failure:
                        self._fail(active, f"send: {failure}", now)
            if self.next_index >= len(self.heads) and not self.job.cycle:
                self.stopping = True
        outcome = self.outcome
        outcome.seconds = max(self.last - self.counted_from, 1e-9)
        outcome.generator_cpu_s = time.process_time() - cpu
        outcome.done = min(self.next_index, len(self.heads))
        for conn in list(self.conns.values()):
            self._drop(conn)
        self.epoll.close()
        if self.memory_file >= 0:
            os.close(self.memory_file)
        return outcome

    def _pace(self) -> Iterator[list[tuple[int, int]]]:
        """Slow readers: each turn hands every connection one small read, `read_rate` bytes a second in
        all."""
        assert self.job.read_rate
        self.view = self.view[: 64 * 1024]
        turn_s = len(self.view) / self.job.read_rate
        while True:
            time.sleep(turn_s)
            yield self.epoll.poll(0, 256)


def _serve(endpoint: Endpoint, pipe: Pipe) -> None:
    """The life of a generator process: prepare, say ready, wait for the start, run, answer."""
    gc.disable()  # A collection in the middle of a row would be counted as the server's latency.
    while True:
        try:
            job = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if job is None:
            return
        try:
            run = _Run(endpoint, job)
            run.connect()
        except Exception as failure:  # Handed to the parent, which raises it.
            pipe.send(failure)
            continue
        pipe.send("ready")
        pipe.recv()
        try:
            pipe.send(run.run())
        except Exception as failure:
            pipe.send(failure)
        del run
        gc.collect()


class GeneratorFailed(Exception):
    """The generator itself could not do its work; nothing was measured."""


class Generator:
    """Several generator processes for one endpoint. Use as a context manager."""

    def __init__(self, endpoint: Endpoint, processes: int) -> None:
        assert processes >= 1
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Pipe] = []
        self._processes = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(endpoint, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()

    @property
    def count(self) -> int:
        return len(self._pipes)

    def run(self, jobs: Sequence[Job], at_start: Callable[[], None] = lambda: None) -> Outcome:
        """Run `jobs[i]` in process i, all from the same moment; `at_start` is called just before.

        Returns: the sum; `seconds` is the longest, `done` and `etags` only mean something for one job.
        Raises: GeneratorFailed.
        """
        assert 1 <= len(jobs) <= self.count
        pipes = self._pipes[: len(jobs)]
        for pipe, job in zip(pipes, jobs, strict=True):
            pipe.send(job)
        failures = [answer for pipe in pipes if isinstance(answer := _answer(pipe), Exception)]
        if failures:
            for pipe in pipes:
                pipe.close()
            raise GeneratorFailed(f"cannot connect or prepare: {failures[0]!r}") from failures[0]
        at_start()
        for pipe in pipes:
            pipe.send("go")
        total = Outcome()
        self.outcomes: list[Outcome] = []
        for pipe in pipes:
            one = _answer(pipe)
            if not isinstance(one, Outcome):
                cause = one if isinstance(one, Exception) else None
                raise GeneratorFailed(f"the generator failed: {one!r}") from cause
            self.outcomes.append(one)
            total.operations += one.operations
            total.attempted += one.attempted
            total.seconds = max(total.seconds, one.seconds)
            total.latencies.extend(one.latencies)
            total.bytes_received += one.bytes_received
            total.reconnects += one.reconnects
            total.generator_cpu_s += one.generator_cpu_s
            total.etags.update(one.etags)
            total.done += one.done
            for what, count in one.errors.items():
                total.errors[what] = total.errors.get(what, 0) + count
            for pid, count in one.shares.items():
                total.shares[pid] = total.shares.get(pid, 0) + count
        return total


def _answer(pipe: Pipe) -> object:
    try:
        return pipe.recv()
    except EOFError:
        return GeneratorFailed("a generator process died")
