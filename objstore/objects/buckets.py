"""Buckets: create, find, list, delete. (Signatures agreed; bodies to come.)"""

from objstore.meta.schema import BucketRecord
from objstore.objects.store import Store
from objstore.objects.values import Principal


async def create_bucket(store: Store, who: Principal, name: str, *, region: str) -> BucketRecord:
    """Raises: BadName, BucketOwnedByCaller, BucketExists."""
    raise NotImplementedError


async def find_bucket(store: Store, who: Principal, name: str) -> BucketRecord:
    """Raises: BadName, NoSuchBucket, Denied (another tenant's)."""
    raise NotImplementedError


async def delete_bucket(store: Store, who: Principal, name: str) -> None:
    """Incomplete multipart uploads do not keep a bucket: they are aborted with it.

    Raises: NoSuchBucket, Denied, BucketNotEmpty.
    """
    raise NotImplementedError


async def list_buckets(
    store: Store, who: Principal, *, prefix: str, after: str, limit: int
) -> tuple[list[tuple[str, BucketRecord]], bool]:
    """Names > after, in order, and whether there are more."""
    raise NotImplementedError
