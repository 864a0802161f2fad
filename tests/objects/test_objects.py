"""Put, get, delete and their limits; what a record costs; order; the fate of a body that fails."""

import hashlib

import pytest

from objstore.blobs.volumes import Intent
from objstore.errors import (
    BadArgument,
    BadRange,
    Corrupt,
    KeyTooLong,
    MetadataTooLarge,
    NoSuchBucket,
    NoSuchKey,
    NoSuchVersion,
    TooLarge,
    WriteQuorumNotMet,
)
from objstore.meta.kv import VALUE_SIZE_MAX
from objstore.meta.schema import object_key, repair_key
from objstore.objects import bodies
from objstore.objects.buckets import create_bucket
from objstore.objects.copies import Source, copy_object
from objstore.objects.reads import find_object, read, read_small
from objstore.objects.store import Store
from objstore.objects.values import About, ByteRange
from objstore.objects.writes import Doomed, delete_object, delete_objects, put_object
from tests.objects.audit import audit
from tests.objects.fakes import FakeClock, FakeStream, MemoryBody, blobs_of, memory_store, principal, read_all

WHO = principal()


async def ready(**settings: object) -> Store:
    store = memory_store(**settings)  # type: ignore[arg-type]
    await create_bucket(store, WHO, "bucket", region="")
    return store


async def put(store: Store, data: bytes, key: str = "key", about: About | None = None, **more: object):  # type: ignore[no-untyped-def]
    return await put_object(store, WHO, "bucket", key, about or About(), MemoryBody(data, **more))  # type: ignore[arg-type]


async def test_what_was_put_is_read_back_until_it_is_deleted() -> None:
    store = await ready()
    written = await put(store, b"hello")
    assert written.etag == "5d41402abc4b2a76b9719d911017c592"
    found = await find_object(store, WHO, "bucket", "key")
    assert await read_all(store, found) == b"hello"
    await delete_object(store, WHO, "bucket", "key")
    with pytest.raises(NoSuchKey):
        await find_object(store, WHO, "bucket", "key")
    await delete_object(store, WHO, "bucket", "key")
    await audit(store)


