"""Repair: whole fragment files are rebuilt from k others, most endangered volumes first.

What is missing comes from four places: repair intents (stripes acknowledged without this fragment), disks
that are gone (their whole contents, after a grace: a cable is put back sooner), files that are absent or
too short where their record says they are, and disks that an operator wants empty. A file is rebuilt where it
was if its disk takes writes, else on a healthy disk without a fragment of the volume, in the failure domain
that has the fewest; then the record is changed, conditionally.

It is put together stripe by stripe in a temporary file and published whole and atomically, so a crash
leaves the old state or the new, and no more than one stripe is in memory.

A stripe is given up only when fewer than k of its fragments can ever be read: what is merely late or away may
come back. An operator who knows better says so (`objstore disk forget`): then that disk's fragments count as
lost, files are rebuilt around such stripes, and what they held is reported (damage.py).

Concurrency: one process. The volume is sealed, so its bytes do not change; its record may, and then Conflict
says so and the next pass begins again.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from xxhash import xxh3_64

from objstore.blobs.placement import Promise, promise_of
from objstore.blobs.reader import UNREADABLE
from objstore.blobs.topology import Topology
from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.blobs.window import TOLERATED, Window
from objstore.errors import Conflict, Corrupt, StoreError, Unavailable
from objstore.node.disk import Buffer, Disk
from objstore.node.fragments import RecordHeader, file_header, record_buffers, record_size
from objstore.upkeep import plans, restorations
from objstore.upkeep.claims import Deposed
from objstore.upkeep.context import Context
from objstore.upkeep.plans import Damage, Findings
from objstore.upkeep.survey import (
    all_intents,
    each_volume,
    given_up_disks,
    leaving_disks,
    policies_of,
    sizes_of,
    topology_of,
)
from objstore.upkeep.walk import headers, tally

log = logging.getLogger(__name__)

FAILURES_KEPT: Final = 10_000  # Files whose rebuilding failed, remembered: they are tried after the others.
COMPARED_AT_ONCE: Final = 1024 * 1024  # Bytes of a copy, read back.


@dataclass(slots=True)
class RepairReport:
    found: int = 0  # Damaged fragment files.
    moving: int = 0  # Whole ones on disks that are to be emptied.
    moved: int = 0  # Of those, elsewhere now.
    moved_bytes: int = 0
    endangered: int = 0  # Volumes that can lose no further disk.
    repaired: int = 0
    repaired_bytes: int = 0
    waiting: int = 0  # Files without a disk to rebuild them on.
    lost_stripes: int = 0  # Not rebuildable from anything.
    lost_volumes: set[int] = field(default_factory=set)  # Where they are.
    bare: int = 0  # Volumes that survive the loss of one failure domain, and then nothing more.
    unprotected: int = 0  # Volumes that one failure domain could take away.
    failures: list[str] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether there is damage left that the next pass can be expected to mend."""
        return self.found > self.repaired + self.waiting + len(self.failures)


class _Look(NamedTuple):
    damages: list[Damage]
    away: set[int]  # Disks that are away or given up;
    gone_us: dict[int, int]  # and those of them whose files count as lost, with when they went away.


