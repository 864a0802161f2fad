"""Bounds on the admin port's connections: heads that do not come, and too many at once.

aiohttp's keep-alive limit ends connections without a whole request; it is HEADER_SECONDS here. The rest is
looked after below. The port is meant for few clients on a closed network: a look every second is enough.

Concurrency: one task of the event loop that serves the port.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

HEADER_SECONDS: Final = 10.0  # From connecting, or from a request's first byte, to the end of its head.
REQUEST_SECONDS: Final = 120.0  # A whole request; a copy of large metadata takes the longest.
CONNECTIONS_MAX: Final = 256
LOOK_SECONDS: Final = 1.0


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


log = logging.getLogger("objstore.admin.http")
"""For the server: aiohttp logs a traceback for whatever anyone sends that is no HTTP. These are left out."""
log.addFilter(_is_ours)


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
            doing: object = connection._current_request or connection._keepalive_handle
            if connection not in seen or seen[connection][0] is not doing:
                seen[connection] = (doing, now)
        seen = {connection: seen[connection] for connection in open_now}
        for connection, (activity, since) in seen.items():
            if connection._current_request is not None:
                late = now - since > REQUEST_SECONDS
            else:  # With a keep-alive timer aiohttp ends it itself.
                late = activity is None and now - since > HEADER_SECONDS
            if late:
                connection.force_close()
        first = sorted(seen, key=lambda one: (is_known(one), one._current_request is not None, seen[one][1]))
        for connection in first[: max(0, len(first) - CONNECTIONS_MAX)]:
            connection.force_close()
