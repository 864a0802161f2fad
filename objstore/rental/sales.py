"""What is sold of every pool, and what there is to sell: leases, capacity events and rules of sale.

Every change of what is sold changes SalesRecord, and a sale expects it: so what it found by a scan is still
so when it is committed. What nodes have is surveyed by the caller, who names the records that it read.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from objstore.errors import BadArgument, Overloaded
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import decode
from objstore.rental.admission import (
    Curve,
    Node,
    RawEvent,
    Rules,
    Sales,
    Shortage,
    Span,
    at_risk,
    usable_curve,
)
from objstore.rental.changes import Change, commit_change
from objstore.rental.money import parse_decimal
from objstore.rental.names import check_days, check_text
from objstore.rental.records import (
    SALES_KEY,
    CapacityEventRecord,
    LeaseRecord,
    SalesRecord,
    capacity_event_key,
    lease_key,
    lease_of_pool,
    pool_of_lease,
)

SOLD: Final = frozenset({"signed", "active"})  # States of a lease in which its capacity is sold.
EVENT_STATES: Final = ("planned", "delivered", "done", "cancelled")
PAGE: Final = 500
RAW_MAX: Final = 9 * 10**18  # Bytes of one event.


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What the store's nodes have, surveyed a moment ago."""

    nodes: Sequence[Node]  # Every node that takes data, with its pool.
    code: tuple[int, int]  # The store's (k, m).
    codes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # Of pools with one of their own.
    pools: frozenset[str] = frozenset()  # In which a disk stands, however it is, or that a policy names.
    members: frozenset[str] = frozenset()  # Nodes with a disk, however it is: ids.
    expect: Mapping[bytes, bytes | None] = field(default_factory=dict)  # Records that it was read from.


Survey = Callable[[], Awaitable[Supply]]


def lease_spans(lease: LeaseRecord) -> list[Span]:
    """Its capacity over time."""
    steps = lease.ramp or [(lease.begin_us, lease.capacity)]
    ends = [begin for begin, _ in steps[1:]] + [lease.end_us]
    return [
        Span(max(begin, lease.begin_us), min(end, lease.end_us), size)
        for (begin, size), end in zip(steps, ends, strict=True)
        if max(begin, lease.begin_us) < min(end, lease.end_us)
    ]


