"""One verified request on its way through the S3 face. (The contract between app.py and the handlers.)

`app.py` makes a Call: it splits raw_path itself, decodes once and strictly, verifies the signature, finds the
route, and only then calls the route's handler. Handlers read a Call, call one verb of `objects`, and
answer. They raise S3Fault (s3/errors.py) or a StoreError; app.py turns both into S3's XML.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from multidict import CIMultiDictProxy

from objstore.errors import TooLarge
from objstore.objects.store import Store
from objstore.objects.values import Body, Principal

if TYPE_CHECKING:
    from objstore.s3.access import Access


class Call(msgspec.Struct, frozen=True, kw_only=True):
    request: web.BaseRequest
    store: Store
    who: Principal
    operation: str  # AWS's name of the operation, e.g. "PutObject": for logs and metrics.
    method: str
    bucket: str  # "" for the service.
    key: str  # "" for a bucket. Decoded exactly once from raw_path.
    query: dict[str, str]  # Decoded once, first value wins; "" without "="; authentication keys included.
    headers: CIMultiDictProxy[str]
    request_id: str
    body: Body  # Signature, chunk framing, Content-MD5 and checksums are its business.
    presigned: bool
    base_url: str  # "http://host:port" as the client sees it; for Location.
    access: "Access | None" = None  # What bounds who asks; None: nothing does.

    async def read_document(self, size_max: int = 1024 * 1024) -> bytes:
        """A small body (XML), whole and verified. Raises: S3Fault (too large, bad digest, ...)."""
        declared = self.body.size
        if declared is not None and declared > size_max:
            raise TooLarge(size=declared, maximum=size_max)
        chunks, size = [], 0
        async for chunk in self.body:
            size += len(chunk)
            if size > size_max:
                raise TooLarge(size=size, maximum=size_max)
            chunks.append(bytes(chunk))
        await self.body.digests()
        return b"".join(chunks)


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row of the route table (s3/routes.py). One without a rule, or without an action, does not start."""

    operation: str
    method: str
    target: str  # service | bucket | object
    flag: str | None = None  # A query key that selects this route, e.g. "uploads", "uploadId".
    header: str | None = None  # A header that selects it, e.g. "x-amz-copy-source".
    handler: Handler | None = None  # None: known to S3, not yet to us: 501 NotImplemented.
    rule: str = ""  # Who may: "tenant" (the bucket's tenant), "any-user" (any verified user).
    actions: tuple[str, ...] = ()  # What policies must allow of it, by AWS's names (actions.py).
    each_key: bool = (
        False  # Its body names what it is done to: its handler asks for each (Access.may_delete).
    )
