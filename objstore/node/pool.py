"""Connections to one storage node: HTTP/1.1 requests, as many at once as there are connections, bounded.

aiohttp's client costs a small request more CPU than the node spends on it, and hands a body out in pieces
that have to be copied once more. What a node answers is simple and known (wire.py): a status, a length,
bytes. So answers are read here, straight into the memory that the caller named.

A request has a *progress* deadline: overdue is who moves no byte for `limit_s`, or takes longer than
`limit_s` and a second for each RATE_MIN bytes. The clock is the loop's; one timer a pool looks at all that is
under way.

Concurrency: one event loop. A connection carries one request at a time; who finds none free waits in order.
Every failure ends its connection: nothing is written into the caller's buffers later, and none of its bytes
are sent later. So does a caller that is cancelled, unless all was sent and little is to come: that is
received and dropped, which costs less than a connection.
"""

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, cast

from objstore.errors import Overloaded
from objstore.node.disk import Buffer
from objstore.node.wire import ANSWER_MAX, HEAD_MAX, KIB, RATE_MIN, BadMessage, is_instance

TICK_S: Final = 0.1  # Between looks at what is under way.
SCRATCH_SIZE: Final = 256 * KIB  # Bytes received at once where the caller's memory is not yet known.
GATHERED_SIZE: Final = 64 * KIB  # Bytes of small buffers that are put together for TLS.
DROP_MAX: Final = 1024 * KIB  # Bytes still to come of an answer that nobody wants: 0.1 ms, a handshake 2 ms.
DIRECT_MIN: Final = 16 * KIB  # Bytes of memory that are worth a system call of their own: a copy costs 2 us.

_STATUS: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [ -~]*)?")
_LENGTH: Final = re.compile(rb"[0-9]{1,12}")
_CHUNK: Final = re.compile(rb"[0-9a-fA-F]{1,8}")


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Unreachable(Exception):
    """No connection could be made. Nothing was sent."""


class Unconnected(Unreachable):
    """The same, after its whole limit: nothing was heard at all, not even a refusal."""


class Lost(Exception):
    """The connection ended before the answer had come. What was asked may have been done."""


class Overdue(Exception):
    """No progress. What was asked may have been done, or may yet be.

    `transferring`: bytes were still on their way, so the network or the node is slow. Otherwise all was sent,
    and the node has not begun to answer: it may be one of its disks.
    """

    def __init__(self, words: str, *, transferring: bool) -> None:
        super().__init__(words)
        self.transferring = transferring


class Answer(NamedTuple):
    status: int
    instance: str  # Of the node's process.
    size: int  # Bytes of the body.
    body: bytearray | None  # None: they are in the caller's memory, or were handed out piece by piece.
    state: str  # Headers of a read, where its disk is not healthy.
    reason: str


class PoolLimits(NamedTuple):
    connections: int = 32  # To one node from one process: requests under way.
    queue: int = 1_024  # Requests that wait for one of them; beyond: Overloaded.
    connect_s: float = 3.0  # TCP and TLS.
    idle_s: float = 20.0  # Less than a node keeps idle connections, so that it is never the one to close.


OnPiece = Callable[[bytes, str], None]  # A chunk of an answer, and the instance that sent it.
Connect = Callable[
    [Callable[[], asyncio.BaseProtocol], Address, ssl.SSLContext | None],
    Awaitable[tuple[asyncio.BaseTransport, asyncio.BaseProtocol]],
]


async def connect_tcp(
    factory: Callable[[], asyncio.BaseProtocol], address: Address, context: ssl.SSLContext | None
) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
    """The real network. Raises: OSError."""
    loop = asyncio.get_running_loop()
    return await loop.create_connection(factory, address.host, address.port, ssl=context)


