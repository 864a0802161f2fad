"""Pages of what is one's own, picked out of records that lie in order of their names, whoever's they are.

Of one tenant there may be three users among a hundred thousand: a page is bounded by what is read for it, not
by what is found, and can be short or empty while there is more.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import AccessKeyRecord, Record, TokenRecord, UserRecord, decode, user_key

READ_MAX: Final = 10_000  # Records of one page: some 20 ms.
READ_AT_ONCE: Final = 1_000

R = TypeVar("R", bound=Record)
Owned = TypeVar("Owned", AccessKeyRecord, TokenRecord)
Pick = Callable[[Sequence[tuple[str, R]]], Awaitable[Sequence[tuple[str, R]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked(Generic[R]):
    """A page: names and records."""

    found: list[tuple[str, R]]
    after: str  # Behind this name it goes on, which may be anybody's; empty: there is no more.


async def pick(kv: Kv, prefix: bytes, kind: type[R], own: Pick[R], *, after: str, limit: int) -> Picked[R]:
    """
    Args:
        prefix: of the records' keys; what follows is the name.
        own: those of a few records that belong on the page, in their order.
        after: the page begins behind this name.
        limit: of records on the page, at least 1.
    """
    assert limit > 0
    found: list[tuple[str, R]] = []
    count = 0
    start = prefix + after.encode() + b"\0" if after else prefix
    async for pairs in pages(kv, start, prefix_end(prefix), min(READ_AT_ONCE, READ_MAX)):
        records = [(key[len(prefix) :].decode(), decode(value, kind)) for key, value in pairs]
        found += await own(records)
        if len(found) > limit:
            return Picked(found=found[:limit], after=found[limit - 1][0])
        count += len(pairs)
        if count >= READ_MAX:
            return Picked(found=found, after=records[-1][0])
    return Picked(found=found, after="")


def owned(kv: Kv, user: str, tenant: str) -> Pick[Owned]:
    """What belongs to one user, else to the users of one tenant, else to anybody."""

    async def own(records: Sequence[tuple[str, Owned]]) -> Sequence[tuple[str, Owned]]:
        if user or not tenant:
            return [one for one in records if not user or one[1].user == user]
        users = await users_of(kv, [record.user for _, record in records])
        return [one for one in records if one[1].user in users and users[one[1].user].tenant == tenant]

    return own


async def users_of(kv: Kv, names: Sequence[str]) -> dict[str, UserRecord]:
    """By name: those that exist."""
    once = sorted(set(names))
    values = await kv.get_many([user_key(name) for name in once])
    return {
        name: decode(value, UserRecord) for name, value in zip(once, values, strict=True) if value is not None
    }
