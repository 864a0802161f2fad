"""Exact quotas: no commit crosses a limit, the last free byte can be used, what is reserved comes back."""

import asyncio
import os
import random
from collections.abc import AsyncIterator

import msgspec
import pytest

from objstore.errors import AccountClosed, QuotaExceeded, StoreError
from objstore.meta.kv import DictKv, Transaction, counter
from objstore.meta.schema import (
    AccountRecord,
    BucketRecord,
    Limits,
    account_key,
    bucket_key,
    decode,
    encode,
    tenant_use_key,
)
from objstore.objects import multipart
from objstore.objects.buckets import create_bucket, delete_bucket
from objstore.objects.copies import Source, copy_object
from objstore.objects.reservations import HELD_US, release_expired
from objstore.objects.store import Store
from objstore.objects.values import About, Buffer
from objstore.objects.writes import delete_object, put_object
from tests.objects.audit import audit
from tests.objects.fakes import FakeClock, MemoryBody, another_process, memory_store, principal
from tests.seed import SEED

RUNS = 100 if os.environ.get("OBJSTORE_LONG") else 4
WHO = principal()
USED = tenant_use_key("default") + b"s"


async def limited(store: Store, record: AccountRecord) -> None:
    await store.kv.commit(Transaction(put={account_key("default"): encode(record)}))


async def used(store: Store) -> int:
    return counter(await store.kv.get(USED))


class WatchedKv(DictKv):
    """Looks at a counter after every commit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.highest = 0

    async def commit(self, transaction: Transaction) -> None:
        await asyncio.sleep(0)
        await super().commit(transaction)
        now = counter(await self.get(USED))
        assert 0 <= now <= self.limit, f"{now} of {self.limit}"
        self.highest = max(self.highest, now)


@pytest.mark.parametrize("seed", range(SEED, SEED + RUNS))
async def test_many_gateways_fill_one_quota_and_no_commit_crosses_it(seed: int) -> None:
    rng = random.Random(seed)
    limit = 6_000
    kv = WatchedKv(limit)
    first = memory_store(kv=kv, clock=FakeClock(), small_size_max=200, stripe_size=64)
    await limited(first, AccountRecord(limits=Limits(bytes_max=limit)))
    await create_bucket(first, WHO, "bucket", region="")
    gateways = [first, *(another_process(first) for _ in range(7))]
    refused = 0

    async def client(store: Store, number: int) -> None:
        nonlocal refused
        for _ in range(30):
            key = f"{number % 3}-{rng.randrange(12)}"
            size = rng.choice([0, 1, 150, 199, 201, 700, 1_500])
            kind = rng.randrange(8)
            try:
                if kind < 4:
                    await put_object(store, WHO, "bucket", key, About(), MemoryBody(rng.randbytes(size)))
                elif kind == 4:
                    await delete_object(store, WHO, "bucket", key)
                elif kind == 5:
                    source = Source(bucket="bucket", key=f"{rng.randrange(3)}-{rng.randrange(12)}")
                    await copy_object(store, WHO, source, "bucket", key, about=None)
                else:
                    upload, _ = await multipart.create_upload(
                        store, WHO, "bucket", key, About(), checksum_algorithm="", checksum_type=""
                    )
                    try:
                        part = MemoryBody(rng.randbytes(size))
                        written = await multipart.put_part(store, WHO, "bucket", key, upload, 1, part)
                        claims = [multipart.Claimed(number=1, etag=written.etag)]
                        await multipart.complete_upload(store, WHO, "bucket", key, upload, claims)
                    except QuotaExceeded:
                        await multipart.abort_upload(store, WHO, "bucket", key, upload)
                        raise
            except QuotaExceeded:
                refused += 1
            except StoreError:
                pass  # A source that is not there, a copy onto itself.

    await asyncio.gather(*(client(store, number) for number, store in enumerate(gateways)))
    assert refused, "the quota was never reached"
    counts = await audit(first)
    assert not counts[b"E"], "a reservation was left"
    # The last free byte can still be used, and not one more.
    await delete_object(first, WHO, "bucket", "last")
    free = limit - await used(first)
    if free > 4:
        with pytest.raises(QuotaExceeded):
            await put_object(first, WHO, "bucket", "last", About(), MemoryBody(bytes(free - 4 + 1)))
        await put_object(first, WHO, "bucket", "last", About(), MemoryBody(bytes(free - 4)))
        assert await used(first) == limit
    await audit(first)


class StuckBody(MemoryBody):
    """Waits in the middle."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, chunk_size=len(data) // 2)
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def _chunks(self) -> AsyncIterator[Buffer]:
        async for chunk in super()._chunks():
            yield chunk
            self.reached.set()
            await self.go_on.wait()


async def test_a_large_body_reserves_before_it_is_received_and_settles_with_its_commit() -> None:
    store = memory_store(small_size_max=200, clock=FakeClock())
    await limited(store, AccountRecord(limits=Limits(bytes_max=1_003)))
    await create_bucket(store, WHO, "bucket", region="")
    body = StuckBody(bytes(1_000))
    upload = asyncio.create_task(put_object(store, WHO, "bucket", "key", About(), body))
    await body.reached.wait()
    assert await used(store) == 1_003
    with pytest.raises(QuotaExceeded) as refused:
        await put_object(store, WHO, "bucket", "k", About(), MemoryBody(b""))
    assert (refused.value.scope, refused.value.limit, refused.value.used) == ("tenant", 1_003, 1_003)
    body.go_on.set()
    await upload
    assert await used(store) == 1_003
    assert not (await audit(store))[b"E"]


