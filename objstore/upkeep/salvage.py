"""`objstore meta rebuild`: metadata from fragments alone, when engine and journal are lost.

What is known from fragments: every stripe not yet purged, what its directory says of each piece, and the
writer's clock. So the salvage

1. lists the fragment files, verifies their headers, and makes a record for every volume (sealed at the
   length that the disks show, as for a dead writer);
2. loads the newest whole snapshot of metadata found among the stripes, if there is one;
3. applies every stripe younger than the snapshot, in the order of the writer's clock: the newest whole
   body of each key wins, is marked as salvaged and points at its stripes;
4. counts live bytes afresh.

What it cannot know: deletes, overwrites by empty objects, conditional writes that were refused, tenants,
users, keys and settings since the snapshot (without one: at all; buckets then get names made from their ids).
Everything that is seen to be doubtful is listed, with the reason.

It writes into an empty engine. Nothing on the disks is changed, so it may be run again.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from objstore.blobs.reader import UNREADABLE
from objstore.blobs.stripes import Entry
from objstore.blobs.volumes import Lane, VolumeRecord, VolumeState
from objstore.errors import Corrupt, StoreError, Unavailable
from objstore.extents import Extent
from objstore.meta.kv import Add, Transaction, counter, counter_value, pages, prefix_end
from objstore.meta.schema import (
    FORMAT,
    INLINE_EXTENTS_MAX,
    PAGE_EXTENTS_MAX,
    PAGE_PARTS_MAX,
    BucketRecord,
    ExtentPage,
    Extra,
    Multipart,
    ObjectRecord,
    PartRecord,
    PartsPage,
    bucket_bytes_key,
    bucket_key,
    bucket_objects_key,
    decode,
    encode,
    extent_page_key,
    part_key,
    parts_page_key,
    serial_key,
    tenant_bucket_key,
    volume_key,
    volume_length_key,
    volume_live_key,
)
from objstore.node.fragments import FILE_HEADER_SIZE, parse_file_header
from objstore.objects.adoption import count_afresh
from objstore.objects.ledger import SCAN_PAGE, VOLUME_SERIAL, encode_volume
from objstore.objects.placing import policy_of_bucket, storage_class_of
from objstore.upkeep.context import Context
from objstore.upkeep.homes import SNAPSHOT_HOME, open_home
from objstore.upkeep.seal import find_length
from objstore.upkeep.snapshots import SnapshotAbout, verified_bytes
from objstore.upkeep.walk import stripes

log = logging.getLogger(__name__)

TENANT: Final = "salvaged"  # The owner of buckets that no snapshot knows.
WRITER: Final = bytes(16)
LoadSnapshot = Callable[[AsyncGenerator[bytes, None]], Awaitable[None]]
"""Given a snapshot's bytes: puts its keys into the engine. Must not be believed before it returns."""


@dataclass(slots=True)
class Piece:
    """One directory entry, found on the disks."""

    clock_us: int
    extent: Extent
    entry: Entry


@dataclass(slots=True)
class SalvageReport:
    volumes: int = 0
    newest_volume: int = 0  # The highest number of any fragment file.
    stripes: int = 0
    snapshot: SnapshotAbout | None = None
    objects: int = 0  # From stripes, as the next two: beyond what the snapshot knew.
    parts: int = 0
    buckets: int = 0
    all_objects: int = 0  # In the metadata now, as the next two.
    all_parts: int = 0
    all_buckets: int = 0
    unreadable: list[str] = field(default_factory=list)  # Volumes or stripes, and why.
    doubtful: list[tuple[str, str]] = field(default_factory=list)  # Key, why.


async def salvage(
    ctx: Context, load_snapshot: LoadSnapshot | None = None, *, verify: bool = True
) -> SalvageReport:
    """Rebuild metadata from the disks of `ctx` into its empty engine.

    Args:
        load_snapshot: None: snapshots are ignored.
        verify: read every salvaged object and part and compare its MD5.

    Raises: Corrupt if the engine is not empty; Unavailable if no disk answers.
    """
    if await ctx.kv.scan(b"", b"\xff", 1):
        raise Corrupt("the engine already holds metadata; salvage writes into an empty one")
    report = SalvageReport()
    for number, disk in ctx.disks.items():
        await ctx.ledger.register_disk(number, uuid=disk.uuid, path=disk.path)
    await _find_volumes(ctx, report)
    pieces = await _find_pieces(ctx, report)
    if load_snapshot is not None:
        await _load_newest(ctx, pieces.pop(SNAPSHOT_HOME, []), load_snapshot, report)
    pieces.pop(SNAPSHOT_HOME, None)
    await _name_policies(ctx, pieces)
    since_us = report.snapshot.began_us if report.snapshot is not None else 0
    for home, found in sorted(pieces.items()):
        if max(piece.clock_us for piece in found) < since_us:
            continue  # All of it is older than the snapshot, which knows better.
        await _restore(ctx, home, found, report, verify=verify)
    await _count(ctx, report)
    await _make_buckets(ctx, report)
    await count_afresh(ctx.kv)
    return report


