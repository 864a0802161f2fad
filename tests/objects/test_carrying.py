"""Small bodies that come alone: carried by metadata, packed into stripes later, whole at every moment."""

import asyncio

import pytest

from objstore.errors import Corrupt, Overloaded
from objstore.meta.kv import Transaction
from objstore.meta.schema import ObjectRecord, body_key, decode, object_key
from objstore.objects import carrying
from objstore.objects.buckets import create_bucket
from objstore.objects.carrying import LEFT_BEHIND_US, PACK_COUNT, SIZE_MAX, is_carried, pack, pack_left_behind
from objstore.objects.copies import Source, copy_object
from objstore.objects.reads import find_object
from objstore.objects.store import Store
from objstore.objects.values import About, ByteRange
from objstore.objects.writes import delete_object, put_object
from tests.objects.audit import audit, everything
from tests.objects.fakes import (
    BatchingKv,
    FakeClock,
    HookedKv,
    MemoryBody,
    another_process,
    blobs_of,
    memory_store,
    principal,
    read_all,
)
from tests.waiting import until

WHO = principal()
BUCKET = "bucket"


@pytest.fixture(autouse=True)
def _alone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "ALONE_BEFORE", 0)


async def new_store(**settings: object) -> tuple[Store, HookedKv, FakeClock]:
    kv, clock = HookedKv(), FakeClock()
    store = memory_store(kv=kv, clock=clock, **{"carried_size_max": SIZE_MAX, **settings})
    await create_bucket(store, WHO, BUCKET, region="")
    return store, kv, clock


async def put(store: Store, key: str, data: bytes, about: About | None = None) -> None:
    await put_object(store, WHO, BUCKET, key, about or About(), MemoryBody(data))


async def content(store: Store, key: str) -> bytes:
    return await read_all(store, await find_object(store, WHO, BUCKET, key))


async def record_of(store: Store, key: str) -> ObjectRecord:
    return (await find_object(store, WHO, BUCKET, key)).record


async def home_of(store: Store, key: str) -> bytes:
    bucket = (await find_object(store, WHO, BUCKET, key)).bucket
    return object_key(bucket.id, key.encode())


async def test_a_body_that_comes_alone_costs_one_commit_and_no_stripe() -> None:
    store, kv, _ = await new_store()
    before = kv.commits
    await put(store, "key", b"alone")
    assert kv.commits == before + 1
    assert not blobs_of(store).volume
    assert is_carried(await record_of(store, "key"))
    assert await content(store, "key") == b"alone"
    assert await content(another_process(store), "key") == b"alone"
    await audit(store)


async def test_a_range_and_the_head_of_a_carried_object_are_as_of_any_other() -> None:
    store, _, _ = await new_store()
    await put(store, "key", b"0123456789", About(metadata={"a": "b"}))
    found = await find_object(store, WHO, BUCKET, "key", byte_range=ByteRange(first=3, last=5, text=""))
    assert (found.length, found.ranged) == (3, True)
    assert await read_all(store, found) == b"345"
    assert found.record.extra is not None
    assert found.record.extra.metadata == {"a": "b"}


async def test_packing_gives_the_record_its_extents_and_changes_nothing_else() -> None:
    store, _, _ = await new_store()
    await put(store, "key", b"alone", About(content_type="text/plain"))
    before = await find_object(store, WHO, BUCKET, "key")
    await store.carrier.flush(store)
    after = await find_object(store, WHO, BUCKET, "key")
    assert not is_carried(after.record)
    assert after.carried is None
    assert (after.etag, after.record.order, after.record.extra) == (
        before.etag,
        before.record.order,
        before.record.extra,
    )
    assert await content(store, "key") == b"alone"
    assert store.carrier.waiting == 0
    assert b"B" not in await audit(store)


async def test_bodies_are_packed_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "PACK_AFTER_S", 0.0)
    store, _, _ = await new_store()
    for number in range(3):
        await put(store, f"key{number}", b"alone")
    async with asyncio.timeout(30):
        while store.carrier.waiting:
            await asyncio.sleep(0.01)
    assert b"B" not in await audit(store)


