"""What dropped uploads and long objects leave behind, and how it goes: in bounded steps, every byte counted.

A commit that drops an upload, a multipart object or an object with pages of extents does not touch its
thousands of keys: it puts one `d` key. The sweep removes parts, pages and part lists of a doomed id later,
a hundred keys a commit, and the live bytes of their volumes go down in the same commits. Until then they
are homes like any other: compaction keeps their bytes, and a reader that began before the drop can finish.

Concurrency: any number of processes may sweep at once: each commit expects the doomed record and every record
it removes, and a loser just reads again.
"""

import asyncio
from typing import Final

from objstore.clock import SECOND_US
from objstore.errors import Conflict, Contended, NoSuchUpload, Overloaded
from objstore.extents import Extent
from objstore.meta.kv import Add, Transaction, counter, pages, prefix_end
from objstore.meta.schema import (
    BucketRecord,
    DoomedRecord,
    ExtentPage,
    PartRecord,
    PartsPage,
    UploadRecord,
    bucket_bytes_key,
    bucket_key,
    bucket_uploads_key,
    decode,
    doomed_key,
    encode,
    tenant_use_key,
    upload_bytes_key,
    upload_generation_key,
)
from objstore.objects.accounting import is_metered, key_of, metered_class, open_account, use
from objstore.objects.ledger import live_adds
from objstore.objects.store import Store
from objstore.rental.meters import count
from objstore.rental.terms import UNLIMITED, add_key_use

ATTEMPTS_MAX: Final = 64
STEP_KEYS: Final = 100  # Records removed by one commit.
PARTS_AT_ONCE: Final = 1_000  # Read by one look.
GRACE_US: Final = 3_600_000_000  # How long a reader that has begun can still look up parts: an hour.


def ended(bucket: BucketRecord, upload: UploadRecord) -> dict[bytes, Add]:
    """What an upload that is under way no longer is counted among."""
    add = {bucket_uploads_key(bucket.id): Add(-1)}
    if upload.counted:
        add[tenant_use_key(bucket.tenant) + b"u"] = Add(-1)
    return add