async def _find_volumes(ctx: Context, report: SalvageReport) -> None:
    """A record for every volume of which a fragment file has a whole header."""
    found: dict[int, dict[int, int]] = {}
    shapes: dict[int, tuple[int, int, int]] = {}
    current: set[int] = set()  # Volumes with a file that is not in the trash.
    answered = newest = 0
    for number, disk in ctx.disks.items():
        try:
            files = await disk.fragment_files()
        except UNREADABLE as failure:
            report.unreadable.append(f"disk {number}: {failure}")
            continue
        answered += 1
        for file in files:
            newest = max(newest, file.volume)  # Its number is taken, whatever can be read of it.
            data = bytearray(FILE_HEADER_SIZE)
            try:
                count = await disk.read(file.volume, file.index, 0, [memoryview(data)])
                header = parse_file_header(ctx.seal, data[:count], file.volume, file.index)
            except UNREADABLE as failure:
                report.unreadable.append(f"{file.volume}.{file.index} on disk {number}: {failure}")
                continue
            shapes.setdefault(file.volume, (header.k, header.m, header.created_us))
            if not file.retired_us:
                current.add(file.volume)
            places = found.setdefault(file.volume, {})
            if file.index not in places or not file.retired_us:
                places[file.index] = number  # A copy in the trash gives way to one that is not.
    if not answered:
        raise Unavailable("no disk answers")
    for volume, places in sorted(found.items()):
        k, m, created_us = shapes[volume]
        record = VolumeRecord(
            id=volume,
            k=k,
            m=m,
            disks=[places.get(index, 0) for index in range(k + m)],  # 0: no disk has it.
            state=VolumeState.SEALED,
            lane=Lane.SMALL,
            writer=WRITER,
            created_us=created_us,
        )
        # What is not there now does not come back: as far as the rest can be decoded.
        length = await find_length(ctx, record, gone={0, *record.disks})
        if len(places) < k and volume in current:
            words = f"volume {volume}: {len(places)} of its {k + m} fragment files were found, it takes {k}"
            report.unreadable.append(words)
        record = msgspec.structs.replace(record, length=length)
        await ctx.kv.commit(
            Transaction(
                put={
                    volume_key(volume): encode_volume(record),
                    volume_length_key(volume): counter_value(length),
                }
            )
        )
        report.volumes += 1
    report.newest_volume = newest
    if newest:
        await ctx.kv.commit(Transaction(put={serial_key(VOLUME_SERIAL): counter_value(newest)}))


async def _find_pieces(ctx: Context, report: SalvageReport) -> dict[bytes, list[Piece]]:
    """Every directory entry of every volume, by home."""
    pieces: dict[bytes, list[Piece]] = {}
    after = 0
    while records := await ctx.ledger.volumes(after):
        after = records[-1].id
        for record in records:
            try:
                async for stripe in stripes(ctx, record, record.length):
                    report.stripes += 1
                    for entry in stripe.entries:
                        extent = stripe.extent(entry)
                        pieces.setdefault(entry.home, []).append(Piece(stripe.header.clock_us, extent, entry))
            except StoreError as failure:
                report.unreadable.append(str(failure))
    return pieces


def assemble(found: list[Piece], size: int, last: Piece) -> list[Extent] | None:
    """The extents of the blob of `size` bytes whose last piece is `last`; None if pieces are missing.

    Its pieces have its number; of several copies (compaction leaves the old ones for a while) the youngest.
    """
    remaining = last.entry.blob_offset
    if remaining + last.entry.length != size:
        return None
    by_end: dict[int, Piece] = {}
    for piece in found:
        if piece.entry.length and piece.entry.blob and piece.entry.blob == last.entry.blob:
            end = piece.entry.blob_offset + piece.entry.length
            if end not in by_end or by_end[end].clock_us < piece.clock_us:
                by_end[end] = piece
    chain = [last.extent] if last.entry.length else []
    while remaining:
        piece_before = by_end.get(remaining)
        if piece_before is None:
            return None
        chain.append(piece_before.extent)
        remaining = piece_before.entry.blob_offset
    return chain[::-1]