class Repair:
    """Remembers since when a disk has been gone, and what failed. One instance a process."""

    def __init__(self, ctx: Context, *, grace_s: float = 900.0) -> None:
        self._ctx = ctx
        self._grace_s = grace_s
        self._gone_since: dict[int, float] = {}
        self._failed: Counter[tuple[int, int]] = Counter()  # Attempts in vain, by volume and file.

    async def run(self, limit: int = 1_000_000) -> RepairReport:
        """Find damage, try to mend at most `limit` files. Raises: MetaUnavailable, Deposed."""
        ctx = self._ctx
        report = RepairReport()
        look = await self._look(report)
        damages = look.damages
        report.moving = sum(damage.moving for damage in damages)
        report.found = len(damages) - report.moving
        damaged = Counter(damage.record.disks[damage.file] for damage in damages)
        await restorations.note(ctx, away=look.away, gone_us=look.gone_us, damaged=damaged)
        by_id = {damage.record.id: damage.record for damage in damages}
        lost = plans.damaged_per_volume(damages)
        report.endangered = sum(count >= by_id[volume].m for volume, count in lost.items())
        topology = await topology_of(ctx) if damages else None
        tried = 0
        for damage in plans.by_urgency(damages, self._failed):
            if tried >= limit:
                break
            volume, file = damage.record.id, damage.file
            try:
                done = await repair_file(
                    ctx, volume, file, report, topology, moving=damage.moving, lost=lost.get(volume, 0)
                )
            except Conflict:
                continue  # The record has changed: the next pass sees what is left to do.
            except Deposed:
                raise
            except StoreError as failure:
                tried += 1
                if len(self._failed) >= FAILURES_KEPT:
                    self._failed.clear()
                self._failed[volume, file] += 1
                report.failures.append(f"{volume}.{file}: {failure}")
                log.warning("fragment file %d.%d not rebuilt: %s", volume, file, failure)
                continue
            if done:
                tried += 1
                self._failed.pop((volume, file), None)
            else:
                report.waiting += 1
        if report.endangered:
            ctx.alarms.set("endangered volumes", f"{report.endangered} volumes can lose no further disk")
        else:
            ctx.alarms.clear("endangered volumes")
        return report

    async def find(self) -> list[Damage]:
        """Every damaged fragment file of every sealed volume."""
        return (await self._look()).damages

    async def _look(self, report: RepairReport | None = None) -> _Look:
        """At all disks and volumes; counts weak placements in `report`."""
        ctx = self._ctx
        sizes, away = await sizes_of(ctx)
        leaving = await leaving_disks(ctx)
        given_up = await given_up_disks(ctx)
        gone = self._gone(away) | given_up
        gone |= leaving & away  # An operator has said so: no grace.
        now, now_us = ctx.clock.monotonic(), ctx.clock.now_us()
        gone_us = {number: now_us - round((now - self._gone_since.get(number, now)) * 1e6) for number in gone}
        intents = {(intent.volume, intent.index) for intent in await all_intents(ctx)}
        findings = Findings(sizes=sizes, gone=gone, intents=intents, leaving=leaving)
        topology = await topology_of(ctx) if report is not None else None
        found: list[Damage] = []
        async for record in each_volume(ctx):
            if record.state == VolumeState.SEALED and record.length:
                found += plans.damages(record, findings)
                if report is not None and topology is not None:
                    _count_promise(report, record, topology)
        return _Look(found, set(away) | given_up, gone_us)

    def _gone(self, away: Iterable[int]) -> set[int]:
        """The disks that have been away for the whole grace."""
        now = self._ctx.clock.monotonic()
        away = set(away)
        self._gone_since = {number: self._gone_since.get(number, now) for number in away}
        return {number for number, since in self._gone_since.items() if now - since >= self._grace_s}


def _count_promise(report: RepairReport, record: VolumeRecord, topology: Topology) -> None:
    paths, level = topology.paths, topology.base
    domains = [paths[number][level] if number in paths else ("away", number) for number in record.disks]
    match promise_of(domains, record.m):
        case Promise.BARE:
            report.bare += 1
        case Promise.NONE:
            report.unprotected += 1


async def repair_file(
    ctx: Context,
    volume: int,
    file: int,
    report: RepairReport,
    topology: Topology | None = None,
    *,
    moving: bool = False,
    lost: int = 1,
) -> bool:
    """Rebuild one fragment file of a sealed volume and note where it is; False if there is no disk for it.

    Args:
        topology: as it was found not long ago; None: it is found now.
        moving: it is whole, and only its disk is to be emptied.
        lost: how many files of the volume are: the more, the less its repair yields to clients.

    Raises: Conflict, Corrupt, Unavailable, Deposed.
    """
    record = await ctx.ledger.get(volume, fresh=True)
    if record.state != VolumeState.SEALED:
        return False
    topology = topology if topology is not None else await topology_of(ctx)
    policy = (await policies_of(ctx))(record)
    number = plans.target(topology, policy, record, file, ctx.chance)
    target = ctx.disks.get(number) if number is not None else None
    if target is None:
        return False
    if moving:
        await move_file(ctx, record, file, target, report)
        return True
    await _put_together(ctx, record, file, target, report, lost)
    await ctx.ledger.repaired(record, file, target.number)
    report.repaired += 1
    report.repaired_bytes += record.length
    return True


async def move_file(
    ctx: Context, record: VolumeRecord, file: int, target: Disk, report: RepairReport
) -> None:
    """Lay one fragment file of a sealed volume on another disk: a copy is made of what verifies (the rest is
    rebuilt), read back, and only then named by the record. The old file stays readable; as a copy that no
    record names it goes to the trash, and is purged after the grace.

    Raises: Conflict if the volume changed meanwhile, Corrupt, Unavailable, Deposed.
    """
    digest = await _put_together(ctx, record, file, target, report)
    if await _digest_of(ctx, record, file, target) != digest:
        raise Corrupt(f"disk {target.number} gave back other bytes of {record.id}.{file} than it was given")
    await ctx.ledger.repaired(record, file, target.number)
    report.moved += 1
    report.moved_bytes += record.length