class Book:
    """All that is sold and to be sold, as it was at one version of SalesRecord."""

    def __init__(
        self,
        record: SalesRecord,
        leases: Iterable[LeaseRecord],
        events: Iterable[CapacityEventRecord],
        supply: Supply,
    ) -> None:
        self.record = record
        self.leases = sorted(
            (lease for lease in leases if lease.state in SOLD), key=lambda one: (one.signed_us, one.id)
        )
        self.events = list(events)
        self.supply = supply

    def rules(self, pool: str) -> Rules:
        k, m = self.supply.codes.get(pool, self.supply.code)
        return Rules(
            k=k,
            m=m,
            fill_max=Fraction(Decimal(self.record.fill_max)),
            spare_domains=self.record.spare_domains,
            oversubscription=Fraction(Decimal(self.record.oversubscription)),
        )

    def taken(self) -> dict[str, int]:
        """Nodes of dedicated leases, with the moment from which they are somebody's own."""
        return {
            node: lease.begin_us for lease in self.leases if lease.kind == "dedicated" for node in lease.nodes
        }

    def nodes(self, pool: str) -> list[Node]:
        """What stands in a pool. Nodes that are sold leave it, and come back when an operator moves them.

        The pool of a dedicated lease is where they go to: there they stay.
        """
        taken = {} if lease_of_pool(pool) else self.taken()
        return [replace(node, until=taken.get(node.id)) for node in self.supply.nodes if node.pool == pool]

    def usable(self, pool: str, now_us: int) -> Curve:
        events = [RawEvent(*found) for event in self.events if (found := self._counted(event, pool, now_us))]
        return usable_curve(self.nodes(pool), events, self.rules(pool))

    def _counted(self, event: CapacityEventRecord, pool: str, now_us: int) -> tuple[int, int] | None:
        """(moment, bytes). What came is on disks by now; what leaves counts until it is gone."""
        certain = event.state == "delivered" or (event.state == "planned" and self.record.include_planned)
        if event.pool != pool or not certain or (event.raw > 0 and event.at_us <= now_us):
            return None
        return event.at_us, event.raw

    def sales(self, pool: str, now_us: int, *, without: str = "") -> Sales:
        """Args: without: the id of a lease that is left out."""
        here = [lease for lease in self.leases if lease.pool == pool and lease.id != without]

        def spans(kind: str) -> list[Span]:
            return [span for lease in here if lease.kind == kind for span in lease_spans(lease)]

        return Sales(
            usable=self.usable(pool, now_us),
            rules=self.rules(pool),
            guaranteed=spans("guaranteed"),
            best_effort=spans("best_effort"),
        )

    def pools(self) -> list[str]:
        """Those with nodes or leases that are sold from them."""
        shared = [lease.pool for lease in self.leases if lease.kind != "dedicated"]
        return sorted({"", *shared, *(node.pool for node in self.supply.nodes)})

    def at_risk(self, now_us: int) -> list[tuple[LeaseRecord, int]]:
        """Leases for which something may be missing from now on, with the bytes: none, if all is well.

        Of a pool those that were signed last are named, as many as it takes for the rest to fit.
        """
        found: list[tuple[LeaseRecord, int]] = []
        for pool in self.pools():
            sales = self.sales(pool, now_us)
            shortage = sales.oversold(now_us)
            if shortage is None:
                continue
            here = [lease for lease in self.leases if lease.pool == pool and lease.kind == "guaranteed"]
            spans = [(lease.id, span) for lease in here for span in lease_spans(lease)]
            moments = {*sales.usable.changes(now_us, None), *sales.sold_guaranteed().changes(now_us, None)}
            named = at_risk(spans, sales.usable.at, moments)
            found += [(lease, shortage.size) for lease in here if lease.id in named]
        return found + [
            (lease, missing)
            for lease in self.leases
            if lease.kind == "dedicated" and (missing := self.missing_of_own(lease, now_us)) > 0
        ]

    def missing_of_own(self, lease: LeaseRecord, now_us: int) -> int:
        """Bytes that a dedicated lease's own nodes give too little, at its worst moment from now on."""
        own = [node for node in self.supply.nodes if node.id in lease.nodes]
        usable = usable_curve(own, (), self.rules(pool_of_lease(lease.id))).base
        most = max((span.size for span in lease_spans(lease) if span.end > now_us), default=0)
        return max(0, most - usable)

    def oversold(self, now_us: int) -> int:
        """Bytes that are sold above what is usable, each pool at its worst moment from now on."""
        shortages: list[Shortage | None] = [
            self.sales(pool, now_us).oversold(now_us) for pool in self.pools()
        ]
        own = sum(self.missing_of_own(lease, now_us) for lease in self.leases if lease.kind == "dedicated")
        return own + sum(shortage.size for shortage in shortages if shortage is not None)


async def read_book(kv: Kv, supply: Supply) -> Book:
    """As metadata has it now; for reports. Raises: MetaUnavailable."""
    value = await kv.get(SALES_KEY)
    record = SalesRecord() if value is None else decode(value, SalesRecord)
    return Book(record, await all_leases(kv), await all_events(kv), supply)


async def check_source(kv: Kv, survey: Survey, *, pool: str = "", nodes: Sequence[str] = ()) -> None:
    """Whether what a lease or an offer is to be sold from is there, or may come.

    A pool is there, or is announced by a capacity event; the pools of dedicated leases' nodes do not count,
    since nothing else is sold from them. Nodes have joined: their ids are made when they do.

    Args:
        pool: empty: the shared one, which is always there.
        nodes: of a dedicated lease.

    Raises: BadArgument, MetaUnavailable.
    """
    supply = await survey()
    known = supply.members | {node.id for node in supply.nodes}
    for node in nodes:
        if node not in known:
            raise BadArgument(
                f"there is no node {node!r}: objstore node list shows the ids of those that there are",
                name="nodes",
                value=node,
            )
    if not pool:
        return
    announced = {event.pool for event in await all_events(kv) if event.state in ("planned", "delivered")}
    there = supply.pools | {node.pool for node in supply.nodes} | announced
    names = sorted(name for name in there if name and not lease_of_pool(name))
    if pool not in names:
        words = ", ".join(["the shared one, which has no name", *names])
        raise BadArgument(
            f"there is no pool {pool!r}: pools are {words}; what is to come is told by a capacity event",
            name="pool",
            value=pool,
        )