class _Exchange:
    """A request under way, and where its answer goes."""

    __slots__ = (
        "answer_max",
        "future",
        "into",
        "limit_s",
        "moved",
        "moved_at",
        "on_piece",
        "size",
        "started",
    )

    def __init__(
        self,
        *,
        limit_s: float,
        size: int,
        into: Sequence[memoryview] | None,
        answer_max: int,
        on_piece: OnPiece | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Answer] = loop.create_future()
        self.limit_s = limit_s
        self.size = size
        self.into = into
        self.answer_max = answer_max
        self.on_piece = on_piece
        self.started = self.moved_at = loop.time()
        self.moved = 0


class _BadAnswer(Exception):
    pass


class _Connection(asyncio.BufferedProtocol):
    """Invariant: while no request is under way nothing is to come; what comes then ends it."""

    def __init__(self, pool: "Pool") -> None:
        self.transport: asyncio.Transport | None = None
        self.exchange: _Exchange | None = None
        self.received = 0
        self.idle_since = 0.0
        self._pool = pool
        self._scratch = pool.scratch
        self._reset()

    def _reset(self) -> None:
        self._head = b""
        self._in_body = False
        self._status = 0
        self._instance = ""
        self._state = ""
        self._reason = ""
        self._closes = False
        self._body: bytearray | None = None
        self._size = 0
        self._left = 0  # Bytes of the body to come.
        self._rooms: list[memoryview] = []  # Where they go; the last is next.
        self._room: memoryview | None = None
        self._direct = False
        self._drops = False  # Nobody waits any more: what comes is received and dropped.
        self._chunks: bytearray | None = None

    # --- For the pool ------------------------------------------------------------------------------------

    def start(self, exchange: _Exchange, pieces: list[Buffer]) -> None:
        assert self.exchange is None
        transport = self.transport
        assert transport is not None
        self.exchange = exchange
        self.received = 0
        if self._pool.is_secure and len(pieces) > 2:
            pieces = _gathered(pieces)
        if len(pieces) == 1:
            transport.write(pieces[0])
        else:
            transport.writelines(pieces)

    def fail(self, failure: Exception) -> None:
        """End the connection, and with it the request."""
        exchange, self.exchange = self.exchange, None
        transport, self.transport = self.transport, None
        self._room = None
        self._rooms = []
        if transport is not None:
            transport.abort()
        self._pool.forget(self)
        if exchange is not None and not exchange.future.done():
            exchange.future.set_exception(failure)

    def give_up(self) -> None:
        """The caller is gone, and its memory with it. The deadline of the request goes on."""
        exchange = self.exchange
        assert exchange is not None
        expected = self._left if self._in_body else exchange.size
        if self.unsent or expected > DROP_MAX or exchange.on_piece is not None:
            self.fail(Lost("given up"))
            return
        exchange.into = None
        self._drops = True
        self._rooms = []
        self._room = None
        self._body = None

    @property
    def unsent(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    @property
    def is_answering(self) -> bool:
        return self.received > 0 and self._chunks is None

    # --- For the transport -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self.fail(Lost(str(exc) if exc else "the node closed the connection"))

    def eof_received(self) -> bool | None:
        return None

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._room
        if room is not None and len(room) >= DIRECT_MIN:
            self._direct = True
            return room
        self._direct = False
        # All connections of the pool share it: it is emptied before the loop turns to another.
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        if self.exchange is None:
            self.fail(Lost("the node sent what nobody asked for"))
            return
        try:
            if self._direct:
                room = self._room
                assert room is not None
                self._room = room[nbytes:]
                self._left -= nbytes
                self._next_room()
            else:
                self._feed(self._scratch[:nbytes])
        except _BadAnswer as failure:
            self.fail(Lost(f"the node does not speak our protocol: {failure}"))

    # --- Within ------------------------------------------------------------------------------------------

    def _feed(self, data: memoryview) -> None:
        if not self._in_body:
            held = len(self._head)
            head = self._head + bytes(data[:HEAD_MAX])
            end = head.find(b"\r\n\r\n")
            if end < 0:
                if len(head) >= HEAD_MAX:
                    raise _BadAnswer("its head is too long")
                self._head = head
                return
            self._take_head(head[:end])
            data = data[end + 4 - held :]
        if self._chunks is not None:
            self._chunks += data
            self._take_chunks()
            return
        if self._drops:
            if len(data) > self._left:
                raise _BadAnswer("more came than was announced")
            self._left -= len(data)
            self._next_room()
            return
        while data and self._room is not None:
            room = self._room
            count = min(len(room), len(data))
            room[:count] = data[:count]
            data = data[count:]
            self._room = room[count:]
            self._left -= count
            if count == len(room):
                self._next_room()
        if data:
            raise _BadAnswer("more came than was announced")

    def _take_head(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        match = _STATUS.fullmatch(lines[0])
        if match is None:
            raise _BadAnswer(f"it began with {lines[0][:40]!r}")
        self._status = int(match[1])
        length = -1
        chunked = False
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name = name.lower()
            value = value.strip(b" ")
            if name == b"content-length":
                if length >= 0 or not _LENGTH.fullmatch(value):
                    raise _BadAnswer("its length makes no sense")
                length = int(value)
            elif name == b"transfer-encoding":
                if chunked or value != b"chunked":
                    raise _BadAnswer("its encoding is not known")
                chunked = True
            elif name == b"x-instance":
                self._instance = value.decode("ascii", "replace")
            elif name == b"x-state":
                self._state = value.decode("ascii", "replace")
            elif name == b"x-reason":
                self._reason = value.decode("ascii", "replace")
            elif name == b"connection" and value.lower() == b"close":
                self._closes = True
        if not is_instance(self._instance):
            raise _BadAnswer("it does not say which instance of the node it is from")
        exchange = self.exchange
        assert exchange is not None
        self._in_body = True
        if chunked:
            if length >= 0 or exchange.on_piece is None or self._status != 200:
                raise _BadAnswer("an answer in pieces, where none was expected")
            self._chunks = bytearray()
            return
        if length < 0:
            raise _BadAnswer("it has no length")
        if self._drops:
            rooms: list[memoryview] = []
            if length > DROP_MAX:
                raise _BadAnswer(f"it has {length} bytes, and nobody wants them")
        elif self._status == 200 and exchange.into is not None:
            rooms = [view for view in exchange.into if len(view)]
            if length > sum(map(len, rooms)):
                raise _BadAnswer("it is longer than what was asked for")
            rooms.reverse()
        else:
            if length > (exchange.answer_max if self._status == 200 else ANSWER_MAX):
                raise _BadAnswer(f"it has {length} bytes")
            self._body = bytearray(length)
            rooms = [memoryview(self._body)] if length else []
        self._rooms = rooms
        self._size = self._left = length
        self._next_room()

    def _next_room(self) -> None:
        """After each move: the next memory to fill, or the end."""
        if not self._left:
            self._end()
        elif not self._drops and not self._room:
            room = self._rooms.pop()
            self._room = room if len(room) <= self._left else room[: self._left]

    def _take_chunks(self) -> None:
        """Whole chunks are handed out. Raises: _BadAnswer."""
        chunks = self._chunks
        exchange = self.exchange
        assert chunks is not None
        assert exchange is not None
        assert exchange.on_piece is not None
        while True:
            end = chunks.find(b"\r\n", 0, 10)
            if end < 0:
                if len(chunks) >= 10:
                    raise _BadAnswer("a chunk without a size")
                return
            if not _CHUNK.fullmatch(chunks[:end]):
                raise _BadAnswer("a chunk without a size")
            size = int(chunks[:end], 16)
            if size > ANSWER_MAX:
                raise _BadAnswer(f"a chunk of {size} bytes")
            if len(chunks) < end + 2 + size + 2:
                return
            if chunks[end + 2 + size : end + 4 + size] != b"\r\n":
                raise _BadAnswer("a chunk that does not end")
            piece = bytes(chunks[end + 2 : end + 2 + size])
            del chunks[: end + 4 + size]
            self._size += size
            if not size:
                if chunks:
                    raise _BadAnswer("more came than was announced")
                self._end()
                return
            try:
                exchange.on_piece(piece, self._instance)
            except BadMessage as failure:
                raise _BadAnswer(str(failure)) from None

    def _end(self) -> None:
        exchange, self.exchange = self.exchange, None
        assert exchange is not None
        answer = Answer(self._status, self._instance, self._size, self._body, self._state, self._reason)
        closes = self._closes
        self._reset()
        if closes:
            transport, self.transport = self.transport, None
            if transport is not None:
                transport.close()
            self._pool.forget(self)
        else:
            self._pool.give_back(self)
        if not exchange.future.done():
            exchange.future.set_result(answer)


def _gathered(pieces: list[Buffer]) -> list[Buffer]:
    """The same bytes, small ones put together.

    Over TLS each buffer is a record of its own, and a fragment record is a list of a block and 8 bytes of
    checksum in turn. Without TLS the kernel gathers them for nothing.
    """
    gathered: list[Buffer] = []
    small: list[Buffer] = []
    size = 0
    for piece in pieces:
        if len(piece) < DIRECT_MIN:
            small.append(piece)
            size += len(piece)
            if size < GATHERED_SIZE:
                continue
        if small:
            gathered.append(b"".join(small))
            small = []
            size = 0
        if len(piece) >= DIRECT_MIN:
            gathered.append(piece)
    if small:
        gathered.append(b"".join(small))
    return gathered


class Pool:
    """All connections of this process to one node.

    Args:
        context: TLS of the client's side (node/tls.py: it judges who answers), None for plain TCP.
        connect: the network, for tests.
    """

    def __init__(
        self,
        address: Address,
        *,
        context: ssl.SSLContext | None = None,
        limits: PoolLimits | None = None,
        connect: Connect = connect_tcp,
    ) -> None:
        self.address = address
        self.limits = limits or PoolLimits()
        self.scratch = memoryview(bytearray(SCRATCH_SIZE))
        self.connected = 0  # Connections ever made.
        self._context = context
        self._connect = connect
        self._idle: list[_Connection] = []  # The last used is next.
        self._busy: dict[_Connection, None] = {}
        self._making = 0
        self._waiting: deque[asyncio.Future[_Connection | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def is_secure(self) -> bool:
        return self._context is not None

    @property
    def open(self) -> int:
        return len(self._idle) + len(self._busy) + self._making

    async def exchange(
        self,
        pieces: list[Buffer],
        *,
        limit_s: float,
        size: int = 0,
        into: Sequence[memoryview] | None = None,
        answer_max: int = ANSWER_MAX,
        on_piece: OnPiece | None = None,
    ) -> Answer:
        """Send one request, given whole in `pieces`, and take its answer.

        Args:
            limit_s: for progress, see above. Waiting for a connection counts apart, as much again at most.
            size: bytes of the request and the largest answer: what it may take longer by.
            into: memory for the body of a 200. Otherwise it is in the Answer, at most `answer_max` bytes.
            on_piece: takes the chunks of an answer that comes in chunks.

        Raises: Unreachable, Lost, Overdue; Overloaded if too many wait for a connection.
        """
        idle = self._idle
        connection = idle.pop() if idle else await self._acquire(limit_s)
        exchange = _Exchange(limit_s=limit_s, size=size, into=into, answer_max=answer_max, on_piece=on_piece)
        self._busy[connection] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        connection.start(exchange, pieces)
        try:
            return await exchange.future
        except asyncio.CancelledError:
            if connection.exchange is exchange:
                connection.give_up()
            raise

    def give_up(self, since: float, failure: Exception) -> None:
        """End every request that has moved nothing since `since` (the loop's clock)."""
        for connection in list(self._busy):
            exchange = connection.exchange
            if exchange is not None and self._moved_at(connection, exchange) <= since:
                connection.fail(failure)

    def trim(self) -> None:
        """Close what has idled too long."""
        now = asyncio.get_running_loop().time()
        while self._idle and now - self._idle[0].idle_since > self.limits.idle_s:
            self._idle[0].fail(Lost("idle"))

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for connection in [*self._idle, *self._busy]:
            connection.fail(Lost("the pool was closed"))
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Unreachable("the pool was closed"))

    # For connections.

    def give_back(self, connection: _Connection) -> None:
        del self._busy[connection]
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                self._making += 1  # On its way to the waiter, and so in neither list.
                return
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def forget(self, connection: _Connection) -> None:
        self._busy.pop(connection, None)
        if connection in self._idle:
            self._idle.remove(connection)
        self._pass_on()

    def _pass_on(self) -> None:
        """Room for another connection: the first that waits may make it."""
        while self._waiting and self.open < self.limits.connections:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._making += 1
                return

    # Within.

    async def _acquire(self, limit_s: float) -> _Connection:
        if self._closed:
            raise Unreachable("the pool was closed")
        if self.open < self.limits.connections:
            self._making += 1
            return await self._make()
        if len(self._waiting) >= self.limits.queue:
            raise Overloaded(f"{len(self._waiting)} requests wait for a connection to {self.address}")
        waiter: asyncio.Future[_Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(limit_s):
                given = await waiter
        except (TimeoutError, asyncio.CancelledError) as failure:
            self._return(waiter)
            if isinstance(failure, TimeoutError):
                raise Overloaded(f"no connection to {self.address} became free in {limit_s:g} s") from None
            raise
        if given is None:
            return await self._make()  # `_making` has counted us since we were given leave.
        if given.transport is None:  # Lost on its way to us.
            return await self._make()
        self._busy[given] = None
        self._making -= 1
        return given

    def _return(self, waiter: "asyncio.Future[_Connection | None]") -> None:
        """Somebody waits no more; what it was given meanwhile goes to the next."""
        if not waiter.done() or waiter.cancelled() or waiter.exception() is not None:
            waiter.cancel()
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            return
        self._making -= 1
        given = waiter.result()
        if given is not None and given.transport is not None:
            self._busy[given] = None
            self.give_back(given)
        else:
            self._pass_on()

    async def _make(self) -> _Connection:
        """`_making` counts it already."""
        made: _Connection | None = None
        try:
            async with asyncio.timeout(self.limits.connect_s):
                _, protocol = await self._connect(lambda: _Connection(self), self.address, self._context)
            made = cast(_Connection, protocol)
        except TimeoutError:
            raise Unconnected(f"{self.address} did not answer within {self.limits.connect_s:g} s") from None
        except OSError as failure:
            raise Unreachable(f"{self.address}: {failure.strerror or failure}") from failure
        else:
            self.connected += 1
            if made.transport is None:
                raise Unreachable(f"{self.address} closed the connection at once")
            if self._closed:
                made.fail(Lost("the pool was closed"))
                raise Unreachable("the pool was closed")
            self._busy[made] = None  # Counted before it is counted no more as being made.
            kept, made = made, None
            return kept
        finally:
            self._making -= 1
            if made is not None:
                made.fail(Lost("refused"))
            elif self._waiting:
                self._pass_on()

    @staticmethod
    def _moved_at(connection: _Connection, exchange: _Exchange) -> float:
        """When a byte was last seen to have moved."""
        moved = connection.received - connection.unsent
        if moved != exchange.moved:
            exchange.moved = moved
            exchange.moved_at = asyncio.get_running_loop().time()
        return exchange.moved_at

    def _tick(self) -> None:
        if not self._busy:
            self._timer = None
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_S, self._tick)
        now = loop.time()
        for connection in list(self._busy):
            exchange = connection.exchange
            if exchange is None:
                continue
            limit_s = exchange.limit_s
            words = ""
            if now - self._moved_at(connection, exchange) > limit_s:
                words = f"{self.address}: nothing moved for {limit_s:g} s"
            elif now - exchange.started > limit_s + exchange.size / RATE_MIN:
                words = f"{self.address}: {exchange.size} bytes took longer than {limit_s:g} s and 1 s a MiB"
            if words:
                transferring = connection.unsent > 0 or connection.is_answering
                connection.fail(Overdue(words, transferring=transferring))
