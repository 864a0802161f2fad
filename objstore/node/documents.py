"""The documents of membership.py over HTTP: one is read within bounds, one is answered."""

import asyncio
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from objstore.node.membership import Document, decode
from objstore.node.tls import Trust

BODY_SECONDS: Final = 10.0  # For a request's body to come.

T = TypeVar("T")


class RequestRefused(Exception):
    """The answer is a Refusal with this status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


async def read_document(request: web.BaseRequest, kind: type[T], size_max: int) -> T:
    """A request's body, of at most `size_max` bytes.

    Raises: BadArgument (it cannot be read); RequestRefused, 413 or 408 (it is too long, or did not come).
    """
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while chunk := await request.content.readany():
                content += chunk
                if len(content) > size_max:
                    raise RequestRefused(413, "the document is too long")
    except TimeoutError:
        raise RequestRefused(408, "the document did not come in time") from None
    return decode(bytes(content), kind)


def answer(document: Document | Trust, status: int = 200) -> web.Response:
    """For nobody to keep; a refusal also ends the connection."""
    response = web.Response(
        status=status,
        body=msgspec.json.encode(document),
        headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
    )
    if status >= 400:
        response.force_close()
    return response
