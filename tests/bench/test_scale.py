"""What a store is filled with for the benchmark is what puts leave, and what it measures is what it says."""

from bench.scale import BUCKET, DIRECTORY, KINDS, SIZE, WHO, Cost, Filled, figures_of, name_of
from objstore.meta.kv import counter
from objstore.meta.schema import ObjectRecord, bucket_bytes_key, bucket_objects_key, decode, object_key
from objstore.objects.buckets import create_bucket, find_bucket
from objstore.objects.listing import list_objects
from objstore.objects.values import About
from objstore.objects.writes import put_object
from tests.objects.fakes import MemoryBody, memory_store

COUNT = 2 * DIRECTORY + 345


async def filled() -> Filled:
    store = Filled(memory_store(), lambda: 0.0, COUNT)
    await store.fill(1, lambda words: None)
    return store


async def test_a_filled_store_holds_every_object_once_and_counts_it() -> None:
    store = await filled()
    bucket = await find_bucket(store.store, WHO, BUCKET)
    page = await list_objects(store.store, WHO, BUCKET, prefix="", delimiter="", after="", limit=2 * COUNT)
    assert page.names == [name_of(number) for number in range(COUNT)]
    kv = store.store.kv
    assert counter(await kv.get(bucket_objects_key(bucket.id))) == COUNT
    assert counter(await kv.get(bucket_bytes_key(bucket.id))) == COUNT * SIZE


async def test_a_record_is_like_the_one_that_a_put_of_as_many_bytes_leaves() -> None:
    store = memory_store()
    bucket = await create_bucket(store, WHO, "photos", region="us-east-1")
    await put_object(store, WHO, "photos", "a.jpeg", About(), MemoryBody(bytes(SIZE)))
    value = await store.kv.get(object_key(bucket.id, b"a.jpeg"))
    assert value is not None
    real = decode(value, ObjectRecord)
    made = (await filled()).record_of(7)
    assert (made.format, made.version, made.size, made.extra, made.owner) == (
        real.format,
        real.version,
        real.size,
        real.extra,
        real.owner,
    )
    assert (len(made.etag), len(made.checksum), len(made.extents)) == (
        len(real.etag),
        len(real.checksum),
        len(real.extents),
    )


async def test_each_kind_of_operation_runs_and_only_puts_leave_something() -> None:
    store = await filled()
    bucket = await find_bucket(store.store, WHO, BUCKET)
    for kind in KINDS:
        cost = await store.measure(kind._replace(at_most=70, width=7), 60.0)
        assert 70 <= cost.operations < 77
        assert cost.seconds > 0
        added = store.added
        assert (added > 0) == (kind.name == "put")
        assert counter(await store.store.kv.get(bucket_objects_key(bucket.id))) == COUNT + added


def test_a_figure_is_the_median_of_the_rounds_so_that_one_disturbed_round_does_not_decide() -> None:
    small = [Cost(1.0, 1.0, 1), Cost(1.0, 1.0, 1), Cost(9.0, 0.1, 1)]
    large = [Cost(1.2, 1.3, 1), Cost(1.2, 1.3, 1), Cost(1.2, 1.3, 1)]
    cpu, time = figures_of("lmdb", KINDS[1], small, large)
    assert (round(cpu.value, 3), cpu.passed) == (1.3, True)
    assert (round(time.value, 3), time.passed) == (1.2, True)
    cpu, _ = figures_of("lmdb", KINDS[1], small, [Cost(1.2, 1.6, 1)] * 3)
    assert not cpu.passed
