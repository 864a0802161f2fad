"""Leases over time: they begin, are renewed and end; what is sold is held against what is there.

    every pass   what nodes have is surveyed; leases move on (rental/leases.py); where more is sold than is
                 usable an alarm names the leases, and objstore_capacity_oversold_bytes is above zero
    every day    a point of what each pool holds, for its growth (rental/capacity.py); an alarm where disks
                 would come too late

A dedicated lease begins when its nodes hold nothing of others: that is looked for on the disks themselves,
the trash included, whatever metadata says. Files of metadata (journal copies) may stay: they are nobody's
objects.

Concurrency: one process at a time, under the upkeep's claim; a pass may be cut anywhere.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from objstore.blobs.survey import survey
from objstore.blobs.topology import Layout, Level, Topology
from objstore.blobs.volumes import VolumeState
from objstore.errors import Corrupt, Rejected, StoreError
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import BucketRecord, ReservationRecord, decode
from objstore.metrics import Family, gauge
from objstore.node.disk import FragmentFile
from objstore.objects.dedication import Released, begin, forget_policies, prepare, release, unreleased
from objstore.objects.layout import LAYOUT_KEY, read_layout
from objstore.objects.placing import policy_of_bucket
from objstore.objects.store import Store
from objstore.rental.admission import Node
from objstore.rental.capacity import DAY_US, Capacity, Holdings, days_of, note_day, report
from objstore.rental.leases import Pass, advance
from objstore.rental.records import LeaseRecord, pool_of_lease
from objstore.rental.sales import Book, Supply, all_leases, read_book
from objstore.upkeep.context import Context, named

log = logging.getLogger(__name__)

ALARM: Final = "oversold capacity"
RUNWAY: Final = "short runway"
IDLE: Final = "nodes of leases that are over"
NAMED_MAX: Final = 5  # Leases in an alarm.
PAGE: Final = 1_000


class Leasing:
    """What one process knows of leases and capacity."""

    def __init__(self, ctx: Context, store: Store) -> None:
        """store: the verbs over the context's metadata."""
        self._ctx = ctx
        self._store = replace(store, kv=ctx.kv, ledger=ctx.ledger)
        self.oversold = 0  # Bytes, as of the last pass.
        self.at_risk = 0  # Leases.
        self._day = -1  # Since 1970, of the last report of this process.

    async def survey(self) -> Supply:
        """What nodes have just now: the `Survey` of a sale. Raises: MetaUnavailable."""
        return (await self._survey())[0]

    async def run(self) -> str:
        """One pass; what it came to, in words. Raises: StoreError."""
        now_us = self._ctx.clock.now_us()
        done = await advance(self._ctx.kv, self.survey, now_us=now_us, ready=self.ready)
        book = await read_book(self._ctx.kv, await self.survey())
        self._judge(book, now_us)
        await self._judge_nodes()
        if now_us // DAY_US != self._day:
            capacities = await self.report()
            for capacity in capacities:
                await note_day(self._ctx.kv, capacity, now_us=now_us)
            self._judge_runways(capacities)
            await forget_policies(self._store)
            self._day = now_us // DAY_US
        return _words(done)

    def families(self) -> list[Family]:
        return [
            gauge("capacity_oversold_bytes", "Guaranteed bytes sold above what is usable.", self.oversold),
            gauge("leases_at_risk", "Leases for which capacity may be missing.", self.at_risk),
        ]

    def _judge(self, book: Book, now_us: int) -> None:
        risky = book.at_risk(now_us)
        self.oversold, self.at_risk = book.oversold(now_us), len(risky)
        if not risky:
            self._ctx.alarms.clear(ALARM)
            return
        names = named((f"{lease.id} of {lease.tenant}" for lease, _ in risky), len(risky), NAMED_MAX)
        self._ctx.alarms.set(
            ALARM, f"{self.oversold} bytes are sold above what is usable; leases at risk: {names}"
        )

    async def _judge_nodes(self) -> None:
        """Nodes that could be sold again wait for an operator's word: isolation never ends by itself."""
        _, record = await read_layout(self._ctx.kv)
        idle = unreleased(record.current, await all_leases(self._ctx.kv))
        if not idle:
            self._ctx.alarms.clear(IDLE)
            return
        names = named((f"{lease.id} of {lease.tenant}" for lease in idle), len(idle), NAMED_MAX)
        self._ctx.alarms.set(IDLE, f"kept apart for nobody: {names}; objstore lease release gives them back")

    def _judge_runways(self, capacities: Sequence[Capacity]) -> None:
        short = [one for one in capacities if one.order_now and one.growth]
        if not short:
            self._ctx.alarms.clear(RUNWAY)
            return
        words = [f"{one.pool or 'the shared pool'} lasts {one.runway_days} days" for one in short]
        self._ctx.alarms.set(
            RUNWAY, f"{', '.join(words)}, and an order of disks takes {short[0].lead_days}: order now"
        )

    # Dedicated nodes.

    async def release(self, kv: Kv, lease: str) -> Released:
        """Give the nodes of a lease that is over back (objects/dedication.py).

        Args:
            kv: through which it is committed.

        Raises: BadArgument, Denied, Overloaded, MetaUnavailable.
        """
        return await release(replace(self._store, kv=kv), lease)

    async def ready(self, lease: LeaseRecord) -> str:
        """Bring a dedicated lease to its beginning: why that cannot be yet, in words; empty: it is ready."""
        try:
            await prepare(self._store, lease, code=(self._ctx.k, self._ctx.m))
            if words := await self.foreign(lease):
                return words
            await begin(self._store, lease)
        except Rejected as failure:
            return str(failure)
        return ""

    async def foreign(self, lease: LeaseRecord) -> str:
        """What of others lies on a lease's nodes, in words; empty: nothing. Every disk is asked."""
        layout = await self._ctx.ledger.layout()
        numbers = [number for number, spot in layout.spots.items() if spot.node in lease.nodes]
        if not numbers:
            return "its nodes have no disks"
        listed = await asyncio.gather(*(self._files_on(number) for number in numbers))
        silent = [number for number, files in zip(numbers, listed, strict=True) if files is None]
        if silent:
            return f"disks {silent} of its nodes do not answer"
        volumes = Counter(file.volume for files in listed for file in files or ())
        policy = pool_of_lease(lease.id)
        others = [volume for volume in volumes if await self._policy_of(volume) != policy]
        files = sum(volumes[volume] for volume in others)
        return f"{files} fragment files of {len(others)} volumes of others lie on its nodes" if files else ""

    async def _files_on(self, number: int) -> list[FragmentFile] | None:
        """None: the disk does not answer."""
        disk = self._ctx.disks.get(number)
        if disk is None:
            return None
        try:
            return await disk.fragment_files()
        except (StoreError, OSError) as failure:
            log.info("disk %d did not say what is on it: %s", number, failure)
            return None

    async def _policy_of(self, volume: int) -> str | None:
        """None: nobody knows the volume."""
        try:
            return (await self._ctx.ledger.get(volume)).policy
        except Corrupt:
            return None

    # The report.

    async def report(self) -> list[Capacity]:
        """Every pool's. Reads every volume's record: seconds, with millions of them. Raises: StoreError."""
        now_us = self._ctx.clock.now_us()
        supply, layout, topology = await self._survey()
        book = await read_book(self._ctx.kv, supply)
        used = await self._used(layout)
        reserved = await self._reserved(layout)
        found: list[Capacity] = []
        for pool in sorted({*book.pools(), *used, *reserved}):
            points = [(day, point.used) for day, point in await days_of(self._ctx.kv, pool, now_us=now_us)]
            logical, physical = used.get(pool, (0, 0))
            holdings = _of_disks(layout, topology, pool)
            holdings = replace(
                holdings, used_logical=logical, used_physical=physical, reserved=reserved[pool]
            )
            found.append(report(book, pool, holdings, points, now_us=now_us))
        return found

    async def _survey(self) -> tuple[Supply, Layout, Topology]:
        ctx = self._ctx
        value, record = await read_layout(ctx.kv)
        layout = await ctx.ledger.layout_under(record.current, record.version)
        topology = await survey(layout, ctx.disks)
        return supply_of(layout, topology, code=(ctx.k, ctx.m), expect={LAYOUT_KEY: value}), layout, topology

    async def _used(self, layout: Layout) -> dict[str, tuple[int, int]]:
        """By pool: live bytes, and bytes of fragment files."""
        ledger = self._ctx.ledger
        live: Counter[str] = Counter()
        physical: Counter[str] = Counter()
        after = 0
        while records := await ledger.volumes(after, PAGE):
            after = records[-1].id
            amounts = await ledger.lengths([record.id for record in records])
            for record, (length, alive) in zip(records, amounts, strict=True):
                pool = layout.policy(record.policy).pool
                # The length of an open volume is not known: it has what lives in it at least.
                size = max(length, record.length, -(-alive // record.k))
                physical[pool] += size * record.fragment_count
                if record.state != VolumeState.RETIRED:
                    live[pool] += alive
            await asyncio.sleep(0)
        return {pool: (live[pool], physical[pool]) for pool in physical.keys() | live.keys()}

    async def _reserved(self, layout: Layout) -> Counter[str]:
        """Bytes that uploads under way may still store, by pool of their bucket."""
        sums: Counter[int] = Counter()
        async for pairs in pages(self._ctx.kv, b"E", prefix_end(b"E"), PAGE):
            for _, value in pairs:
                record = decode(value, ReservationRecord)
                sums[record.bucket] += record.size
        if not sums:
            return Counter()
        found: Counter[str] = Counter()
        async for pairs in pages(self._ctx.kv, b"b", prefix_end(b"b"), PAGE):
            for _, value in pairs:
                bucket = decode(value, BucketRecord)
                found[layout.policy(policy_of_bucket(bucket)).pool] += sums.pop(bucket.id, 0)
        return found


def supply_of(
    layout: Layout, topology: Topology, *, code: tuple[int, int], expect: Mapping[bytes, bytes | None]
) -> Supply:
    """What nodes bring: disks that are well and stay. Disks of one device count once.

    A pool's code is its policies'; of several the one that needs the most.
    """
    disks: dict[tuple[str, str, str], dict[int, int]] = {}
    for spot in topology.spots.values():
        if spot.usable and not spot.leaving:
            domain = spot.node if topology.base is Level.NODE else f"device {spot.device}"
            disks.setdefault((spot.node, domain, spot.pool), {})[spot.device] = spot.size
    codes: dict[str, tuple[int, int]] = {}
    for policy in layout.policies.values():
        if policy.k:
            known = codes.get(policy.pool, code if policy.pool == "" else (policy.k, policy.m))
            codes[policy.pool] = max(known, (policy.k, policy.m), key=lambda one: one[1] / one[0])
    return Supply(
        nodes=[
            Node(id=node, domain=domain, disks=list(sizes.values()), pool=pool)
            for (node, domain, pool), sizes in disks.items()
        ],
        code=code,
        codes=codes,
        pools=frozenset(
            [*(spot.pool for spot in layout.spots.values()), *(one.pool for one in layout.policies.values())]
        ),
        members=frozenset(spot.node for spot in layout.spots.values()),
        expect=expect,
    )


def _of_disks(layout: Layout, topology: Topology, pool: str) -> Holdings:
    raw: dict[tuple[str, int], int] = {}
    free: dict[tuple[str, int], int] = {}
    failed = 0
    for spot in topology.spots.values():
        if spot.pool != pool:
            continue
        if spot.usable and not spot.leaving:
            raw[spot.node, spot.device] = spot.size
            free[spot.node, spot.device] = spot.free
        else:
            failed += spot.size
    return Holdings(raw=sum(raw.values()), failed=failed, free=sum(free.values()))


def _words(done: Pass) -> str:
    parts = [
        f"{len(ids)} {what}"
        for what, ids in (
            ("begun", done.begun),
            ("renewed", done.renewed),
            ("ended", done.ended),
            ("tenants at a step of their ramps", done.followed),
        )
        if ids
    ]
    parts += [f"{lease} waits: {why}" for lease, why in list(done.waiting.items())[:NAMED_MAX]]
    parts += [f"{tenant} is not bound: {why}" for tenant, why in list(done.refused.items())[:NAMED_MAX]]
    return "; ".join(parts) or "nothing to do"
