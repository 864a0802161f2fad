"""Large bodies received straight into a sink's memory: the same bytes, verdicts and limits as before."""

import asyncio
import hashlib
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from aiohttp import web
from edge_running import SMALL_LIMITS, WITHIN_S, Edge, Start, read_answer
from edge_signing import sign

from objstore.errors import Overloaded
from objstore.objects.values import Buffer, PouringBody
from objstore.s3.call import Call
from objstore.s3.limits import MIB
from tests.waiting import until

SEED = random.SystemRandom().randrange(1 << 32)


class MemorySink:
    """Stripes of `capacity` bytes. What was sent is overwritten as soon as its last reader is done."""

    def __init__(self, capacity: int, *, fails_at: int | None = None) -> None:
        self.hurry: Callable[[], None] | None = None
        self.capacity = capacity
        self.fails_at = fails_at
        self.buffer: bytearray | None = None
        self.filled = 0
        self.sent: list[bytes] = []
        self.direct = 0  # Bytes that were received in our memory.
        self.flushes = 0

    @property
    def is_full(self) -> bool:
        return self.buffer is not None and self.filled == self.capacity

    def room(self) -> memoryview | None:
        if self.buffer is None or self.is_full:
            return None
        return memoryview(self.buffer)[self.filled :]

    def took(self, size: int) -> None:
        assert self.buffer is not None
        self.filled += size
        self.direct += size
        assert self.filled <= self.capacity

    async def turn(self, read: "asyncio.Future[None] | None") -> None:
        assert self.is_full
        self._send(read)
        await asyncio.sleep(0)
        if self.fails_at is not None and len(self.sent) >= self.fails_at:
            raise Overloaded("no memory for a stripe")
        self.buffer, self.filled = bytearray(self.capacity), 0

    async def flush(self, read: "asyncio.Future[None] | None") -> None:
        self.flushes += 1
        self._send(read)

    async def write(self, chunk: Buffer) -> None:
        at = 0
        while at < len(chunk):
            if self.is_full:
                self._send(None)
            if self.buffer is None:
                self.buffer, self.filled = bytearray(self.capacity), 0
            take = min(len(chunk) - at, self.capacity - self.filled)
            self.buffer[self.filled : self.filled + take] = chunk[at : at + take]
            self.filled += take
            at += take

    def content(self) -> bytes:
        rest = b"" if self.buffer is None else bytes(self.buffer[: self.filled])
        return b"".join(self.sent) + rest

    def _send(self, read: "asyncio.Future[None] | None") -> None:
        buffer, self.buffer = self.buffer, None
        if buffer is None:
            return
        self.sent.append(bytes(buffer[: self.filled]))
        self.filled = 0

        def reuse(_: object) -> None:
            buffer[:] = b"\xee" * len(buffer)

        if read is None or read.done():
            reuse(None)
        else:
            read.add_done_callback(reuse)


class Poured:
    """A handler that pours every body into a sink of its own, and the sinks."""

    def __init__(self, capacity: int = MIB, *, fails_at: int | None = None) -> None:
        self.sinks: list[MemorySink] = []
        self.failures: list[BaseException] = []
        self.capacity = capacity
        self.fails_at = fails_at

    async def __call__(self, call: Call) -> web.StreamResponse:
        body = call.body
        if not (isinstance(body, PouringBody) and body.is_large):
            return web.Response(body=b"small")
        sink = MemorySink(self.capacity, fails_at=self.fails_at)
        self.sinks.append(sink)
        try:
            await body.pour(sink)
            digests = await body.digests()
        except BaseException as failure:
            self.failures.append(failure)
            raise
        return web.Response(headers={"ETag": digests.md5.hex()})


def put(body: bytes, **options: str) -> bytes:
    return sign("PUT", "/b/k", body=body, payload=options.get("payload", "UNSIGNED-PAYLOAD")).wire()


GET = sign("GET", "/b/k").wire()


def some_bytes(size: int) -> bytes:
    print(f"seed {SEED}")
    return random.Random(SEED).randbytes(size)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("size", "capacity"),
    [
        (3 * MIB, MIB),
        (3 * MIB + 17, MIB),
        (5 * MIB, 300_000),
        (MIB - 1, 4 * MIB),
        (8 * MIB, 4 * MIB - 16_384),
    ],
)
async def test_a_large_body_lies_in_the_sinks_memory_as_it_was_sent(
    start_edge: Start, size: int, capacity: int, signed: bool
) -> None:
    poured = Poured(capacity)
    edge = await start_edge(poured)
    body = some_bytes(size)
    reader, writer = await edge.connect()
    for _ in range(3):  # The connection goes on afterwards, with what was sent right behind the body.
        payload = hashlib.sha256(body).hexdigest() if signed else "UNSIGNED-PAYLOAD"
        writer.write(put(body, payload=payload) + GET)
        answer = await asyncio.wait_for(read_answer(reader), WITHIN_S)
        assert answer.status == 200
        assert answer.headers["etag"] == hashlib.md5(body, usedforsecurity=False).hexdigest()
        assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).body == b"small"
    for sink in poured.sinks:
        assert sink.content() == body
    assert any(sink.direct > size // 4 for sink in poured.sinks)
    writer.close()


async def test_a_body_that_comes_in_odd_pieces_is_put_together_rightly(start_edge: Start) -> None:
    poured = Poured(700_001)
    edge = await start_edge(poured)
    body = some_bytes(4 * MIB + 1)
    rng = random.Random(SEED)
    wire = put(body)
    reader, writer = await edge.connect()
    at = 0
    while at < len(wire):
        step = rng.choice((1, 1_000, 65_536, 400_000, 1_500_000))
        writer.write(wire[at : at + step])
        await writer.drain()
        await asyncio.sleep(0)
        at += step
    answer = await asyncio.wait_for(read_answer(reader), WITHIN_S)
    assert answer.headers["etag"] == hashlib.md5(body, usedforsecurity=False).hexdigest()
    assert poured.sinks[0].content() == body
    writer.close()


async def test_a_wrong_payload_hash_is_found_and_the_connection_goes_on(start_edge: Start) -> None:
    edge = await start_edge(Poured())
    reader, writer = await edge.connect()
    writer.write(put(some_bytes(3 * MIB), payload=hashlib.sha256(b"other").hexdigest()) + GET)
    assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).code == "XAmzContentSHA256Mismatch"
    assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).status == 200
    writer.close()


