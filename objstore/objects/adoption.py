"""Buckets from before there were meters: what they hold is counted while they serve, each version once.

    absent              metered: of all buckets that were made with a title
    begun_us 0          from before: nothing of it counts; put by the first process of a release with meters
    begun_us, cursor    a version counts if its key is at or before the cursor, or if it bears a mark
                        (Extra.counted) that it was written since: its own commit has counted it
    absent              all of it was passed

Each change in a bucket expects its record, so each knows which of these holds. A step counts some 200
versions behind the cursor and moves it, in one commit that expects the bucket's record and every version's:
one that is replaced meanwhile makes it a conflict, one that comes bears the mark. Parts of uploads have no
mark: adoption begins when no upload is under way.

What was there counts from the moment of its step on; nobody is billed for what was before.
"""

import logging
from typing import Final, NamedTuple

import msgspec

from objstore.clock import SECOND_US
from objstore.errors import Conflict, Overloaded
from objstore.meta.kv import Add, Kv, Transaction, counter, pages, prefix_end
from objstore.meta.schema import (
    FORMAT,
    AdoptionRecord,
    BucketRecord,
    ObjectRecord,
    bucket_key,
    bucket_objects_key,
    bucket_uploads_key,
    decode,
    encode,
    object_key,
    setting_key,
    tenant_use_key,
    title_key,
)
from objstore.objects.accounting import (
    ADOPTION,
    adoption_of,
    is_counted,
    metered_class,
    project_of,
)
from objstore.objects.buckets import title_of
from objstore.objects.store import Store
from objstore.rental.meters import count
from objstore.rental.terms import UNLIMITED, Account, add_key_use, add_use, billed_bytes

log = logging.getLogger(__name__)

METERED_KEY: Final = setting_key("metered")  # All buckets from before are known to be that.
STEP_VERSIONS: Final = 200  # Counted by one commit.
STEPS_AT_ONCE: Final = 50  # Of one bucket in one pass: each makes the changes under way in it decide again.
SCAN_BUCKETS: Final = 500
ATTEMPTS_MAX: Final = 64


async def note_unmetered(store: Store) -> int:
    """Before a process serves: buckets without a title are from before there were meters. Returns how many.

    Raises: Overloaded, MetaUnavailable.
    """
    if await store.kv.get(METERED_KEY) is not None:
        return 0
    noted = 0
    async for found in pages(store.kv, b"b", prefix_end(b"b"), SCAN_BUCKETS):
        for key, _ in found:
            noted += await _note(store, key)
    await store.kv.commit(Transaction(put={METERED_KEY: encode((FORMAT,))}))
    if noted:
        log.info("buckets from before there were meters are to be adopted", extra={"buckets": noted})
    return noted


async def _note(store: Store, key: bytes) -> bool:
    for _ in range(ATTEMPTS_MAX):
        value = await store.kv.get(key)
        if value is None:
            return False
        record = decode(value, BucketRecord)
        if await store.kv.get(title_key(record.id)) is not None:
            return False
        title = title_of(key[1:].decode(), record)
        transaction = Transaction(
            {key: value, title_key(record.id): None},
            {key: encode(_with(record, AdoptionRecord())), title_key(record.id): encode(title)},
            (),
            {tenant_use_key(record.tenant) + b"b": Add(1)},
        )
        try:
            await store.kv.commit(transaction)
        except Conflict:
            continue
        return True
    raise Overloaded(f"bucket {key[1:]!r} did not come to rest")


async def count_afresh(kv: Kv) -> None:
    """After metadata was put together from fragments: no counter of quotas and meters can be believed.

    All buckets are to be adopted again, as if they were from before there were meters; sealed hours stay,
    open ones begin now. Uploads under way are in no fragment: what there is of them came with their count.

    For a store that does not serve. Raises: MetaUnavailable.
    """
    for prefix in (b"M", b"y", b"E", b"Q"):
        async for found in pages(kv, prefix, prefix_end(prefix), SCAN_BUCKETS):
            await kv.commit(Transaction(delete=[key for key, _ in found if not _counts_uploads(key)]))
    async for found in pages(kv, b"c", prefix_end(b"c"), SCAN_BUCKETS):
        await kv.commit(Transaction(delete=[key for key, _ in found if key[-1:] == b"b"]))
    async for found in pages(kv, b"b", prefix_end(b"b"), SCAN_BUCKETS):
        for key, value in found:
            record = decode(value, BucketRecord)
            put = {key: encode(_with(record, AdoptionRecord()))}
            if await kv.get(title_key(record.id)) is None:
                put[title_key(record.id)] = encode(title_of(key[1:].decode(), record))
            await kv.commit(
                Transaction({key: value}, put, (), {tenant_use_key(record.tenant) + b"b": Add(1)})
            )
    await kv.commit(Transaction(put={METERED_KEY: encode((FORMAT,))}))


