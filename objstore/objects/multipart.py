"""The multipart family. (Signatures agreed; bodies to come.)"""

from dataclasses import dataclass

from objstore.meta.schema import BucketRecord, Checksum, PartRecord, UploadRecord
from objstore.objects.store import Store
from objstore.objects.values import NO_CONDITIONS, About, Body, Conditions, Principal, Written


async def create_upload(
    store: Store, who: Principal, bucket: str, key: str, about: About, *, checksum_algorithm: str, checksum_type: str
) -> tuple[str, UploadRecord]:
    """Returns the upload id (32 hex digits) and the record. The edge has validated the combination."""
    raise NotImplementedError


async def find_upload(store: Store, who: Principal, bucket: str, key: str, upload: str) -> UploadRecord:
    """Raises: NoSuchUpload (also: right id, wrong key; another bucket's)."""
    raise NotImplementedError


async def put_part(
    store: Store, who: Principal, bucket: str, key: str, upload: str, number: int, body: Body
) -> Written:
    raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A part as CompleteMultipartUpload names it."""

    number: int
    etag: str  # Without quotes.
    checksum: tuple[str, bytes] | None = None  # Algorithm and raw digest.


async def complete_upload(
    store: Store,
    who: Principal,
    bucket: str,
    key: str,
    upload: str,
    parts: list[Claimed],
    *,
    conditions: Conditions = NO_CONDITIONS,
    object_size: int | None = None,
    checksum: Checksum | None = None,
    checksum_type: str = "",
) -> Written:
    """Idempotent: the same upload and parts again give the same answer.

    Raises: NoSuchUpload, NoParts, BadPartOrder, BadPart, PartTooSmall, BadRequest, ConditionFailed,
    ConditionalConflict, NoSuchKey.
    """
    raise NotImplementedError


async def abort_upload(store: Store, who: Principal, bucket: str, key: str, upload: str) -> None:
    raise NotImplementedError


async def list_parts(
    store: Store, who: Principal, bucket: str, key: str, upload: str, *, after: int, limit: int
) -> tuple[UploadRecord, list[tuple[int, PartRecord]], bool]:
    raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadsPage:
    bucket: BucketRecord
    uploads: list[tuple[str, str, UploadRecord]]  # Key, upload id, record.
    prefixes: list[str]
    truncated: bool
    next_key: str
    next_upload: str


async def list_uploads(
    store: Store, who: Principal, bucket: str, *, prefix: str, delimiter: str, after_key: str, after_upload: str, limit: int
) -> UploadsPage:
    raise NotImplementedError


async def object_parts(
    store: Store, who: Principal, bucket: str, key: str, *, after: int, limit: int
) -> tuple[list[tuple[int, int, Checksum | None]], int, bool]:
    """For GetObjectAttributes: (number, size, checksum) of a completed object's parts, their count, and whether there are more."""
    raise NotImplementedError
