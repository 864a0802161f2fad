"""Bounds on the admin port's connections: heads that do not come, and too many at once.

aiohttp's keep-alive limit ends connections without a whole request; it is HEADER_SECONDS here. The rest is
looked after below. The port is meant for few clients on a closed network: a look every second is enough.

Concurrency: one task of the event loop that serves the port.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

HEADER_SECONDS: Final = 10.0  # From connecting, or from a request's first byte, to the end of its head.
REQUEST_SECONDS: Final = 120.0  # A whole request; a copy of large metadata takes the longest.
STREAM_SECONDS: Final = 3_600.0  # One whose answer goes in pieces, each of them within REQUEST_SECONDS.
CONNECTIONS_MAX: Final = 256
LOOK_SECONDS: Final = 1.0


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


log = logging.getLogger("objstore.admin.http")
"""For the server: aiohttp logs a traceback for whatever anyone sends that is no HTTP. These are left out."""
log.addFilter(_is_ours)


# Connections whose answer goes in pieces: when the last one was asked for.
_sent: Final[dict[object, float]] = {}


async def noted(request: web.BaseRequest, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same pieces of an answer; that they are taken is seen by `watch`."""
    loop = asyncio.get_running_loop()
    connection = request.protocol
    try:
        async for piece in pieces:
            _sent[connection] = loop.time()
            yield piece
    finally:
        _sent.pop(connection, None)


def _doing(connection: RequestHandler) -> object:
    """What a connection does: another value once it does something else."""
    if not connection._request_in_progress:
        return connection._keepalive_handle
    # Which of its requests: not `_current_request`, that is over when there is an answer, before it is sent.
    return connection._request_count - len(connection._messages)


def _is_late(connection: object, since: float, now: float) -> bool:
    """Whether a request has taken too long. Its beginning and the present, in seconds of the loop's clock."""
    taken = max(since, _sent.get(connection, since))
    return now - taken > REQUEST_SECONDS or now - since > STREAM_SECONDS


def _end(connection: RequestHandler) -> None:
    """Close it now: `force_close` alone waits until its client has read what was sent."""
    if connection.transport is not None:
        connection.transport.abort()
    connection.force_close()


def _is_anybody(connection: RequestHandler) -> bool:
    return False


async def watch(server: web.Server, is_known: Callable[[RequestHandler], bool] = _is_anybody) -> None:
    """Close what exceeds a bound. Never returns.

    Args:
        is_known: of too many connections those of others go first, and those without a request before the
            rest: whoever only opens connections cuts nobody's work short.
    """
    loop = asyncio.get_running_loop()
    seen: dict[RequestHandler, tuple[object, float]] = {}  # What it does, and since when.
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = loop.time()
        open_now = list(server.connections)
        for connection in open_now:
            doing = _doing(connection)
            if connection not in seen or seen[connection][0] != doing:
                seen[connection] = (doing, now)
        seen = {connection: seen[connection] for connection in open_now}
        for connection, (activity, since) in seen.items():
            if connection._request_in_progress:
                late = _is_late(connection, since, now)
            else:  # With a keep-alive timer aiohttp ends it itself.
                late = activity is None and now - since > HEADER_SECONDS
            if late:
                _end(connection)
        first = sorted(seen, key=lambda one: (is_known(one), one._request_in_progress, seen[one][1]))
        for connection in first[: max(0, len(first) - CONNECTIONS_MAX)]:
            _end(connection)
