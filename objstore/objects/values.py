"""The values that verbs take and give: parsed once at the edge, trusted from there on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import msgspec

from objstore.iam.principal import Principal as Principal
from objstore.meta.schema import BucketRecord, Checksum, ObjectRecord

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """If-Match and friends, as sent. None: absent. ETags as given, quoted or not, or `*`."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: int | None = None  # Seconds since 1970; an unparsable date is None (ignored).
    if_unmodified_since: int | None = None
    # DELETE only (the suite's superset of AWS):
    if_match_size: int | None = None
    if_match_last_modified: int | None = None  # Seconds.


NO_CONDITIONS = Conditions()


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """A Range header that is syntactically right: `first-last`, `first-` or `-suffix`."""

    first: int | None
    last: int | None  # Inclusive; with first None: the length of the suffix.
    text: str  # As sent, for the error.
    if_range: str | int | None = None  # Of which object only: its ETag as sent, or seconds since 1970.


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a client says of an object beside its bytes."""

    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # System headers, lower-case names.
    metadata: dict[str, str] = field(default_factory=dict)  # x-amz-meta-*, prefix removed, lower case.


@dataclass(frozen=True, slots=True)
class Digests:
    """What the verified body amounted to."""

    size: int
    md5: bytes  # Raw, 16 bytes.
    checksum: Checksum | None  # The one to store (CRC64NVME full object if the client named none).


class Sink(Protocol):
    """Where a large body goes (blobs/writer.py `BlobStream`): whole chunks, or bytes received in its memory.

    Memory that `room` gave out is the receiver's until `turn` or `flush`; both are told when the last reader
    of the bytes in it is done (a future, None: it is), and the memory is not used again before that.
    """

    hurry: Callable[[], None] | None  # Called when the memory is wanted elsewhere: answer with `flush`.

    @property
    def is_full(self) -> bool:
        """The memory is used up: `turn`."""
        ...

    def room(self) -> memoryview | None:
        """Where the next bytes may be put. None: full, or there is no memory; then `turn` or `write`."""
        ...

    def took(self, size: int) -> None:
        """So many bytes of the room were filled."""
        ...

    async def turn(self, read: "asyncio.Future[None] | None") -> None:
        """Send what is full, and wait for fresh memory."""
        ...

    async def flush(self, read: "asyncio.Future[None] | None") -> None:
        """Send what is there, and hold no memory until the next `write`."""
        ...

    async def write(self, chunk: Buffer) -> None:
        """Take a copy of these bytes."""
        ...


class Body(Protocol):
    """A request's bytes with framing and signatures already dealt with.

    Iterate to the end, then call `digests`. Both raise the edge's own errors (bad chunk signature,
    short body, wrong MD5, ...); nothing may be committed before `digests` has returned.
    """

    size: int | None  # Declared decoded length; None when the client did not say.

    def __aiter__(self) -> AsyncIterator[Buffer]: ...

    async def digests(self) -> Digests:
        """Verify everything that was promised of the body. Only after the last chunk."""
        ...


@runtime_checkable
class PouringBody(Body, Protocol):
    """A body that can put itself into a sink, and knows how without a copy."""

    @property
    def is_large(self) -> bool:
        """Whether it is longer than any small body: only then `pour` it, instead of iterating."""
        ...

    async def pour(self, sink: Sink) -> None:
        """All of its bytes. Raises: as the iteration does, and what the sink raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An acknowledged PUT, Complete or Copy."""

    etag: str  # Without quotes; with -N for multipart.
    order: int  # Microseconds: Last-Modified.
    checksum: Checksum | None
    size: int
    version: bytes = b""


class Found(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A version that a read chose, after its conditions held."""

    bucket: BucketRecord
    key: str
    record: ObjectRecord
    etag: str  # Without quotes.
    first: int  # The bytes to send: [first, first + length) of the object.
    length: int
    ranged: bool  # Answer 206.
    part_count: int  # 0: not multipart. With ?partNumber: x-amz-mp-parts-count.
    part_checksum: Checksum | None = None  # With ?partNumber on a multipart object.
    carried: bytes | None = None  # The body, if metadata carries it.


def etag_text(etag: bytes) -> str:
    """Raw ETag -> text without quotes. 16 bytes: MD5; 18: MD5 of MD5s and part count."""
    if len(etag) == 16:
        return etag.hex()
    return f"{etag[:16].hex()}-{int.from_bytes(etag[16:], 'big')}"
