"""CopyObject and UploadPartCopy: bytes are copied, never shared. (Signatures agreed; bodies to come.)"""

from dataclasses import dataclass

from objstore.objects.store import Store
from objstore.objects.values import NO_CONDITIONS, About, Conditions, Principal, Written


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    bucket: str
    key: str  # Decoded exactly once.
    version: str | None = None
    conditions: Conditions = NO_CONDITIONS  # All four fail as ConditionFailed("x-amz-copy-source-if-...").


async def copy_object(
    store: Store,
    who: Principal,
    source: Source,
    bucket: str,
    key: str,
    *,
    about: About | None,
    checksum_algorithm: str = "",
    conditions: Conditions = NO_CONDITIONS,
) -> Written:
    """about None: COPY the source's metadata; otherwise REPLACE. The source is authorised like any read.

    Raises: CopyToSelf (onto itself without change), and what reads and writes raise.
    """
    raise NotImplementedError


async def copy_part(
    store: Store, who: Principal, source: Source, byte_range: tuple[int, int] | None, bucket: str, key: str, upload: str, number: int
) -> Written:
    """byte_range: (first, last), inclusive; beyond the source: BadArgument or BadRequest as S3 has it."""
    raise NotImplementedError