async def test_enough_of_them_are_packed_at_once_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "PACK_AFTER_S", 3_600.0)
    store, _, _ = await new_store()
    for number in range(PACK_COUNT):
        await put(store, f"key{number}", b"alone")
    async with asyncio.timeout(30):
        while store.carrier.waiting:
            await asyncio.sleep(0.01)


async def test_two_at_once_share_a_stripe_instead() -> None:
    store = memory_store(kv=BatchingKv(), carried_size_max=SIZE_MAX)
    await create_bucket(store, WHO, BUCKET, region="")
    await asyncio.gather(put(store, "a", b"one"), put(store, "b", b"two"))
    assert is_carried(await record_of(store, "a"))  # Nobody was there when it came.
    assert not is_carried(await record_of(store, "b"))
    assert (await content(store, "a"), await content(store, "b")) == (b"one", b"two")


async def test_one_that_is_alone_among_many_takes_the_way_of_the_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carrying, "ALONE_BEFORE", 2)
    store = memory_store(kv=BatchingKv(), carried_size_max=SIZE_MAX)
    await create_bucket(store, WHO, BUCKET, region="")

    async def carried(key: str) -> bool:
        await put(store, key, b"body")
        return is_carried(await record_of(store, key))

    assert [await carried(f"alone{n}") for n in range(3)] == [False, False, True]
    assert await asyncio.gather(carried("with"), carried("company")) == [True, False]
    assert [await carried(f"again{n}") for n in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("size", "carried"), [(0, False), (1, True), (SIZE_MAX, True), (SIZE_MAX + 1, False)]
)
async def test_only_small_bodies_are_carried(size: int, carried: bool) -> None:
    store, _, _ = await new_store()
    await put(store, "k" * 1_024, b"x" * size)
    assert is_carried(await record_of(store, "k" * 1_024)) is carried
    assert await content(store, "k" * 1_024) == b"x" * size
    await store.carrier.flush(store)
    assert await content(store, "k" * 1_024) == b"x" * size
    await audit(store)


async def test_no_more_are_carried_than_can_be_packed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "WAITING_MAX", 3)
    store, _, _ = await new_store()
    for number in range(5):
        await put(store, f"key{number}", b"alone")
    assert [is_carried(await record_of(store, f"key{n}")) for n in range(5)] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("size", [5, SIZE_MAX + 1])
async def test_an_overwrite_takes_the_carried_body_away(size: int) -> None:
    store, _, _ = await new_store()
    await put(store, "key", b"first")
    await put(store, "key", b"y" * size)
    assert await content(store, "key") == b"y" * size
    await audit(store)
    await store.carrier.flush(store)
    assert await content(store, "key") == b"y" * size
    assert b"B" not in await audit(store)


async def test_a_delete_takes_the_carried_body_away() -> None:
    store, _, _ = await new_store()
    await put(store, "key", b"first")
    await delete_object(store, WHO, BUCKET, "key")
    assert b"B" not in await audit(store)
    await store.carrier.flush(store)
    assert store.carrier.waiting == 0
    assert b"o" not in await audit(store)


async def test_a_copy_onto_itself_keeps_the_carried_body_and_a_copy_elsewhere_has_its_own() -> None:
    store, _, _ = await new_store()
    await put(store, "key", b"body")
    source = Source(bucket=BUCKET, key="key")
    await copy_object(store, WHO, source, BUCKET, "key", about=About(metadata={"new": "words"}))
    await audit(store)
    assert is_carried(await record_of(store, "key"))
    await copy_object(store, WHO, source, BUCKET, "other", about=None)
    await delete_object(store, WHO, BUCKET, "key")
    assert await content(store, "other") == b"body"
    await audit(store)


@pytest.mark.parametrize("again", ["overwrite", "delete"])
async def test_what_changes_while_a_body_is_packed_wins(again: str) -> None:
    store, kv, _ = await new_store()
    await put(store, "key", b"first")
    home = await home_of(store, "key")

    async def change() -> None:
        if again == "delete":
            await delete_object(another_process(store), WHO, BUCKET, "key")
        else:
            await put(another_process(store), "key", b"second")

    kv.before_commit(home, change)
    await store.carrier.flush(store)  # Its commit finds another record.
    await store.carrier.flush(store)
    counts = await audit(store)
    assert b"B" not in counts
    if again == "delete":
        assert b"o" not in counts
    else:
        assert await content(store, "key") == b"second"