@pytest.mark.parametrize("size", [0, 1, 131_072, 131_073, 1_048_576, 45_000_000])
@pytest.mark.parametrize("sized", [True, False])
async def test_bodies_of_every_size_read_back_whole_and_in_ranges(size: int, sized: bool) -> None:
    store = await ready()
    data = hashlib.shake_128(b"%d" % size).digest(size)
    await put(store, data, sized=sized)
    found = await find_object(store, WHO, "bucket", "key")
    assert (found.length, found.ranged, found.part_count) == (size, False, 0)
    assert await read_all(store, found) == data
    for first, last in [(0, 0), (size // 2, size // 2 + 9), (size - 1, None), (None, 1), (0, size * 2)]:
        if size and (first is None or first < size):
            wanted = ByteRange(first=first, last=last, text="")
            found = await find_object(store, WHO, "bucket", "key", byte_range=wanted)
            expected = data[-1:] if first is None else data[first : None if last is None else last + 1]
            assert await read_all(store, found) == expected
            assert found.ranged
            streamed = [bytes(one) async for buffers in read(store, found) for one in buffers]
            assert b"".join(streamed) == expected
    await audit(store)


@pytest.mark.parametrize(
    ("size", "first", "last", "expected"),
    [
        (10, 0, 100, (0, 10)),
        (10, None, 15, (0, 10)),
        (10, None, 3, (7, 3)),
        (10, 9, None, (9, 1)),
        (10, None, 0, None),
        (10, 10, None, None),
        (10, 100, 200, None),
        (0, 0, None, None),
        (0, None, 5, None),
    ],
)
async def test_a_range_is_cut_to_the_object_or_refused(
    size: int, first: int | None, last: int | None, expected: tuple[int, int] | None
) -> None:
    store = await ready()
    await put(store, b"0123456789"[:size])
    wanted = ByteRange(first=first, last=last, text="bytes=x")
    if expected is None:
        with pytest.raises(BadRange) as bad:
            await find_object(store, WHO, "bucket", "key", byte_range=wanted)
        assert (bad.value.size, bad.value.wanted) == (size, "bytes=x")
    else:
        found = await find_object(store, WHO, "bucket", "key", byte_range=wanted)
        assert (found.first, found.length) == expected


async def test_a_simple_object_is_one_key_and_at_most_100_bytes() -> None:
    store = await ready()
    await put(store, b"x" * 4096, "first")
    blobs_of(store).ends[1] = 60 * 1024**3  # Deep in a volume.
    before = await audit(store)
    await put(store, b"x" * 4096, "second", About(content_type="application/octet-stream"))
    assert (await audit(store)) - before == {b"o": 1}
    for key, size_max in [(b"first", 75), (b"second", 105)]:
        value = await store.kv.get(object_key(1, key))
        assert value is not None
        assert len(value) <= size_max
    await put(store, b"x" * 4096, "third")
    value = await store.kv.get(object_key(1, b"third"))
    assert value is not None
    assert len(value) <= 100


async def test_the_largest_records_stay_below_the_engines_limit() -> None:
    store = await ready(stripe_size=512 * 1024)
    about = About(
        content_type="t" * 200,
        headers={"cache-control": "c" * 400, "content-disposition": "d" * 300},
        metadata={f"name{n:03}": "v" * 93 for n in range(20)},
    )
    blobs_of(store).volume = 0
    await put(store, b"x" * 21_000_000, "k" * 1024, about)
    blobs_of(store).ends[1] = 60 * 1024**3
    await put(store, b"x" * 21_000_000, "k" * 1024, about)
    value = await store.kv.get(object_key(1, b"k" * 1024))
    assert value is not None
    assert len(value) <= VALUE_SIZE_MAX
    found = await find_object(store, WHO, "bucket", "k" * 1024)
    assert found.record.extra is not None
    assert found.record.extra.pages == 1
    assert len(await read_all(store, found)) == 21_000_000


async def test_limits_are_refused_before_a_byte_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    store = await ready()
    await put(store, b"", "ü" * 512)
    with pytest.raises(KeyTooLong):
        await put(store, b"x", "ü" * 512 + "a")
    with pytest.raises(BadArgument):
        await put(store, b"x", "")
    with pytest.raises(NoSuchBucket):
        await put_object(store, WHO, "nowhere", "key", About(), MemoryBody(b"x"))
    await put(store, b"", about=About(metadata={"a": "x" * 2047}))
    for metadata in ({"a": "x" * 2048}, {"a": "ü" * 1024}, {f"{n}": "x" * 100 for n in range(21)}):
        with pytest.raises(MetadataTooLarge):
            await put(store, b"x", about=About(metadata=metadata))
    with pytest.raises(MetadataTooLarge):
        await put(store, b"x", about=About(headers={"expires": "x" * 2_000}))
    body = MemoryBody(b"x")
    body.size = 5 * 1024**3 + 1
    with pytest.raises(TooLarge):
        await put_object(store, WHO, "bucket", "key", About(), body)
    assert blobs_of(store).payloads == {}


async def test_an_unsized_body_is_cut_off_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    store = await ready(small_size_max=100)
    assert bodies.PUT_SIZE_MAX == 5 * 1024**3
    monkeypatch.setattr(bodies.keep_body, "__kwdefaults__", {"size_max": 1_000, "beside": None})
    await put(store, b"x" * 1_000, sized=False, chunk_size=64)
    with pytest.raises(TooLarge):
        await put(store, b"x" * 1_001, sized=False, chunk_size=64)
    await audit(store)


@pytest.mark.parametrize("size", [10, 300_000])
async def test_a_body_that_turns_out_wrong_leaves_nothing_behind(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await ready()
    await put(store, b"old")
    aborted = []
    monkeypatch.setattr(FakeStream, "abort", lambda self: aborted.append(self))
    with pytest.raises(ZeroDivisionError):
        await put(store, b"x" * size, error=ZeroDivisionError())
    assert len(aborted) == (size > 200_000)
    assert await read_all(store, await find_object(store, WHO, "bucket", "key")) == b"old"
    await audit(store)


async def test_a_failed_write_is_an_error_and_the_old_object_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    store = await ready()
    await put(store, b"old")

    async def fails(*_: object, **more: object) -> None:
        raise WriteQuorumNotMet(durable=3, quorum=5)

    monkeypatch.setattr(store.writer, "put", fails)
    with pytest.raises(WriteQuorumNotMet):
        await put(store, b"new")
    assert await read_all(store, await find_object(store, WHO, "bucket", "key")) == b"old"


async def test_last_modified_never_goes_back_and_never_repeats() -> None:
    clock = FakeClock()
    store = await ready(clock=clock)
    first = await put(store, b"a")
    second = await put(store, b"b")
    clock.now -= 3_600_000_000
    third = await put(store, b"c")
    assert first.order < second.order < third.order
    clock.now += 7_200_000_000
    assert (await put(store, b"d")).order == clock.now


async def test_a_repair_intent_is_recorded_with_the_object() -> None:
    store = await ready()
    await put(store, b"opens a volume")
    blobs_of(store).intents = [Intent(1, 4)]
    await put(store, b"lacks fragment 4")
    assert await store.kv.get(repair_key(1, 4)) is not None


async def test_only_null_versions_exist() -> None:
    store = await ready()
    await put(store, b"x")
    assert (await find_object(store, WHO, "bucket", "key", version="null")).record.version == b""
    with pytest.raises(NoSuchVersion):
        await find_object(store, WHO, "bucket", "key", version="0" * 32)
    with pytest.raises(NoSuchVersion):
        await find_object(store, WHO, "bucket", "absent", version="null")
    for malformed in ("", "x", "NULL", "0" * 31, "٠" * 32):
        with pytest.raises(BadArgument):
            await find_object(store, WHO, "bucket", "key", version=malformed)
        with pytest.raises(BadArgument):
            await delete_object(store, WHO, "bucket", "key", version=malformed)
    outcomes = await delete_objects(
        store,
        WHO,
        "bucket",
        [Doomed(key="key", version="0" * 32), Doomed(key="key", version="null"), Doomed(key="")],
    )
    assert [type(outcome) for outcome in outcomes] == [NoSuchVersion, type(None), BadArgument]
    with pytest.raises(NoSuchKey):
        await find_object(store, WHO, "bucket", "key")


async def test_at_most_a_thousand_keys_are_deleted_at_once() -> None:
    store = await ready()
    for n in range(1_000):
        await put(store, b"x", f"{n:04}")
    outcomes = await delete_objects(store, WHO, "bucket", [Doomed(key=f"{n:04}") for n in range(1_000)])
    assert outcomes == [None] * 1_000
    assert (await audit(store))[b"o"] == 0
    with pytest.raises(BadArgument):
        await delete_objects(store, WHO, "bucket", [Doomed(key="x")] * 1_001)


async def test_keys_are_data_and_never_normalised() -> None:
    store = await ready()
    keys = ["a//b", "a/b", "./a", "../a", "a/", "a", " a", "a%2Fb", "a\0", "\uffff", "\U0001f600", "a+b"]
    for key in keys:
        await put(store, key.encode(), key)
    for key in keys:
        found = await find_object(store, WHO, "bucket", key)
        assert await read_all(store, found) == key.encode()


async def test_a_copy_has_bytes_and_a_home_of_its_own() -> None:
    store = await ready()
    await put(store, b"shared?", about=About(content_type="a/b", metadata={"m": "1"}))
    source = Source(bucket="bucket", key="key")
    written = await copy_object(store, WHO, source, "bucket", "copy", about=None)
    original = (await find_object(store, WHO, "bucket", "key")).record
    await delete_object(store, WHO, "bucket", "key")
    found = await find_object(store, WHO, "bucket", "copy")
    assert await read_all(store, found) == b"shared?"
    assert found.record.extents != original.extents
    assert (found.record.extra, found.record.checksum) == (original.extra, original.checksum)
    assert written.etag == found.etag
    [extent] = found.record.extents
    assert blobs_of(store).homes[extent.volume, extent.offset] == object_key(1, b"copy")
    replaced = await copy_object(
        store, WHO, Source(bucket="bucket", key="copy"), "bucket", "third", about=About(content_type="c/d")
    )
    found = await find_object(store, WHO, "bucket", "third")
    assert found.record.extra is not None
    assert (found.record.extra.content_type, found.record.extra.metadata) == ("c/d", {})
    assert replaced.etag == found.etag
    await audit(store)


async def test_a_copy_with_another_algorithm_has_a_checksum_of_that_algorithm() -> None:
    store = await ready()
    for data in (b"", b"small", b"large" * 100_000):
        await put(store, data)
        source = Source(bucket="bucket", key="key")
        for key in ("copy", "key"):
            about = None if key == "copy" else About()
            written = await copy_object(
                store, WHO, source, "bucket", key, about=about, checksum_algorithm="SHA256"
            )
            assert written.checksum is not None
            assert written.checksum.digest == hashlib.sha256(data).digest()
            assert written.etag == hashlib.md5(data).hexdigest()
    await audit(store)


async def test_bytes_that_are_not_as_many_as_were_written_are_never_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = await ready()
    await put(store, b"hello")
    found = await find_object(store, WHO, "bucket", "key")

    async def short(_: object) -> bytes:
        return b"hell"

    monkeypatch.setattr(store.reader, "read", short)
    with pytest.raises(Corrupt):
        await read_small(store, found)
