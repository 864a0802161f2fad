"""Answers: a document, nothing but headers, a long body, or a document that takes its time.

A long body is sent from the reader's own buffers, so each list of them is on the wire before the next one is
asked for (a transport keeps what the kernel did not take, and does not copy it). A body that cannot be
finished cuts the connection: a response never ends short as a success.

Waiting for a client that does not read is bounded by the edge, which looks at every connection that is paused
and cuts off the one that takes nothing (server.py, `sweep`).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar, cast

from aiohttp import web
from aiohttp.http_writer import StreamWriter
from multidict import CIMultiDict

from objstore.errors import Contended, StoreError
from objstore.s3.call import Call
from objstore.s3.errors import S3Fault, fault_of, internal_error, render
from objstore.s3.outbox import Answer
from objstore.s3.xml import DECLARATION

PATIENCE_S = 5.0  # Work that takes longer answers 200 early and keeps the connection alive.
PULSE_S = 10.0  # Seconds between the spaces; the SDKs' read timeout is 60.

_NOTHING = memoryview(b"")
_log = logging.getLogger("objstore.s3")
T = TypeVar("T")


def document(text: str, headers: dict[str, str] | None = None) -> web.Response:
    """200 with an XML document; `text` comes without declaration."""
    return whole_document(DECLARATION + text, headers)


def whole_document(text: str, headers: dict[str, str] | None = None) -> web.Response:
    """As `document`, with the declaration."""
    all_headers = CIMultiDict({"Content-Type": "application/xml"})
    if headers:
        all_headers.update(headers)
    return Answer(all_headers, text.encode())


def empty(status: int = 200, headers: dict[str, str] | CIMultiDict[str] | None = None) -> web.Response:
    return web.Response(status=status, headers=headers)


async def stream(
    call: Call, status: int, headers: CIMultiDict[str], blocks: AsyncIterator[list[memoryview]], size: int
) -> web.StreamResponse:
    """`size` bytes from `blocks`.

    Raises: whatever the first block raises, before anything is sent. What fails later cuts the connection and
    is raised for the log.
    """
    try:
        views = await anext(blocks, None)  # The beginning cannot be read: that is still an honest error.
        response = web.StreamResponse(status=status, headers=headers)
        response.headers["Content-Length"] = str(size)
        request = call.request
        transport = request.transport
        left = size
        try:
            await response.prepare(request)
            if transport is None:
                raise ConnectionResetError("the client is gone")
            # drain() then means: all of it is gone. TLS pauses a writer from `high` bytes on: with 0 every
            # other write would leave it paused with nothing to wait for.
            transport.set_write_buffer_limits(high=0 if transport.get_extra_info("sslcontext") is None else 1)
            writer = cast(StreamWriter, request.writer)
            write, drain = writer.write, writer.drain
            while views is not None:
                for view in views:
                    left -= view.nbytes
                    assert left >= 0, "more bytes than promised"
                    await write(view, drain=False)
                await drain()
                # While the socket takes all and the page cache has all, nothing above ever waited: one
                # stream after another would fill its socket before anybody else is served.
                await asyncio.sleep(0)
                views = await anext(blocks, None)
            assert left == 0, f"{left} bytes fewer than promised"
            transport.set_write_buffer_limits()
        except BaseException:
            if transport is not None:
                transport.abort()
            raise
        await response.write_eof()
        return response
    finally:
        views, view = None, _NOTHING  # The traceback of a client that was cut would keep its piece.
        if isinstance(blocks, AsyncGenerator):
            await blocks.aclose()


async def eventually(
    call: Call, work: Coroutine[Any, Any, T], show: Callable[[T], tuple[str, dict[str, str]]]
) -> web.StreamResponse:
    """The document and headers that `show` makes of the work's result.

    Within PATIENCE_S it is an ordinary answer, errors included. After that: 200, the declaration, a space
    every PULSE_S, and then the document, which may be an <Error>. The headers of `show` are lost then.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait((task,), timeout=PATIENCE_S)
        if done:
            text, headers = show(task.result())
            return document(text, headers)
        response = web.StreamResponse(headers={"Content-Type": "application/xml"})
        listening = True
        pulse = DECLARATION.encode()
        while not done:
            if listening:
                try:
                    if not response.prepared:
                        await response.prepare(call.request)
                    await response.write(pulse)
                except ConnectionResetError:
                    listening = False  # The work goes on: Complete is idempotent, the client will ask again.
                pulse = b" "
            done, _ = await asyncio.wait((task,), timeout=PULSE_S)
    except asyncio.CancelledError:
        task.cancel()
        raise
    try:
        body = show(task.result())[0].encode()
    except (S3Fault, StoreError) as failure:
        body = _late_error(call, failure)
    except Exception:
        _log.exception("a slow answer failed", extra={"request_id": call.request_id})
        body = _late_error(call, internal_error())
    await response.write(body)
    await response.write_eof()
    return response


def _late_error(call: Call, failure: S3Fault | StoreError) -> bytes:
    fault = fault_of(failure)
    request: Any = call.request
    request.late = fault  # It counts as what it is, whatever status was told.
    request.contended = isinstance(failure, Contended)
    resource = f"/{call.bucket}/{call.key}"
    whole = render(fault, resource=resource, request_id=call.request_id, host_id=call.request_id)
    return whole.removeprefix(DECLARATION.encode())
