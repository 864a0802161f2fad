"""What all disks and metadata say at one moment: the material of every decision in plans.py.

Nothing is changed here.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from objstore.blobs.reader import UNREADABLE
from objstore.blobs.survey import survey
from objstore.blobs.topology import Topology
from objstore.blobs.volumes import Intent, VolumeRecord
from objstore.node.disk import Disk, DiskState
from objstore.objects.ledger import GIVEN_UP
from objstore.upkeep.context import Context
from objstore.upkeep.plans import PolicyOf

GONE_STATES: Final = (DiskState.FAILED, DiskState.MISSING, DiskState.FOREIGN)


async def topology_of(ctx: Context) -> Topology:
    """Where every disk stands, what room it has, and whether it takes new files. Raises: MetaUnavailable."""
    return await survey(await ctx.ledger.layout(), ctx.disks)


async def policies_of(ctx: Context) -> PolicyOf:
    """Which policy each volume is under. Raises: MetaUnavailable."""
    layout = await ctx.ledger.layout()
    return lambda record: layout.policy(record.policy)


async def sizes_of(ctx: Context) -> tuple[dict[int, dict[tuple[int, int], int]], set[int]]:
    """What each disk holds, and which disks (named by any record, or known to metadata) do not answer."""
    away = {number for number in await ctx.ledger.disks() if number not in ctx.disks}
    disks = list(ctx.disks.items())  # Disks may be added meanwhile.
    listed = await asyncio.gather(*(_sizes(disk) for _, disk in disks))
    sizes: dict[int, dict[tuple[int, int], int]] = {}
    for (number, _), found in zip(disks, listed, strict=True):
        if found is None:
            away.add(number)
        else:
            sizes[number] = found
    return sizes, away


async def _sizes(disk: Disk) -> dict[tuple[int, int], int] | None:
    """None: it does not answer."""
    if disk.state in GONE_STATES:
        return None
    try:
        return {(file.volume, file.index): file.size for file in await disk.fragment_files()}
    except UNREADABLE:
        return None


async def all_intents(ctx: Context) -> list[Intent]:
    found: list[Intent] = []
    after = b"R"
    while page := await ctx.ledger.intents(after):
        found += page
        last = page[-1]
        after = b"R" + last.volume.to_bytes(8, "big") + bytes([last.index]) + b"\0"
    return found


async def each_volume(ctx: Context) -> AsyncIterator[VolumeRecord]:
    """Every volume's record, in order; there may be millions."""
    after = 0
    while page := await ctx.ledger.volumes(after):
        after = page[-1].id
        for record in page:
            yield record


async def all_volumes(ctx: Context) -> list[VolumeRecord]:
    return [record async for record in each_volume(ctx)]


async def given_up_disks(ctx: Context) -> set[int]:
    """Disks whose fragments will not come back, by metadata's verdict: forgotten by an operator, out of the
    store, or (0) on no disk after a salvage. It needs no grace."""
    states = (await ctx.ledger.disks()).items()
    return {0, *(number for number, disk in states if disk.state in GIVEN_UP)}


async def leaving_disks(ctx: Context) -> set[int]:
    """Disks that are to be emptied: well, and read from as long as they are there."""
    layout = await ctx.ledger.layout()
    return {number for number, spot in layout.spots.items() if spot.leaving} - await given_up_disks(ctx)