def _counts_uploads(key: bytes) -> bool:
    return key[:2] == b"Qt" and key[-2:] == b"\0u"


def _with(record: BucketRecord, adoption: AdoptionRecord | None) -> BucketRecord:
    settings = {name: one for name, one in (record.settings or {}).items() if name != ADOPTION}
    if adoption is not None:
        settings[ADOPTION] = encode(adoption)
    return msgspec.structs.replace(record, settings=settings or None)


class Unadopted(NamedTuple):
    """A bucket that is not metered as a whole."""

    name: str
    adoption: AdoptionRecord
    uploads: int  # Under way: before it is begun they hold it up.


async def unadopted(store: Store) -> list[Unadopted]:
    """In order of name. Raises: MetaUnavailable."""
    buckets: list[Unadopted] = []
    async for found in pages(store.kv, b"b", prefix_end(b"b"), SCAN_BUCKETS):
        for key, value in found:
            record = decode(value, BucketRecord)
            adoption = adoption_of(record)
            if adoption is not None:
                uploads = counter(await store.kv.get(bucket_uploads_key(record.id)))
                buckets.append(Unadopted(key[1:].decode(), adoption, uploads))
    return buckets


async def adopt(store: Store) -> int:
    """One pass over the buckets that are to be adopted, some steps for each; how many versions were counted.

    Raises: Overloaded, MetaUnavailable.
    """
    counted = 0
    for bucket in await unadopted(store):
        for _ in range(STEPS_AT_ONCE):
            step = await _step(store, bucket_key(bucket.name))
            if step is None:
                break
            counted += step
    return counted


async def _step(store: Store, key: bytes) -> int | None:
    """How many versions it counted; None: there is nothing to do, now or any more."""
    size = STEP_VERSIONS
    for _ in range(ATTEMPTS_MAX):
        value = await store.kv.get(key)
        record = None if value is None else decode(value, BucketRecord)
        adoption = None if record is None else adoption_of(record)
        if value is None or record is None or adoption is None:
            return None
        try:
            if not adoption.begun_us:
                return await _begin(store, key, value, record)
            return await _count(store, key, value, record, adoption, size)
        except Conflict:
            size = max(1, size // 2)  # Versions that change all the time: fewer of them at once.
    raise Overloaded(f"bucket {key[1:]!r} did not come to rest")


async def _begin(store: Store, key: bytes, value: bytes, record: BucketRecord) -> int | None:
    place = bucket_uploads_key(record.id)
    uploads = await store.kv.get(place)
    if counter(uploads):
        return None  # Of their parts nobody could say whether they are counted.
    begun = _with(record, AdoptionRecord(begun_us=store.clock.now_us()))
    await store.kv.commit(Transaction({key: value, place: uploads}, {key: encode(begun)}))
    return 0


async def _count(
    store: Store, key: bytes, value: bytes, bucket: BucketRecord, adoption: AdoptionRecord, size: int
) -> int:
    prefix = object_key(bucket.id, b"")
    start = prefix + adoption.cursor + b"\0" if adoption.cursor else prefix
    pairs = await store.kv.scan(start, prefix_end(prefix), size)
    add: dict[bytes, Add] = {}
    at_s = store.clock.now_us() // SECOND_US
    objects = billed = 0
    for home, found in pairs:
        raw_key = home[len(prefix) :]
        record = decode(found, ObjectRecord)
        if is_counted(adoption, raw_key, record):
            continue
        one = billed_bytes(record.size, raw_key, record.extra)
        objects, billed = objects + 1, billed + one
        count(add, bucket.id, metered_class(record.extra), at_s, stored=one)
        if record.extra is not None and record.extra.access_key:
            add_key_use(add, record.extra.access_key, UNLIMITED, size=one, objects=1)
    # Without limits: it is stored already.
    account, project = Account(bucket.tenant, None), project_of(bucket)
    add_use(add, account, bucket.id, project, UNLIMITED, size=billed, objects=objects)
    add.pop(bucket_objects_key(bucket.id), None)  # Was counted before there were meters.
    last = len(pairs) < size
    cursor = pairs[-1][0][len(prefix) :] if pairs else adoption.cursor
    passed = None if last else AdoptionRecord(begun_us=adoption.begun_us, cursor=cursor)
    await store.kv.commit(
        Transaction({key: value, **dict(pairs)}, {key: encode(_with(bucket, passed))}, (), add)
    )
    return objects
