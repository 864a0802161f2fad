"""The capacity report of a pool: what there is, what is sold, what is used, and until when it will do.

    runway = floor((usable x alert - used) / g),  g = the median slope of used bytes over 28 days (Theil-Sen)

The median of the slopes between all pairs of days: a day on which somebody brought, or deleted, a petabyte
does not make a trend. Points of days are kept at midnight (CapacityDayRecord). Pure but for reading those.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from typing import Final

from objstore.meta.kv import Kv, Transaction
from objstore.meta.schema import decode, encode
from objstore.rental.records import (
    CapacityDayRecord,
    CapacityEventRecord,
    LeaseRecord,
    capacity_day_key,
    lease_of_pool,
    pool_of_lease,
)
from objstore.rental.sales import Book, lease_spans

WINDOW_DAYS: Final = 28
KEPT_DAYS: Final = 1_100  # Of daily points: three years.
DAY_US: Final = 86_400 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What the disks of a pool say, and what lies on them. All in bytes."""

    raw: int = 0  # Of disks that are well and stay.
    failed: int = 0  # Of those that are not, or are to be emptied.
    free: int = 0  # Of those that are well.
    used_logical: int = 0  # Of objects and parts.
    used_physical: int = 0  # Of fragment files, with what is garbage in them.
    reserved: int = 0  # That uploads under way may still store.


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The report of one pool. Bytes, but where something else is said."""

    pool: str
    raw: int
    failed: int
    spare: int
    usable: int
    sold_guaranteed: int
    sold_best_effort: int
    sold_share: Fraction  # Guaranteed, of what is usable.
    used_logical: int
    used_physical: int
    overhead: Fraction  # Physical for each logical byte, garbage included.
    reserved: int
    free: int
    sellable: int  # Guaranteed, from now on for ever.
    fill: Fraction  # Logical, of what is usable.
    growth: Fraction | None  # Logical bytes a day; None: fewer than two days are known.
    runway_days: int | None  # Until used bytes reach the alert; None: they do not grow.
    full_days: int | None  # Until they reach what is usable.
    lead_days: int
    order_now: bool  # The runway is shorter than an order of disks takes.
    next_event: CapacityEventRecord | None
    at_risk: tuple[LeaseRecord, ...]
    oversold: int


def growth(points: Sequence[tuple[int, int]]) -> Fraction | None:
    """The median slope between all pairs of points: Theil and Sen's estimate.

    Args:
        points: (day, bytes), each day once.

    Returns:
        Bytes a day; None of fewer than two points.
    """
    slopes = sorted(
        Fraction(later[1] - earlier[1], later[0] - earlier[0])
        for earlier, later in combinations(sorted(points), 2)
    )
    if not slopes:
        return None
    middle = len(slopes) // 2
    return slopes[middle] if len(slopes) % 2 else (slopes[middle - 1] + slopes[middle]) / 2


def runway(usable: int, used: int, a_day: Fraction | int, *, alert: Fraction = Fraction(1)) -> int | None:
    """Whole days until `used` reaches that share of `usable`; 0: it has; None: it never does."""
    left = usable * alert - used
    if left <= 0:
        return 0
    return int(left / a_day) if a_day > 0 else None


def report(
    book: Book, pool: str, holdings: Holdings, points: Sequence[tuple[int, int]], *, now_us: int
) -> Capacity:
    """The report of a pool.

    Args:
        points: (day, used logical bytes) of the last WINDOW_DAYS.
    """
    sales = book.sales(pool, now_us)
    rules = sales.rules
    usable = sales.usable.at(now_us)
    domains: dict[str, int] = {}
    for node in book.nodes(pool):
        if node.until is None or now_us < node.until:
            domains[node.domain] = domains.get(node.domain, 0) + sum(node.disks)
    own = [lease for lease in book.leases if lease.kind == "dedicated" and _is_of(lease, pool)]
    sold = sales.sold_guaranteed().at(now_us) + sum(_size_at(lease, now_us) for lease in own)
    a_day = growth(points)
    grows = a_day if a_day is not None else 0
    left = runway(usable, holdings.used_logical, grows, alert=Fraction(Decimal(book.record.alert)))
    ahead = [
        event
        for event in book.events
        if event.pool == pool and event.state in ("planned", "delivered") and event.at_us >= now_us
    ]
    shortage = sales.oversold(now_us)
    return Capacity(
        pool=pool,
        raw=holdings.raw,
        failed=holdings.failed,
        spare=sum(sorted(domains.values(), reverse=True)[: rules.spare_domains]),
        usable=usable,
        sold_guaranteed=sold,
        sold_best_effort=sales.sold_best_effort().at(now_us),
        sold_share=_share(sold, usable),
        used_logical=holdings.used_logical,
        used_physical=holdings.used_physical,
        overhead=_share(holdings.used_physical, holdings.used_logical),
        reserved=holdings.reserved,
        free=holdings.free,
        sellable=0 if lease_of_pool(pool) else sales.sellable(now_us),  # Nodes of one's own are sold whole.
        fill=_share(holdings.used_logical, usable),
        growth=a_day,
        runway_days=left,
        full_days=runway(usable, holdings.used_logical, grows),
        lead_days=book.record.lead_days,
        order_now=left is not None and left < book.record.lead_days,
        next_event=min(ahead, key=lambda event: (event.at_us, event.id), default=None),
        at_risk=tuple(lease for lease, _ in book.at_risk(now_us) if _is_of(lease, pool)),
        oversold=(shortage.size if shortage is not None else 0)
        + sum(book.missing_of_own(lease, now_us) for lease in own),
    )


def _size_at(lease: LeaseRecord, now_us: int) -> int:
    """What a lease promises at a moment."""
    return sum(span.size for span in lease_spans(lease) if span.begin <= now_us < span.end)


def _is_of(lease: LeaseRecord, pool: str) -> bool:
    return pool == (pool_of_lease(lease.id) if lease.kind == "dedicated" else lease.pool)


def _share(part: int, whole: int) -> Fraction:
    """0 of nothing."""
    return Fraction(part, whole) if whole else Fraction(0)


# Points of days.


async def note_day(kv: Kv, capacity: Capacity, *, now_us: int) -> None:
    """Keep what a pool holds today; the first point of a day stays. An old one goes."""
    day = now_us // DAY_US
    key = capacity_day_key(capacity.pool, day)
    if await kv.get(key) is not None:
        return
    point = CapacityDayRecord(
        usable=capacity.usable, used=capacity.used_logical, sold=capacity.sold_guaranteed
    )
    old = await kv.scan(
        capacity_day_key(capacity.pool, 0), capacity_day_key(capacity.pool, max(0, day - KEPT_DAYS)), 100
    )
    await kv.commit(Transaction(put={key: encode(point)}, delete=[key for key, _ in old]))


async def days_of(
    kv: Kv, pool: str, *, now_us: int, days: int = WINDOW_DAYS
) -> list[tuple[int, CapacityDayRecord]]:
    """(day since 1970, what was kept of it), of today and so many days before."""
    day = now_us // DAY_US
    start, end = capacity_day_key(pool, max(0, day - days)), capacity_day_key(pool, day + 1)
    pairs = await kv.scan(start, end, days + 1)
    return [(int.from_bytes(key[-4:], "big"), decode(value, CapacityDayRecord)) for key, value in pairs]