async def open_book(change: Change, survey: Survey) -> Book:
    """The same for a sale, which expects all of it. Raises: Overloaded (the store is changing its layout)."""
    record = await change.record(SALES_KEY, SalesRecord) or SalesRecord()
    supply = await survey()
    for key, value in supply.expect.items():
        if await change.value(key) != value:
            raise Overloaded("the layout changed while capacity was counted: try again")
    return Book(record, await all_leases(change.kv), await all_events(change.kv), supply)


async def note_sale(change: Change) -> None:
    """What is sold changes: whoever decides on a sale at the same time decides again."""
    record = await change.record(SALES_KEY, SalesRecord) or SalesRecord()
    change.put(SALES_KEY, msgspec.structs.replace(record, version=record.version + 1))


async def all_leases(kv: Kv) -> list[LeaseRecord]:
    """In order of making."""
    start = lease_key("")
    return [
        decode(value, LeaseRecord)
        async for found in pages(kv, start, prefix_end(start), PAGE)
        for _, value in found
    ]


# Capacity events, and the rules.


async def all_events(kv: Kv) -> list[CapacityEventRecord]:
    start = capacity_event_key("")
    return [
        decode(value, CapacityEventRecord)
        async for found in pages(kv, start, prefix_end(start), PAGE)
        for _, value in found
    ]


async def put_event(kv: Kv, event: CapacityEventRecord) -> CapacityEventRecord:
    """Make an event known, or change it.

    What is delivered is counted as coming (or going) at its moment. When its disks are in the store, or gone
    from it, it is `done`: from then on the disks say it. Raises: BadArgument.
    """
    if event.state not in EVENT_STATES:
        raise BadArgument(f"an event is one of {', '.join(EVENT_STATES)}", name="state", value=event.state)
    if not event.raw or abs(event.raw) > RAW_MAX:
        raise BadArgument("raw bytes come or go, nine exabytes at most", name="raw", value=str(event.raw))
    check_text(event.words, "words")

    async def decide(change: Change) -> CapacityEventRecord:
        await change.value(capacity_event_key(event.id))
        change.put(capacity_event_key(event.id), event)
        await note_sale(change)
        return event

    return await commit_change(kv, decide, what="capacity")


async def put_rules(kv: Kv, **given: object) -> SalesRecord:
    """Change by what rules capacity is sold. Raises: BadArgument."""

    async def decide(change: Change) -> SalesRecord:
        before = await change.record(SALES_KEY, SalesRecord) or SalesRecord()
        unknown = given.keys() - set(SalesRecord.__struct_fields__) | given.keys() & {"version", "format"}
        if unknown:
            raise BadArgument(f"there is no rule {sorted(unknown)[0]}", name="rule", value=sorted(unknown)[0])
        after = check_rules(msgspec.structs.replace(before, **given))
        change.put(SALES_KEY, msgspec.structs.replace(after, version=before.version + 1))
        return after

    return await commit_change(kv, decide, what="the rules of sale")


def check_rules(record: SalesRecord) -> SalesRecord:
    """Raises: BadArgument."""
    Rules(
        k=1,
        m=1,
        fill_max=Fraction(parse_decimal(record.fill_max, "fill_max")),
        spare_domains=record.spare_domains,
        oversubscription=Fraction(parse_decimal(record.oversubscription, "oversubscription")),
    )
    if not 0 < parse_decimal(record.alert, "alert") <= 1:
        raise BadArgument("an alert is at a share above 0, at most 1", name="alert", value=record.alert)
    check_days(record.lead_days, "lead days")
    return record
