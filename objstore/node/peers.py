"""Small documents between members: a gateway asks how others stand, and tells them what is new.

One connection a member, kept while it is used; whoever is at the other end is checked when it is made. Every
exchange has a limit. What carries objects is not this but `remote.py`.

Concurrency: one event loop; one exchange a member at a time, which the caller sees to.
"""

import asyncio
import ssl
from typing import Final, TypeVar

import aiohttp
import msgspec

from objstore.errors import BadArgument
from objstore.node.membership import ANSWER_SIZE_MAX, MEMBER_PATH, Refusal, Standing, decode
from objstore.node.tls import Credentials, Trust

LIMIT_S: Final = 4.0  # For one exchange, connecting included; below the time between two.
KEEP_S: Final = 30.0

T = TypeVar("T")


class NoAnswer(Exception):
    """The member could not be reached, or did not answer properly in time. The message says what happened."""


class PeerClient:
    """One member. Close it when it leaves.

    Args:
        role, id_: whom a connection must lead to.
        addresses: host:port, tried in order.
    """

    def __init__(self, credentials: Credentials, role: str, id_: bytes, addresses: list[str]) -> None:
        self.addresses = list(addresses)
        self._context: ssl.SSLContext = credentials.client_context(role, id_)
        self._session: aiohttp.ClientSession | None = None

    async def standing(self) -> Standing:
        """How it stands. Raises: NoAnswer."""
        return await self._exchange("GET", None)

    async def tell(self, trust: Trust) -> Standing:
        """Let it follow `trust`; how it stands then. Raises: NoAnswer."""
        return await self._exchange("PUT", msgspec.json.encode(trust))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _exchange(self, method: str, body: bytes | None) -> Standing:
        failure: Exception | None = None
        for address in self.addresses:
            try:
                return await self._ask(address, method, body)
            except (OSError, TimeoutError, aiohttp.ClientError, BadArgument) as one:
                failure = one  # ssl.SSLError is an OSError.
        words = str(failure) or type(failure).__name__ if failure is not None else "it has no address"
        raise NoAnswer(words[:400])

    async def _ask(self, address: str, method: str, body: bytes | None) -> Standing:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._context, limit=2, keepalive_timeout=KEEP_S),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        async with asyncio.timeout(LIMIT_S):
            request = self._session.request(
                method, f"https://{address}{MEMBER_PATH}", data=body, allow_redirects=False
            )
            async with request as answer:
                content = bytearray()
                async for chunk in answer.content.iter_any():
                    content += chunk
                    if len(content) > ANSWER_SIZE_MAX:
                        raise BadArgument("the answer is too long")
                if answer.status != 200:
                    raise BadArgument(f"{answer.status}: {_detail(bytes(content))}")
                return decode(bytes(content), Standing)


def _detail(content: bytes) -> str:
    try:
        return decode(content, Refusal).detail[:200]
    except BadArgument:
        return content[:200].decode(errors="replace")
