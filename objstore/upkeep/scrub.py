"""Scrub: every record of every volume is read and verified, oldest volume first, round after round.

Where a pass is, is one setting in metadata: a restart goes on with the volume after the last one finished.
A damaged file of a sealed volume is rebuilt at once (repair.py), in place; one of an open volume waits for
the round after its seal. Open volumes are verified up to their noted length. Volumes in which nothing can
rebuild some stripe are remembered, and an operator is called (damage.py).

Concurrency: one process; one volume at a time, its files side by side under one pace.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

import msgspec

from objstore.blobs.reader import UNREADABLE
from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.errors import StoreError, Unavailable
from objstore.meta.kv import Transaction
from objstore.meta.schema import setting_key
from objstore.node.fragments import FILE_HEADER_SIZE, FileScan
from objstore.upkeep.claims import Deposed
from objstore.upkeep.context import Context
from objstore.upkeep.damage import note_lost
from objstore.upkeep.repair import RepairReport, repair_file

log = logging.getLogger(__name__)

CURSOR_KEY: Final = setting_key("scrub")
PERIOD_S: Final = 14 * 86_400.0


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where the round is. MessagePack array; fields are only ever added at the end."""

    format: int = 1
    volume: int = 0  # The last one finished in this round.
    started_us: int = 0  # Of this round.
    finished_us: int = 0  # Of the last whole round; 0: none yet.


@dataclass(slots=True)
class ScrubReport:
    volume: int
    bytes: int = 0
    damaged: dict[int, str] = field(default_factory=dict)  # Fragment file -> what is wrong.
    unread: dict[int, str] = field(default_factory=dict)  # Fragment file -> why it could not be looked at.
    repaired: int = 0


async def cursor(ctx: Context) -> Cursor:
    value = await ctx.kv.get(CURSOR_KEY)
    return Cursor() if value is None else msgspec.msgpack.decode(value, type=Cursor)


async def step(ctx: Context) -> ScrubReport | None:
    """Scrub the next volume of the round; None when the round has ended. Raises: MetaUnavailable."""
    place = await cursor(ctx)
    now_us = ctx.clock.now_us()
    if not place.started_us:
        place = Cursor(started_us=now_us, finished_us=place.finished_us)
    records = await ctx.ledger.volumes(place.volume, limit=1)
    if not records:
        await _save(ctx, Cursor(started_us=0, finished_us=now_us))
        return None
    record = records[0]
    report = await scrub_volume(ctx, record)
    await _save(ctx, msgspec.structs.replace(place, volume=record.id))
    return report


async def _save(ctx: Context, place: Cursor) -> None:
    await ctx.kv.commit(Transaction(put={CURSOR_KEY: msgspec.msgpack.encode(place)}))


async def scrub_volume(ctx: Context, record: VolumeRecord) -> ScrubReport:
    """Verify every fragment file, repair what is damaged. Raises: MetaUnavailable, Overloaded, Deposed."""
    report = ScrubReport(record.id)
    if record.state == VolumeState.RETIRED:
        return report
    length = record.length
    if record.state == VolumeState.OPEN:
        length = (await ctx.ledger.lengths([record.id]))[0][0]
    if length <= FILE_HEADER_SIZE:
        return report
    rebuilt = RepairReport()
    await asyncio.gather(
        *(_verify(ctx, record, file, length, report) for file in range(record.fragment_count))
    )
    for file, words in report.damaged.items():
        log.warning("fragment file %d.%d is damaged: %s", record.id, file, words)
        if record.state == VolumeState.OPEN:
            continue  # Its writer has it open; the round after the seal mends it.
        try:
            report.repaired += await repair_file(ctx, record.id, file, rebuilt)
        except Deposed:
            raise
        except StoreError as failure:
            log.warning("fragment file %d.%d not rebuilt: %s", record.id, file, failure)
    if rebuilt.lost_volumes:  # Its file has its length and no intent: repair does not look at it again.
        await note_lost(ctx, add=rebuilt.lost_volumes)
    if len(report.damaged) + len(report.unread) > record.m:
        ctx.alarms.set(
            f"volume {record.id}", f"{len(report.damaged)} damaged and {len(report.unread)} unreadable files"
        )
    else:
        ctx.alarms.clear(f"volume {record.id}")
    return report


async def _verify(ctx: Context, record: VolumeRecord, file: int, length: int, report: ScrubReport) -> None:
    disk = ctx.disks.get(record.disks[file])
    if disk is None:
        report.unread[file] = f"no disk {record.disks[file]}"
        return
    scan = FileScan(ctx.seal, disk.read, record.id, file)
    try:
        await scan.header()
        async for header, data in scan.records(stop=length, verify=True):
            report.bytes += len(data)
            await ctx.pace.spend(len(data))
            del header
    except Unavailable as failure:
        report.unread[file] = str(failure)
        return
    except UNREADABLE as failure:
        report.damaged[file] = str(failure)
        return
    if scan.end != length:
        report.damaged[file] = scan.failure or f"it ends at {scan.end} of {length}"