async def _load_newest(ctx: Context, found: list[Piece], load: LoadSnapshot, report: SalvageReport) -> None:
    """Load the newest snapshot that is whole."""
    ends: list[tuple[int, SnapshotAbout, Piece]] = []
    for piece in found:
        if piece.entry.about:
            about = msgspec.msgpack.decode(piece.entry.about, type=SnapshotAbout)
            ends.append((about.began_us, about, piece))
    volumes = {record.id: record for record in await _all_volumes(ctx)}
    for _, about, last in sorted(ends, key=lambda end: -end[0]):
        extents = assemble(found, about.size, last)
        if extents is None:
            report.doubtful.append(("snapshot", f"the one of {about.began_us} is not whole"))
            continue
        try:
            async for _chunk in verified_bytes(ctx, extents, about):
                pass  # Believed only when all of it has been verified.
        except StoreError as failure:
            report.doubtful.append(("snapshot", f"the one of {about.began_us}: {failure}"))
            continue
        await load(verified_bytes(ctx, extents, about))
        report.snapshot = about
        policies = {record.id: record.policy for record in await _all_volumes(ctx)}
        volumes = {
            volume: msgspec.structs.replace(record, policy=policies.get(volume, ""))
            for volume, record in volumes.items()
        }
        break
    # What the disks show of volumes is newer than what the snapshot knew.
    if report.snapshot is not None:
        known = counter(await ctx.kv.get(serial_key(VOLUME_SERIAL)))
        put = {volume_key(volume): encode_volume(record) for volume, record in volumes.items()}
        lengths = {
            volume_length_key(volume): counter_value(record.length) for volume, record in volumes.items()
        }
        newest = max(known, report.newest_volume)
        put[serial_key(VOLUME_SERIAL)] = counter_value(newest)
        await ctx.kv.commit(Transaction(put={**put, **lengths}))
        for record in await _all_volumes(ctx):
            if record.id not in volumes:
                await ctx.kv.commit(
                    Transaction(
                        delete=[
                            volume_key(record.id),
                            volume_length_key(record.id),
                            volume_live_key(record.id),
                        ]
                    )
                )


async def _name_policies(ctx: Context, pieces: dict[bytes, list[Piece]]) -> None:
    """A volume that is younger than the snapshot is under the policy of what lies in it: files of it may have
    to be rebuilt, and only where that policy admits it."""
    layout = await ctx.ledger.layout()
    classes = {one.storage_class: name for name, one in layout.policies.items() if one.storage_class}
    buckets: dict[int, str] = {}
    async for pairs in pages(ctx.kv, b"b", prefix_end(b"b"), SCAN_PAGE):
        records = [decode(value, BucketRecord) for _, value in pairs]
        buckets.update((record.id, policy_of_bucket(record)) for record in records)
    named: dict[int, str] = {}
    for home, found in pieces.items():
        for piece in found:
            bucket, storage_class = _meant(home, piece.entry.about)
            if storage_class in classes:
                named[piece.extent.volume] = classes[storage_class]
            elif policy := buckets.get(bucket, ""):
                named.setdefault(piece.extent.volume, policy)
    for record in await _all_volumes(ctx):
        if not record.policy and record.id in named:
            changed = msgspec.structs.replace(record, policy=named[record.id])
            await ctx.kv.commit(Transaction(put={volume_key(record.id): encode_volume(changed)}))


def _meant(home: bytes, about: bytes) -> tuple[int, str]:
    """The bucket's id and the storage class that a directory entry tells of; 0 and nothing if it does not."""
    try:
        if home[:1] == b"o":
            extra = decode(about, ObjectRecord).extra if about else None
            return int.from_bytes(home[1:9], "big"), storage_class_of(extra)
        if home[:1] == b"p" and about:
            return int.from_bytes(decode(about, PartRecord).home[1:9], "big"), ""
    except msgspec.MsgspecError:
        pass
    return 0, ""


async def _all_volumes(ctx: Context) -> list[VolumeRecord]:
    found: list[VolumeRecord] = []
    after = 0
    while records := await ctx.ledger.volumes(after):
        after = records[-1].id
        found += records
    return found


