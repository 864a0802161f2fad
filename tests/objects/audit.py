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
    key_use_key,
    project_use_key,
    tenant_use_key,
    unescape,
)
from objstore.objects.accounting import adoption_of, is_counted, is_metered, key_of, metered_class, project_of
from objstore.objects.carrying import is_carried
from objstore.objects.store import Store
from objstore.rental.meters import DELTA, split_meter
from objstore.rental.records import HeldRecord
from objstore.rental.terms import billed_bytes


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
    billed: Counter[tuple[int, str]] = Counter()  # By bucket and storage class.
    of_keys: Counter[bytes] = Counter()  # What access keys with limits hold, by counter.
    live: Counter[int] = Counter()
    objects: Counter[int] = Counter()
    counted_objects: Counter[int] = Counter()  # All of them, but in buckets that are being adopted.
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
        adoption = adoption_of(buckets[bucket])
        counts = adoption is None or is_counted(adoption, key[9:], record)
        if counts:
            counted_objects[bucket] += 1
            billed[bucket, metered_class(record.extra)] += billed_bytes(record.size, key[9:], record.extra)
        if counts and (access_key := key_of(record.extra)):
            of_keys[key_use_key(access_key) + b"s"] += billed_bytes(record.size, key[9:], record.extra)
            of_keys[key_use_key(access_key) + b"o"] += 1
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
    classes: dict[bytes, str] = {}
    keys: dict[bytes, str] = {}
    of_tenants: Counter[str] = Counter()
    for key, value in all_of(b"m").items():
        bucket = int.from_bytes(key[1:9], "big")
        assert bucket in buckets, f"an upload of no bucket: {key!r}"
        _, upload = unescape(key[9:])
        open_uploads[upload] = key
        upload_record = decode(value, UploadRecord)
        uploads_extra = upload_record.extra
        of_tenants[buckets[bucket].tenant] += upload_record.counted
        classes[upload] = metered_class(uploads_extra)
        keys[upload] = key_of(uploads_extra)
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
        if is_metered(buckets[int.from_bytes(key[1:9], "big")]):
            billed[int.from_bytes(key[1:9], "big"), classes[upload]] += part_bytes[upload]
        if keys[upload] and is_metered(buckets[int.from_bytes(key[1:9], "big")]):
            of_keys[key_use_key(keys[upload]) + b"s"] += part_bytes[upload]
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
        assert counter(records.get(name + b"b")) == sum(
            size for (one, _), size in billed.items() if one == bucket
        )
    _check_use(records, buckets, billed, counted_objects, of_keys, of_tenants)
    for key in all_of(b"c"):
        assert int.from_bytes(key[1:9], "big") in buckets, "a counter of no bucket"
    counted = {int.from_bytes(key[1:], "big"): counter(value) for key, value in all_of(b"G").items()}
    assert {volume: size for volume, size in counted.items() if size} == {
        volume: size for volume, size in live.items() if size
    }
    return Counter({letter: len(found) for letter, found in by_letter.items()})


def _check_use(
    records: dict[bytes, bytes],
    buckets: dict[int, BucketRecord],
    billed: Counter[tuple[int, str]],
    objects: Counter[int],
    of_keys: Counter[bytes],
    uploads: Counter[str],
) -> None:
    """What tenants and projects hold, and what the meters say that buckets hold."""
    used: Counter[bytes] = Counter(of_keys)
    used.update({tenant_use_key(tenant) + b"u": number for tenant, number in uploads.items()})
    for number, bucket in buckets.items():
        size = sum(size for (one, _), size in billed.items() if one == number)
        scopes = [tenant_use_key(bucket.tenant)]
        if project_of(bucket):
            scopes.append(project_use_key(bucket.tenant, project_of(bucket)))
        used[scopes[0] + b"b"] += 1
        for scope in scopes:
            used[scope + b"s"] += size
            used[scope + b"o"] += objects[number]
    held = {key: counter(value) for key, value in records.items() if key[:1] == b"Q"}
    assert {key: size for key, size in held.items() if size} == {k: size for k, size in used.items() if size}
    metered: Counter[tuple[int, str]] = Counter()
    for key, value in records.items():
        if key[:1] == b"M":
            _, number, storage_class, meter = split_meter(key)
            if meter == DELTA:
                metered[number, storage_class] += counter(value)
        elif key[:1] == b"y":  # Of the hours that are sealed.
            held_there = decode(value, HeldRecord)
            metered[int.from_bytes(key[1:9], "big"), key[9:-1].decode()] += held_there.size
    assert {of: size for of, size in metered.items() if size} == {
        of: size for of, size in billed.items() if size
    }
