"""HTTP/1.1 as a storage node serves it: small heads, bodies of a known length, one request at a time.

aiohttp's server costs a request more than the node does for it, and eight nodes pay it for one stripe. What
machines of the cluster send is simple and known (wire.py), so it is read here: a request is handed over when
its head is there, its body is received straight into memory that the handler names, when the handler asks for
it, and answers are written as they are.

| a connection that | is |
|---|---|
| sends a head of more than HEAD_MAX bytes, or what is no HTTP/1.1 | answered and closed |
| takes longer than `transfer_s` for a head, or that and 1 s a MiB for a body | cut |
| does not take an answer within as long | cut |
| has no request for `idle_s` | cut |
| is one too many | cut |

Concurrency: one event loop. A connection serves one request at a time, in a task of its own or at once; what
comes meanwhile waits, and is not received any more past EARLY_MAX bytes. A request whose connection is lost
runs on, and meets ConnectionResetError where it receives or answers. One sweep looks at all deadlines.
"""

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, cast

from objstore.node.disk import Buffer
from objstore.node.wire import HEAD_MAX, KIB, RATE_MIN, BadMessage

log = logging.getLogger(__name__)

SCRATCH_SIZE: Final = 256 * KIB  # Bytes received at once where nobody has named memory for them.
DIRECT_MIN: Final = 16 * KIB  # Bytes of memory that are worth a system call of their own.
EARLY_MAX: Final = 64 * KIB  # Bytes that may wait for a handler to ask for them; what has come by then stays.
JOINED_MAX: Final = 16 * KIB  # Bytes of an answer that go out in one piece: over TLS each is a record.
FIELDS_MAX: Final = 32
LINGER_S: Final = 2.0  # So long a peer that is refused may read why, while what it sends is dropped.
SWEEP_MAX_S: Final = 1.0  # Between looks at deadlines.

_LINE: Final = re.compile(rb"([A-Z]{1,10}) (/[!-~]{0,1023}) HTTP/1\.1")
_FIELD: Final = re.compile(rb"([!#-'*+.^-z|~0-9A-Z-]+):[ \t]*([!-~](?:[\t -~]*[!-~])?)?[ \t]*")
_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,14}", re.ASCII)


