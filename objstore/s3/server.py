"""The S3 port: connections, their time limits, their bounds, and a graceful end.

aiohttp has no limit on the time a head or a body may take, answers malformed requests in HTML with a logged
traceback, and takes any number of connections. EdgeProtocol mends that on top of aiohttp's own handler: it
counts bytes as they come, and one sweep a second looks at all connections.

| a connection that | is |
|---|---|
| sends a head for longer than `header_seconds` | answered 400 RequestTimeout and closed |
| sends a head larger than `head_bytes` | answered 400 RequestHeaderSectionTooLarge and closed |
| has no request for `idle_seconds` | closed |
| pauses in a body, or sends it slower than `body_rate` | answered 400 RequestTimeout and closed |
| does not take its answer, or slower than `body_rate` | cut |
| is one too many | takes the place of one that idles or is being refused, or is answered 503 SlowDown |

Over TLS a connection counts from its accept (node/handshakes.py).

Concurrency: all of it runs on one event loop. A connection is one task, which serves its requests in turn;
the sweep only ends waits, it never awaits.
"""

import array
import asyncio
import contextlib
import fcntl
import logging
import socket
import ssl
import termios
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from itertools import islice
from typing import Any, Protocol, cast

from aiohttp import StreamReader, web
from aiohttp.http_parser import HttpRequestParser
from aiohttp.http_writer import StreamWriter
from aiohttp.web_protocol import (
    _PAYLOAD_ACCESS_ERROR,
    ERROR,
    RequestHandler,
    RequestPayloadError,
    _ErrInfo,
)

from objstore.node.handshakes import BACKLOG, Handshake, TlsListener
from objstore.s3.app import SERVER, App, EdgeRequest
from objstore.s3.errors import S3Fault, render, request_timeout, slow_down
from objstore.s3.intake import Handler
from objstore.s3.refusals import let_go

_log = logging.getLogger("objstore.s3")

_REFUSED_LINGER_S = 1.0  # So long a refused connection may read its answer.
_EVICTION_LOOK = 256  # Connections looked at for one to close, each time the next ones: bounds the time.
_REFUSED_MAX = 256  # Refused connections that linger; more are cut at once.
# Bytes that the kernel holds of an answer and has not sent: without it, up to 4 MiB for a client that takes
# nothing. What is on its way to a client that does is not counted, however far it is.
UNSENT_MAX = 256 * 1024


