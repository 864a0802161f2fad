"""GetObject, HeadObject and the bytes behind them. (Signatures agreed; bodies to come.)"""

from collections.abc import AsyncIterator

from objstore.objects.store import Store
from objstore.objects.values import NO_CONDITIONS, ByteRange, Conditions, Found, Principal


async def find_object(
    store: Store,
    who: Principal,
    bucket: str,
    key: str,
    *,
    version: str | None = None,
    conditions: Conditions = NO_CONDITIONS,
    byte_range: ByteRange | None = None,
    part_number: int | None = None,
) -> Found:
    """Choose the version, decide the conditions and the bytes to send.

    Raises: NoSuchBucket, Denied, NoSuchKey, NoSuchVersion, ConditionFailed, NotModified, BadRange, BadPartNumber.
    """
    raise NotImplementedError


async def read_small(store: Store, found: Found) -> bytes | memoryview | None:
    """The bytes if one small extent holds the object and all of it (or a range of it) is wanted; else None: stream."""
    raise NotImplementedError


def read(store: Store, found: Found) -> AsyncIterator[list[memoryview]]:
    """The found bytes as lists of verified buffers. An error in the middle must cut the connection."""
    raise NotImplementedError