async def _restore(
    ctx: Context, home: bytes, found: list[Piece], report: SalvageReport, *, verify: bool
) -> None:
    """The newest whole body of one key."""
    ends = sorted((piece for piece in found if piece.entry.about), key=lambda piece: -piece.clock_us)
    name = _name(home)
    if home[:1] not in (b"o", b"p"):
        report.doubtful.append((name, "a home of no known kind"))
        return
    if len({piece.entry.about for piece in ends}) > 1:
        report.doubtful.append((name, "several versions were found; the newest whole one by clock was taken"))
    for last in ends:
        try:
            if home[:1] == b"p":
                part = decode(last.entry.about, PartRecord)
                restored = await _restore_part(ctx, home, part, found, last, verify=verify)
            else:
                record = decode(last.entry.about, ObjectRecord)
                restored = await _restore_object(ctx, home, record, found, last, report, verify=verify)
        except msgspec.MsgspecError as failure:
            report.doubtful.append((name, f"what its stripe says of it cannot be read: {failure}"))
            continue
        if restored:
            if home[:1] == b"p":
                report.parts += 1
            else:
                report.objects += 1
            return
        report.doubtful.append((name, f"the version of {last.clock_us} is not whole"))
    if not ends:
        report.doubtful.append((name, "its last stripe was not found"))


async def _restore_part(
    ctx: Context, home: bytes, part: PartRecord, found: list[Piece], last: Piece, *, verify: bool
) -> bool:
    extents = assemble(found, part.size, last)
    if extents is None or (verify and not await _is(ctx, extents, part.size, part.etag)):
        return False
    inline, blob, pages = _laid_out(home, extents)
    record = msgspec.structs.replace(part, extents=inline, blob=blob, pages=len(pages))
    await ctx.kv.commit(Transaction(put={home: encode(record), **pages}))
    return True


async def _restore_object(
    ctx: Context,
    home: bytes,
    record: ObjectRecord,
    found: list[Piece],
    last: Piece,
    report: SalvageReport,
    *,
    verify: bool,
) -> bool:
    extra = record.extra or Extra()
    pages: dict[bytes, bytes]
    if extra.multipart is not None:
        # Its own stripe is the list of its parts, which are homes of their own.
        extents = assemble(found, last.entry.blob_offset + last.entry.length, last)
        if extents is None or len(extents) != 1:
            return False
        upload = extra.multipart.upload
        parts = decode(bytes(await ctx.reader.read(extents[0])), PartsPage).parts
        missing = [
            entry.number for entry in parts if await ctx.kv.get(part_key(upload, entry.number)) is None
        ]
        if missing:  # Parts sort behind objects: they may come yet. Checked at the end.
            report.doubtful.append((_name(home), f"made of parts; check parts {missing[:5]}"))
        pages = {}
        begin = 0
        for at in range(0, len(parts), PAGE_PARTS_MAX):
            some = parts[at : at + PAGE_PARTS_MAX]
            pages[parts_page_key(upload, len(pages))] = encode(PartsPage(parts=some, begin=begin))
            begin += sum(entry.size for entry in some)
        multipart = Multipart(upload, len(parts), extents[0])
        extra = msgspec.structs.replace(extra, multipart=multipart, salvaged=True, blob=b"", pages=0)
        inline: list[Extent] = []
    else:
        extents = assemble(found, record.size, last)
        if extents is None or (verify and not await _is(ctx, extents, record.size, record.etag)):
            return False
        inline, blob, pages = _laid_out(home, extents)
        extra = msgspec.structs.replace(extra, salvaged=True, blob=blob, pages=len(pages))
    restored = msgspec.structs.replace(record, extents=inline, extra=extra)
    await ctx.kv.commit(Transaction(put={home: encode(restored), **pages}))
    return True


def _laid_out(home: bytes, extents: list[Extent]) -> tuple[list[Extent], bytes, dict[bytes, bytes]]:
    """Extents for the record, and pages for the rest under an id made from the home (a second run
    overwrites the first)."""
    if len(extents) <= INLINE_EXTENTS_MAX:
        return extents, b"", {}
    blob = hashlib.blake2b(home, digest_size=16).digest()
    pages: dict[bytes, bytes] = {}
    begin = sum(extent.length for extent in extents[:INLINE_EXTENTS_MAX])
    for at in range(INLINE_EXTENTS_MAX, len(extents), PAGE_EXTENTS_MAX):
        some = extents[at : at + PAGE_EXTENTS_MAX]
        pages[extent_page_key(blob, len(pages))] = encode(ExtentPage(extents=some, begin=begin))
        begin += sum(extent.length for extent in some)
    return extents[:INLINE_EXTENTS_MAX], blob, pages


