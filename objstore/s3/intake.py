"""The rest of one large body: from the socket straight into the memory that it will be encoded from.

aiohttp hands a body out in bytes objects, and each byte has been copied three times when it lies in its
stripe: out of the loop's buffer, out of the parser, into the stripe. Once a head is parsed and its
Content-Length known, none of that is needed: the transport is given another protocol, which names the memory
that the next bytes go to. When the body has come to its end the connection gets its own protocol back, with
a fresh parser that waits for the next head; no byte beyond the body is ever read here.

May not know: where the memory comes from, what is hashed.

Concurrency: one event loop. Between `go` and `hold` bytes arrive in the memory that `go` was given; after
`hold` none do. Failures (a lost connection, a time limit of the sweep) come the way they do in aiohttp: as
the exception of the payload, whose waiter is ours, too, so the sweep sees that a body is waited for.
"""

import asyncio
from abc import abstractmethod

from aiohttp import StreamReader
from aiohttp.web_protocol import RequestHandler

REST_MIN = 512 * 1024  # Bytes still to come for which changing protocols is worth its 30 us.
_SCRATCH_SIZE = 64 * 1024  # Bytes read at once of a body that nobody wants any more.


class Handler(RequestHandler):
    """A connection that lends its transport: what an intake asks of s3/server.py `EdgeProtocol`."""

    __slots__ = ("bytes_in", "half_closed")

    bytes_in: int  # Bytes received; the sweep judges the sender's speed by it.
    half_closed: bool  # The client has said that it sends no more.

    @abstractmethod
    def renew_parser(self) -> None:
        """Give the connection a parser that waits for a head."""
        ...


class Intake(asyncio.BufferedProtocol):
    """What a connection is while the rest of one body comes.

    Invariants:
        left is what has not been received of the body; never is more than that asked of the transport
        the transport reads only between `go` and `hold`, or once the body was let go
    """

    def __init__(self, edge: Handler, payload: StreamReader, begun: list[bytes], left: int) -> None:
        self.begun = begun  # What came before we did, in order.
        self.left = left
        self.hurried = False  # The memory is wanted elsewhere; cleared by who reads it.
        self._edge = edge
        self._payload = payload
        transport = edge.transport
        assert transport is not None
        self._transport = transport
        self._room: memoryview | None = None
        self._at = 0  # Bytes of the room that have been filled,
        self._taken = 0  # and collected.
        self._wanted = 1  # Bytes to be collected for which the reader is woken.
        self._reading = False
        self._restored = False
        transport.pause_reading()
        transport.set_protocol(self)

    # --- For the reader ---------------------------------------------------------------------------------

    def go(self, room: memoryview) -> None:
        """Receive into this memory from now on. Not while some of the last is uncollected."""
        assert self._taken == self._at
        self._room = room[: self.left]
        self._at = self._taken = 0
        self._resume()

    def hold(self) -> None:
        """Receive nothing more until the next `go`. What has come can still be collected."""
        self._pause()

    @property
    def is_full(self) -> bool:
        """Whether nothing more can come before the next `go`."""
        return self._room is None or self._at == len(self._room)

    @property
    def uncollected(self) -> int:
        return self._at - self._taken

    async def some(self, wanted: int) -> None:
        """Wait for `wanted` bytes to collect, or fewer when the room is full or the memory wanted elsewhere.

        Raises: what broke the connection off (as the payload's own reads do), S3Fault from the sweep.
        """
        payload = self._payload
        self._wanted = wanted
        while self._at - self._taken < wanted and not self.is_full and not self.hurried:
            failure = payload.exception()
            if failure is not None:
                raise failure
            await payload._wait("some")

    def collect(self) -> memoryview:
        """What has come since the last time; maybe nothing."""
        assert self._room is not None
        piece = self._room[self._taken : self._at]
        self._taken = self._at
        return piece

    def hurry(self) -> None:
        """The memory is wanted elsewhere: the reader is to give it up at once."""
        self.hurried = True
        self._wake()

    def end(self) -> None:
        """The reader needs no more. What is left of the body is read away, until the connection ends."""
        if self.left:
            self._room = None
            self._resume()
        else:
            self._restore()

    # --- For the transport ------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._room
        if room is None:
            return memoryview(bytearray(min(_SCRATCH_SIZE, self.left)))
        return room[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        self._edge.bytes_in += nbytes
        self.left -= nbytes
        room = self._room
        if room is None:
            if not self.left:
                self._restore()
            return
        self._at += nbytes
        if self._at == len(room):
            self._pause()
            self._wake()
        elif self._at - self._taken >= self._wanted:
            self._wake()

    def eof_received(self) -> bool | None:
        return self._edge.eof_received()  # type: ignore[func-returns-value] # EdgeProtocol's does.

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.connection_lost(exc)

    def pause_writing(self) -> None:
        self._edge.pause_writing()

    def resume_writing(self) -> None:
        self._edge.resume_writing()

    # --- Within -----------------------------------------------------------------------------------------

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _resume(self) -> None:
        if not self._reading and not self._restored:
            self._reading = True
            self._transport.resume_reading()

    def _wake(self) -> None:
        waiter = self._payload._waiter
        if waiter is not None:
            self._payload._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _restore(self) -> None:
        """The body is over: the connection is as it was when the head had just been parsed."""
        if self._restored:
            return
        self._pause()
        self._restored = True
        edge = self._edge
        if edge.transport is None:  # Lost meanwhile.
            return
        self._transport.set_protocol(edge)
        edge.renew_parser()
        self._payload.feed_eof()  # Resumes reading.


def take_over(payload: StreamReader, size: int) -> Intake | None:
    """Receive the rest of a body of `size` bytes (its Content-Length) by ourselves.

    Returns: None where that cannot be done or is not worth it: all as before. Else the connection is ours
    until `Intake.end`.
    """
    edge = payload._protocol
    if not isinstance(edge, Handler) or edge.transport is None or payload.is_eof():
        return None
    if edge.ssl_context is not None or edge._buffer_paused or edge._upgraded or edge.half_closed:
        return None
    if payload.exception() is not None or payload._http_chunk_splits is not None:
        return None
    if size - payload.total_bytes < REST_MIN:
        return None
    begun: list[bytes] = []
    while payload._buffer:  # A paused parser may hold more, and gives it out as this empties.
        begun.append(payload._read_nowait_chunk(-1))
    left = size - payload.total_bytes
    if left < 1 or edge._reading_paused:
        # It all came meanwhile. Give it back: the payload hands it out as if nothing had been.
        for data in reversed(begun):
            payload._buffer.appendleft(data)
            payload._size += len(data)
            payload._cursor -= len(data)
        return None
    return Intake(edge, payload, begun, left)
