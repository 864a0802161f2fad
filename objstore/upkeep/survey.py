"""What all disks and metadata say at one moment: the material of every decision in plans.py.

Nothing is changed here. Disks that do not answer are in the topology all the same, without space.
"""

import asyncio

from objstore.blobs.reader import UNREADABLE
from objstore.blobs.topology import DEFAULT_POLICY, Spot, Topology
from objstore.blobs.volumes import Intent, VolumeRecord
from objstore.meta.schema import DiskRecord
from objstore.node.disk import Disk, DiskState, Usage
from objstore.objects.ledger import DRAINING, GIVEN_UP
from objstore.upkeep.context import Context
from objstore.upkeep.plans import PolicyOf

GONE_STATES = (DiskState.FAILED, DiskState.MISSING, DiskState.FOREIGN)
UNKNOWN = DiskRecord(uuid=b"", path="", state="suspect")


async def topology_of(ctx: Context) -> Topology:
    """Where every disk stands, what room it has, and whether it takes new files. Raises: MetaUnavailable."""
    records, members = await ctx.ledger.disks(), await ctx.ledger.members()
    usable = set(await ctx.ledger.usable_disks())
    disks = dict(ctx.disks)  # Others may be added meanwhile.
    usages = dict(zip(disks, await asyncio.gather(*map(_usage, disks.values())), strict=True))
    spots = []
    for number in sorted(records.keys() | disks.keys()):
        record, usage = records.get(number, UNKNOWN), usages.get(number)
        if record.state == "retired":
            continue
        member = members.get(record.node)
        spots.append(
            Spot(
                number,
                free=usage.free if usage is not None else 0,
                size=usage.total if usage is not None else record.size,
                site=member.site if member is not None else "",
                rack=member.rack if member is not None else "",
                node=record.node.hex(),
                device=usage.device if usage is not None else -number,
                usable=number in usable and usage is not None and disks[number].state is DiskState.HEALTHY,
                leaving=record.state in (DRAINING, *GIVEN_UP),
            )
        )
    return Topology(spots)


async def policies_of(ctx: Context) -> PolicyOf:
    """Which policy each volume is under."""
    return lambda record: DEFAULT_POLICY


async def _usage(disk: Disk) -> Usage | None:
    try:
        return await disk.usage()
    except UNREADABLE:
        return None


async def sizes_of(ctx: Context) -> tuple[dict[int, dict[tuple[int, int], int]], set[int]]:
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


async def all_intents(ctx: Context) -> list[Intent]:
    found: list[Intent] = []
    after = b"R"
    while page := await ctx.ledger.intents(after):
        found += page
        last = page[-1]
        after = b"R" + last.volume.to_bytes(8, "big") + bytes([last.index]) + b"\0"
    return found


async def all_volumes(ctx: Context) -> list[VolumeRecord]:
    found: list[VolumeRecord] = []
    after = 0
    while page := await ctx.ledger.volumes(after):
        after = page[-1].id
        found += page
    return found


async def given_up_disks(ctx: Context) -> set[int]:
    """Disks whose fragments will not come back, by metadata's verdict: forgotten by an operator, out of the
    store, or (0) on no disk after a salvage. It needs no grace."""
    states = (await ctx.ledger.disks()).items()
    return {0, *(number for number, disk in states if disk.state in GIVEN_UP)}


async def leaving_disks(ctx: Context) -> set[int]:
    """Disks that an operator wants empty: well, and read from as long as they are there."""
    return {number for number, disk in (await ctx.ledger.disks()).items() if disk.state == DRAINING}
