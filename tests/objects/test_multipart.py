"""The multipart family, case by case, up to ten thousand parts."""

import asyncio
import base64
import hashlib
import zlib
from collections.abc import Sequence

import pytest
from awscrt import checksums as crt

from objstore.errors import (
    BadArgument,
    BadPart,
    BadPartNumber,
    BadPartOrder,
    BadRequest,
    ChecksumMismatch,
    CopyToSelf,
    NoParts,
    NoSuchUpload,
    PartTooSmall,
    Unavailable,
)
from objstore.extents import Extent
from objstore.meta.schema import PAGE_PARTS_MAX, Checksum, Extra, PartRecord, decode, part_key
from objstore.objects import multipart
from objstore.objects.buckets import create_bucket
from objstore.objects.copies import Source, copy_object, copy_part
from objstore.objects.doomed import sweep
from objstore.objects.multipart import Claimed
from objstore.objects.reads import find_object
from objstore.objects.store import Store
from objstore.objects.values import About, ByteRange
from objstore.objects.writes import delete_object, put_object
from tests.objects.audit import audit
from tests.objects.fakes import FakeClock, FakeReader, HookedKv, MemoryBody, memory_store, principal, read_all

WHO = principal()
MIB = 1024 * 1024
MINIMUM = 5 * MIB


async def ready(**settings: object) -> Store:
    store = memory_store(**settings)  # type: ignore[arg-type]
    await create_bucket(store, WHO, "bucket", region="")
    return store


async def begin(store: Store, algorithm: str = "", kind: str = "", about: About | None = None) -> str:
    upload, _ = await multipart.create_upload(
        store, WHO, "bucket", "key", about or About(), checksum_algorithm=algorithm, checksum_type=kind
    )
    return upload


async def part(
    store: Store, upload: str, number: int, data: bytes, checksum: Checksum | None = None
) -> Claimed:
    body = MemoryBody(data, checksum=checksum)
    written = await multipart.put_part(store, WHO, "bucket", "key", upload, number, body)
    named = None if checksum is None else (checksum.algorithm, checksum.digest)
    return Claimed(number=number, etag=written.etag, checksum=named)


async def complete(store: Store, upload: str, claims: list[Claimed], **more: object):  # type: ignore[no-untyped-def]
    return await multipart.complete_upload(store, WHO, "bucket", "key", upload, claims, **more)  # type: ignore[arg-type]


async def test_parts_in_any_order_make_one_object_with_the_etag_of_etags() -> None:
    store = await ready()
    about = About(content_type="text/plain", headers={"cache-control": "no-store"}, metadata={"a": "b"})
    upload = await begin(store, about=about)
    data = {2: b"b" * MINIMUM, 7: b"c" * 10, 1: b"a" * (MINIMUM + 1)}
    claims = [await part(store, upload, number, bytes_) for number, bytes_ in data.items()]
    written = await complete(store, upload, sorted(claims, key=lambda claim: claim.number))
    ordered = [data[number] for number in sorted(data)]
    etag = hashlib.md5(b"".join(hashlib.md5(one).digest() for one in ordered)).hexdigest()
    assert written.etag == f"{etag}-3"
    whole = b"".join(ordered)
    found = await find_object(store, WHO, "bucket", "key")
    assert await read_all(store, found) == whole
    assert (found.etag, found.part_count, found.record.size) == (written.etag, 3, len(whole))
    extra = found.record.extra
    assert extra is not None
    assert (extra.content_type, extra.headers, extra.metadata) == (
        "text/plain",
        {"cache-control": "no-store"},
        {"a": "b"},
    )
    assert Checksum.unpack(found.record.checksum) == Checksum(
        "CRC64NVME", "FULL_OBJECT", crt.crc64nvme(whole).to_bytes(8, "big")
    )
    for first, last in [
        (0, 0),
        (MINIMUM, MINIMUM + 1),
        (MINIMUM - 5, 2 * MINIMUM + 5),
        (len(whole) - 3, None),
    ]:
        found = await find_object(
            store, WHO, "bucket", "key", byte_range=ByteRange(first=first, last=last, text="")
        )
        assert await read_all(store, found) == whole[first : None if last is None else last + 1]
    await audit(store)


async def test_complete_again_gives_the_same_answer_until_the_object_is_another_one() -> None:
    store = await ready()
    upload = await begin(store, "SHA256", "COMPOSITE")
    checksum = Checksum("SHA256", "FULL_OBJECT", hashlib.sha256(b"x").digest())
    claim = await part(store, upload, 1, b"x", checksum)
    first = await complete(store, upload, [claim])
    assert await complete(store, upload, [claim]) == first
    with pytest.raises(NoSuchUpload):
        await complete(store, upload, [Claimed(number=1, etag="0" * 32, checksum=claim.checksum)])
    with pytest.raises(NoSuchUpload):
        await multipart.list_parts(store, WHO, "bucket", "key", upload, after=0, limit=1)
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"other"))
    with pytest.raises(NoSuchUpload):
        await complete(store, upload, [claim])


