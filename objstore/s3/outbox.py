"""Whole answers on their way out: head and body at once, all of one turn of the loop in one burst.

aiohttp writes each answer at once, through a chain of coroutines made for streams. An answer that is whole in
memory needs none of it: its head is made in one step (by aiohttp's own serializer, which refuses CR and LF),
and what the requests of one turn have to say is written when they have all been served. A client on the same
machine is then woken once for many answers, not once for each: a wake-up costs as much as a small request.

Order: a connection serves one request at a time. Before it does anything but wait for the next head (another
request has come with the last one, it is to be closed), it asks for what waits here to be sent.

Concurrency: one Outbox per App, used by its event loop only. At most one answer a
connection waits.
"""

import asyncio
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from aiohttp import hdrs, web
from aiohttp.helpers import must_be_empty_body, should_remove_content_length
from aiohttp.http import HttpVersion11
from aiohttp.http_writer import _serialize_headers
from multidict import CIMultiDict

if TYPE_CHECKING:
    from objstore.s3.app import EdgeRequest

# Bytes: a larger body is not copied behind its head; uvloop hands both to the kernel in one call.
JOINED_MAX: Final = 64 * 1024


class Answer(web.Response):
    """A whole answer of which nothing is copied and nothing is left to be found out.

    Args:
        headers: the answer's own from here on.
    """

    def __init__(self, headers: CIMultiDict[str], body: bytes | None = None, status: int = 200) -> None:
        web.StreamResponse.__init__(self, status=status, _real_headers=headers)
        self._body = body


class Outbox:
    """
    Args:
        fixed: header lines that every answer of this process has, each with its CR LF.
    """

    def __init__(self, fixed: bytes) -> None:
        self._fixed = fixed
        self._waiting: list[tuple[asyncio.Transport, tuple[bytes | bytearray, ...]]] = []
        self._date = (0, b"")  # The second, and its header line.

    async def answer(self, request: "EdgeRequest", response: web.Response) -> None:
        """Finish a response whose body (bytes or nothing) is in memory, as prepare and write_eof would.

        Raises: ConnectionResetError if the client is gone.
        """
        method = request._method
        status = response._status
        body = response._body
        version = request._version
        if version is not HttpVersion11 or not (body is None or isinstance(body, (bytes, bytearray))):
            await response.prepare(request)
            await response.write_eof()
            return
        protocol: Any = request._protocol
        if protocol._paused:  # The client is slow to take its earlier answers.
            await protocol._drain_helper()
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        headers = response._headers
        empty = must_be_empty_body(method, status)
        if should_remove_content_length(method, status):
            headers.popall(hdrs.CONTENT_LENGTH, None)
        elif hdrs.CONTENT_LENGTH not in headers and (body or (status != 304 and method != hdrs.METH_HEAD)):
            headers[hdrs.CONTENT_LENGTH] = str(len(body)) if body else "0"
        if not empty and body and hdrs.CONTENT_TYPE not in headers:
            headers[hdrs.CONTENT_TYPE] = "application/octet-stream"
        if response._keep_alive is None:
            response._keep_alive = request.keep_alive
        if not request.may_go_on():
            response._keep_alive = False
        if not response._keep_alive:
            headers[hdrs.CONNECTION] = "close"
        head = _serialize_headers(f"HTTP/1.1 {status} {response._reason}", headers)
        rest = b"" if empty or not body else body
        apart = len(rest) > JOINED_MAX
        lines = (
            memoryview(head)[:-2],  # Without the blank line: what follows is ours, and knows no CR or LF.
            self._fixed,
            self._date_line(),
            b"x-amz-request-id: %b\r\n\r\n" % request.request_id.encode(),
            b"" if apart else rest,
        )
        data = b"".join(lines)
        size = len(data) + len(rest) if apart else len(data)
        request._payload_writer.output_size = size
        response._body_length = size
        response._must_be_empty_body = empty
        response._eof_sent = True  # aiohttp's own prepare and write_eof have nothing left to do.
        request.first_byte_at = time.monotonic()
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.send)
        self._waiting.append((transport, (data, rest) if apart else (data,)))

    def _date_line(self) -> bytes:
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, f"Date: {formatdate(now, usegmt=True)}\r\n".encode())
        return self._date[1]

    def send(self) -> None:
        """Write what waits, now."""
        waiting, self._waiting = self._waiting, []
        for transport, pieces in waiting:
            if transport.is_closing():
                continue
            if len(pieces) == 1:
                transport.write(pieces[0])
            else:
                transport.writelines(pieces)