async def test_a_client_that_stops_sending_midway_gets_incomplete_body(start_edge: Start) -> None:
    poured = Poured()
    edge = await start_edge(poured)
    wire = put(some_bytes(3 * MIB))
    answer = await edge.send(wire[:-1], half_close=True)
    assert answer.code == "IncompleteBody"
    assert len(poured.failures) == 1


async def test_a_client_that_goes_away_midway_ends_the_reading(start_edge: Start) -> None:
    poured = Poured()
    edge = await start_edge(poured)
    for cut in (1_200_000, 2 * MIB, 3 * MIB):
        before = len(poured.failures)
        _, writer = await edge.connect()
        writer.write(put(some_bytes(3 * MIB + 500))[:cut])
        await until(lambda: len(poured.sinks) > before)  # noqa: B023
        writer.transport.abort()
        await until(lambda: len(poured.failures) > before)  # noqa: B023
    await until(lambda: not edge.runner.server.connections)


async def test_a_sender_that_pauses_for_too_long_is_told_so(start_edge: Start) -> None:
    edge = await start_edge(Poured())
    answer = await edge.send(put(some_bytes(3 * MIB))[: 2 * MIB])
    assert answer.code == "RequestTimeout"
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_sink_that_fails_midway_is_answered_and_the_rest_read_away(
    start_edge: Start, keeps: bool
) -> None:
    limits = replace(SMALL_LIMITS, linger_seconds=5.0, drain_bytes=64 * MIB if keeps else MIB)
    edge: Edge = await start_edge(Poured(fails_at=2), limits=limits)
    reader, writer = await edge.connect()
    writer.write(put(some_bytes(12 * MIB)))
    answer = await asyncio.wait_for(read_answer(reader), WITHIN_S)
    assert (answer.status, answer.code) == (503, "SlowDown")
    if keeps:
        writer.write(GET)
        assert (await asyncio.wait_for(read_answer(reader), WITHIN_S)).status == 200
    else:
        assert answer.headers["connection"] == "close"
        await asyncio.wait_for(writer.drain(), WITHIN_S)  # All of it is taken: no reset swallows the answer.
        assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
    writer.close()


@pytest.mark.parametrize("cut", [1_000_000, 2 * MIB])
async def test_memory_that_is_wanted_elsewhere_is_given_up_while_the_sender_pauses(
    start_edge: Start, cut: int
) -> None:
    poured = Poured(MIB)
    edge = await start_edge(poured, limits=replace(SMALL_LIMITS, body_seconds=20.0))
    body = some_bytes(3 * MIB)
    wire = put(body)
    reader, writer = await edge.connect()
    for begin, end in ((0, cut), (cut, cut + 300_000)):
        writer.write(wire[begin:end])
        await writer.drain()
        await until(lambda: bool(poured.sinks) and poured.sinks[0].hurry is not None)
        await asyncio.sleep(0.05)  # Most of it has come; the sender sends nothing more.
        sink = poured.sinks[0]
        before = sink.flushes
        assert sink.hurry is not None
        if sink.buffer is not None:
            sink.hurry()
            await until(lambda: sink.flushes > before)  # noqa: B023
            assert sink.buffer is None
    writer.write(wire[cut + 300_000 :])
    answer = await asyncio.wait_for(read_answer(reader), WITHIN_S)
    assert answer.headers["etag"] == hashlib.md5(body, usedforsecurity=False).hexdigest()
    assert poured.sinks[0].content() == body
    assert poured.sinks[0].flushes
    writer.close()


async def test_memory_is_not_let_go_before_its_last_bytes_are_hashed(start_edge: Start) -> None:
    class Pressed(MemorySink):
        """Sends what it holds as soon as nobody is to be asked for it: a writer that is short of memory."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "hurry" and value is None and "sent" in self.__dict__:
                self._send(None)

    sinks: list[Pressed] = []

    async def keep(call: Call) -> web.StreamResponse:
        assert isinstance(call.body, PouringBody)
        sinks.append(Pressed(MIB))
        await call.body.pour(sinks[0])
        return web.Response(headers={"ETag": (await call.body.digests()).md5.hex()})

    edge = await start_edge(keep)
    body = some_bytes(3 * MIB + 700_000)
    answer = await edge.send(put(body))
    assert answer.status == 200
    assert sinks[0].content() == body
    assert answer.headers["etag"] == hashlib.md5(body, usedforsecurity=False).hexdigest()