async def test_a_body_that_is_refused_is_not_even_begun() -> None:
    store = memory_store(small_size_max=200, clock=FakeClock())
    await limited(store, AccountRecord(limits=Limits(bytes_max=500)))
    await create_bucket(store, WHO, "bucket", region="")
    for size in (498, 5_000):
        body = StuckBody(bytes(size))
        with pytest.raises(QuotaExceeded):
            await put_object(store, WHO, "bucket", "key", About(), body)
        assert not body.reached.is_set()


async def test_what_a_failed_upload_reserved_comes_back_at_once_and_of_a_dead_one_after_a_while() -> None:
    clock = FakeClock()
    store = memory_store(small_size_max=200, clock=clock)
    await limited(store, AccountRecord(limits=Limits(bytes_max=5_000)))
    await create_bucket(store, WHO, "bucket", region="")
    failing = MemoryBody(bytes(1_000), error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await put_object(store, WHO, "bucket", "key", About(), failing)
    assert await used(store) == 0

    body = StuckBody(bytes(1_000))
    upload = asyncio.create_task(put_object(store, WHO, "bucket", "key", About(), body))
    await body.reached.wait()
    other = another_process(store)
    assert await release_expired(other) == 0
    clock.now += HELD_US + 1
    assert await release_expired(other) == 1
    assert await used(store) == 0
    body.go_on.set()
    await upload  # Decided by its own commit, then.
    assert await used(store) == 1_003
    await audit(store)


async def test_an_overwrite_needs_room_for_what_it_adds_only() -> None:
    store = memory_store(small_size_max=200, clock=FakeClock())
    await limited(store, AccountRecord(limits=Limits(bytes_max=1_103)))
    await create_bucket(store, WHO, "bucket", region="")
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(bytes(1_000)))
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(bytes(1_100)))
    with pytest.raises(QuotaExceeded):
        await put_object(store, WHO, "bucket", "key", About(), MemoryBody(bytes(1_101)))
    assert await used(store) == 1_103


async def test_a_limit_below_what_is_stored_refuses_growth_only() -> None:
    store = memory_store(clock=FakeClock())
    await create_bucket(store, WHO, "bucket", region="")
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(bytes(100)))
    await limited(store, AccountRecord(limits=Limits(bytes_max=10)))
    with pytest.raises(QuotaExceeded):
        await put_object(store, WHO, "bucket", "key", About(), MemoryBody(bytes(101)))
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(bytes(90)))
    await delete_object(store, WHO, "bucket", "key")
    assert await used(store) == 0


async def test_a_limit_that_is_set_while_a_body_arrives_holds_for_its_commit() -> None:
    store = memory_store(clock=FakeClock())
    await create_bucket(store, WHO, "bucket", region="")
    body = StuckBody(bytes(100))
    upload = asyncio.create_task(put_object(store, WHO, "bucket", "key", About(), body))
    await body.reached.wait()
    await limited(store, AccountRecord(limits=Limits(bytes_max=10)))
    body.go_on.set()
    with pytest.raises(QuotaExceeded):
        await upload


async def test_objects_and_buckets_are_limited_too_and_so_is_a_project_and_a_bucket() -> None:
    store = memory_store(clock=FakeClock())
    record = AccountRecord(
        limits=Limits(objects_max=2, buckets_max=2), projects={"web": Limits(bytes_max=20)}
    )
    await limited(store, record)
    await create_bucket(store, WHO, "one", region="")
    await create_bucket(store, WHO, "two", region="")
    with pytest.raises(QuotaExceeded) as refused:
        await create_bucket(store, WHO, "three", region="")
    assert (refused.value.scope, refused.value.unit) == ("tenant", "buckets")
    await delete_bucket(store, WHO, "two")
    await create_bucket(store, WHO, "two", region="")

    value = await store.kv.get(bucket_key("two"))
    assert value is not None
    bucket = decode(value, BucketRecord)
    settings = {"project": b"web", "quota": encode(Limits(objects_max=1))}
    changed = msgspec.structs.replace(bucket, settings=settings)
    await store.kv.commit(Transaction({bucket_key("two"): value}, {bucket_key("two"): encode(changed)}))
    with pytest.raises(QuotaExceeded) as refused:
        await put_object(store, WHO, "two", "key", About(), MemoryBody(bytes(18)))
    assert refused.value.scope == "project"
    await put_object(store, WHO, "two", "key", About(), MemoryBody(bytes(17)))
    with pytest.raises(QuotaExceeded) as refused:
        await put_object(store, WHO, "two", "k", About(), MemoryBody(b""))
    assert (refused.value.scope, refused.value.unit) == ("bucket", "objects")
    await put_object(store, WHO, "one", "key", About(), MemoryBody(bytes(100)))
    with pytest.raises(QuotaExceeded) as refused:
        await put_object(store, WHO, "one", "another", About(), MemoryBody(b""))
    assert (refused.value.scope, refused.value.unit) == ("tenant", "objects")
    await audit(store)


@pytest.mark.parametrize(
    ("state", "stores"),
    [
        ("trial", True),
        ("active", True),
        ("past_due", True),
        ("read_only", False),
        ("suspended", False),
        ("terminating", False),
        ("purged", False),
    ],
)
async def test_a_state_of_the_account_says_whether_more_may_be_stored(state: str, stores: bool) -> None:
    store = memory_store(clock=FakeClock())
    await create_bucket(store, WHO, "bucket", region="")
    await limited(store, AccountRecord(state=state))
    if stores:
        await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"x"))
    else:
        with pytest.raises(AccountClosed):
            await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"x"))
        with pytest.raises(AccountClosed):
            await create_bucket(store, WHO, "another", region="")
