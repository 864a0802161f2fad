"""Buckets from before there were meters: every version counts once, whatever changes meanwhile."""

import random
from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from objstore.meta.kv import Add, DictKv, Transaction, prefix_end
from objstore.meta.schema import (
    AccountRecord,
    BucketRecord,
    ClassTerms,
    Limits,
    UploadRecord,
    account_key,
    bucket_key,
    decode,
    encode,
)
from objstore.objects import adoption, multipart
from objstore.objects.accounting import adoption_of, is_metered
from objstore.objects.adoption import adopt, count_afresh, note_unmetered, unadopted
from objstore.objects.buckets import create_bucket, delete_bucket
from objstore.objects.copies import Source, copy_object
from objstore.objects.reservations import is_limited
from objstore.objects.store import Store
from objstore.objects.values import About
from objstore.objects.writes import delete_object, put_object
from objstore.rental.meters import DELTA, split_meter
from objstore.rental.terms import Account
from tests.objects.audit import audit
from tests.objects.fakes import FakeClock, MemoryBody, another_process, memory_store, principal
from tests.seed import SEED

WHO = principal()
SECOND = 1_000_000
KEYS = [f"{letter}{number}" for letter in "abcdefgh" for number in range(3)]


class MeddlingKv(DictKv):
    """Lets something else happen just before a commit that changes a bucket's record."""

    def __init__(self) -> None:
        super().__init__()
        self.meddle: Callable[[], Awaitable[None]] | None = None

    async def commit(self, transaction: Transaction) -> None:
        meddle = self.meddle
        if meddle is not None and any(key[:1] == b"b" for key in transaction.put):
            self.meddle = None
            await meddle()
            self.meddle = meddle
        await super().commit(transaction)


async def age(store: Store) -> None:
    """What an earlier release would have left: nothing of meters, quotas and titles."""
    gone = [adoption.METERED_KEY]
    for prefix in (b"M", b"Q", b"w", b"E", b"y"):
        gone += [key for key, _ in await store.kv.scan(prefix, prefix_end(prefix), 100_000)]
    gone += [key for key, _ in await store.kv.scan(b"c", prefix_end(b"c"), 1_000) if key[-1:] == b"b"]
    uploads = {
        key: encode(replace(decode(value, UploadRecord), counted=False))
        for key, value in await store.kv.scan(b"m", prefix_end(b"m"), 1_000)
    }
    await store.kv.commit(Transaction(put=uploads, delete=gone))


async def record_of(store: Store, name: str = "bucket") -> BucketRecord:
    value = await store.kv.get(bucket_key(name))
    assert value is not None
    return decode(value, BucketRecord)


async def random_change(rng: random.Random, clock: FakeClock, store: Store) -> None:
    clock.now += rng.choice([0, 1, 1_000, 3 * SECOND, 7_200 * SECOND])
    if rng.random() < 0.1:
        clock.now -= rng.randrange(20 * SECOND)
    key = rng.choice(KEYS)
    body = MemoryBody(bytes(rng.choice([0, 5, 150, 300])))
    kind = rng.randrange(5)
    if kind <= 1:
        await put_object(store, WHO, "bucket", key, About(metadata={"a": "b"} if kind else {}), body)
    elif kind == 2:
        await delete_object(store, WHO, "bucket", key)
    elif kind == 3:
        other = rng.choice(KEYS)
        source = Source(bucket="bucket", key=other)
        if await store.kv.get(b"o" + (await record_of(store)).id.to_bytes(8, "big") + other.encode()):
            await copy_object(store, WHO, source, "bucket", key, about=About(metadata={"copied": "yes"}))
    else:
        upload, _ = await multipart.create_upload(
            store, WHO, "bucket", key, About(), checksum_algorithm="", checksum_type=""
        )
        part = await multipart.put_part(store, WHO, "bucket", key, upload, 1, body)
        if rng.random() < 0.5:
            claims = [multipart.Claimed(number=1, etag=part.etag)]
            await multipart.complete_upload(store, WHO, "bucket", key, upload, claims)
        elif rng.random() < 0.7:
            await multipart.abort_upload(store, WHO, "bucket", key, upload)


async def abort_uploads(store: Store) -> None:
    page = await multipart.list_uploads(
        store, WHO, "bucket", prefix="", delimiter="", after_key="", after_upload="", limit=1_000
    )
    for key, upload, _ in page.uploads:
        await multipart.abort_upload(store, WHO, "bucket", key, upload)


