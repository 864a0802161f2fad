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
from collections.abc import AsyncGenerator, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from objstore.blobs.placement import Candidate, Promise, place_one, promise_of
from objstore.blobs.reader import UNREADABLE
from objstore.blobs.volumes import Intent, VolumeRecord, VolumeState
from objstore.errors import Conflict, Corrupt, StoreError, Unavailable
from objstore.node.disk import Buffer, Disk, DiskState
from objstore.node.fragments import RecordHeader, file_header, record_buffers, record_size
from objstore.objects.ledger import DRAINING, GIVEN_UP
from objstore.upkeep.claims import Deposed
from objstore.upkeep.context import Context
from objstore.upkeep.walk import headers, tally

log = logging.getLogger(__name__)

FAILURES_KEPT: Final = 10_000  # Files whose rebuilding failed, remembered: they are tried after the others.
GONE_STATES: Final = (DiskState.FAILED, DiskState.MISSING, DiskState.FOREIGN)


class Damage(NamedTuple):
    """One fragment file that is not what, or where, it should be."""

    record: VolumeRecord
    file: int  # Index of the fragment file.
    reason: str
    moving: bool = False  # It is whole: its disk is to be emptied.


@dataclass(slots=True)
class RepairReport:
    found: int = 0  # Damaged fragment files.
    moving: int = 0  # Whole ones on disks that are to be emptied.
    moved: int = 0  # Of those, elsewhere now.
    endangered: int = 0  # Volumes that can lose no further disk.
    repaired: int = 0
    repaired_bytes: int = 0
    waiting: int = 0  # Files without a disk to rebuild them on.
    lost_stripes: int = 0  # Not rebuildable from anything.
    lost_volumes: set[int] = field(default_factory=set)  # Where they are.
    bare: int = 0  # Volumes that survive the loss of one failure domain, and then nothing more.
    unprotected: int = 0  # Volumes that one failure domain could take away.
    failures: list[str] = field(default_factory=list)


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
        damages = await self.find(report)
        report.moving = sum(damage.moving for damage in damages)
        report.found = len(damages) - report.moving
        per_volume = Counter(damage.record.id for damage in damages if not damage.moving)
        worst = [damage for damage in damages if per_volume[damage.record.id] >= damage.record.m]
        report.endangered = len({damage.record.id for damage in worst if not damage.moving})

        def urgency(damage: Damage) -> tuple[bool, int, int, int]:
            # A file that cannot be rebuilt must not keep the others waiting.
            volume, spare = damage.record.id, damage.record.m - per_volume[damage.record.id]
            return damage.moving, self._failed[volume, damage.file], spare, volume

        tried = 0
        for damage in sorted(damages, key=urgency):
            if tried >= limit:
                break
            volume, file = damage.record.id, damage.file
            try:
                done = await repair_file(ctx, volume, file, report)
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
                if damage.moving:
                    report.repaired, report.moved = report.repaired - 1, report.moved + 1
                self._failed.pop((volume, file), None)
            else:
                report.waiting += 1
        if report.endangered:
            ctx.alarms.set("endangered volumes", f"{report.endangered} volumes can lose no further disk")
        else:
            ctx.alarms.clear("endangered volumes")
        return report

    async def find(self, report: RepairReport | None = None) -> list[Damage]:
        """Every damaged fragment file of every sealed volume; counts weak placements in `report`."""
        ctx = self._ctx
        sizes, away = await _sizes(ctx)
        gone = self._gone(away)
        intents = {(intent.volume, intent.index) for intent in await _all_intents(ctx)}
        given_up = await given_up_disks(ctx)
        leaving = await _leaving(ctx)
        gone |= leaving & away  # An operator has said so: no grace.
        domains = await _domains(ctx)
        found: list[Damage] = []
        after = 0
        while records := await ctx.ledger.volumes(after):
            after = records[-1].id
            for record in records:
                if record.state == VolumeState.SEALED and record.length:
                    found += _damages(record, sizes, gone | given_up, intents, leaving)
                    if report is not None:
                        _count_promise(report, record, domains)
        return found

    def _gone(self, away: Iterable[int]) -> set[int]:
        """The disks that have been away for the whole grace."""
        now = self._ctx.clock.monotonic()
        away = set(away)
        self._gone_since = {number: self._gone_since.get(number, now) for number in away}
        return {number for number, since in self._gone_since.items() if now - since >= self._grace_s}


async def given_up_disks(ctx: Context) -> set[int]:
    """Disks whose fragments will not come back, by metadata's verdict: forgotten by an operator, out of the
    store, or (0) on no disk after a salvage. It needs no grace."""
    states = (await ctx.ledger.disks()).items()
    return {0, *(number for number, disk in states if disk.state in GIVEN_UP)}


async def _leaving(ctx: Context) -> set[int]:
    """Disks that an operator wants empty: well, and read from as long as they are there."""
    return {number for number, disk in (await ctx.ledger.disks()).items() if disk.state == DRAINING}