class Request:
    """One request. Its handler answers it once, or raises."""

    __slots__ = ("_connection", "_received", "closes", "headers", "method", "path", "size")

    def __init__(
        self, connection: "Connection", method: str, path: str, headers: dict[str, str], size: int | None
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers  # Names in lower case.
        self.size = size  # Bytes of the body; None: no length was given, and there is none.
        self.closes = headers.get("connection", "").lower() == "close"  # After the answer, which says so.
        self._connection = connection
        self._received = not size

    @property
    def transport(self) -> asyncio.Transport:
        """Raises: ConnectionResetError."""
        transport = self._connection.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the gateway is gone")
        return transport

    @property
    def can_go_on(self) -> bool:
        """Whether the connection can take another request after this one: none of its body is to come."""
        return self._received or self._connection.has_early(self.size or 0)

    @property
    def is_taken_slowly(self) -> bool:
        return self._connection.writable is not None

    async def receive(self, room: memoryview) -> None:
        """The whole body. Raises: ConnectionResetError, also if it is too slow."""
        assert len(room) == self.size
        assert not self._received
        self._received = True
        await self._connection.receive(room)

    async def send(self, pieces: Sequence[Buffer]) -> None:
        """Bytes of the answer, head and all. Waits while they are taken slowly.

        Raises: ConnectionResetError, also if they are not taken.
        """
        self.send_now(pieces)
        if self.is_taken_slowly:
            await self._connection.drain(sum(map(len, pieces)))

    def send_now(self, pieces: Sequence[Buffer]) -> None:
        """The same without waiting. Raises: ConnectionResetError."""
        if len(pieces) > 1 and sum(map(len, pieces)) <= JOINED_MAX:
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines(pieces)

    def end(self) -> None:
        """It is answered, or given up. For who serves it."""
        self._connection.end(self)


class Connection(asyncio.BufferedProtocol):
    """Invariant: while `request` is None nothing but the next head is to come."""

    def __init__(self, listener: "Listener") -> None:
        self.transport: asyncio.Transport | None = None
        self.request: Request | None = None
        self.due = math.inf  # By the loop's clock: it is cut when it has not moved on by then.
        self.writable: asyncio.Future[None] | None = None  # While answers are taken slowly.
        self._listener = listener
        self._scratch = listener.scratch
        self._early = b""  # What came and was not asked for yet.
        self._room: memoryview | None = None  # Where the rest of a body goes.
        self._arrived: asyncio.Future[None] | None = None
        self._direct = False
        self._reads = True
        self._drops = False  # What comes is of no use any more.

    # --- For requests ------------------------------------------------------------------------------------

    def has_early(self, size: int) -> bool:
        return len(self._early) >= size

    async def receive(self, room: memoryview) -> None:
        early = self._early
        if early:
            count = min(len(early), len(room))
            room[:count] = early[:count]
            self._early = early[count:]
            room = room[count:]
        if not room:
            return
        if self.transport is None:
            raise ConnectionResetError("the gateway is gone")
        self._room = room
        self._arrived = self._listener.loop.create_future()
        self._wait_for(len(room))
        if not self._reads:
            self._reads = True
            self.transport.resume_reading()
        try:
            await self._arrived
        finally:
            self.due = math.inf
            self._room = self._arrived = None

    async def drain(self, size: int) -> None:
        while self.writable is not None:
            self._wait_for(size)
            try:
                await self.writable
            finally:
                self.due = math.inf

    def end(self, request: Request) -> None:
        assert self.request is request
        self.request = None
        transport = self.transport
        if transport is None:
            return
        self.due = self._listener.loop.time() + self._listener.idle_s
        if not request.can_go_on:
            self._linger()
        elif request.closes:
            transport.close()
        else:
            if not request._received:
                self._early = self._early[request.size or 0 :]
            if not self._reads:
                self._reads = True
                transport.resume_reading()

    def cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # --- For the transport -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.due = self._listener.loop.time() + self._listener.idle_s
        self._listener.take(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._listener.forget(self)
        failure = ConnectionResetError("the gateway is gone")
        for waiter in (self._arrived, self.writable):
            if waiter is not None and not waiter.done():
                waiter.set_exception(failure)
                waiter.exception()  # Seen: nobody may wait.
        self.writable = None

    def eof_received(self) -> bool | None:
        return None

    def pause_writing(self) -> None:
        if self.writable is None:
            self.writable = self._listener.loop.create_future()

    def resume_writing(self) -> None:
        writable, self.writable = self.writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._room
        self._direct = room is not None and len(room) >= DIRECT_MIN
        # All connections share the scratch: it is emptied before the loop turns to another.
        return room if self._direct and room is not None else self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        room = self._room
        if self._direct:
            assert room is not None
            self._fill(room[nbytes:])
            return
        data = self._scratch[:nbytes]
        if room is not None:
            count = min(len(room), nbytes)
            room[:count] = data[:count]
            data = data[count:]
            self._fill(room[count:])
        if not data or self._drops:
            return
        self._early += data
        if self.request is None:
            self.go_on()
        elif len(self._early) > EARLY_MAX and self._reads and self.transport is not None:
            self._reads = False
            self.transport.pause_reading()

    # --- Within ------------------------------------------------------------------------------------------

    def _fill(self, room: memoryview) -> None:
        """So much of the body is still to come."""
        self._room = room if len(room) else None
        if self._room is None and self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def go_on(self) -> None:
        """Serve what has come: one head after another, as long as each is answered at once."""
        transport = self.transport
        while self.request is None and self._early and not self._drops:
            if transport is None or transport.is_closing():
                return
            end = self._early.find(b"\r\n\r\n", 0, HEAD_MAX)
            if end < 0:
                if len(self._early) >= HEAD_MAX:
                    self._refuse("the head is too long")
                elif self._listener.loop.time() + self._listener.transfer_s < self.due:
                    self._wait_for(0)
                return
            head = self._early[:end]
            self._early = self._early[end + 4 :]
            try:
                self.request = _parsed(self, head)
            except BadMessage as failure:
                self._refuse(str(failure))
                return
            self.due = math.inf
            self._listener.begin(self.request)

    def _wait_for(self, size: int) -> None:
        self.due = self._listener.loop.time() + self._listener.transfer_s + size / RATE_MIN

    def _refuse(self, words: str) -> None:
        assert self.transport is not None
        self.transport.write(self._listener.refusal(words))
        self._linger()

    def _linger(self) -> None:
        """To close while bytes are unread would take back the answer, too."""
        self._drops = True
        self._early = b""
        self.due = self._listener.loop.time() + LINGER_S
        if not self._reads and self.transport is not None:
            self._reads = True
            self.transport.resume_reading()


def _parsed(connection: Connection, head: bytes) -> Request:
    """Raises: BadMessage."""
    lines = head.split(b"\r\n")
    match = _LINE.fullmatch(lines[0])
    if match is None:
        raise BadMessage("the request line makes no sense")
    if len(lines) > FIELDS_MAX:
        raise BadMessage(f"more than {FIELDS_MAX} header fields")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadMessage("a header field makes no sense")
        name = field[1].decode().lower()
        if name in headers:
            raise BadMessage(f"{name} is given twice")
        headers[name] = (field[2] or b"").decode()
    if "transfer-encoding" in headers:
        raise BadMessage("the body has no length")
    size = None
    text = headers.get("content-length")
    if text is not None:
        if not _LENGTH.fullmatch(text):
            raise BadMessage("the body's length makes no sense")
        size = int(text)
    return Request(connection, match[1].decode(), match[2].decode(), headers, size)


Handle = Callable[[Request], Awaitable[None]]
HandleNow = Callable[[Request], bool]


class Listener:
    """All connections of a node's port. Calling it makes the protocol of one more.

    Args:
        handle: serves one request; raises ConnectionError when nobody is there to answer, and nothing else.
        handle_now: serves one at once, or returns False and has done nothing.
        refusal: a whole answer, `Connection: close` in it, for what is no request.
        connections_max: beyond, connections are cut.
        transfer_s: for a head or a body to come or an answer to be taken, and 1 s a MiB.
        idle_s: without a request.
    """

    def __init__(
        self,
        handle: Handle,
        handle_now: HandleNow,
        refusal: Callable[[str], bytes],
        *,
        connections_max: int,
        transfer_s: float,
        idle_s: float,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.scratch = memoryview(bytearray(SCRATCH_SIZE))
        self.connections: set[Connection] = set()
        self.refusal = refusal
        self.transfer_s = transfer_s
        self.idle_s = idle_s
        self._handle = handle
        self._handle_now = handle_now
        self._connections_max = connections_max
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False
        self._gone: asyncio.Future[None] | None = None
        self._sweeper = self.loop.create_task(self._sweep())

    def __call__(self) -> Connection:
        return Connection(self)

    async def close(self, limit_s: float) -> None:
        """End connections: idle ones at once, others when they are answered, at most `limit_s` later."""
        self._ending = True
        self._sweeper.cancel()
        for connection in list(self.connections):
            if connection.request is None:
                connection.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit_s)
        for connection in list(self.connections):
            connection.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self.connections:  # Each is forgotten in one of the next turns of the loop.
            self._gone = self.loop.create_future()
            await self._gone

    # For connections.

    def take(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self._ending or len(self.connections) > self._connections_max:
            log.warning("connection refused", extra={"connections": self._connections_max})
            connection.cut()

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections and self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def begin(self, request: Request) -> None:
        if self._handle_now(request):
            request.end()
            return
        task = self.loop.create_task(self._serve(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Within.

    async def _serve(self, request: Request) -> None:
        connection = request._connection
        try:
            await self._handle(request)
        except ConnectionError:
            connection.cut()
        except BaseException:
            connection.cut()
            raise
        finally:
            request.closes = request.closes or self._ending
            request.end()
            connection.go_on()

    async def _sweep(self) -> None:
        every_s = min(SWEEP_MAX_S, self.transfer_s / 4)
        while True:
            await asyncio.sleep(every_s)
            now = self.loop.time()
            for connection in list(self.connections):
                if now > connection.due:
                    connection.cut()