@pytest.mark.parametrize("seed", range(SEED, SEED + 25))
async def test_whatever_changes_meanwhile_every_version_counts_exactly_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    monkeypatch.setattr(adoption, "STEP_VERSIONS", rng.randrange(1, 6))
    monkeypatch.setattr(adoption, "STEPS_AT_ONCE", rng.randrange(1, 4))
    kv, clock = MeddlingKv(), FakeClock()
    first = memory_store(kv=kv, clock=clock, small_size_max=100, stripe_size=64)
    processes = [first, another_process(first)]
    await create_bucket(first, WHO, "bucket", region="")
    for _ in range(30):
        await random_change(rng, clock, rng.choice(processes))
    await age(first)
    for process in processes:
        process.buckets.clear()
    assert await note_unmetered(first) == 1
    assert await note_unmetered(processes[1]) == 0
    await audit(first)

    async def meddle() -> None:
        if rng.random() < 0.7:
            await random_change(rng, clock, processes[1])

    kv.meddle = meddle
    for turn in range(40):
        await random_change(rng, clock, rng.choice(processes))
        await adopt(first)
        await audit(first)
        if turn % 5 == 4:
            await abort_uploads(first)
    kv.meddle = None
    await abort_uploads(first)
    for _ in range(40):
        await adopt(first)
    assert await unadopted(first) == []
    assert (await record_of(first)).settings is None
    await audit(first)
    for key in KEYS:
        await delete_object(first, WHO, "bucket", key)
    await delete_bucket(first, WHO, "bucket")
    await audit(first)


@pytest.mark.parametrize("seed", range(SEED, SEED + 5))
async def test_when_counters_were_lost_all_buckets_are_counted_afresh(seed: int) -> None:
    print(f"seed {seed}")
    rng, clock = random.Random(seed), FakeClock()
    store = memory_store(clock=clock, small_size_max=100, stripe_size=64)
    await create_bucket(store, WHO, "bucket", region="")
    for _ in range(2):  # A second time, too: versions then bear marks of the first.
        for _ in range(30):
            await random_change(rng, clock, store)
        await store.kv.commit(Transaction(add={b"Qtdefault\0s": Add(77)}))
        await count_afresh(store.kv)
        store.buckets.clear()
        await audit(store)
        assert await deltas(store) == 0
        await abort_uploads(store)
        await adopt(store)
        for _ in range(5):
            await random_change(rng, clock, store)
            await audit(store)
        await abort_uploads(store)
        while await unadopted(store):
            await adopt(store)
        await audit(store)


async def old_store(*keys: str) -> Store:
    store = memory_store(clock=FakeClock())
    await create_bucket(store, WHO, "bucket", region="")
    for key in keys:
        await put_object(store, WHO, "bucket", key, About(), MemoryBody(bytes(100)))
    await age(store)
    store.buckets.clear()
    await note_unmetered(store)
    return store


async def deltas(store: Store) -> int:
    found = 0
    for key, value in await store.kv.scan(b"M", prefix_end(b"M"), 10_000):
        if split_meter(key)[3] == DELTA:
            found += int.from_bytes(value, "big", signed=True)
    return found


async def test_nothing_of_a_bucket_counts_until_its_adoption_begins() -> None:
    store = await old_store("a", "b")
    await put_object(store, WHO, "bucket", "c", About(), MemoryBody(bytes(100)))
    await delete_object(store, WHO, "bucket", "a")
    assert not is_metered(await record_of(store))
    assert not await store.kv.scan(b"M", prefix_end(b"M"), 10)
    await audit(store)
    while await unadopted(store):
        await adopt(store)
    assert await deltas(store) == 2 * 101
    await audit(store)


async def test_uploads_under_way_hold_its_beginning_up_and_are_named() -> None:
    store = await old_store("a")
    upload, _ = await multipart.create_upload(
        store, WHO, "bucket", "k", About(), checksum_algorithm="", checksum_type=""
    )
    part = await multipart.put_part(store, WHO, "bucket", "k", upload, 1, MemoryBody(bytes(10)))
    assert await adopt(store) == 0
    [waiting] = await unadopted(store)
    assert (waiting.name, waiting.uploads, waiting.adoption.begun_us) == ("bucket", 1, 0)
    claims = [multipart.Claimed(number=1, etag=part.etag)]
    await multipart.complete_upload(store, WHO, "bucket", "k", upload, claims)
    while await unadopted(store):
        await adopt(store)
    assert await deltas(store) == 101 + 11
    await audit(store)


async def test_what_is_stored_already_is_counted_above_any_limit() -> None:
    store = await old_store("a", "b")
    record = AccountRecord(
        limits=Limits(bytes_max=5, objects_max=1), classes={"": ClassTerms(bytes_min=4_096)}
    )
    await store.kv.commit(Transaction(put={account_key("default"): encode(record)}))
    account = Account("default", encode(record))
    assert not is_limited(account, await record_of(store), None)
    while await unadopted(store):
        await adopt(store)
    assert await deltas(store) == 2 * 101, "padded is only what came while its class demanded it"
    await audit(store)


async def test_buckets_that_are_made_from_now_on_are_metered_at_once() -> None:
    store = await old_store()
    await create_bucket(store, WHO, "other", region="")
    assert adoption_of(await record_of(store, "other")) is None
    assert await note_unmetered(store) == 0
    await put_object(store, WHO, "other", "k", About(), MemoryBody(bytes(9)))
    assert await deltas(store) == 10
