"""A gateway's cluster port: where machines join, nodes register their disks, members renew and are told.

It says who may: a certificate of the cluster for everything but /join, and for that a token. What is asked it
hands to the functions it was given (processes/members.py). Paths and documents: node/membership.py.

Strangers reach /join only, with one small document each; few of them are looked at side by side. Why somebody
was refused stands in the log; a stranger hears no more than the reason that an operator needs.

Concurrency: one event loop, the upkeep process's.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from objstore.admin import guard
from objstore.errors import BadArgument, Denied, Rejected, StoreError, Unavailable
from objstore.node.authority import GATEWAY, NODE
from objstore.node.documents import RequestRefused, answer, read_document
from objstore.node.handshakes import Bounded, TlsListener
from objstore.node.membership import (
    ANSWER_SIZE_MAX,
    BODY_SIZE_MAX,
    JOIN_PATH,
    MEMBER_PATH,
    REGISTER_PATH,
    RENEW_PATH,
    Document,
    JoinRequest,
    Refusal,
    Registered,
    Registration,
    Renewed,
    RenewRequest,
    Roots,
    Standing,
    Welcome,
)
from objstore.node.tls import HANDSHAKE_SECONDS, Credentials, Peer, Trust, peer_of

log = logging.getLogger(__name__)

JOINS_AT_ONCE: Final = 16  # Of strangers. Each costs a millisecond of CPU; beyond: 503, and they ask again.
CLOSE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterApi:
    """What the port is made of."""

    roots: Callable[[], Awaitable[Roots]]
    join: Callable[[JoinRequest], Awaitable[Welcome]]
    register: Callable[[Peer, Registration], Awaitable[Registered]]
    renew: Callable[[Peer, RenewRequest], Awaitable[Renewed]]
    standing: Callable[[], Standing]
    take_trust: Callable[[Trust], Awaitable[Standing]]


class ClusterPort:
    """The port; `listen` begins what `close` ends."""

    def __init__(self, api: ClusterApi, credentials: Credentials) -> None:
        self._api = api
        self._credentials = credentials
        self._joining = 0
        self._listeners: list[TlsListener] = []
        self._watch: asyncio.Task[None] | None = None
        self.server = web.Server(
            self._handle,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=guard.HEADER_SECONDS,
            logger=guard.log,
        )

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on sockets that are bound already."""
        context = self._credentials.server_context(NODE, GATEWAY, strangers=True)
        self._listeners = [
            TlsListener(Bounded(self.server), listener, context, limit_s=HANDSHAKE_SECONDS)
            for listener in sockets
        ]
        self._watch = asyncio.get_running_loop().create_task(guard.watch(self.server, _is_member))

    async def close(self) -> None:
        """No new connections; answers under way get a moment."""
        if self._watch is not None:
            self._watch.cancel()
        for listener in self._listeners:
            listener.close()
        await self.server.shutdown(CLOSE_SECONDS)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        who = request.remote
        try:
            return answer(await self._dispatch(request))
        except RequestRefused as refused:
            return answer(Refusal(detail=refused.detail), refused.status)
        except Denied as failure:
            log.warning("refused", extra={"path": request.path, "from": who, "why": str(failure)})
            return answer(Refusal(detail=str(failure)), 403)
        except Rejected as failure:
            return answer(Refusal(detail=str(failure)), 400 if isinstance(failure, BadArgument) else 409)
        except Unavailable as failure:
            return answer(Refusal(detail=str(failure)), 503)
        except StoreError as failure:
            log.error("cluster request failed", extra={"path": request.path, "failure": repr(failure)})
            return answer(Refusal(detail="an error; see the gateway's log"), 500)
        except Exception:
            log.exception("cluster request failed", extra={"path": request.path})
            return answer(Refusal(detail="a bug; see the gateway's log"), 500)

    async def _dispatch(self, request: web.BaseRequest) -> Document | Trust:
        peer = peer_of(request.transport)
        what = (request.method, request.path)
        if what == ("GET", JOIN_PATH):
            return await self._api.roots()
        if what == ("POST", JOIN_PATH):
            wanted = await read_document(request, JoinRequest, BODY_SIZE_MAX)  # Slow ones hold up nobody.
            if self._joining >= JOINS_AT_ONCE:
                raise RequestRefused(503, "too many machines join at once: try again")
            self._joining += 1
            try:
                return await self._api.join(wanted)
            finally:
                self._joining -= 1
        # Everything else is for members, whether it exists or not.
        if peer is None:
            raise RequestRefused(401, "a certificate of the cluster is needed")
        if not self._credentials.allows(peer):
            raise Denied(f"{peer.name} is no member any more, or its certificate has expired")
        if what == ("POST", REGISTER_PATH):
            return await self._api.register(peer, await read_document(request, Registration, BODY_SIZE_MAX))
        if what == ("POST", RENEW_PATH):
            return await self._api.renew(peer, await read_document(request, RenewRequest, BODY_SIZE_MAX))
        if request.path == MEMBER_PATH:
            if peer.name.role != GATEWAY:
                raise Denied(f"{peer.name} is no gateway")
            if request.method == "GET":
                return self._api.standing()
            if request.method == "PUT":
                return await self._api.take_trust(await read_document(request, Trust, ANSWER_SIZE_MAX))
        raise RequestRefused(404, "no such path")


def _is_member(connection: RequestHandler) -> bool:
    """Whether its other end has shown a certificate of the cluster."""
    return peer_of(connection.transport) is not None