async def test_an_upload_is_known_by_its_id_and_its_key_and_its_bucket() -> None:
    store = await ready()
    await create_bucket(store, WHO, "elsewhere", region="")
    upload = await begin(store)
    for bucket, key, one in [
        ("bucket", "other", upload),
        ("elsewhere", "key", upload),
        ("bucket", "key", "0" * 32),
        ("bucket", "key", upload.upper()),
        ("bucket", "key", "not an id"),
        ("bucket", "key", "é" * 32),
        ("bucket", "key", ""),
    ]:
        with pytest.raises(NoSuchUpload):
            await multipart.find_upload(store, WHO, bucket, key, one)
        with pytest.raises(NoSuchUpload):
            await multipart.put_part(store, WHO, bucket, key, one, 1, MemoryBody(b"x"))
        with pytest.raises(NoSuchUpload):
            await multipart.abort_upload(store, WHO, bucket, key, one)
    assert (await multipart.find_upload(store, WHO, "bucket", "key", upload)).seen == 0


async def test_complete_checks_its_list_before_anything_changes() -> None:
    store = await ready()
    upload = await begin(store)
    one = await part(store, upload, 1, b"small")
    two = await part(store, upload, 2, b"last")
    with pytest.raises(NoParts):
        await complete(store, upload, [])
    for order in ([two, one], [one, one]):
        with pytest.raises(BadPartOrder):
            await complete(store, upload, order)
    for wrong in (Claimed(number=1, etag=two.etag), Claimed(number=3, etag=one.etag)):
        with pytest.raises(BadPart) as bad:
            await complete(store, upload, [wrong])
        assert (bad.value.number, bad.value.upload) == (wrong.number, upload)
    with pytest.raises(PartTooSmall) as small:
        await complete(store, upload, [one, two])
    assert (small.value.number, small.value.size, small.value.minimum) == (1, 5, MINIMUM)
    with pytest.raises(BadRequest, match="x-amz-mp-object-size"):
        await complete(store, upload, [two], object_size=5)
    quoted = Claimed(number=2, etag=f'"{two.etag}"')
    await complete(store, upload, [quoted], object_size=4)
    assert (await audit(store))[b"p"] == 2
    await sweep(store, grace_us=0)
    assert (await audit(store))[b"p"] == 1


@pytest.mark.parametrize("number", [0, -1, 10_001])
async def test_a_part_number_lies_between_1_and_10000(number: int) -> None:
    store = await ready()
    upload = await begin(store)
    with pytest.raises(BadArgument):
        await part(store, upload, number, b"x")
    for good in (1, 10_000):
        await part(store, upload, good, b"x")


async def test_a_part_sent_again_replaces_its_predecessor() -> None:
    store = await ready()
    upload = await begin(store)
    await part(store, upload, 1, b"first" * 100)
    claim = await part(store, upload, 1, b"second")
    await audit(store)
    _, parts, more = await multipart.list_parts(store, WHO, "bucket", "key", upload, after=0, limit=10)
    assert [(number, record.size) for number, record in parts] == [(1, 6)]
    assert not more
    await complete(store, upload, [claim])
    assert await read_all(store, await find_object(store, WHO, "bucket", "key")) == b"second"
    await audit(store)


async def test_parts_are_listed_in_pages() -> None:
    store = await ready()
    upload = await begin(store)
    for number in (3, 1, 10_000, 7):
        await part(store, upload, number, b"x")

    async def listed(after: int, limit: int) -> tuple[list[int], bool]:
        _, parts, more = await multipart.list_parts(
            store, WHO, "bucket", "key", upload, after=after, limit=limit
        )
        return [number for number, _ in parts], more

    assert await listed(0, 10) == ([1, 3, 7, 10_000], False)
    assert await listed(0, 2) == ([1, 3], True)
    assert await listed(3, 2) == ([7, 10_000], False)
    assert await listed(10_000, 2) == ([], False)
    assert await listed(0, 0) == ([], False)


# Part numbers in reads.