async def _domains(ctx: Context) -> dict[int, Hashable]:
    """The failure domain of every disk that says enough of itself."""
    domains: dict[int, Hashable] = {}
    for number, disk in list(ctx.disks.items()):
        try:
            domains[number] = ctx.domain(number, await disk.usage())
        except UNREADABLE:
            continue
    return domains


def _count_promise(report: RepairReport, record: VolumeRecord, domains: Mapping[int, Hashable]) -> None:
    known = [domains.get(number, ("away", number)) for number in record.disks]
    match promise_of(known, record.m):
        case Promise.BARE:
            report.bare += 1
        case Promise.NONE:
            report.unprotected += 1


def _damages(
    record: VolumeRecord,
    sizes: Mapping[int, Mapping[tuple[int, int], int]],
    gone: set[int],
    intents: set[tuple[int, int]],
    leaving: set[int],
) -> list[Damage]:
    found: list[Damage] = []
    for file, number in enumerate(record.disks):
        if (record.id, file) in intents:
            found.append(Damage(record, file, "acknowledged stripes in it are missing or do not verify"))
        elif number in gone:
            found.append(Damage(record, file, f"disk {number} is gone"))
        elif number in sizes:
            size = sizes[number].get((record.id, file))
            if size is None:
                found.append(Damage(record, file, f"it is not on disk {number}"))
            elif size < record.length:
                found.append(Damage(record, file, f"{size} of {record.length} bytes"))
            elif number in leaving:
                found.append(Damage(record, file, f"disk {number} is to be emptied", moving=True))
    return found


async def _sizes(ctx: Context) -> tuple[dict[int, dict[tuple[int, int], int]], set[int]]:
    """What each disk holds, and which disks (named by any record, or known to metadata) do not answer."""
    sizes: dict[int, dict[tuple[int, int], int]] = {}
    away = {number for number in await ctx.ledger.disks() if number not in ctx.disks}
    for number, disk in list(ctx.disks.items()):  # Disks may be added meanwhile.
        if disk.state in GONE_STATES:
            away.add(number)
            continue
        try:
            files = await disk.fragment_files()
        except UNREADABLE:
            away.add(number)
            continue
        sizes[number] = {(file.volume, file.index): file.size for file in files}
    return sizes, away


async def _all_intents(ctx: Context) -> list[Intent]:
    found: list[Intent] = []
    after = b"R"
    while page := await ctx.ledger.intents(after):
        found += page
        last = page[-1]
        after = b"R" + last.volume.to_bytes(8, "big") + bytes([last.index]) + b"\0"
    return found


async def repair_file(ctx: Context, volume: int, file: int, report: RepairReport) -> bool:
    """Rebuild one fragment file of a sealed volume and note where it is; False if there is no disk for it.

    Raises: Conflict, Corrupt, Unavailable, Deposed.
    """
    record = await ctx.ledger.get(volume, fresh=True)
    if record.state != VolumeState.SEALED:
        return False
    target = await _target(ctx, record, file)
    if target is None:
        return False
    name = await target.replace_begin(record.id, file)
    length = 0
    try:
        async with aclosing(rebuilt(ctx, record, file, report)) as content:
            async for buffers in content:
                await target.replace_append(name, length, buffers)
                length += sum(len(buffer) for buffer in buffers)
        ctx.crash_point("repair-rebuilt")
        await ctx.fence()
        await target.replace_publish(name, length)
    except BaseException:
        await target.replace_abandon(name)
        raise
    ctx.crash_point("repair-replaced")
    await ctx.ledger.repaired(record, file, target.number)
    report.repaired += 1
    report.repaired_bytes += record.length
    return True


async def rebuilt(
    ctx: Context, record: VolumeRecord, file: int, report: RepairReport
) -> AsyncGenerator[Sequence[Buffer], None]:
    """The content of a fragment file, record by record: its own good ones, the others computed.

    Raises: Corrupt (a stripe's place cannot be found in any file), Unavailable.
    """
    given_up = await given_up_disks(ctx)
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
                fragment = await ctx.reader.rebuild(record, header.offset, size, file)
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


async def _target(ctx: Context, record: VolumeRecord, file: int) -> Disk | None:
    """The disk that the record names, if it takes writes; else one without this volume."""
    named = ctx.disks.get(record.disks[file])
    usable = set(await ctx.ledger.usable_disks())
    if named is not None and named.state is DiskState.HEALTHY and named.number in usable:
        return named
    candidates: list[Candidate] = []
    for number in usable - set(record.disks):
        disk = ctx.disks.get(number)
        if disk is None or disk.state is not DiskState.HEALTHY:
            continue
        try:
            usage = await disk.usage()
        except Unavailable:
            continue
        if usage.free > 2 * record.length:
            candidates.append(Candidate(number, usage.free, ctx.domain(number, usage)))
    domains = await _domains(ctx) if candidates else {}
    held = [domains.get(number, ("away", number)) for at, number in enumerate(record.disks) if at != file]
    chosen = place_one(candidates, held)
    return ctx.disks[chosen] if chosen is not None else None