async def abort(store: Store, name: str, bucket_value: bytes, bucket: BucketRecord, key: bytes) -> None:
    """Drop the upload under this m key: one commit, however many parts it has. It reads them all.

    Raises: NoSuchUpload; Conflict if the bucket is no longer this record; Overloaded.
    """
    upload = key[-16:]
    generation, size = upload_generation_key(upload), upload_bytes_key(upload)
    for _ in range(ATTEMPTS_MAX):
        record, parts, part_bytes = await store.kv.get_many([key, generation, size])
        if record is None:
            raise NoSuchUpload(upload.hex())
        add = ended(bucket, decode(record, UploadRecord))
        freed = counter(part_bytes)
        if freed:
            add[bucket_bytes_key(bucket.id)] = Add(-freed)
        if freed and is_metered(bucket):
            use(add, await open_account(store, bucket.tenant), bucket, size=-freed)
            end_us = max(store.clock.now_us(), await _latest_us(store, upload))
            extra = decode(record, UploadRecord).extra
            count(add, bucket.id, metered_class(extra), end_us // SECOND_US, stored=-freed)
            if access_key := key_of(extra):
                add_key_use(add, access_key, UNLIMITED, size=-freed)
        transaction = Transaction(
            expect={bucket_key(name): bucket_value, key: record, generation: parts, size: part_bytes},
            put={doomed_key(upload): encode(DoomedRecord(since_us=store.clock.now_us()))} if parts else {},
            delete=[key, generation, size],
            add=add,
        )
        store.crash_point("abort-decided")
        try:
            await store.kv.commit(transaction)
        except Conflict as conflict:
            if conflict.key == bucket_key(name):
                raise
            continue  # A part arrived.
        store.crash_point("abort-committed")
        return
    raise Contended("parts of the upload kept arriving")


async def _latest_us(store: Store, upload: bytes) -> int:
    """The order of the upload's newest part: no part ends before it came, whatever the clocks say."""
    latest_us = 0
    async for pairs in pages(store.kv, b"p" + upload, prefix_end(b"p" + upload), PARTS_AT_ONCE):
        latest_us = max(latest_us, *(decode(value, PartRecord).order for _, value in pairs))
        await asyncio.sleep(0)  # Ten thousand parts: others may run in between.
    return latest_us


async def abort_all(store: Store, name: str, bucket_value: bytes, bucket: BucketRecord) -> None:
    """Drop every upload of a bucket that is about to go. Raises: Overloaded."""
    start = b"m" + bucket.id.to_bytes(8, "big")
    while pairs := await store.kv.scan(start, prefix_end(start), STEP_KEYS):
        for key, _ in pairs:
            try:
                await abort(store, name, bucket_value, bucket, key)
            except NoSuchUpload:
                pass  # Completed or aborted meanwhile.
            except Conflict:
                return  # The bucket changed: its deletion begins again.


async def sweep(store: Store, *, grace_us: int = GRACE_US, ids_max: int = 1_000) -> int:
    """Remove what was doomed at least `grace_us` ago, at most `ids_max` ids; returns how many are done.

    Resumable: what a crash leaves is found again. Call it now and then from one process.
    """
    before_us = store.clock.now_us() - grace_us
    start, end = b"d", prefix_end(b"d")
    done = 0
    while done < ids_max:
        pairs = await store.kv.scan(start, end, STEP_KEYS)
        for key, value in pairs:
            if done < ids_max and decode(value, DoomedRecord).since_us <= before_us:
                await _sweep_one(store, key)
                done += 1
        if len(pairs) < STEP_KEYS:
            break
        start = pairs[-1][0] + b"\0"
    return done


async def _sweep_one(store: Store, key: bytes) -> None:
    lost_rounds = 0
    while True:
        value = await store.kv.get(key)
        if value is None:
            return  # Another process was faster.
        try:
            await _remove_all(store, key, value)
        except Conflict:
            lost_rounds += 1
            if lost_rounds >= ATTEMPTS_MAX:
                raise Overloaded("a doomed upload did not come to rest") from None
            continue
        return


async def _remove_all(store: Store, key: bytes, value: bytes) -> None:
    one = key[1:]
    listed = await _listed(store, one) if decode(value, DoomedRecord).unlisted else None
    expect: dict[bytes, bytes | None] = {key: value}
    start = b"p" + one
    end = prefix_end(start)
    while pairs := await store.kv.scan(start, end, STEP_KEYS):
        start = pairs[-1][0] + b"\0"
        gone = [
            (part, record, decode(record, PartRecord))
            for part, record in pairs
            if listed is None or int.from_bytes(part[-2:], "big") not in listed
        ]
        for _, _, record in gone:
            if record.blob:
                await _remove_pages(store, record.blob, expect)
        if gone:
            lost = [extent for _, _, record in gone for extent in record.extents]
            await _remove(store, expect, [(part, record) for part, record, _ in gone], lost)
    if listed is None:
        await _remove_pages(store, one, expect)
        start = b"q" + one
        while pairs := await store.kv.scan(start, prefix_end(start), STEP_KEYS):
            await _remove(store, expect, pairs, [])
    await store.kv.commit(Transaction(expect=expect, delete=[key]))
    store.crash_point("doomed-gone")


async def _remove_pages(store: Store, blob: bytes, expect: dict[bytes, bytes | None]) -> None:
    start = b"x" + blob
    while pairs := await store.kv.scan(start, prefix_end(start), STEP_KEYS):
        lost = [extent for _, page in pairs for extent in decode(page, ExtentPage).extents]
        await _remove(store, expect, pairs, lost)


async def _remove(
    store: Store,
    expect: dict[bytes, bytes | None],
    pairs: list[tuple[bytes, bytes]],
    lost: list[Extent],
) -> None:
    await store.kv.commit(
        Transaction(
            expect={**expect, **dict(pairs)}, delete=[key for key, _ in pairs], add=live_adds((), lost)
        )
    )
    store.crash_point("doomed-removed")


async def _listed(store: Store, upload: bytes) -> set[int]:
    """The numbers of the parts that a completed object is made of."""
    numbers: set[int] = set()
    start = b"q" + upload
    async for pairs in pages(store.kv, start, prefix_end(start), STEP_KEYS):
        for _, page in pairs:
            numbers.update(entry.number for entry in decode(page, PartsPage).parts)
    return numbers
