"""A storage node's port: the disks (server.py), and how the node stands in its cluster (membership.py).

Only gateways of the cluster get a connection. Who is removed, or whose certificate ends, while it has one,
loses it within seconds: connections are looked at again when the trust changes, and now and then.

Concurrency: one event loop; one trust is taken up at a time.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

import msgspec

from objstore import __version__
from objstore.errors import BadArgument, Corrupt
from objstore.node.authority import GATEWAY, common_name
from objstore.node.local import LocalDisk
from objstore.node.membership import (
    ANSWER_SIZE_MAX,
    MEMBER_PATH,
    TRUST_PATH,
    Document,
    Refusal,
    SlowDisk,
    Standing,
    decode,
)
from objstore.node.server import NodeLimits, NodeServer, members_only
from objstore.node.serving import Request
from objstore.node.tls import Credentials, Trust, peer_of

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0  # Between looks at open connections: a certificate may have ended.

_STARTED_S = int(time.time())


def standing_of(credentials: Credentials, slow: Sequence[SlowDisk] = ()) -> Standing:
    """How this process's machine stands now."""
    certificate = credentials.certificate
    return Standing(
        id=credentials.name.id.hex(),
        number=credentials.trust.number,
        issuer=common_name(certificate.issuer),
        ends_s=int(certificate.not_valid_after_utc.timestamp()),
        version=__version__,
        started_s=_STARTED_S,
        slow=list(slow),
    )


class NodePort(NodeServer):
    """The node's server with its standing."""

    def __init__(
        self,
        disks: Mapping[int, LocalDisk],
        credentials: Credentials,
        *,
        limits: NodeLimits | None = None,
    ) -> None:
        super().__init__(
            disks, cluster=credentials.name.cluster, limits=limits, admit=members_only(credentials)
        )
        self._credentials = credentials
        self._telling = asyncio.Lock()
        self._looker: asyncio.Task[None] | None = None

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on sockets that are bound already."""
        await self.serve(sockets, self._credentials.server_context(GATEWAY))
        self._looker = asyncio.get_running_loop().create_task(self._look())

    async def close(self) -> None:
        if self._looker is not None:
            self._looker.cancel()
        await super().close()

    def hang_up(self) -> int:
        """End the connections of whoever is no member any more; how many."""
        ended = 0
        if self._http is None:
            return ended
        for connection in list(self._http.connections):
            transport = connection.transport
            peer = peer_of(transport)
            if transport is not None and (peer is None or not self._credentials.allows(peer)):
                transport.abort()
                ended += 1
        if ended:
            log.warning("connections ended: their peers are members no more", extra={"count": ended})
        return ended

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.hang_up()

    async def _handle(self, request: Request) -> None:
        if request.path not in (MEMBER_PATH, TRUST_PATH):
            await super()._handle(request)
            return
        status, document = await self._stand(request)
        await request.send([_written(document, status, request.can_go_on)])

    async def _stand(self, request: Request) -> tuple[int, Document | Trust]:
        peer = peer_of(request.transport)
        # The handshake let gateways in only; this says so once more, for a certificate that has ended since.
        if peer is None or peer.name.role != GATEWAY or not self._credentials.allows(peer):
            return 403, Refusal(detail="a gateway's certificate is needed")
        try:
            if request.path == TRUST_PATH:
                return 200, self._credentials.trust
            if request.method == "PUT":
                size = request.size or 0
                if size > ANSWER_SIZE_MAX:
                    return 413, Refusal(detail="the document is too long")
                await self._take(decode(bytes(await self._body(request, size)), Trust))
            elif request.method != "GET":
                return 405, Refusal(detail="no such method here")
        except (BadArgument, Corrupt) as failure:
            return 400, Refusal(detail=str(failure))
        except OSError as failure:
            if isinstance(failure, ConnectionError):
                raise
            log.error("trust was not saved", extra={"failure": str(failure)})
            return 503, Refusal(detail=f"trust was not saved: {failure}")
        return 200, standing_of(self._credentials)

    async def _take(self, trust: Trust) -> None:
        async with self._telling:
            if await self._credentials.take_trust(trust):
                log.info("trust taken up", extra={"number": trust.number})
                self.hang_up()


def _written(document: Document | Trust, status: int, goes_on: bool) -> bytes:
    """For nobody to keep."""
    body = msgspec.json.encode(document)
    return (
        b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
        b"Content-Length: %d\r\n%b\r\n%b"
        % (
            status,
            HTTPStatus(status).phrase.encode(),
            len(body),
            b"" if goes_on else b"Connection: close\r\n",
            body,
        )
    )
