"""ListObjects, ListObjectVersions: a page costs O(page). (Signatures agreed; bodies to come.)"""

from dataclasses import dataclass

from objstore.meta.schema import BucketRecord, ObjectRecord
from objstore.objects.store import Store
from objstore.objects.values import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    bucket: BucketRecord
    objects: list[tuple[str, ObjectRecord]]
    prefixes: list[str]  # Common prefixes, in order.
    truncated: bool
    next: str  # The last key or common prefix returned; "" if not truncated.


async def list_objects(
    store: Store, who: Principal, bucket: str, *, prefix: str, delimiter: str, after: str, limit: int
) -> Page:
    """Keys > after in byte order. A common prefix counts to the limit as a key does, is skipped by seeking,
    and never comes back when it is <= after (after may itself be a common prefix).

    Raises: NoSuchBucket, Denied.
    """
    raise NotImplementedError
