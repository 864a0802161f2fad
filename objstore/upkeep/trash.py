"""Removing fragment files: only on the verdict of metadata, only after a grace, and never all at once.

Trash is a state, not a place: a retired file stays readable under its id until it is purged. What may go:

- the files of a retired volume (compaction has moved what lived);
- orphans: files of a volume that metadata once counted and no longer knows;
- stale copies: a volume's fragment file on a disk that its record no longer names, while the one it does
  name has its own.

A fragment file beyond the volume counter proves that this metadata is older than the data (a restored
backup, a lost journal): then nothing at all is removed, and an operator is called. Files are listed before
metadata is read, and a volume's record is committed before its files are made: so a file that is listed
and unknown is really unknown.

Under the low-water mark retired files go oldest first before their grace is over, but never younger
than `grace_least_s`.

Concurrency: one process (a claim says which). Every step is idempotent; a crash leaves it to the next pass.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from objstore.blobs.reader import UNREADABLE
from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.errors import Conflict, Denied
from objstore.node.disk import Disk, FragmentFile, Usage
from objstore.objects.ledger import GIVEN_UP
from objstore.upkeep.context import Context

log = logging.getLogger(__name__)

DAY_S: Final = 86_400.0
ALARM: Final = "metadata is older than the data"


class TrashRules(NamedTuple):
    grace_s: float = 7 * DAY_S  # A retired file stays readable so long.
    grace_least_s: float = DAY_S  # Even when space is short.
    low_water: float = 0.05  # Share of a disk's bytes: with less free, the grace gives way.
    # Share of all files; more orphans than this look like a mistake, not like garbage.
    orphans_most: float = 0.05
    orphans_few: int = 64  # So many orphan files are never a mistake worth an alarm.


DEFAULT_RULES: Final = TrashRules()


@dataclass(slots=True)
class TrashReport:
    """What one pass did and saw."""

    retired: int = 0  # Files newly marked.
    purged: int = 0
    purged_bytes: int = 0
    kept_bytes: int = 0  # In the trash, still readable. Counts as used.
    forgotten: int = 0  # Volumes whose last file is gone.
    stopped: str = ""  # Why nothing was removed.


async def clear(ctx: Context, rules: TrashRules = DEFAULT_RULES) -> TrashReport:
    """One pass over all disks. Raises: MetaUnavailable."""
    report = TrashReport()
    listed, away = await _list(ctx)
    newest = await ctx.ledger.newest_volume()
    records = await _records(ctx)
    beyond = sorted({file.volume for files in listed.values() for file in files if file.volume > newest})
    if beyond:
        report.stopped = (
            f"the newest volume that metadata knows is {newest}, but disks hold volume {beyond[-1]}: "
            "this metadata is older than the data; nothing is removed until an operator has looked"
        )
        ctx.alarms.set(ALARM, report.stopped)
        return report
    ctx.alarms.clear(ALARM)

    there = {(number, file.volume, file.index) for number, files in listed.items() for file in files}
    doomed: dict[int, list[FragmentFile]] = {}
    orphans = 0
    for number, files in listed.items():
        for file in files:
            record = records.get(file.volume)
            if record is None:
                orphans += 1
            elif not _may_go(record, number, file, there):
                continue
            doomed.setdefault(number, []).append(file)
    total = sum(len(files) for files in listed.values())
    if orphans > max(rules.orphans_few, rules.orphans_most * total):
        report.stopped = (
            f"{orphans} of {total} fragment files belong to no volume: more than garbage explains"
        )
        ctx.alarms.set("too many orphans", report.stopped)
        return report
    ctx.alarms.clear("too many orphans")

    gone: set[tuple[int, int, int]] = set()
    for number, files in doomed.items():
        for file in await _empty(ctx, number, files, rules, report):
            gone.add((number, file.volume, file.index))
    await _forget(ctx, records, there - gone, away, report)
    return report


def _may_go(record: VolumeRecord, number: int, file: FragmentFile, there: set[tuple[int, int, int]]) -> bool:
    if record.state == VolumeState.RETIRED:
        return True
    if record.state == VolumeState.OPEN or file.index >= record.fragment_count:
        return False
    named = record.disks[file.index]
    return named != number and (named, file.volume, file.index) in there


async def _empty(
    ctx: Context, number: int, files: list[FragmentFile], rules: TrashRules, report: TrashReport
) -> list[FragmentFile]:
    """Retire what is not, purge what is due on one disk; returns what was purged."""
    disk = ctx.disks[number]
    now_us = ctx.clock.now_us()
    purged: list[FragmentFile] = []
    won = 0  # Bytes, on this disk.
    try:
        usage = await disk.usage()
        for file in files:
            if not file.retired_us:
                await ctx.fence()
                await disk.retire(file.volume, file.index, now_us)
                report.retired += 1
                report.kept_bytes += file.size
        for file in sorted((file for file in files if file.retired_us), key=lambda file: file.retired_us):
            grace_s = rules.grace_least_s if _short(usage, won, rules) else rules.grace_s
            before_us = now_us - int(min(grace_s, rules.grace_s) * 1e6)
            if file.retired_us >= before_us:
                report.kept_bytes += file.size
                continue
            ctx.crash_point("trash-purging")
            await ctx.fence()
            await disk.purge(file.volume, file.index, retired_before_us=before_us)
            purged.append(file)
            report.purged += 1
            report.purged_bytes += file.size
            won += file.size
            await ctx.pace.spend(4096)
    except (*UNREADABLE, Denied) as failure:
        log.warning("the trash of disk %d was not emptied: %s", number, failure)
    return purged


def _short(usage: Usage, won: int, rules: TrashRules) -> bool:
    return usage.free + won < rules.low_water * usage.total


async def _forget(
    ctx: Context,
    records: Mapping[int, VolumeRecord],
    there: set[tuple[int, int, int]],
    away: set[int],
    report: TrashReport,
) -> None:
    """Delete the records of retired volumes without files, once every disk that might have one was seen."""
    given_up = {number for number, disk in (await ctx.ledger.disks()).items() if disk.state in GIVEN_UP}
    held = {volume for _, volume, _ in there}
    for record in records.values():
        if (
            record.state == VolumeState.RETIRED
            and record.id not in held
            and not (away | (set(record.disks) - set(ctx.disks))) & set(record.disks) - given_up
        ):
            try:
                await ctx.ledger.forget(record)
                report.forgotten += 1
            except Conflict:
                continue  # Changed since: the next pass sees it.


async def _list(ctx: Context) -> tuple[dict[int, list[FragmentFile]], set[int]]:
    """Every disk's files, and the disks that did not answer."""
    listed: dict[int, list[FragmentFile]] = {}
    away: set[int] = set()

    async def one(number: int, disk: Disk) -> None:
        try:
            listed[number] = await disk.fragment_files()
        except UNREADABLE as failure:
            log.warning("disk %d was not listed: %s", number, failure)
            away.add(number)

    await asyncio.gather(*(one(number, disk) for number, disk in ctx.disks.items()))
    return listed, away


async def _records(ctx: Context) -> dict[int, VolumeRecord]:
    records: dict[int, VolumeRecord] = {}
    after = 0
    while page := await ctx.ledger.volumes(after):
        after = page[-1].id
        records.update((record.id, record) for record in page)
    return records
