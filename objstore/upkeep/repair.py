"""Repair: whole fragment files are rebuilt from k others, most endangered volumes first.

What is missing comes from three places: repair intents (stripes acknowledged without this fragment), disks
that are gone (their whole contents, after a grace: a cable is put back sooner), and files that are absent or
too short where their record says they are. A file is rebuilt where it was if its disk takes writes, else on
the emptiest healthy disk without a fragment of the volume; then the record is changed, conditionally.

A rebuilt file is published whole and atomically (Disk.replace), so a crash leaves the old state or the new.
It is built in memory: one fragment file (the writer's volume_size at most), one at a time.

Concurrency: one process. The volume is sealed, so its bytes do not change; its record may, and then Conflict
says so and the next pass begins again.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from objstore.blobs.reader import UNREADABLE
from objstore.blobs.volumes import Intent, VolumeRecord, VolumeState
from objstore.errors import Conflict, Corrupt, StoreError, Unavailable
from objstore.node.disk import Buffer, Disk, DiskState
from objstore.node.fragments import file_header, record_buffers, record_size
from objstore.upkeep.claims import Deposed
from objstore.upkeep.context import Context
from objstore.upkeep.walk import headers

log = logging.getLogger(__name__)

GONE_STATES: Final = (DiskState.FAILED, DiskState.MISSING, DiskState.FOREIGN)


class Damage(NamedTuple):
    """One fragment file that is not what its record says."""

    record: VolumeRecord
    file: int  # Index of the fragment file.
    reason: str


@dataclass(slots=True)
class RepairReport:
    found: int = 0  # Damaged fragment files.
    endangered: int = 0  # Volumes that can lose no further disk.
    repaired: int = 0
    repaired_bytes: int = 0
    waiting: int = 0  # Files without a disk to rebuild them on.
    lost_stripes: int = 0  # Not rebuildable from anything.
    failures: list[str] = field(default_factory=list)


class Repair:
    """Remembers since when a disk has been gone. One instance a process."""

    def __init__(self, ctx: Context, *, grace_s: float = 900.0) -> None:
        self._ctx = ctx
        self._grace_s = grace_s
        self._gone_since: dict[int, float] = {}

    async def run(self, limit: int = 1_000_000) -> RepairReport:
        """Find damage, mend at most `limit` files. Raises: MetaUnavailable."""
        ctx = self._ctx
        report = RepairReport()
        damages = await self.find()
        report.found = len(damages)
        per_volume: dict[int, int] = {}
        for damage in damages:
            per_volume[damage.record.id] = per_volume.get(damage.record.id, 0) + 1
        worst = [damage for damage in damages if per_volume[damage.record.id] >= damage.record.m]
        report.endangered = len({damage.record.id for damage in worst})
        damages.sort(key=lambda damage: (damage.record.m - per_volume[damage.record.id], damage.record.id))
        for damage in damages[:limit]:
            try:
                done = await repair_file(ctx, damage.record.id, damage.file, report)
            except Conflict:
                continue  # The record has changed: the next pass sees what is left to do.
            except Deposed:
                raise
            except StoreError as failure:
                report.failures.append(f"{damage.record.id}.{damage.file}: {failure}")
                log.warning("fragment file %d.%d not rebuilt: %s", damage.record.id, damage.file, failure)
                continue
            if not done:
                report.waiting += 1
        if report.endangered:
            ctx.alarms.set("endangered volumes", f"{report.endangered} volumes can lose no further disk")
        else:
            ctx.alarms.clear("endangered volumes")
        return report

    async def find(self) -> list[Damage]:
        """Every damaged fragment file of every sealed volume."""
        ctx = self._ctx
        sizes, away = await _sizes(ctx)
        gone = self._gone(away)
        intents = {(intent.volume, intent.index) for intent in await _all_intents(ctx)}
        given_up = await _given_up(ctx)
        found: list[Damage] = []
        after = 0
        while records := await ctx.ledger.volumes(after):
            after = records[-1].id
            for record in records:
                if record.state == VolumeState.SEALED and record.length:
                    found += _damages(record, sizes, gone | given_up, intents)
        return found

    def _gone(self, away: Iterable[int]) -> set[int]:
        """The disks that have been away for the whole grace."""
        now = self._ctx.clock.monotonic()
        away = set(away)
        self._gone_since = {number: self._gone_since.get(number, now) for number in away}
        return {number for number, since in self._gone_since.items() if now - since >= self._grace_s}


async def _given_up(ctx: Context) -> set[int]:
    """Metadata's verdict needs no grace: failed, to be emptied, or (0) on no disk after a salvage."""
    states = (await ctx.ledger.disks()).items()
    return {0, *(number for number, disk in states if disk.state in ("failed", "retired"))}


