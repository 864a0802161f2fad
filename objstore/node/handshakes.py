"""A TLS listener that counts connections from their accept, before their handshake.

An asyncio server says nothing of a connection until its handshake has ended, so any number of silent ones
could each hold a descriptor and 300 KiB for as long as a handshake may take, whoever they are of. Here the
server behind it knows of every handshake under way: s3/server.py `EdgeServer` counts them among its
connections, `Bounded` has so many of them, and the oldest gives way.

Concurrency: one event loop; one task a handshake.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

_log = logging.getLogger(__name__)

HANDSHAKE_SECONDS: Final = 10.0
ACCEPTS_AT_ONCE: Final = 64  # In one turn of the loop: a burst of connections holds up no request for long.
HANDSHAKES_MAX: Final = 256  # Of `Bounded`. Machines of a cluster take 3 ms for one, those far away 300.
ACCEPT_PAUSE_SECONDS: Final = 1.0  # After an accept that failed: the process has no descriptor left, say.
BACKLOG: Final = 1024


class Handshake(NamedTuple):
    task: "asyncio.Task[None]"
    began: float  # By the loop's clock.


class Server(Protocol):
    """Makes connections' protocols, and says how many there may be."""

    handshakes: dict[asyncio.BaseProtocol, Handshake]
    """Those under way, oldest first. Whoever takes one out counts it elsewhere, or no more."""

    def __call__(self) -> asyncio.BaseProtocol: ...

    def takes_handshake(self) -> bool: ...


class Bounded:
    """A server's protocols, and at most HANDSHAKES_MAX handshakes at once: one more ends the oldest.

    None is refused, so that many who never say a word keep out nobody who is quick.
    """

    def __init__(self, make: Callable[[], asyncio.BaseProtocol]) -> None:
        self.handshakes: dict[asyncio.BaseProtocol, Handshake] = {}
        self._make = make

    def __call__(self) -> asyncio.BaseProtocol:
        return self._make()

    def takes_handshake(self) -> bool:
        if len(self.handshakes) >= HANDSHAKES_MAX:
            oldest = next(iter(self.handshakes))
            self.handshakes.pop(oldest).task.cancel()
        return True


class TlsListener:
    """Accepts until it is closed; what `asyncio.Server` is without TLS.

    Args:
        limit_s: for a handshake.
    """

    def __init__(
        self,
        server: Server,
        listener: socket.socket,
        context: ssl.SSLContext,
        limit_s: float = HANDSHAKE_SECONDS,
    ) -> None:
        self.sockets = (listener,)
        self._server = server
        self._listener = listener
        self._context = context
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._resume()

    def close(self) -> None:
        """Take no more connections; handshakes under way end here."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for handshake in self._server.handshakes.values():
            handshake.task.cancel()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as failure:
                _log.error("no connection accepted: %s", failure)
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(ACCEPT_PAUSE_SECONDS, self._resume)
                return
            if not self._server.takes_handshake():
                connection.close()
                continue
            connection.setblocking(False)
            protocol = self._server()
            task = self._loop.create_task(self._shake_hands(connection, protocol))
            self._server.handshakes[protocol] = Handshake(task, self._loop.time())

    async def _shake_hands(self, connection: socket.socket, protocol: asyncio.BaseProtocol) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limit_s,
            )
        except OSError:
            pass  # It went away, spoke no TLS, or took too long.
        finally:
            self._server.handshakes.pop(protocol, None)