async def test_a_volume_that_is_sealed_under_it_costs_a_second_try() -> None:
    store, kv, _ = await new_store()
    await put(store, "key", b"first")
    home = await home_of(store, "key")
    kv.before_commit(home, blobs_of(store).seal)
    assert await pack(store, [home]) == []
    assert is_carried(await record_of(store, "key"))
    assert await pack(store, [home]) == [home]
    assert await content(store, "key") == b"first"
    await audit(store)


async def test_what_cannot_be_packed_stays_readable_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, _, _ = await new_store()
    await put(store, "key", b"first")

    async def refuse(*_: object) -> None:
        raise Overloaded("no disks")

    with monkeypatch.context() as broken:
        broken.setattr(store.writer, "put", refuse)
        await store.carrier.flush(store)
    assert store.carrier.waiting == 1
    assert await content(store, "key") == b"first"
    await store.carrier.flush(store)
    assert store.carrier.waiting == 0
    assert await content(store, "key") == b"first"


async def test_a_body_whose_packing_is_a_bug_keeps_no_other_in_metadata(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(carrying, "PACK_AFTER_S", 0.001)
    monkeypatch.setattr(carrying, "RETRY_S", 0.001)
    store, _, _ = await new_store()
    put_body, broken = store.writer.put, True

    async def fail(body: bytes, *args: object) -> object:
        if body == b"odd" and broken:
            raise ValueError("a bug")
        return await put_body(body, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(store.writer, "put", fail)
    await put(store, "odd", b"odd")
    await until(lambda: "a bug in packing a body" in caplog.text)
    await put(store, "even", b"even")
    await until(lambda: store.carrier.waiting == 1)
    assert not is_carried(await record_of(store, "even"))
    assert await content(store, "odd") == b"odd"
    broken = False
    await until(lambda: store.carrier.waiting == 0)
    assert await content(store, "odd") == b"odd"
    await audit(store)


async def test_what_a_dead_worker_left_is_packed_when_it_is_old_enough() -> None:
    store, _, clock = await new_store()
    await put(store, "old", b"left behind")
    clock.now += LEFT_BEHIND_US // 2
    await put(store, "young", b"its worker lives")
    clock.now += LEFT_BEHIND_US // 2 + 1
    other = another_process(store)
    assert await pack_left_behind(other) == 1
    assert not is_carried(await record_of(store, "old"))
    assert is_carried(await record_of(store, "young"))
    await store.carrier.flush(store)
    assert [await content(store, key) for key in ("old", "young")] == [b"left behind", b"its worker lives"]
    await audit(store)


async def test_a_body_beside_a_record_with_extents_is_removed_and_never_read() -> None:
    """As a salvage may leave it: its copy of metadata has the body, its stripes the extents."""
    store, kv, clock = await new_store(carried_size_max=0)
    await put(store, "key", b"in a stripe")
    home = await home_of(store, "key")
    await kv.commit(Transaction(put={body_key(home): b"of long ago"}))
    assert await content(store, "key") == b"in a stripe"
    clock.now += LEFT_BEHIND_US + 1
    await pack_left_behind(store)
    assert body_key(home) not in await everything(store)
    assert await content(store, "key") == b"in a stripe"


async def test_a_record_whose_body_is_gone_is_an_error_and_never_an_empty_answer() -> None:
    store, kv, _ = await new_store()
    await put(store, "key", b"first")
    await kv.commit(Transaction(delete=[body_key(await home_of(store, "key"))]))
    with pytest.raises(Corrupt):
        await content(store, "key")


async def test_every_read_during_packing_is_whole() -> None:
    store, _, _ = await new_store()
    for number in range(20):
        await put(store, f"key{number}", b"body %d" % number)
    stop = asyncio.Event()

    async def read() -> int:
        reads = 0
        while not stop.is_set():
            for number in range(20):
                assert await content(store, f"key{number}") == b"body %d" % number
                reads += 1
                await asyncio.sleep(0)
        return reads

    readers = [asyncio.create_task(read()) for _ in range(3)]
    await asyncio.sleep(0)
    await store.carrier.flush(store)
    stop.set()
    assert min(await asyncio.gather(*readers)) >= 20
    value = (await everything(store))[await home_of(store, "key0")]
    assert decode(value, ObjectRecord).extents