def _damages(
    record: VolumeRecord,
    sizes: Mapping[int, Mapping[tuple[int, int], int]],
    gone: set[int],
    intents: set[tuple[int, int]],
) -> list[Damage]:
    found: list[Damage] = []
    for file, number in enumerate(record.disks):
        if (record.id, file) in intents:
            found.append(Damage(record, file, "acknowledged stripes are missing from it"))
        elif number in gone:
            found.append(Damage(record, file, f"disk {number} is gone"))
        elif number in sizes:
            size = sizes[number].get((record.id, file))
            if size is None:
                found.append(Damage(record, file, f"it is not on disk {number}"))
            elif size < record.length:
                found.append(Damage(record, file, f"{size} of {record.length} bytes"))
    return found


async def _sizes(ctx: Context) -> tuple[dict[int, dict[tuple[int, int], int]], set[int]]:
    """What each disk holds, and which disks (named by any record, or known to metadata) do not answer."""
    sizes: dict[int, dict[tuple[int, int], int]] = {}
    away = {number for number in await ctx.ledger.disks() if number not in ctx.disks}
    for number, disk in ctx.disks.items():
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

    Raises: Conflict, Corrupt, Unavailable.
    """
    record = await ctx.ledger.get(volume, fresh=True)
    if record.state != VolumeState.SEALED:
        return False
    target = await _target(ctx, record, file)
    if target is None:
        return False
    content = await rebuilt(ctx, record, file, report)
    ctx.crash_point("repair-rebuilt")
    await ctx.fence()
    await target.replace(record.id, file, content)
    ctx.crash_point("repair-replaced")
    await ctx.ledger.repaired(record, file, target.number)
    report.repaired += 1
    report.repaired_bytes += record.length
    return True


async def rebuilt(ctx: Context, record: VolumeRecord, file: int, report: RepairReport) -> list[Buffer]:
    """The whole content of a fragment file: its own good records, the others computed.

    Raises: Corrupt (a stripe's place cannot be found in any file), Unavailable.
    """
    content: list[Buffer] = [
        file_header(
            ctx.seal, volume=record.id, index=file, k=record.k, m=record.m, created_us=record.created_us
        )
    ]
    given_up = await _given_up(ctx)
    async for header in headers(ctx, record, record.length):
        size = header.fragment_size
        fragment: Buffer | None = None
        try:
            fragment = await ctx.reader.fragment(record, header.offset, size, file)
            await ctx.pace.spend(size)
        except UNREADABLE as own:
            try:
                fragment = await ctx.reader.rebuild(record, header.offset, size, file)
            except Corrupt as failure:
                if isinstance(own, Unavailable) and record.disks[file] not in given_up:
                    # Late or away, not lost: its own fragment may be the one that still saves the stripe.
                    raise own from failure
                # Nothing can bring it back (or nobody was ever told that it stood). Its place is kept,
                # so that what follows it stays readable.
                report.lost_stripes += 1
                log.error("a stripe is lost: %s", failure)
            await ctx.pace.spend(size * (record.k + 1))
        if fragment is None:
            content.append(bytes(record_size(size)))
            continue
        content += record_buffers(
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
    return content


async def _target(ctx: Context, record: VolumeRecord, file: int) -> Disk | None:
    """The disk that the record names, if it takes writes; else the emptiest one without this volume."""
    named = ctx.disks.get(record.disks[file])
    usable = set(await ctx.ledger.usable_disks())
    if named is not None and named.state is DiskState.HEALTHY and named.number in usable:
        return named
    best: tuple[int, Disk] | None = None
    for number in usable - set(record.disks):
        disk = ctx.disks.get(number)
        if disk is None or disk.state is not DiskState.HEALTHY:
            continue
        try:
            free = (await disk.usage()).free
        except Unavailable:
            continue
        if free > 2 * record.length and (best is None or free > best[0]):
            best = (free, disk)
    return best[1] if best is not None else None