class EdgeProtocol(Handler):
    """One connection."""

    __slots__ = (
        "app", "dropped", "edge", "ended",
        "head_bytes", "head_since", "put_off", "read_from", "read_last",
        "read_paused", "read_waited", "refused", "watched", "write_from", "write_last", "write_paused",
        "write_waited",
    )  # fmt: skip

    def __init__(self, edge: "EdgeServer", **settings: Any) -> None:
        super().__init__(edge, access_log=None, **settings)  # type: ignore[arg-type] # None is documented.
        self.edge = edge
        self.app = edge.app
        self.bytes_in = 0
        self.ended = 0  # Requests of this connection that were answered or given up.
        self.half_closed = False  # The client has said that it sends no more.
        self.refused = False
        self.put_off: asyncio.Future[None] | None = None  # Until then the answer, a refusal, waits.
        self.dropped: StreamReader | None = None  # The body that is read away behind its answer.
        self.head_since = 0.0  # When the first bytes of an unfinished head came; 0: none.
        self.head_bytes = 0
        self.watched: object = None  # The request that the following speak of.
        self.read_waited = 0.0  # Seconds that a reader has waited for the body,
        self.read_from = 0  # since this many bytes had come;
        self.read_last = 0  # as many had come at the last sweep;
        self.read_paused = 0.0  # seconds without any.
        self.write_last = -1  # Bytes of the answer that were taken at the last sweep;
        self.write_paused = 0.0  # seconds without any.
        self.write_waited = 0.0  # Seconds that the answer has waited for the client,
        self.write_from = 0  # since so many bytes were taken.

    # --- Coming and going ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.edge.handshakes.pop(self, None)
        if self.edge.is_full() and not self.edge.make_room():
            self._refuse_connection(cast(asyncio.Transport, transport))  # uvloop's is one in all but name.
            return
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_MAX)
        self.app.observer.connections += 1

    def _refuse_connection(self, transport: asyncio.Transport) -> None:
        self.refused = True
        self._force_close = True  # data_received ignores what comes.
        self._manager = None
        if len(self.edge.lingering) >= _REFUSED_MAX:
            transport.abort()
            return
        transport.write(self.raw_answer(slow_down("Too many connections.")))
        if transport.can_write_eof():
            transport.write_eof()
        self.edge.lingering.add(transport)
        self._loop.call_later(_REFUSED_LINGER_S, self.edge.end_lingering, transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.refused:
            self._parser = None
            return
        if self._manager is not None:
            self.app.observer.connections -= 1
        super().connection_lost(exc)
        # Nobody waits for what follows, and it still counts as a connection until its task has ended.
        if self.put_off is not None:
            let_go(self.put_off)
        if self.dropped is not None:
            self.dropped.set_exception(ConnectionResetError("the client is gone"))

    def data_received(self, data: bytes) -> None:
        self.bytes_in += len(data)
        super().data_received(data)
        waiter = self._waiter
        # Nobody was woken: a head is unfinished. Its first bytes may come before the task waits for them.
        if data and (not self._request_count if waiter is None else not waiter.done()):
            if not self.head_since:
                self.head_since = time.monotonic()
                self.head_bytes = 0
            self.head_bytes += len(data)
            if self.head_bytes > self.app.limits.head_bytes:
                self.end_with(
                    S3Fault(
                        "RequestHeaderSectionTooLarge",
                        400,
                        "Your request header section exceeds the maximum allowed size",
                        {"MaxSizeAllowed": str(self.app.limits.head_bytes)},
                    )
                )

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. It still gets the answer to what it has sent (not over TLS)."""
        self.app.outbox.send()
        if self.ended >= self._request_count or self.ssl_context is not None:
            return None  # Nothing is under way: close.
        self.half_closed = True
        request = self._current_request
        if request is not None:
            self._end_payload(request)
        return True

    def request_began(self, request: EdgeRequest) -> None:
        """A whole head has come and is being served."""
        self.head_since = 0.0
        self._lingering_time = self.app.limits.linger_seconds
        if self.half_closed:
            self._end_payload(request)

    def renew_parser(self) -> None:
        """The last body was received past the parser (s3/intake.py): one that waits for a head."""
        settings = self.edge._settings
        self._parser = HttpRequestParser(
            self,
            self._loop,
            settings["read_bufsize"],
            max_line_size=settings["max_line_size"],
            max_field_size=settings["max_field_size"],
            max_headers=settings["max_headers"],
            payload_exception=RequestPayloadError,
            auto_decompress=settings["auto_decompress"],
            max_msg_queue_size=self._max_msg_queue_size,
        )

    def hold_body(self, payload: StreamReader) -> None:
        """Nobody will read this body: what has come of it goes, and for now no more is taken.

        While no more is taken a client that hangs up is not noticed, so it must not be for long.
        """
        while payload.exception() is None and payload.read_nowait():
            pass  # The parser may have held some back, and hands it over when there is room.
        if not payload.is_eof():
            self._pause_reading_for_buffer()

    def let_body_come(self) -> None:
        """After `hold_body`: as ever."""
        if self._buffer_paused and self.transport is not None and not self._force_close:
            self._resume_reading_if_drained()

    @staticmethod
    def _end_payload(request: web.BaseRequest) -> None:
        if not request._payload.is_eof():
            request._payload.set_exception(RequestPayloadError("the client stopped sending"))

    # --- One request after the other -------------------------------------------------------------------

    async def start(self) -> None:
        """Serve the connection's requests in turn, in its own task: aiohttp would make one more for each."""
        while not self._force_close:
            if self._messages:
                await asyncio.sleep(0)  # Sent together with the last one: first the others have their turn.
            else:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            if self._force_close or not await self._serve_next():
                break
            self._next_keepalive_close_time = close_time = self._loop.time() + self._keepalive_timeout
            if self._keepalive_handle is None:
                self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _serve_next(self) -> bool:
        """Serve the request that came first; whether the connection may have another."""
        message, payload = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        handler: Any = self._request_handler
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        task = cast("asyncio.Task[None]", self._task_handler or asyncio.current_task())
        request = EdgeRequest(message, payload, self, StreamWriter(self, self._loop), task, self._loop)
        try:
            try:
                response, cut = await self._handle_request(request, None, handler)
            except ConnectionError:
                cut = True
            if cut:
                return False
            self._keepalive = bool(response.keep_alive)
            has_rest = not payload.is_eof()
            if self._messages or has_rest or self._close or not self._keepalive:
                # What comes next may write to the connection, or close it: the answer goes first.
                self.app.outbox.send()
            if has_rest:
                await self._drop_rest(payload)
            payload.set_exception(_PAYLOAD_ACCESS_ERROR)
        except Exception as failure:
            self.log_exception("Unhandled exception", exc_info=failure)
            self.force_close()
        except BaseException:
            self.force_close()
            raise
        finally:
            request._task = None  # type: ignore[assignment] # The cycle of a failure's traceback.
        return self._keepalive and not self._close and not self._force_close

    async def _drop_rest(self, payload: StreamReader) -> None:
        """Read away what still comes of a body that nobody wants, for a while; else close."""
        if self._lingering_time and not self._force_close:
            self.dropped = payload
            try:
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(self._lingering_time):
                        while not payload.is_eof():
                            await payload.readany()
            finally:
                self.dropped = None
        if not payload.is_eof() and not self._force_close:
            self.close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """App.handle has sent it already. What is left is the end of an upgrade that was not taken."""
        if self._upgraded or not resp._eof_sent:
            return await super().finish_response(request, resp, start_time)
        return resp, False

    # --- Errors, in S3's words and without tracebacks --------------------------------------------------

    def _make_error_handler(
        self, err_info: Any
    ) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            assert isinstance(request, EdgeRequest)
            self.request_began(request)
            return await self.app.refuse_unparsed(request, err_info.exc)

        return handler

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What App.handle let through: the connection is of no further use."""
        if not isinstance(exc, ConnectionError):
            _log.error("unforeseen failure at the edge: %r", exc, exc_info=exc)
        raise ConnectionResetError("connection given up")

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """aiohttp logs here what ends a connection; only what we did not foresee is worth a traceback."""
        error = kw.get("exc_info")
        if isinstance(error, (ConnectionError, RequestPayloadError, S3Fault, web.PayloadAccessError)):
            return
        _log.error(*args, **kw)

    def raw_answer(self, fault: S3Fault) -> bytes:
        """A whole answer, head and body, for a connection that has no request."""
        request_id = self.app.new_request_id()
        body = render(fault, resource="/", request_id=request_id, host_id=self.app.host_id)
        lines = [
            f"HTTP/1.1 {fault.status} {HTTPStatus(fault.status).phrase}",
            f"Server: {SERVER}",
            f"Date: {formatdate(usegmt=True)}",
            "Content-Type: application/xml",
            f"Content-Length: {len(body)}",
            f"x-amz-request-id: {request_id}",
            f"x-amz-id-2: {self.app.host_id}",
            *(f"{name}: {value}" for name, value in fault.headers.items() if name != "Connection"),
            "Connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def end_with(self, fault: S3Fault) -> None:
        """Answer a connection that has no whole request, and close it."""
        if self.transport is not None and not self._force_close:
            self.transport.write(self.raw_answer(fault))
            self.app.observer.finished("Unknown", fault.status, 0.0, 0, 0, fault.code)
        self.force_close()

    # --- The sweep -------------------------------------------------------------------------------------

    def sweep(self, now: float, passed: float) -> None:
        """Look at the clock. `passed`: seconds since the last sweep."""
        limits = self.app.limits
        if self.head_since and now - self.head_since > limits.header_seconds:
            self.end_with(request_timeout())
            return
        request = self._current_request
        if request is None:
            return
        if self.watched is not request:
            self.watched = request
            self.read_waited = self.read_paused = self.write_paused = self.write_waited = 0.0
            self.read_from = self.read_last = self.bytes_in
            self.write_last, self.write_from = -1, 0
            return
        payload = request._payload
        if getattr(payload, "_waiter", None) is not None:
            self.read_waited += passed
            self.read_paused = self.read_paused + passed if self.bytes_in == self.read_last else 0.0
            self.read_last = self.bytes_in
            too_slow = (
                self.read_waited > limits.rate_after_seconds
                and self.bytes_in - self.read_from < limits.body_rate * self.read_waited
            )
            if too_slow or self.read_paused > limits.body_seconds:
                fault = request_timeout()
                fault.headers["Connection"] = "close"
                payload.set_exception(fault)
        if self._paused and self.transport is not None:
            taken = request._payload_writer.output_size - _unsent(self.transport)
            if taken != self.write_last:
                self.write_last, self.write_paused = taken, 0.0
            else:
                self.write_paused += passed
            self.write_waited += passed
            too_slow = False
            # Judged anew from time to time: a quick start buys nothing.
            if self.write_waited > limits.body_seconds:
                too_slow = taken - self.write_from < limits.body_rate * self.write_waited
                self.write_waited, self.write_from = 0.0, taken
            if too_slow or self.write_paused > limits.body_seconds:
                self.transport.abort()


def _unsent(transport: asyncio.Transport) -> int:
    """Bytes that the client has not taken: ours and the kernel's."""
    size = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None:
        queued = array.array("i", [0])
        try:
            fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
            size += queued[0]
        except OSError:
            pass  # Not TCP, or closing: our own buffer alone is judged.
    return size


class EdgeServer(web.Server):
    """The factory of connections, and their list."""

    def __init__(self, app: App) -> None:
        super().__init__(app.handle)  # type: ignore[arg-type]
        self.app = app
        self.lingering: set[asyncio.Transport] = set()
        self.handshakes: dict[asyncio.BaseProtocol, Handshake] = {}  # Connections to be: they count.
        limits = app.limits
        self._settings: dict[str, Any] = {
            "loop": self._loop,
            "keepalive_timeout": limits.idle_seconds,
            "lingering_time": limits.linger_seconds,
            "max_line_size": limits.line_bytes,
            "max_field_size": limits.field_bytes,
            "max_headers": limits.fields,
            "read_bufsize": limits.read_bytes,
            "auto_decompress": False,  # A stored gzip object is its bytes.
            "logger": _log,
        }

    def __call__(self) -> RequestHandler:
        return EdgeProtocol(self, **self._settings)

    def is_full(self) -> bool:
        return len(self._connections) + len(self.handshakes) >= self.app.limits.connections

    def takes_handshake(self) -> bool:
        """Whether one more may begin. Some do that will be refused: over TLS, too, they are to hear why."""
        count = len(self._connections) + len(self.handshakes)
        return count < self.app.limits.connections + _REFUSED_MAX or self.make_room()

    def make_room(self) -> bool:
        """Close a connection that has been without a request, or whose refusal is put off, or that was
        answered and still sends a body that nobody wants; whether there was one among those looked at.

        None of them costs much to have: a thousand of them must not keep a client with a request out.
        """
        limits = self.app.limits
        now = self._loop.time()
        oldest = next(iter(self.handshakes.items()), None)
        if oldest is not None and oldest[1].began < now - limits.evict_seconds:
            oldest[1].task.cancel()
            del self.handshakes[oldest[0]]
            return True
        close_time = now - limits.evict_seconds + limits.idle_seconds
        for connection in list(islice(self._connections, _EVICTION_LOOK)):
            idles = (
                connection._waiter is not None  # It waits for a whole head.
                and connection._next_keepalive_close_time < close_time
            )
            refused = isinstance(connection, EdgeProtocol) and (
                connection.put_off is not None or connection.dropped is not None
            )
            if (idles or refused) and not connection._force_close:
                connection.force_close()
                return True
            # To the end: the next look is at others, so none that could go hides behind those that cannot.
            self._connections[connection] = self._connections.pop(connection)
        return False

    def end_lingering(self, transport: asyncio.Transport) -> None:
        self.lingering.discard(transport)
        transport.abort()

    def sweep(self, now: float, passed: float) -> None:
        for connection in list(self._connections):
            if isinstance(connection, EdgeProtocol):
                connection.sweep(now, passed)


class Listener(Protocol):
    @property
    def sockets(self) -> Sequence[socket.socket]: ...

    def close(self) -> None: ...


class Runner:
    """A listening S3 port. `stop` ends it gracefully."""

    def __init__(self, app: App, server: EdgeServer, listeners: Sequence[Listener]) -> None:
        self.app = app
        self.server = server
        self.listeners = listeners
        self._loop = asyncio.get_running_loop()
        self._swept_at = time.monotonic()
        self._timer = self._loop.call_later(app.limits.sweep_seconds, self._sweep)

    @property
    def port(self) -> int:
        port: int = self.listeners[0].sockets[0].getsockname()[1]
        return port

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(self.app.limits.sweep_seconds, self._sweep)
        now = time.monotonic()
        passed, self._swept_at = now - self._swept_at, now
        self.server.sweep(now, passed)

    async def stop(self, drain_seconds: float = 30.0) -> None:
        """Take no more connections, let requests end for up to `drain_seconds`, then cut what is left."""
        self.app.draining = True
        self.app.refusals.end()
        for listener in self.listeners:
            listener.close()
        deadline = self._loop.time() + drain_seconds
        while True:
            busy = False
            self.app.outbox.send()  # A request whose answer still waits there counts as ended.
            for connection in self.server.connections:
                if connection._current_request is None and not connection._messages:
                    connection.force_close()
                else:
                    busy = True
            if not busy or self._loop.time() >= deadline:
                break
            await asyncio.sleep(0.02)
        self._timer.cancel()
        await self.server.shutdown(1.0)
        for transport in list(self.server.lingering):
            self.server.end_lingering(transport)
        if self.app.access_log is not None:
            await self.app.access_log.close()


async def serve_s3(
    app: App, sockets: Sequence[socket.socket], context: ssl.SSLContext | None = None
) -> Runner:
    """Serve on sockets that are bound already; `Runner.stop` ends it.

    Args:
        sockets: of one port: a host name may stand for several addresses.
        context: for TLS.
    """
    loop = asyncio.get_running_loop()
    server = EdgeServer(app)
    listeners: list[Listener] = []
    for listener in sockets:
        if context is not None:
            listeners.append(TlsListener(server, listener, context))
        else:
            listeners.append(await loop.create_server(server, sock=listener, backlog=BACKLOG))
    return Runner(app, server, listeners)