async def test_a_read_by_part_number_gives_that_part_and_nothing_beyond_the_last() -> None:
    store = await ready()
    upload = await begin(store)
    data = {1: b"a" * MINIMUM, 2: b"b" * MINIMUM, 3: b"end"}
    await complete(store, upload, [await part(store, upload, n, one) for n, one in data.items()])
    begin_at = 0
    for number, one in data.items():
        found = await find_object(store, WHO, "bucket", "key", part_number=number)
        assert (found.first, found.length, found.ranged, found.part_count) == (begin_at, len(one), True, 3)
        assert await read_all(store, found) == one
        assert found.part_checksum is not None
        assert found.part_checksum.digest == crt.crc64nvme(one).to_bytes(8, "big")
        begin_at += len(one)
    with pytest.raises(BadPartNumber) as bad:
        await find_object(store, WHO, "bucket", "key", part_number=4)
    assert (bad.value.wanted, bad.value.count) == (4, 3)


async def test_a_simple_object_is_its_own_first_part() -> None:
    store = await ready()
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"whole"))
    found = await find_object(store, WHO, "bucket", "key", part_number=1)
    assert (found.length, found.ranged, found.part_count) == (5, True, 0)
    with pytest.raises(BadPartNumber):
        await find_object(store, WHO, "bucket", "key", part_number=2)


# Checksums.


def crc32(data: bytes) -> Checksum:
    return Checksum("CRC32", "FULL_OBJECT", zlib.crc32(data).to_bytes(4, "big"))


def sha256(data: bytes) -> Checksum:
    return Checksum("SHA256", "FULL_OBJECT", hashlib.sha256(data).digest())


async def test_a_composite_checksum_is_that_of_the_parts_checksums() -> None:
    """The known answer of ceph/s3-tests for one part of 1,024 letters A."""
    store = await ready()
    upload = await begin(store, "SHA256", "COMPOSITE")
    data = b"A" * 1024
    claim = await part(store, upload, 1, data, sha256(data))
    written = await complete(store, upload, [claim])
    assert written.checksum is not None
    assert base64.b64encode(written.checksum.digest) == b"Ok6Cs5b96ux6+MWQkJO7UBT5sKPBeXBLwvj/hK89smg="
    assert (written.checksum.type, written.checksum.parts) == ("COMPOSITE", 1)


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME"])
async def test_a_full_object_checksum_is_that_of_all_bytes(algorithm: str) -> None:
    store = await ready()
    upload = await begin(store, algorithm, "FULL_OBJECT")
    data = [b"a" * MINIMUM, b"b" * 77]
    claims = [await part(store, upload, n + 1, one) for n, one in enumerate(data)]
    whole = b"".join(data)
    digest = {
        "CRC32": crt.crc32(whole).to_bytes(4, "big"),
        "CRC32C": crt.crc32c(whole).to_bytes(4, "big"),
        "CRC64NVME": crt.crc64nvme(whole).to_bytes(8, "big"),
    }[algorithm]
    with pytest.raises(ChecksumMismatch):
        await complete(
            store, upload, claims, checksum=Checksum(algorithm, "FULL_OBJECT", b"\0" * len(digest))
        )
    with pytest.raises(BadRequest, match="checksum mode"):
        await complete(store, upload, claims, checksum_type="COMPOSITE")
    expected = Checksum(algorithm, "FULL_OBJECT", digest)
    written = await complete(store, upload, claims, checksum=expected, checksum_type="FULL_OBJECT")
    assert written.checksum == expected


async def test_a_part_has_the_uploads_algorithm_and_its_claimed_checksum_must_be_its_own() -> None:
    store = await ready()
    upload = await begin(store, "SHA256", "COMPOSITE")
    with pytest.raises(BadRequest, match="expected checksum Type: sha256, actual checksum Type: crc32"):
        await part(store, upload, 1, b"x", crc32(b"x"))
    claim = await part(store, upload, 1, b"x", sha256(b"x"))
    for wrong in (("SHA256", b"\0" * 32), ("CRC32", crc32(b"x").digest)):
        with pytest.raises(BadPart):
            await complete(store, upload, [Claimed(number=1, etag=claim.etag, checksum=wrong)])
    right = Claimed(number=1, etag=claim.etag, checksum=("SHA256", sha256(b"x").digest))
    await complete(store, upload, [right])


async def test_without_an_algorithm_the_whole_gets_crc64nvme_whatever_its_parts_came_with() -> None:
    store = await ready()
    upload = await begin(store)
    claim = await part(store, upload, 1, b"x", crc32(b"x"))
    named = Claimed(number=1, etag=claim.etag, checksum=("CRC32", crc32(b"x").digest))
    written = await complete(store, upload, [named])
    assert written.checksum == Checksum("CRC64NVME", "FULL_OBJECT", crt.crc64nvme(b"x").to_bytes(8, "big"))


# Copies.


