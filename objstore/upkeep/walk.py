"""From stripe to stripe through a volume, with whatever fragment files are there.

A header that is damaged in one file is read from another, which also says where the next one lies: a walk
never looks for a record inside a payload, which may be a client's bytes made to look like one.
"""

from collections.abc import AsyncIterator, Collection
from typing import NamedTuple

from objstore.blobs.reader import UNREADABLE
from objstore.blobs.stripes import Entry, unpack_directory
from objstore.blobs.volumes import VolumeRecord
from objstore.errors import Corrupt, Unavailable
from objstore.extents import Extent
from objstore.node.fragments import (
    FILE_HEADER_SIZE,
    RECORD_HEADER_SIZE,
    RecordHeader,
    parse_header,
)
from objstore.upkeep.context import Context


class Stripe(NamedTuple):
    header: RecordHeader
    entries: list[Entry]

    def extent(self, entry: Entry, digest: int = 0) -> Extent:
        header = self.header
        return Extent(header.volume, header.offset, header.fragment_size, entry.begin, entry.length, digest)


async def header_at(
    ctx: Context, record: VolumeRecord, offset: int, *, gone: Collection[int] = ()
) -> RecordHeader:
    """The header of the stripe at `offset`, from the first fragment file that has it whole.

    Args:
        gone: disks that do not come back, whatever they say of themselves.

    Raises: Unavailable if a disk is away and no other file has it; Corrupt if no file has it.
    """
    away = 0
    words = ""
    for index, number in enumerate(record.disks):
        disk = ctx.disks.get(number)
        if disk is None:
            away += number not in gone
            continue
        data = bytearray(RECORD_HEADER_SIZE)
        try:
            count = await disk.read(record.id, index, offset, [memoryview(data)])
            return parse_header(ctx.seal, data[:count], record.id, index, offset)
        except Unavailable as failure:
            words = str(failure)
            away += number not in gone
        except UNREADABLE as failure:
            words = str(failure)
    if away:
        raise Unavailable(f"volume {record.id} at {offset}: {away} disks are away")
    raise Corrupt(f"volume {record.id} at {offset}: no fragment file has a header there ({words})")


async def headers(
    ctx: Context,
    record: VolumeRecord,
    length: int,
    *,
    start: int = FILE_HEADER_SIZE,
    gone: Collection[int] = (),
) -> AsyncIterator[RecordHeader]:
    """Every stripe's header from `start` up to `length`. Raises: Corrupt, Unavailable."""
    offset = start
    while offset < length:
        header = await header_at(ctx, record, offset, gone=gone)
        yield header
        offset = header.end


class Tally(NamedTuple):
    """The fragments of one stripe that can be counted on."""

    whole: int
    late: int  # They may turn out to be: their disks did not answer in time, or may return.


async def tally(
    ctx: Context, record: VolumeRecord, header: RecordHeader, given_up: Collection[int], *, without: int = -1
) -> Tally:
    """Read all fragments of a stripe, but for that of file `without`.

    Args:
        given_up: disks that do not come back, whatever they say of themselves.
    """
    whole = late = 0
    for index, number in enumerate(record.disks):
        if index == without:
            continue
        try:
            await ctx.reader.fragment(record, header.offset, header.fragment_size, index)
        except Unavailable:
            late += number not in given_up
        except UNREADABLE:
            continue
        else:
            whole += 1
    return Tally(whole, late)


async def directory(ctx: Context, header: RecordHeader) -> list[Entry]:
    """What the stripe holds; only the directory's bytes are read. Raises: Corrupt, Unavailable."""
    start = header.directory_offset
    where = Extent(header.volume, header.offset, header.fragment_size, start, header.payload_size - start)
    return unpack_directory(await ctx.reader.read(where))


async def stripes(ctx: Context, record: VolumeRecord, length: int) -> AsyncIterator[Stripe]:
    """Every stripe with its directory, in order of offset. Raises: Corrupt, Unavailable."""
    async for header in headers(ctx, record, length):
        yield Stripe(header, await directory(ctx, header))
