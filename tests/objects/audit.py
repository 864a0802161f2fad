"""An auditor: recomputes every counter from the records, and finds records that belong to nothing.

Reads the whole metadata through the public interface, so it works over any engine.
"""

from collections import Counter

from objstore.extents import Extent
from objstore.meta.kv import counter
from objstore.meta.schema import (
    PAGE_PARTS_MAX,
    BucketRecord,
    DoomedRecord,
    ExtentPage,
    ObjectRecord,
    PartRecord,
    PartsPage,
    UploadRecord,
    body_key,
    decode,
    unescape,
)
from objstore.objects.carrying import is_carried
from objstore.objects.store import Store


async def everything(store: Store) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    start, end = b"", b"\xff"
    while pairs := await store.kv.scan(start, end, 1_000):
        found.update(pairs)
        start = pairs[-1][0] + b"\0"
    return found


async def audit(store: Store) -> Counter[bytes]:
    """Raises AssertionError at the first difference; returns how many records there are by letter."""
    records = await everything(store)
    by_letter: dict[bytes, dict[bytes, bytes]] = {}
    for key, value in records.items():
        by_letter.setdefault(key[:1], {})[key] = value

    def all_of(letter: bytes) -> dict[bytes, bytes]:
        return by_letter.get(letter, {})

    buckets = {}
    for key, value in all_of(b"b").items():
        record = decode(value, BucketRecord)
        assert records[b"i" + record.tenant.encode() + b"\0" + key[1:]] == b""
        buckets[record.id] = record
    assert len(all_of(b"i")) == len(buckets)

    doomed = {key[1:]: decode(value, DoomedRecord) for key, value in all_of(b"d").items()}
    live: Counter[int] = Counter()
    objects: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    uploads: Counter[int] = Counter()
    carried: set[bytes] = set()
    owned_blobs: dict[bytes, int] = {}  # Blob id -> pages that it must have.
    owned_uploads: dict[bytes, int] = {}  # Completed uploads -> parts.

    def count(extents: list[Extent]) -> int:
        for extent in extents:
            live[extent.volume] += extent.length
        return sum(extent.length for extent in extents)

    for key, value in all_of(b"o").items():
        bucket = int.from_bytes(key[1:9], "big")
        assert bucket in buckets, f"an object of no bucket: {key!r}"
        record = decode(value, ObjectRecord)
        objects[bucket] += 1
        sizes[bucket] += record.size
        inline = count(record.extents)
        extra = record.extra
        if extra is not None and extra.multipart is not None:
            assert not record.extents
            assert extra.multipart.manifest is not None
            count([extra.multipart.manifest])
            owned_uploads[extra.multipart.upload] = extra.multipart.count
        elif extra is not None and extra.pages:
            owned_blobs[extra.blob] = extra.pages
        elif is_carried(record):
            assert len(records[body_key(key)]) == record.size
            carried.add(body_key(key))
        else:
            assert inline == record.size
    assert carried == set(all_of(b"B")), "a body of no record"

    open_uploads: dict[bytes, bytes] = {}
    for key, value in all_of(b"m").items():
        bucket = int.from_bytes(key[1:9], "big")
        assert bucket in buckets, f"an upload of no bucket: {key!r}"
        decode(value, UploadRecord)
        _, upload = unescape(key[9:])
        open_uploads[upload] = key
        uploads[bucket] += 1

    parts: Counter[bytes] = Counter()
    part_bytes: Counter[bytes] = Counter()
    for key, value in all_of(b"p").items():
        upload = key[1:17]
        part = decode(value, PartRecord)
        parts[upload] += 1
        part_bytes[upload] += part.size
        inline = count(part.extents)
        if part.pages:
            owned_blobs[part.blob] = part.pages
        else:
            assert inline == part.size
        assert upload in open_uploads or upload in owned_uploads or upload in doomed, "a part of nothing"
    for upload, key in open_uploads.items():
        assert upload not in owned_uploads
        assert part_bytes[upload] == counter(records.get(b"g" + upload + b"s"))
        assert counter(records.get(b"g" + upload + b"n")) >= parts[upload]
        sizes[int.from_bytes(key[1:9], "big")] += part_bytes[upload]
    for key in all_of(b"g"):
        assert key[1:17] in open_uploads, "a generation of no upload"

    pages: Counter[bytes] = Counter()
    for key, value in all_of(b"q").items():
        assert key[1:17] in owned_uploads or key[1:17] in doomed, "a part list of nothing"
        page = decode(value, PartsPage)
        assert len(page.parts) <= PAGE_PARTS_MAX
        pages[key[1:17]] += len(page.parts)
    for upload, listed in owned_uploads.items():
        assert pages[upload] == listed
        assert parts[upload] == listed or (parts[upload] > listed and doomed[upload].unlisted)

    blob_pages: Counter[bytes] = Counter()
    for key, value in all_of(b"x").items():
        blob_pages[key[1:17]] += 1
        count(decode(value, ExtentPage).extents)
        assert key[1:17] in owned_blobs or key[1:17] in doomed, "a page of nothing"
    for blob, wanted in owned_blobs.items():
        assert blob_pages[blob] == wanted

    for bucket in buckets:
        name = b"c" + bucket.to_bytes(8, "big")
        assert counter(records.get(name + b"o")) == objects[bucket]
        assert counter(records.get(name + b"s")) == sizes[bucket]
        assert counter(records.get(name + b"u")) == uploads[bucket]
    for key in all_of(b"c"):
        assert int.from_bytes(key[1:9], "big") in buckets, "a counter of no bucket"
    counted = {int.from_bytes(key[1:], "big"): counter(value) for key, value in all_of(b"G").items()}
    assert {volume: size for volume, size in counted.items() if size} == {
        volume: size for volume, size in live.items() if size
    }
    return Counter({letter: len(found) for letter, found in by_letter.items()})