async def test_the_copy_of_a_multipart_object_is_a_simple_one_with_a_plain_etag() -> None:
    store = await ready()
    upload = await begin(store, "SHA256", "COMPOSITE", About(metadata={"m": "1"}))
    data = [b"a" * MINIMUM, b"b"]
    claims = [await part(store, upload, n + 1, one, sha256(one)) for n, one in enumerate(data)]
    await complete(store, upload, claims)
    whole = b"".join(data)
    written = await copy_object(store, WHO, Source(bucket="bucket", key="key"), "bucket", "copy", about=None)
    assert written.etag == hashlib.md5(whole).hexdigest()
    assert written.checksum == sha256(whole)
    await delete_object(store, WHO, "bucket", "key")
    await sweep(store, grace_us=0)
    found = await find_object(store, WHO, "bucket", "copy")
    assert await read_all(store, found) == whole
    assert found.part_count == 0
    assert found.record.extra is not None
    assert found.record.extra.metadata == {"m": "1"}
    await audit(store)


async def test_a_copy_onto_itself_changes_the_words_and_keeps_the_bytes_where_they_are() -> None:
    store = await ready(clock=FakeClock())
    upload = await begin(store)
    claims = [await part(store, upload, 1, b"a" * MINIMUM), await part(store, upload, 2, b"b")]
    await complete(store, upload, claims)
    await put_object(store, WHO, "bucket", "paged", About(), MemoryBody(b"z" * 43 * MIB))
    for key in ("key", "paged"):
        before = (await find_object(store, WHO, "bucket", key)).record
        source = Source(bucket="bucket", key=key)
        with pytest.raises(CopyToSelf):
            await copy_object(store, WHO, source, "bucket", key, about=None)
        await copy_object(store, WHO, source, "bucket", key, about=About(metadata={"new": "words"}))
        after = (await find_object(store, WHO, "bucket", key)).record
        assert before.extra is not None
        assert after.extra == Extra(
            metadata={"new": "words"},
            multipart=before.extra.multipart,
            blob=before.extra.blob,
            pages=before.extra.pages,
        )
        assert (after.etag, after.extents, after.checksum) == (before.etag, before.extents, before.checksum)
        assert after.order > before.order
    counts = await audit(store)
    assert counts[b"d"] == 0
    assert counts[b"x"] == 1


async def test_a_part_can_be_a_range_of_an_object_and_not_a_byte_beyond() -> None:
    store = await ready()
    await put_object(store, WHO, "bucket", "source", About(), MemoryBody(b"0123456789"))
    source = Source(bucket="bucket", key="source")
    upload = await begin(store)
    written = await copy_part(store, WHO, source, (2, 9), "bucket", "key", upload, 1)
    assert written.etag == hashlib.md5(b"23456789").hexdigest()
    with pytest.raises(BadArgument, match="source object of size: 10"):
        await copy_part(store, WHO, source, (0, 10), "bucket", "key", upload, 1)
    with pytest.raises(BadRequest):
        await copy_part(store, WHO, source, (10, 20), "bucket", "key", upload, 1)
    await complete(store, upload, [Claimed(number=1, etag=written.etag)])
    assert await read_all(store, await find_object(store, WHO, "bucket", "key")) == b"23456789"
    await audit(store)


# Many parts.


async def with_three_pages(store: Store) -> tuple[str, list[Claimed]]:
    """An object whose list of parts takes three pages: the upload, and what was claimed of it."""
    upload = await begin(store)
    claims = [await part(store, upload, n, b"%05d" % n) for n in range(1, 2 * PAGE_PARTS_MAX + 2)]
    await complete(store, upload, claims)
    return upload, claims


async def test_while_a_long_object_is_checked_for_disks_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multipart, "PART_SIZE_MIN", 0)
    store = await ready()
    await with_three_pages(store)
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1

    seen = []

    async def check(extents: Sequence[Extent], begin: int, length: int) -> None:
        seen.append(turns)
        asyncio.get_running_loop().call_soon(turn)

    monkeypatch.setattr(store.reader, "lacks_disks", lambda: True)
    monkeypatch.setattr(store.reader, "check", check)
    await read_all(store, await find_object(store, WHO, "bucket", "key"))
    assert seen == [0, 1, 2]


