"""A snapshot of metadata, stored in volumes like any object: what salvage begins with.

Its bytes are opaque here (the metadata engine makes and reads them). Its home is one setting; the record is
an ObjectRecord like any other, so compaction, scrub and repair need to know nothing of snapshots. Each new
one replaces the one before in one commit, and its stripes carry what salvage needs to find it alone.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import msgspec
from xxhash import xxh3_64

from objstore.blobs.volumes import Stored
from objstore.errors import Conflict, Corrupt, Overloaded
from objstore.extents import Extent
from objstore.ids import random_id
from objstore.meta.kv import Transaction
from objstore.meta.schema import (
    FORMAT,
    INLINE_EXTENTS_MAX,
    PAGE_EXTENTS_MAX,
    DoomedRecord,
    ExtentPage,
    Extra,
    ObjectRecord,
    doomed_key,
    encode,
    extent_page_key,
)
from objstore.objects.ledger import live_adds, publish
from objstore.upkeep.context import Context
from objstore.upkeep.homes import SNAPSHOT_HOME, Home, open_home

ATTEMPTS_MAX: Final = 8


class SnapshotAbout(msgspec.Struct, frozen=True, array_like=True):
    """In the last stripe's directory. MessagePack array; fields are only ever added at the end."""

    format: int
    began_us: int  # By the clock of the process that took it: what it lacks is younger than this.
    size: int  # Bytes.
    digest: int  # xxh3-64 of all bytes.


async def store_snapshot(
    ctx: Context, source: AsyncIterator[bytes], *, began_us: int, policy: str = ""
) -> SnapshotAbout:
    """Write a snapshot into volumes and let its home hold it.

    Args:
        source: the snapshot's bytes.
        began_us: when its taking began: changes after that may not be in it.
        policy: the name of the placement policy under which it lies.

    Raises: Overloaded, WriteQuorumNotMet, TooFewDisks, MetaUnavailable.
    """
    stream = ctx.writer.stream(SNAPSHOT_HOME, policy=policy)
    digest = xxh3_64()
    size = 0
    try:
        async for chunk in source:
            digest.update(chunk)
            size += len(chunk)
            await stream.write(chunk)
            await ctx.pace.spend(len(chunk))
        about = SnapshotAbout(1, began_us, size, digest.intdigest())
        stored = await stream.finish(msgspec.msgpack.encode(about))
    finally:
        stream.abort()
    await _publish(ctx, stored, about)
    return about


async def _publish(ctx: Context, stored: Stored, about: SnapshotAbout) -> None:
    extents = stored.extents
    blob = random_id()
    pages: dict[bytes, bytes] = {}
    for at in range(INLINE_EXTENTS_MAX, len(extents), PAGE_EXTENTS_MAX):
        some = extents[at : at + PAGE_EXTENTS_MAX]
        begin = sum(extent.length for extent in extents[:at])
        pages[extent_page_key(blob, len(pages))] = encode(ExtentPage(extents=some, begin=begin))
    record = ObjectRecord(
        FORMAT,
        about.began_us,
        b"",
        about.size,
        about.digest.to_bytes(16, "big"),
        b"",
        extents[:INLINE_EXTENTS_MAX],
        Extra(blob=blob, pages=len(pages)) if pages else None,
    )
    for _ in range(ATTEMPTS_MAX):
        old = await open_home(ctx.kv, SNAPSHOT_HOME)
        expect, put, _ = publish(stored)
        expect[SNAPSHOT_HOME] = old.value if old is not None else None
        put[SNAPSHOT_HOME] = encode(record)
        put.update(pages)
        lost: list[Extent] = []
        if old is not None:
            lost = [place.extent for place in old.places.values() if not place.page]
            blob_before = _blob(old)
            if blob_before:  # Its pages go with the sweep of doomed ids, and their live bytes with them.
                put[doomed_key(blob_before)] = encode(DoomedRecord(since_us=ctx.clock.now_us()))
        try:
            await ctx.kv.commit(Transaction(expect, put, (), live_adds(extents, lost)))
        except Conflict as conflict:
            if conflict.key[:1] == b"V":
                raise Overloaded("a volume was sealed under the snapshot") from conflict
            continue
        return
    raise Overloaded("the snapshot's home kept changing")


def _blob(home: Home) -> bytes:
    record = home.record
    return record.extra.blob if isinstance(record, ObjectRecord) and record.extra else b""


async def read_snapshot(ctx: Context) -> tuple[SnapshotAbout, AsyncGenerator[bytes, None]] | None:
    """The newest snapshot by metadata: what it is, and its bytes. None if there is none."""
    home = await open_home(ctx.kv, SNAPSHOT_HOME)
    if home is None:
        return None
    assert isinstance(home.record, ObjectRecord)
    record = home.record
    about = SnapshotAbout(1, record.order, record.size, int.from_bytes(record.etag, "big"))
    extents = [place.extent for place in home.places.values() if place.at >= 0]
    return about, verified_bytes(ctx, extents, about)


async def verified_bytes(
    ctx: Context, extents: list[Extent], about: SnapshotAbout
) -> AsyncGenerator[bytes, None]:
    """The snapshot's bytes. Raises: Corrupt, after the last chunk, if they are not the snapshot's."""
    if sum(extent.length for extent in extents) != about.size:
        raise Corrupt("the snapshot's pieces are not all there")
    digest = xxh3_64()
    async for views in ctx.reader.stream(extents, 0, about.size):
        for view in views:
            digest.update(view)
            yield bytes(view)
    if digest.intdigest() != about.digest:
        raise Corrupt("the snapshot's bytes are not what was stored")