async def _put_together(
    ctx: Context, record: VolumeRecord, file: int, target: Disk, report: RepairReport, lost: int = 1
) -> bytes:
    """A whole fragment file on `target`, durable, under its name; no record names it yet.

    Returns: its digest.

    Raises: Corrupt, Unavailable, Deposed.
    """
    name = await target.replace_begin(record.id, file)
    length = 0
    digest = xxh3_64()
    try:
        async with aclosing(rebuilt(ctx, record, file, report, lost)) as content:
            async for buffers in content:
                await target.replace_append(name, length, buffers)
                for buffer in buffers:
                    digest.update(buffer)
                    length += len(buffer)
        ctx.crash_point("repair-rebuilt")
        await ctx.fence()
        await target.replace_publish(name, length)
    except BaseException:
        await target.replace_abandon(name)
        raise
    ctx.crash_point("repair-replaced")
    return digest.digest()


async def _digest_of(ctx: Context, record: VolumeRecord, file: int, disk: Disk) -> bytes:
    """Of the whole file as the disk gives it back. Raises: Unavailable, DiskFailed."""
    digest = xxh3_64()
    room = memoryview(bytearray(COMPARED_AT_ONCE))
    position = 0
    while count := await disk.read(record.id, file, position, [room]):
        digest.update(room[:count])
        position += count
        await ctx.pace.spend(count)
    return digest.digest()


async def rebuilt(
    ctx: Context, record: VolumeRecord, file: int, report: RepairReport, lost: int = 1
) -> AsyncGenerator[Sequence[Buffer], None]:
    """The content of a fragment file, record by record: its own good ones, the others computed.

    Raises: Corrupt (a stripe's place cannot be found in any file), Unavailable.
    """
    given_up = await given_up_disks(ctx)
    window = window_of(record, lost)
    yield [
        file_header(
            ctx.seal, volume=record.id, index=file, k=record.k, m=record.m, created_us=record.created_us
        )
    ]
    async for header in headers(ctx, record, record.length, gone=given_up):
        size = header.fragment_size
        fragment: Buffer | None = None
        try:
            fragment = await ctx.reader.fragment(record, header.offset, size, file)
            await ctx.pace.spend(size)
        except UNREADABLE as own:
            try:
                fragment = await ctx.reader.rebuild(record, header.offset, size, file, window)
                window.next_round()
            except (Corrupt, Unavailable) as failure:
                if isinstance(own, Unavailable) and record.disks[file] not in given_up:
                    # Late or away, not lost: its own fragment may be the one that still saves the stripe.
                    raise own from failure
                if sum(await tally(ctx, record, header, given_up, without=file)) >= record.k:
                    raise  # Some are merely away.
                # Nothing can bring it back (or nobody was ever told that it stood). Its place is kept,
                # so that what follows it stays readable.
                report.lost_stripes += 1
                report.lost_volumes.add(record.id)
                log.error("a stripe is lost: %s", failure)
            await ctx.pace.spend(size * (record.k + 1))
        if fragment is None:
            yield [await _as_it_is(ctx, record, header, file, given_up)]
            continue
        yield record_buffers(
            ctx.seal,
            volume=record.id,
            index=file,
            offset=header.offset,
            k=record.k,
            m=record.m,
            fragment=fragment,
            payload_size=header.payload_size,
            directory_offset=header.directory_offset,
            clock_us=header.clock_us,
        )


def window_of(record: VolumeRecord, lost: int) -> Window:
    """How much of a stripe is read at once, where so many files of the volume are lost: the closer it is to
    losing data, the longer clients may wait for its repair; one that can lose no more waits for nobody."""
    return Window(record.k, TOLERATED * max(1, lost) if lost < record.m else float("inf"))


async def _as_it_is(
    ctx: Context, record: VolumeRecord, header: RecordHeader, file: int, given_up: Collection[int]
) -> Buffer:
    """A fragment's record that nothing can mend, as far as it can be read: its good blocks stay readable.

    Raises: Unavailable (it may be read another time).
    """
    data = bytearray(record_size(header.fragment_size))
    disk = ctx.disks.get(record.disks[file])
    if disk is not None:
        try:
            await disk.read(record.id, file, header.offset, [memoryview(data)])
        except UNREADABLE as failure:
            if isinstance(failure, Unavailable) and disk.number not in given_up:
                raise
            return bytes(len(data))
    return data