async def test_what_cannot_be_read_to_its_end_for_want_of_disks_is_refused_before_its_first_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multipart, "PART_SIZE_MIN", 0)
    store = await ready()
    upload, claims = await with_three_pages(store)
    found = await find_object(store, WHO, "bucket", "key")
    reader = store.reader
    assert isinstance(reader, FakeReader)
    assert len(await read_all(store, found)) == 5 * len(claims)
    assert reader.checked == [], "nothing is looked up twice while all disks are there"
    last = decode((await store.kv.get(part_key(bytes.fromhex(upload), len(claims)))) or b"", PartRecord)
    reader.extents_read, reader.away = 0, last.extents[0]
    with pytest.raises(Unavailable):
        await read_all(store, found)
    assert (len(reader.checked), reader.extents_read) == (len(claims), 0)
    first = await find_object(store, WHO, "bucket", "key", byte_range=ByteRange(first=0, last=9, text=""))
    assert await read_all(store, first) == b"0000100002"


async def test_ten_thousand_parts_complete_read_and_go_in_bounded_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multipart, "PART_SIZE_MIN", 0)
    kv = HookedKv()
    store = await ready(kv=kv)
    upload = await begin(store)
    claims = [await part(store, upload, n, b"%05d" % n) for n in range(1, 10_001)]
    largest = [0]
    commit = kv.commit

    async def measured(transaction):  # type: ignore[no-untyped-def]
        keys = len(transaction.put) + len(transaction.delete) + len(transaction.add)
        largest[0] = max(largest[0], keys)
        await commit(transaction)

    kv.commit = measured  # type: ignore[method-assign]
    written = await complete(store, upload, claims)
    assert written.etag.endswith("-10000")
    assert largest[0] <= 270  # 250 pages of the part list, the record, and what they count for.

    gets: list[bytes] = []
    original = kv.get, kv.get_many

    async def get(key: bytes) -> bytes | None:
        gets.append(key)
        return await original[0](key)

    async def get_many(keys):  # type: ignore[no-untyped-def]
        gets.extend(keys)
        return await original[1](keys)

    kv.get, kv.get_many = get, get_many  # type: ignore[method-assign]
    found = await find_object(
        store, WHO, "bucket", "key", byte_range=ByteRange(first=35_003, last=35_011, text="")
    )
    assert await read_all(store, found) == b"01" + b"07002" + b"07"
    assert len(gets) <= 16
    reader = store.reader
    assert isinstance(reader, FakeReader)
    assert reader.extents_read == 3
    gets.clear()
    found = await find_object(store, WHO, "bucket", "key", part_number=7_001)
    assert await read_all(store, found) == b"07001"
    assert len(gets) <= 16
    kv.get, kv.get_many = original  # type: ignore[method-assign]

    listed, count, more = await multipart.object_parts(store, WHO, "bucket", "key", after=5_000, limit=3)
    assert [number for number, _, _ in listed] == [5_001, 5_002, 5_003]
    assert (count, more) == (10_000, True)
    listed, _, more = await multipart.object_parts(store, WHO, "bucket", "key", after=9_998, limit=3)
    assert ([number for number, _, _ in listed], more) == ([9_999, 10_000], False)

    largest[0] = 0
    await delete_object(store, WHO, "bucket", "key")
    assert largest[0] <= 10
    await audit(store)
    await sweep(store, grace_us=0)
    assert largest[0] <= 110
    counts = await audit(store)
    assert counts[b"p"] + counts[b"q"] + counts[b"d"] == 0


async def test_whoever_began_to_read_can_finish_within_the_grace() -> None:
    clock = FakeClock()
    store = await ready(clock=clock)
    upload = await begin(store)
    claims = [await part(store, upload, 1, b"a" * MINIMUM), await part(store, upload, 2, b"b")]
    await complete(store, upload, claims)
    found = await find_object(store, WHO, "bucket", "key")
    await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"new"))
    assert await sweep(store) == 0
    assert await read_all(store, found) == b"a" * MINIMUM + b"b"
    clock.now += 3_600_000_001
    assert await sweep(store) == 1
    with pytest.raises(Exception, match="metadata lacks"):
        await read_all(store, found)
    await audit(store)


@pytest.mark.parametrize("gap", [1, 2, 7])
async def test_parts_are_found_by_number_whatever_numbers_are_left_out(
    gap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "PART_SIZE_MIN", 0)
    store = await ready()
    upload = await begin(store)
    numbers = range(gap, gap * 130 + 1, gap)
    claims = [await part(store, upload, n, b"%d" % n) for n in numbers]
    await complete(store, upload, claims)
    for number in (*numbers[:3], *numbers[38:43], *numbers[78:82], numbers[-1]):
        found = await find_object(store, WHO, "bucket", "key", part_number=number)
        assert await read_all(store, found) == b"%d" % number
    for absent in {1, gap + 1, gap * 130 + 1, 10_000} - set(numbers):
        with pytest.raises(BadPartNumber):
            await find_object(store, WHO, "bucket", "key", part_number=absent)
