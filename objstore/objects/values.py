"""The values that verbs take and give: parsed once at the edge, trusted from there on."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

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


def etag_text(etag: bytes) -> str:
    """Raw ETag -> text without quotes. 16 bytes: MD5; 18: MD5 of MD5s and part count."""
    if len(etag) == 16:
        return etag.hex()
    return f"{etag[:16].hex()}-{int.from_bytes(etag[16:], 'big')}"