async def _is(ctx: Context, extents: list[Extent], size: int, etag: bytes) -> bool:
    """Whether these bytes have this MD5: pieces of two versions never pass for one."""
    if len(etag) != 16:
        return True
    digest = hashlib.md5(usedforsecurity=False)
    try:
        async for views in ctx.reader.stream(extents, 0, size):
            for view in views:
                digest.update(view)
                await ctx.pace.spend(len(view))
    except StoreError as failure:
        log.warning("salvaged bytes cannot be read: %s", failure)
        return False
    return digest.digest() == etag


def _name(home: bytes) -> str:
    if home[:1] == b"o":
        bucket = int.from_bytes(home[1:9], "big")
        return f"{bucket}/{home[9:].decode(errors='replace')}"
    return repr(home[:40])


async def _make_buckets(ctx: Context, report: SalvageReport) -> None:
    """A bucket for every id that has objects and no record, and fresh counters."""
    known: dict[int, str] = {}
    taken: set[str] = set()  # A tenant may have called a bucket of its own so.
    for key, value in await _scan_all(ctx, b"b"):
        known[decode(value, BucketRecord).id] = key[1:].decode()
        taken.add(key[1:].decode())
    start = b"o"
    counts: dict[int, tuple[int, int]] = {}
    for key, value in await _scan_all(ctx, start):
        bucket = int.from_bytes(key[1:9], "big")
        objects, size = counts.get(bucket, (0, 0))
        counts[bucket] = (objects + 1, size + decode(value, ObjectRecord).size)
    report.all_objects = sum(objects for objects, _ in counts.values())
    for bucket, (objects, size) in counts.items():
        put = {
            bucket_objects_key(bucket): counter_value(objects),
            bucket_bytes_key(bucket): counter_value(size),
        }
        if bucket not in known:
            name = f"salvaged-{bucket}"
            while name in taken:
                name += "-1"
            record = BucketRecord(
                format=FORMAT, id=bucket, tenant=TENANT, owner=TENANT, created_us=ctx.clock.now_us()
            )
            put[bucket_key(name)] = encode(record)
            put[tenant_bucket_key(TENANT, name)] = b""
            report.buckets += 1
            report.doubtful.append((name, "the bucket's name, owner and settings are not known"))
        await ctx.kv.commit(Transaction(put=put))
    report.all_buckets = len(known) + report.buckets
    if counts or known:
        serial = serial_key("buckets")
        newest = max([*counts, *known])
        if counter(await ctx.kv.get(serial)) < newest:
            await ctx.kv.commit(Transaction(put={serial: counter_value(newest)}))


async def _count(ctx: Context, report: SalvageReport) -> None:
    """Live bytes of every volume, from what the homes hold now."""
    held: dict[int, int] = {}
    volumes = {record.id for record in await _all_volumes(ctx)}
    for prefix in (b"o", b"p", b"S"):
        for key, _ in await _scan_all(ctx, prefix):
            if prefix == b"S" and key != SNAPSHOT_HOME:
                continue
            home = await open_home(ctx.kv, key)
            if home is None:
                continue
            lost = {place.extent.volume for place in home.places.values()} - volumes
            if lost:  # Only the snapshot knew it, and its volume has been purged since.
                report.doubtful.append(
                    (_name(key), f"deleted since the snapshot: volume {min(lost)} is gone")
                )
                await ctx.kv.commit(Transaction(expect={key: home.value}, delete=[key]))
            else:
                report.all_parts += prefix == b"p"
                for place in home.places.values():
                    held[place.extent.volume] = held.get(place.extent.volume, 0) + place.extent.length
            await asyncio.sleep(0)
    for key, value in await _scan_all(ctx, b"G"):
        volume = int.from_bytes(key[1:], "big")
        delta = held.pop(volume, 0) - counter(value)
        if delta:
            await ctx.kv.commit(Transaction(add={key: Add(delta)}))
    for volume, amount in held.items():
        await ctx.kv.commit(Transaction(add={volume_live_key(volume): Add(amount)}))


async def _scan_all(ctx: Context, prefix: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    async for pairs in pages(ctx.kv, prefix, prefix_end(prefix), 1_000):
        found += pairs
    return found
