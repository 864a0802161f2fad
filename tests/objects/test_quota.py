"""Exact quotas: no commit crosses a limit, the last free byte can be used, what is reserved comes back."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator

import msgspec
import pytest

from objstore.errors import AccountClosed, QuotaExceeded, StoreError
from objstore.meta.kv import Add, DictKv, Transaction, counter
from objstore.meta.schema import (
    AccessKeyRecord,
    AccountRecord,
    BucketRecord,
    Limits,
    UploadRecord,
    access_key_key,
    account_key,
    bucket_key,
    decode,
    encode,
    key_use_key,
    tenant_use_key,
    upload_key,
)
from objstore.objects import multipart
from objstore.objects.buckets import create_bucket, delete_bucket, find_bucket
from objstore.objects.copies import Source, copy_object
from objstore.objects.reservations import HELD_US, release_expired
from objstore.objects.store import Store
from objstore.objects.values import About, Buffer, Principal
from objstore.objects.writes import delete_object, put_object
from objstore.rental import terms
from tests.objects.audit import audit
from tests.objects.fakes import FakeClock, MemoryBody, another_process, memory_store, principal
from tests.seed import SEED

RUNS = 100 if os.environ.get("OBJSTORE_LONG") else 4
WHO = principal()
LIMITED = Principal(
    tenant="default", user="root", access_key_id="OSLIMITEDAAAAAAAAAAA", limits=Limits(bytes_max=0)
)  # What holds is its record.
USED_BY_KEY = key_use_key(LIMITED.access_key_id) + b"s"
USED = tenant_use_key("default") + b"s"


async def limited(store: Store, record: AccountRecord) -> None:
    await store.kv.commit(Transaction(put={account_key("default"): encode(record)}))


async def give_key(store: Store, limits: Limits) -> None:
    record = AccessKeyRecord(user="root", secret=b"", created_us=1, limits=limits)
    await store.kv.commit(Transaction(put={access_key_key(LIMITED.access_key_id): encode(record)}))


async def used(store: Store) -> int:
    return counter(await store.kv.get(USED))


class WatchedKv(DictKv):
    """Looks at counters after every commit."""

    def __init__(self, limits: dict[bytes, int]) -> None:
        super().__init__()
        self.limits = limits

    async def commit(self, transaction: Transaction) -> None:
        await asyncio.sleep(0)
        await super().commit(transaction)
        for key, limit in self.limits.items():
            now = counter(await self.get(key))
            assert 0 <= now <= limit, f"{key!r}: {now} of {limit}"


@pytest.mark.parametrize("seed", range(SEED, SEED + RUNS))
async def test_many_gateways_fill_one_quota_and_no_commit_crosses_it(seed: int) -> None:
    rng = random.Random(seed)
    limit = 4_000
    kv = WatchedKv({USED: limit, USED_BY_KEY: 1_000})
    first = memory_store(kv=kv, clock=FakeClock(), small_size_max=200, stripe_size=64)
    await limited(first, AccountRecord(limits=Limits(bytes_max=limit)))
    await create_bucket(first, WHO, "bucket", region="")
    await give_key(first, Limits(bytes_max=1_000))
    gateways = [first, *(another_process(first) for _ in range(7))]
    refused: Counter[str] = Counter()

    async def client(store: Store, number: int) -> None:
        who = LIMITED if number % 2 else WHO
        for _ in range(40):
            key = f"{number % 3}-{rng.randrange(12)}"
            size = rng.choice([0, 1, 150, 199, 201, 700, 1_500])
            kind = rng.randrange(8)
            try:
                if kind < 4:
                    await put_object(store, who, "bucket", key, About(), MemoryBody(rng.randbytes(size)))
                elif kind == 4:
                    await delete_object(store, who, "bucket", key)
                elif kind == 5:
                    source = Source(bucket="bucket", key=f"{rng.randrange(3)}-{rng.randrange(12)}")
                    await copy_object(store, who, source, "bucket", key, about=None)
                else:
                    upload, _ = await multipart.create_upload(
                        store, who, "bucket", key, About(), checksum_algorithm="", checksum_type=""
                    )
                    try:
                        part = MemoryBody(rng.randbytes(size))
                        written = await multipart.put_part(store, who, "bucket", key, upload, 1, part)
                        claims = [multipart.Claimed(number=1, etag=written.etag)]
                        await multipart.complete_upload(store, who, "bucket", key, upload, claims)
                    except QuotaExceeded:
                        await multipart.abort_upload(store, who, "bucket", key, upload)
                        raise
            except QuotaExceeded as failure:
                refused[failure.scope] += 1
            except StoreError:
                pass  # A source that is not there, a copy onto itself.

    await asyncio.gather(*(client(store, number) for number, store in enumerate(gateways)))
    assert refused, "no quota was ever reached"
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


@pytest.mark.parametrize(("own", "leased", "holds"), [(None, 500, 500), (700, 500, 500), (300, 500, 300)])
async def test_what_is_leased_is_a_hard_limit_and_a_lower_one_of_the_tenants_holds_beside_it(
    own: int | None, leased: int, holds: int
) -> None:
    store = memory_store(clock=FakeClock(), small_size_max=200, stripe_size=64)
    await create_bucket(store, WHO, "bucket", region="")
    await limited(store, AccountRecord(limits=Limits(bytes_max=own), leased=leased))
    for size in (holds, 1_000):  # Its key counts too: the first is a byte too much, the second is reserved.
        with pytest.raises(QuotaExceeded) as refused:
            await put_object(store, WHO, "bucket", "k", About(), MemoryBody(bytes(size)))
        assert (refused.value.scope, refused.value.limit) == ("tenant", holds)
    await put_object(store, WHO, "bucket", "k", About(), MemoryBody(bytes(holds - 1)))
    assert await used(store) == holds
    await limited(store, AccountRecord(leased=0))
    with pytest.raises(QuotaExceeded):
        await put_object(store, WHO, "bucket", "l", About(), MemoryBody(b""))
    await put_object(store, WHO, "bucket", "k", About(), MemoryBody(b"less"))
    await audit(store)


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


async def test_buckets_are_bounded_where_no_limit_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "BUCKETS_MAX", 2)
    store = memory_store()
    for number in range(2):
        await create_bucket(store, WHO, f"bucket-{number}", region="")
    with pytest.raises(QuotaExceeded, match="2 buckets"):
        await create_bucket(store, WHO, "another", region="")
    await limited(store, AccountRecord(limits=Limits(buckets_max=3)))
    await create_bucket(store, WHO, "another", region="")
    await audit(store)


async def test_a_tenants_uploads_under_way_are_bounded_over_all_of_its_buckets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multipart, "UPLOADS_MAX", 3)
    store = memory_store()
    for bucket in ("one", "two"):
        await create_bucket(store, WHO, bucket, region="r")

    async def begin(bucket: str) -> str:
        about = About(metadata={"m": "x" * 2_000})
        made = await multipart.create_upload(
            store, WHO, bucket, "k", about, checksum_algorithm="", checksum_type=""
        )
        return made[0]

    first, second, _ = await begin("one"), await begin("one"), await begin("two")
    with pytest.raises(QuotaExceeded, match="3 uploads under way"):
        await begin("two")
    await multipart.abort_upload(store, WHO, "one", "k", first)
    third = await begin("two")
    part = await multipart.put_part(store, WHO, "one", "k", second, 1, MemoryBody(b"part"))
    await multipart.complete_upload(
        store, WHO, "one", "k", second, [multipart.Claimed(number=1, etag=part.etag)]
    )
    await begin("one")
    name = upload_key((await find_bucket(store, WHO, "two")).id, b"k", bytes.fromhex(third))
    old = decode(await store.kv.get(name) or b"", UploadRecord)
    before = {name: encode(msgspec.structs.replace(old, counted=False))}  # One of before they were counted.
    await store.kv.commit(Transaction(put=before, add={tenant_use_key("default") + b"u": Add(-1)}))
    await audit(store)
    await delete_bucket(store, WHO, "two")  # With those under way in it.
    assert counter(await store.kv.get(tenant_use_key("default") + b"u")) == 1
    await audit(store)


async def test_what_a_key_with_limits_stores_counts_for_it_until_it_goes_whoever_takes_it_away() -> None:
    store = memory_store(small_size_max=200, clock=FakeClock())
    await create_bucket(store, WHO, "bucket", region="")
    await give_key(store, Limits(bytes_max=1_000, objects_max=2))

    async def used_by_key() -> int:
        return counter(await store.kv.get(USED_BY_KEY))

    await put_object(store, WHO, "bucket", "a", About(), MemoryBody(bytes(5_000)))
    assert await used_by_key() == 0
    await put_object(store, LIMITED, "bucket", "b", About(metadata={"x": "y"}), MemoryBody(bytes(500)))
    assert await used_by_key() == 503
    source = Source(bucket="bucket", key="a")
    with pytest.raises(QuotaExceeded) as refused:
        await copy_object(store, LIMITED, source, "bucket", "c", about=None)
    assert refused.value.scope == "access key"
    await put_object(store, LIMITED, "bucket", "c", About(), MemoryBody(b""))
    with pytest.raises(QuotaExceeded) as refused:
        await put_object(store, LIMITED, "bucket", "d", About(), MemoryBody(b""))
    assert (refused.value.scope, refused.value.unit) == ("access key", "objects")
    await put_object(store, WHO, "bucket", "b", About(), MemoryBody(bytes(2_000)))
    assert await used_by_key() == 1, "another key's version has taken its place"
    await delete_object(store, WHO, "bucket", "c")
    assert await used_by_key() == 0
    await audit(store)


async def test_an_upload_counts_for_the_key_that_began_it_until_it_is_aborted_or_its_object_goes() -> None:
    store = memory_store(small_size_max=200, clock=FakeClock())
    await create_bucket(store, WHO, "bucket", region="")
    await give_key(store, Limits(bytes_max=1_000))
    uploads = []
    for _ in range(2):
        upload, _ = await multipart.create_upload(
            store, LIMITED, "bucket", "key", About(), checksum_algorithm="", checksum_type=""
        )
        uploads.append(upload)
        with pytest.raises(QuotaExceeded):
            await multipart.put_part(store, WHO, "bucket", "key", upload, 1, MemoryBody(bytes(1_001)))
        written = await multipart.put_part(store, WHO, "bucket", "key", upload, 1, MemoryBody(bytes(400)))
    assert counter(await store.kv.get(USED_BY_KEY)) == 800
    await audit(store)
    await multipart.abort_upload(store, WHO, "bucket", "key", uploads[0])
    claims = [multipart.Claimed(number=1, etag=written.etag)]
    await multipart.complete_upload(store, WHO, "bucket", "key", uploads[1], claims)
    assert counter(await store.kv.get(USED_BY_KEY)) == 403
    await audit(store)
    await delete_object(store, WHO, "bucket", "key")
    assert counter(await store.kv.get(USED_BY_KEY)) == 0
    await audit(store)
