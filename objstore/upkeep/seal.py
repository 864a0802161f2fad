"""Sealing the volumes of dead writers, at the length that the disks show.

A volume has one writer for life. When that writer is gone (a callable says who lives; never guess), its
open volumes get no more appends: each is sealed behind its last whole stripe. What an acknowledged commit
points at was synced on the write quorum, so it lies within that length; what lies behind it is orphans.

Up to the length noted by the writer (synced then) headers are walked; behind it every stripe is verified,
since a power cut may have torn it. A stripe belongs to the volume if k of its fragments are whole. While
disks are away that might have more of them, nothing is decided, unless metadata says they are gone for good.

Who is called dead may only have slept, or been cut off from metadata. So the volume is taken from its writer
before it is measured: what it published until then is on the disks that are looked at, and afterwards it
publishes nothing.

Concurrency: any number of processes may seal the same volume: the ledger decides, the first length stands.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final

from objstore.blobs.reader import UNREADABLE
from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.errors import Corrupt, StoreError, Unavailable
from objstore.node.fragments import (
    FILE_HEADER_SIZE,
    RECORD_HEADER_SIZE,
    RecordHeader,
    parse_header,
    record_size,
    verify_record,
)
from objstore.objects.ledger import GIVEN_UP
from objstore.upkeep.claims import Deposed
from objstore.upkeep.context import Context

log = logging.getLogger(__name__)

Alive = Callable[[bytes], bool]  # A writer's 16 bytes -> whether its process may still write.
NOTHING: Final = 0


async def seal_dead(ctx: Context, alive: Alive, *, young_s: float = 0.0) -> list[VolumeRecord]:
    """Seal every open volume whose writer is dead, as far as it can be decided now; returns them.

    Args:
        young_s: volumes made less long ago are left: news of their writer may be on its way.
    """
    before_us = ctx.clock.now_us() - int(young_s * 1e6)
    sealed: list[VolumeRecord] = []
    after = 0
    while records := await ctx.ledger.volumes(after):
        after = records[-1].id
        for record in records:
            if record.state != VolumeState.OPEN or record.created_us > before_us or alive(record.writer):
                continue
            try:
                sealed.append(await seal_volume(ctx, record))
            except Deposed:
                raise
            except StoreError as failure:
                log.warning("volume %d of a dead writer is not sealed yet: %s", record.id, failure)
    return sealed


async def seal_volume(ctx: Context, record: VolumeRecord) -> VolumeRecord:
    """Take it from its writer, find the length, seal the record, then cut the files.

    Raises: Unavailable (too many disks are away to decide), MetaUnavailable.
    """
    record = await ctx.ledger.disown(record.id)
    if record.state != VolumeState.OPEN:
        return record  # Its writer has sealed it meanwhile.
    noted = (await ctx.ledger.lengths([record.id]))[0][0]
    length = await find_length(ctx, record, noted)
    if length < noted:
        # What was synced on the quorum is not there: more disks have failed than the code survives.
        ctx.alarms.set(
            f"length of volume {record.id}",
            f"{noted} bytes were noted as durable, {length} bytes are readable",
        )
        length = noted
    elif length > noted:
        await _sync(ctx, record)
    ctx.crash_point("seal-measured")
    sealed = await ctx.ledger.seal(record.id, length)
    ctx.crash_point("seal-recorded")
    for index, number in enumerate(sealed.disks):
        disk = ctx.disks.get(number)
        try:
            if disk is not None:
                await ctx.fence()
                await disk.seal(record.id, index, sealed.length)
        except UNREADABLE as failure:
            # Harmless: the file is longer or shorter than the record says; scrub sees the latter.
            log.info("fragment file %d.%d was not cut: %s", record.id, index, failure)
    return sealed


async def _sync(ctx: Context, record: VolumeRecord) -> None:
    """Make durable what a killed writer left in the page cache. A length must not cover what a power cut can
    still take: no walk gets over a place without a header, so repair would never mend the volume again.

    Raises: Unavailable if fewer than k fragment files took it: seen again at the next pass.
    """
    synced = there = 0
    for index, number in enumerate(record.disks):
        disk = ctx.disks.get(number)
        if disk is None:
            continue
        try:
            await disk.sync(record.id, index)
        except UNREADABLE as failure:
            log.info("fragment file %d.%d was not synced: %s", record.id, index, failure)
            there += not isinstance(failure, OSError)
        else:
            there += 1
            synced += 1
    if synced < min(record.k, there):
        raise Unavailable(f"{synced} of {there} fragment files of volume {record.id} could be synced")


async def find_length(
    ctx: Context, record: VolumeRecord, noted: int = 0, *, gone: Collection[int] | None = None
) -> int:
    """Bytes of each fragment file up to the end of the last stripe with k whole fragments.

    Args:
        noted: a length known to have been synced: up to it, headers are enough.
        gone: numbers of disks that will not come back; None: what metadata says.

    Raises: Unavailable while the answer depends on disks that are away.
    """
    if gone is None:
        disks = await ctx.ledger.disks()
        gone = {number for number, disk in disks.items() if disk.state in GIVEN_UP}
    offset = FILE_HEADER_SIZE
    end = NOTHING
    while True:
        fragments = await asyncio.gather(
            *(
                _look(ctx, record, index, offset, verify=offset >= noted)
                for index in range(record.fragment_count)
            )
        )
        headers = [found for found in fragments if isinstance(found, RecordHeader)]
        away = sum(
            isinstance(found, Unavailable) and record.disks[index] not in gone
            for index, found in enumerate(fragments)
        )
        if not headers:
            # An acknowledged stripe is whole on k+1 disks at least, so with k away or gone one shows it.
            lost = sum(number in gone for number in record.disks)
            if away and away + lost > min(record.k, record.m):
                raise Unavailable(f"{away} disks of volume {record.id} are away")
            return end
        header = headers[0]
        await ctx.pace.spend(header.fragment_size)
        if len(headers) >= record.k:
            end = header.end
        elif len(headers) + away >= record.k:
            raise Unavailable(
                f"{away} disks of volume {record.id} are away; the stripe at {offset} needs them"
            )
        # Fewer than k: not acknowledged, or lost. Go on: what follows may still be whole, and is kept.
        offset = header.end


async def _look(
    ctx: Context, record: VolumeRecord, index: int, offset: int, *, verify: bool
) -> RecordHeader | Unavailable | None:
    """The header of one fragment at `offset`, if (when verifying) all of the fragment is whole."""
    disk = ctx.disks.get(record.disks[index])
    if disk is None:
        return Unavailable(f"no disk {record.disks[index]}")
    try:
        data = bytearray(RECORD_HEADER_SIZE)
        count = await disk.read(record.id, index, offset, [memoryview(data)])
        header = parse_header(ctx.seal, data[:count], record.id, index, offset)
        if verify:
            whole = bytearray(record_size(header.fragment_size))
            count = await disk.read(record.id, index, offset, [memoryview(whole)])
            verify_record(ctx.seal, whole[:count], record.id, index, offset)
    except Unavailable as failure:
        return failure
    except (Corrupt, OSError):
        return None
    return header
