"""PutObject, DeleteObject, DeleteObjects. (Signatures agreed; bodies to come.)"""

from dataclasses import dataclass

from objstore.errors import StoreError
from objstore.objects.store import Store
from objstore.objects.values import NO_CONDITIONS, About, Body, Conditions, Principal, Written


async def put_object(
    store: Store, who: Principal, bucket: str, key: str, about: About, body: Body, conditions: Conditions = NO_CONDITIONS
) -> Written:
    """Raises: NoSuchBucket, Denied, KeyTooLong, TooLarge, MetadataTooLarge, ConditionFailed, ConditionalConflict,
    NoSuchKey (If-Match on nothing), Unavailable, and whatever the body raises."""
    raise NotImplementedError


async def delete_object(
    store: Store, who: Principal, bucket: str, key: str, *, version: str | None = None, conditions: Conditions = NO_CONDITIONS
) -> None:
    """An absent key is not an error. version: None or "null" (others: NoSuchVersion / BadArgument)."""
    raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    key: str
    version: str | None = None
    conditions: Conditions = NO_CONDITIONS


async def delete_objects(
    store: Store, who: Principal, bucket: str, doomed: list[Doomed]
) -> list[StoreError | None]:
    """One outcome per entry, in order; at most 1,000 entries."""
    raise NotImplementedError
