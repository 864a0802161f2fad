"""The admin port's server: aiohttp around `admin/app.py`'s handler, with the bounds of `admin/guard.py`.

Concurrency: one event loop; `close` ends what `serve` began.
"""

import asyncio
import socket
import ssl
from collections.abc import Sequence

from aiohttp import web

from objstore.admin import guard
from objstore.admin.app import Admin, handler
from objstore.node.handshakes import BACKLOG, Bounded, TlsListener

CLOSE_SECONDS = 2.0  # For answers under way.


class Server:
    """One admin port that serves. Made by `serve`."""

    def __init__(
        self, server: web.Server, listeners: Sequence[asyncio.Server | TlsListener], watch: asyncio.Task[None]
    ) -> None:
        self._server = server
        self._listeners = listeners
        self._watch = watch

    async def close(self) -> None:
        """No new connections; answers under way get a moment."""
        self._watch.cancel()
        for listener in self._listeners:
            listener.close()
        await self._server.shutdown(CLOSE_SECONDS)


async def serve(admin: Admin, sockets: Sequence[socket.socket], context: ssl.SSLContext | None) -> Server:
    """Serve on sockets that are bound already; with TLS if there is a `context`."""
    loop = asyncio.get_running_loop()
    server = web.Server(
        handler(admin),
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=guard.HEADER_SECONDS,
        logger=guard.log,
    )
    watch = loop.create_task(guard.watch(server))
    listeners: list[asyncio.Server | TlsListener] = []
    for listener in sockets:
        if context is None:
            listeners.append(await loop.create_server(server, sock=listener, backlog=BACKLOG))
        else:
            listeners.append(TlsListener(Bounded(server), listener, context))
    return Server(server, listeners, watch)
