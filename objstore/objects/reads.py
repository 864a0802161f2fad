"""GetObject, HeadObject and the bytes behind them.

A simple object's record holds its extents. A long one has the rest in pages, a multipart one has its
part list in pages and its extents in the parts' records; a page knows how many bytes lie before it, so a
small range of a huge object costs a binary search and not its part list. Parts and pages are looked up while
the bytes are sent; those of an object that was overwritten meanwhile outlive it by the sweep's grace.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

from objstore.errors import BadPartNumber, BadRange, Corrupt, NoSuchKey, NoSuchVersion
from objstore.extents import Extent
from objstore.meta.schema import (
    PAGE_PARTS_MAX,
    BucketRecord,
    Checksum,
    ExtentPage,
    Multipart,
    ObjectRecord,
    PartEntry,
    PartRecord,
    PartsPage,
    body_key,
    decode,
    extent_page_key,
    object_key,
    part_key,
    parts_page_key,
)
from objstore.objects.buckets import is_within_reach, read_bucket
from objstore.objects.carrying import is_carried
from objstore.objects.commits import key_bytes
from objstore.objects.conditions import check_read, is_range_of
from objstore.objects.store import KnownBucket, Store
from objstore.objects.values import NO_CONDITIONS, ByteRange, Conditions, Found, Principal, etag_text
from objstore.objects.writes import check_version

PAGES_AT_ONCE: Final = 8  # Extent pages looked up in one call: 720 extents.
PARTS_AT_ONCE: Final = 40  # Parts looked up in one call: one page of the part list.

Group = tuple[Sequence[Extent], int, int]  # Extents, and the bytes wanted of them: begin, length.
Page = TypeVar("Page", ExtentPage, PartsPage)


async def read_record(
    store: Store, who: Principal, bucket: str, key: str
) -> tuple[BucketRecord, ObjectRecord | None]:
    """The bucket and the key's current record, from one consistent view.

    Raises: BadName, NoSuchBucket, Denied, KeyTooLong.
    """
    raw = key_bytes(key)
    known = store.buckets.get(bucket)
    if known is not None and is_within_reach(known.record, who):
        record = known.record
        name = object_key(record.id, raw)
        versioned = store.versioned
        if versioned is not None and known.version is not None:
            unchanged, value = versioned.get_at(name, known.version)
            if unchanged:  # Nothing at all was committed since the bucket's record was read.
                return record, None if value is None else decode(value, ObjectRecord)
        # Asked for before the record is read, which may be newer than that, never older.
        version = None if versioned is None else versioned.version()
        bucket_value, value = await store.kv.get_many((b"b" + bucket.encode(), name))
        if bucket_value == known.value:
            store.buckets[bucket] = KnownBucket(known.value, record, version)
            return record, None if value is None else decode(value, ObjectRecord)
    record = (await read_bucket(store, who, bucket))[1]
    value = await store.kv.get(object_key(record.id, raw))
    return record, None if value is None else decode(value, ObjectRecord)


async def find_object(
    store: Store,
    who: Principal,
    bucket: str,
    key: str,
    *,
    version: str | None = None,
    conditions: Conditions = NO_CONDITIONS,
    byte_range: ByteRange | None = None,
    part_number: int | None = None,
    condition_prefix: str = "",
) -> Found:
    """Choose the version, decide the conditions and the bytes to send.

    Args:
        condition_prefix: of a copy's source: all conditions then fail as ConditionFailed.

    Raises: NoSuchBucket, Denied, NoSuchKey, NoSuchVersion, ConditionFailed, NotModified, BadRange,
    BadPartNumber.
    """
    found_bucket, record = await read_record(store, who, bucket, key)
    carried: bytes | None = None
    if record is not None and not record.extents and is_carried(record):
        record, carried = await with_body(store, object_key(found_bucket.id, key_bytes(key)))
    if version is not None:
        check_version(key, version)
        if record is None:
            raise NoSuchVersion(key, version)
    if record is None:
        raise NoSuchKey(key)
    if conditions is not NO_CONDITIONS:
        check_read(conditions, record, now_us=store.clock.now_us(), prefix=condition_prefix)
    multipart = record.extra.multipart if record.extra is not None else None
    first, length, ranged = 0, record.size, False
    part_checksum: Checksum | None = None
    if part_number is not None:
        ranged = True
        if multipart is not None:
            entry, first = await _part(store, multipart, part_number)
            length = entry.size
            part_checksum = Checksum.unpack(entry.checksum)
        elif part_number != 1:
            raise BadPartNumber(wanted=part_number, count=1)
    elif byte_range is not None and is_range_of(byte_range, record):
        first, length = resolve(byte_range, record.size)
        ranged = True
    return Found(
        bucket=found_bucket,
        key=key,
        record=record,
        etag=etag_text(record.etag),
        first=first,
        length=length,
        ranged=ranged,
        part_count=0 if multipart is None else multipart.count,
        part_checksum=part_checksum,
        carried=carried,
    )


async def with_body(store: Store, home: bytes) -> tuple[ObjectRecord | None, bytes | None]:
    """The record, and its body if metadata carries it, from one view. Raises: Corrupt."""
    value, body = await store.kv.get_many((home, body_key(home)))
    record = None if value is None else decode(value, ObjectRecord)
    if record is None or not is_carried(record):
        return record, None  # Deleted, or packed meanwhile.
    if body is None or len(body) != record.size:
        raise Corrupt("a body that metadata should carry is not there")
    return record, body


def resolve(wanted: ByteRange, size: int) -> tuple[int, int]:
    """(first, length) of a range within `size` bytes. Raises: BadRange."""
    if wanted.first is None:
        suffix = min(wanted.last or 0, size)
        if suffix == 0:
            raise BadRange(wanted=wanted.text, size=size)
        return size - suffix, suffix
    if wanted.first >= size:
        raise BadRange(wanted=wanted.text, size=size)
    last = size - 1 if wanted.last is None else min(wanted.last, size - 1)
    return wanted.first, last - wanted.first + 1


async def read_small(store: Store, found: Found) -> bytes | memoryview | None:
    """The bytes if one small extent holds the whole object (all or a range is wanted); else None: stream."""
    record = found.record
    if found.length == 0:
        return b""
    if found.carried is not None:
        return memoryview(found.carried)[found.first : found.first + found.length]
    if len(record.extents) != 1 or record.size > store.small_size_max:
        return None
    extent = record.extents[0]
    if extent.length != record.size:
        return None
    data = await store.reader.read(extent)
    if len(data) != record.size:
        raise Corrupt(f"{len(data)} bytes where {record.size} were written")
    if found.length == record.size:
        return data
    return memoryview(data)[found.first : found.first + found.length]


def read(store: Store, found: Found) -> AsyncIterator[list[memoryview]]:
    """The found bytes as lists of verified buffers. An error in the middle must cut the connection."""
    record = found.record
    if found.carried is not None:
        return _carried(memoryview(found.carried)[found.first : found.first + found.length])
    extra = record.extra
    if extra is None or (extra.multipart is None and not extra.pages):
        return store.reader.stream(record.extents, found.first, found.length)
    return _read_groups(store, record, found.first, found.length)


async def _carried(body: memoryview) -> AsyncIterator[list[memoryview]]:
    yield [body]


async def _read_groups(
    store: Store, record: ObjectRecord, first: int, length: int
) -> AsyncIterator[list[memoryview]]:
    if store.reader.lacks_disks():
        # Groups are looked up one by one: what would fail in the last is to fail before the first byte.
        async with aclosing(groups(store, record, first, length)) as source:
            async for group in source:
                await store.reader.check(*group)
                await asyncio.sleep(0)  # Others have their turn: nothing here need have waited.
    sent = 0
    async with aclosing(groups(store, record, first, length)) as source:
        async for extents, begin, wanted in source:
            stream: Any = store.reader.stream(extents, begin, wanted)
            async with aclosing(stream):
                async for buffers in stream:
                    sent += sum(map(len, buffers))
                    yield buffers
    if sent != length:
        raise Corrupt(f"{sent} bytes of {length} found")


async def groups(store: Store, record: ObjectRecord, first: int, length: int) -> Any:
    """Where bytes [first, first + length) of an object are, in order, a bounded number of extents at a time.

    Yields Groups. Raises: Corrupt if a page or part is missing (also: dropped and swept meanwhile).
    """
    extra = record.extra
    if extra is not None and extra.multipart is not None:
        source = _part_groups(store, extra.multipart, first, length)
    elif extra is not None and extra.pages:
        source = _paged_groups(store, record.extents, extra.blob, extra.pages, first, length)
    else:
        yield record.extents, first, length
        return
    async with aclosing(source):
        async for group in source:
            yield group


async def _paged_groups(
    store: Store, inline: Sequence[Extent], blob: bytes, pages: int, first: int, length: int
) -> Any:
    end = first + length
    begin = sum(extent.length for extent in inline)
    if first < begin:
        wanted = min(end, begin) - first
        yield inline, first, wanted
        first += wanted
    if first >= end:
        return
    index = await _page_of(store, lambda page: extent_page_key(blob, page), pages, ExtentPage, first)
    while first < end:
        keys = [extent_page_key(blob, page) for page in range(index, min(index + PAGES_AT_ONCE, pages))]
        if not keys:
            raise Corrupt(f"the extents end {end - first} bytes early")
        index += len(keys)
        some = [
            _known(value, ExtentPage, key)
            for key, value in zip(keys, await store.kv.get_many(keys), strict=True)
        ]
        extents = [extent for page in some for extent in page.extents]
        begin = some[0].begin
        wanted = min(end, begin + sum(extent.length for extent in extents)) - first
        yield extents, first - begin, wanted
        first += wanted


async def _part_groups(store: Store, multipart: Multipart, first: int, length: int) -> Any:
    end = first + length
    upload = multipart.upload
    pages = -(-multipart.count // PAGE_PARTS_MAX)
    index = await _page_of(store, lambda page: parts_page_key(upload, page), pages, PartsPage, first)
    while first < end:
        if index >= pages:
            raise Corrupt(f"the parts end {end - first} bytes early")
        page = await _parts_page(store, upload, index)
        index += 1
        wanted_entries: list[PartEntry] = []
        begin = at = page.begin
        for entry in page.parts:
            if at < end and at + entry.size > first:
                if not wanted_entries:
                    begin = at
                wanted_entries.append(entry)
            at += entry.size
        keys = [part_key(upload, entry.number) for entry in wanted_entries]
        values = await store.kv.get_many(keys)
        gathered: list[Extent] = []
        gathered_begin = begin
        for entry, key, value in zip(wanted_entries, keys, values, strict=True):
            part = _known(value, PartRecord, key)
            if part.size != entry.size:
                raise Corrupt(f"part {entry.number} is not the one that was completed")
            if not part.pages:
                gathered += part.extents
                begin += part.size
                continue
            if gathered:
                wanted = min(end, begin) - first
                yield gathered, first - gathered_begin, wanted
                first += wanted
                gathered = []
            part_end = begin + part.size
            paged = _paged_groups(
                store, part.extents, part.blob, part.pages, first - begin, min(end, part_end) - first
            )
            async with aclosing(paged):
                async for group in paged:
                    first += group[2]
                    yield group
            begin = gathered_begin = part_end
        if gathered:
            wanted = min(end, begin) - first
            yield gathered, first - gathered_begin, wanted
            first += wanted


def _known(value: bytes | None, kind: type[Any], key: bytes) -> Any:
    if value is None:
        raise Corrupt(f"metadata lacks {kind.__name__} {key.hex()}")
    return decode(value, kind)


async def _page_of(
    store: Store, key_of: Callable[[int], bytes], pages: int, kind: type[Page], offset: int
) -> int:
    """The index of the last page that begins at or before `offset`."""
    low, high = 0, pages - 1
    while low < high:
        middle = (low + high + 1) // 2
        key = key_of(middle)
        if _known(await store.kv.get(key), kind, key).begin <= offset:
            low = middle
        else:
            high = middle - 1
    return low


async def _parts_page(store: Store, upload: bytes, index: int) -> PartsPage:
    key = parts_page_key(upload, index)
    page: PartsPage = _known(await store.kv.get(key), PartsPage, key)
    return page


async def page_of_part(store: Store, multipart: Multipart, number: int) -> tuple[int, PartsPage]:
    """The first page of the part list that ends with part `number` or a later one, if any does."""
    low, high = 0, min(-(-multipart.count // PAGE_PARTS_MAX), -(-number // PAGE_PARTS_MAX)) - 1
    page = await _parts_page(store, multipart.upload, high)  # The right one if no number is left out.
    if page.parts[0].number <= number:
        return high, page
    while low < high:
        middle = (low + high) // 2
        page = await _parts_page(store, multipart.upload, middle)
        if page.parts[-1].number < number:
            low = middle + 1
        else:
            high = middle
    return low, await _parts_page(store, multipart.upload, low)


async def _part(store: Store, multipart: Multipart, number: int) -> tuple[PartEntry, int]:
    """A completed part by its number, and the offset of its first byte. Raises: BadPartNumber."""
    _, page = await page_of_part(store, multipart, number)
    begin = page.begin
    for entry in page.parts:
        if entry.number == number:
            return entry, begin
        begin += entry.size
    raise BadPartNumber(wanted=number, count=multipart.count)
