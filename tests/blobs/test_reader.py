"""The reader: right bytes or an error, never wrong bytes."""

import asyncio
import random
from itertools import combinations

import pytest

from objstore.blobs.reader import MIB, ReaderLimits
from objstore.errors import Corrupt, Overloaded, Unavailable
from objstore.extents import Extent
from objstore.objects.ledger import MetaLedger
from objstore.s3.limits import RESERVE_PART, Limits
from tests.blobs.rig import Rig
from tests.sim.replacing import replace


async def test_a_small_read_is_one_read_of_one_disk() -> None:
    rig = await Rig().start()
    extents = await asyncio.gather(*(rig.put(bytes([number]) * 4096) for number in range(64)))
    reads = 0
    for number, (extent,) in enumerate(extents):
        before = sum(disk.calls["read"] for disk in rig.disks.values())
        assert await rig.reader.read(extent) == bytes([number]) * 4096
        reads += sum(disk.calls["read"] for disk in rig.disks.values()) - before
    assert 64 <= reads <= 64 + 3 + 3, "one each, and one more for each of the boundaries"


async def test_every_flipped_byte_of_a_small_objects_records_is_detected_and_read_right() -> None:
    rig = await Rig(yields=False).start()
    body = b"do not touch me!" * 20
    extent = (await rig.put(body))[0]
    record = await rig.ledger.get(extent.volume)
    flips = 0
    for index, number in enumerate(record.disks):
        disk = rig.disks[number]
        for position in range(len(disk.fragments[extent.volume, index].content)):
            mask = 1 << (position % 8)
            disk.flip(extent.volume, index, position, mask)
            assert await rig.reader.read(extent) == body, f"fragment {index}, byte {position}"
            disk.flip(extent.volume, index, position, mask)
            flips += 1
    assert flips > 6 * 120
    assert rig.reader.counters.corrupt_fragments > 4 * 80, "each flip of a data block was seen"


@pytest.mark.parametrize("seed", range(5))
async def test_random_rot_in_up_to_m_fragments_is_read_right_and_beyond_it_refused(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    rig = await Rig(yields=False).start()
    bodies = [rng.randbytes(rng.randint(1, 20_000)) for _ in range(20)]
    extents = await asyncio.gather(*(rig.put(body) for body in bodies))
    volume = extents[0][0].volume
    record = await rig.ledger.get(volume)
    for count in (1, 2, 3):
        for _ in range(15):
            flipped = []
            for index in rng.sample(range(6), count):
                disk = rig.disks[record.disks[index]]
                for _ in range(rng.randint(1, 20)):
                    at = rng.randrange(len(disk.fragments[volume, index].content))
                    mask = rng.randint(1, 255)
                    disk.flip(volume, index, at, mask)
                    flipped.append((disk, index, at, mask))
            for body, (extent,) in zip(bodies, extents, strict=True):
                try:
                    assert await rig.reader.read(extent) == body
                except Corrupt:
                    assert count > 2
            for disk, index, at, mask in flipped:
                disk.flip(volume, index, at, mask)


@pytest.mark.parametrize("lost", list(combinations(range(6), 2)))
async def test_small_and_large_are_read_without_any_two_fragments(lost: tuple[int, int]) -> None:
    rig = await Rig(yields=False).start()
    bodies = [random.Random(seed).randbytes(5_000) for seed in range(20)]
    extents = await asyncio.gather(*(rig.put(body) for body in bodies))
    large = random.Random(0).randbytes(5 * MIB)
    stored = await rig.put_stream(large)
    for disk in rig.disks.values():
        for volume, index in list(disk.fragments):
            if index in lost:
                disk.lose(volume, index)
    for body, (extent,) in zip(bodies, extents, strict=True):
        assert await rig.reader.read(extent) == body
    assert await rig.read_all(stored.extents) == large
    assert await rig.read_all(stored.extents, 3_000_000, 1_500_000) == large[3_000_000:4_500_000]


@pytest.mark.parametrize(
    ("moods", "outcome"),
    [
        ("++++++", "right"),
        ("xx++++", "right"),
        ("++?x++", "right"),
        ("xxx+++", "unavailable"),
        ("xxxxxx", "unavailable"),
        ("~~~~~~", "right"),  # Slow writes do not hinder reads.
    ],
)
async def test_reads_follow_the_number_of_disks_that_answer(moods: str, outcome: str) -> None:
    rig = await Rig().start()
    extent = (await rig.put(b"body" * 5_000))[0]
    rig.moods(moods)
    if outcome == "right":
        assert await rig.reader.read(extent) == b"body" * 5_000
    else:
        with pytest.raises(Unavailable, match="of 4 fragments"):
            await rig.reader.read(extent)
        rig.wake()
        assert await rig.reader.read(extent) == b"body" * 5_000, "the disks came back"


def asked(rig: Rig) -> list[int]:
    """How often each disk was asked whether it is back."""
    return [disk.calls["look_again"] for disk in rig.disks.values()]


@pytest.mark.parametrize("lost", list(combinations(range(6), 2)), ids=str)
async def test_nodes_that_are_back_unheard_are_read_when_two_others_go(lost: tuple[int, int]) -> None:
    rig = await Rig().start()
    small, large = rig.rng.randbytes(3_000), rig.rng.randbytes(400_000)
    extent = (await rig.put(small))[0]
    extents = (await rig.put_stream(large)).extents
    back = [place for place in range(6) if place not in lost][:2]
    rig.moods("".join("@" if place in back else "x" if place in lost else "+" for place in range(6)))
    assert await rig.reader.read(extent) == small
    rig.moods("".join("@" if place in back else "x" if place in lost else "+" for place in range(6)))
    assert await rig.read_all(extents) == large
    assert rig.reader.counters.failed_reads == 0


async def test_nobody_is_asked_whether_it_is_back_while_enough_others_are_there() -> None:
    rig = await Rig().start()
    body = rig.rng.randbytes(3_000)
    extent = (await rig.put(body))[0]
    for moods in ("@@++++", "++++@@", "@x++++", "xx++++"):
        rig.moods(moods)
        assert await rig.reader.read(extent) == body
    assert asked(rig) == [0] * 6


async def test_a_read_without_enough_disks_asks_once_each_that_it_presumes_away_and_no_other() -> None:
    rig = await Rig().start()
    extent = (await rig.put(b"body" * 1_000))[0]
    rig.moods("@@@+x+")
    for disk in rig.disks.values():
        disk.returned = False
    with pytest.raises(Unavailable, match="of 4 fragments"):
        await rig.reader.read(extent)
    assert asked(rig) == [1, 1, 1, 0, 0, 0]
    assert rig.reader.counters.failed_reads == 1
    rig.disks[2].returned = rig.disks[3].returned = True
    assert await rig.reader.read(extent) == b"body" * 1_000


async def test_a_stream_that_is_known_to_end_early_does_not_begin_but_what_is_there_is_read() -> None:
    rig = await Rig().start()
    body = rig.rng.randbytes(6 * MIB)
    extents = (await rig.put_stream(body)).extents
    record = await rig.ledger.get(extents[0].volume)
    for index in (1, 2, 3):  # Of the first stripe the first MiB is there, and k - 1 fragments.
        disk = rig.disks[record.disks[index]]
        disk.mood, disk.returned = "away", False
    with pytest.raises(Unavailable, match="the disks of 3 of 4 fragments are there"):
        await anext(rig.reader.stream(extents, 0, len(body)))
    assert (rig.reader.memory.used, rig.reader.counters.failed_reads) == (0, 1)
    assert await rig.read_all(extents, 1_000, MIB // 2) == body[1_000 : 1_000 + MIB // 2]
    rig.disks[record.disks[2]].returned = True
    assert await rig.read_all(extents) == body


@pytest.mark.parametrize(
    ("moods", "lacks"),
    [("++++++", False), ("x+++++", False), ("+@++++", False), ("x++@++", True), ("xx++x+", True)],
)
async def test_one_disk_that_is_away_is_no_cause_to_look_at_all_that_a_stream_will_read(
    moods: str, lacks: bool
) -> None:
    rig = await Rig().start()
    rig.moods(moods)
    assert rig.reader.lacks_disks() is lacks


async def test_a_volume_of_doubted_disks_that_answer_is_looked_up_and_asked_once_a_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = await Rig().start()
    extents = (await rig.put_stream(rig.rng.randbytes(6 * MIB))).extents
    record = await rig.ledger.get(extents[0].volume)
    for number in record.disks[:3]:
        rig.disks[number].suspicion = "slow"
    looked_up = []
    get = rig.kv.get

    async def counted(key: bytes) -> bytes | None:
        looked_up.append(key)
        return await get(key)

    monkeypatch.setattr(rig.kv, "get", counted)
    await rig.reader.check(extents * 100, 0, 600 * MIB)
    assert {extent.volume for extent in extents} == {record.id}
    assert len(looked_up) == 1
    assert max(asked(rig)) == 1


async def test_a_stream_begins_when_repair_has_moved_what_was_on_disks_that_are_away() -> None:
    rig = await Rig("+++++++++").start()
    extents = (await rig.put_stream(rig.rng.randbytes(6 * MIB))).extents
    record = await rig.ledger.get(extents[0].volume)
    spare = [number for number in rig.disks if number not in record.disks]
    for number in record.disks[:3]:
        rig.disks[number].mood = "missing"
    with pytest.raises(Unavailable):
        await rig.reader.check(extents, 0, 6 * MIB)
    elsewhere = MetaLedger(rig.kv)  # Another process's: this one's cache does not hear of it.
    moved = await elsewhere.seal(record.id, 2 * MIB)
    for index, number in enumerate(spare):
        moved = await elsewhere.repaired(moved, index, number)
    assert (await rig.ledger.get(record.id)).disks == record.disks
    await rig.reader.check(extents, 0, 6 * MIB)


async def test_rot_beyond_repair_is_not_taken_for_disks_that_are_away() -> None:
    rig = await Rig().start()
    extent = (await rig.put(b"body" * 1_000))[0]
    record = await rig.ledger.get(extent.volume)
    for index in range(3):
        rig.disks[record.disks[index]].flip(extent.volume, index, extent.offset + 70)
    with pytest.raises(Corrupt):
        await rig.reader.read(extent)
    assert asked(rig) == [0] * 6


async def test_a_rotten_fragment_is_rebuilt_from_where_repair_has_moved_the_others() -> None:
    """Two disks are gone and their files rebuilt elsewhere; a process that knows the old record finds rot."""
    rig = await Rig("++++++++").start()
    body = rig.rng.randbytes(3_000)
    (extent,) = await rig.put(body)
    await rig.writer.close()
    record = await rig.ledger.get(extent.volume, fresh=True)
    elsewhere = MetaLedger(rig.kv, clock=rig.clock)  # Another process: this one's cache is old from here on.
    spare = sorted(set(rig.disks) - set(record.disks))
    moved = record
    for index, number in zip((4, 5), spare, strict=True):
        old = rig.disks[record.disks[index]]
        content = bytes(old.fragments[extent.volume, index].content)
        await replace(rig.disks[number], extent.volume, index, [content])
        moved = await elsewhere.repaired(moved, index, number)
        old.lose(extent.volume, index)
    rig.disks[record.disks[0]].flip(extent.volume, 0, extent.offset + 70)
    assert (await rig.ledger.get(extent.volume)).disks == record.disks, "the cache is old"
    assert await rig.reader.read(extent) == body
    assert await rig.read_all([extent]) == body


async def test_a_moved_fragment_file_is_found_by_rereading_the_record() -> None:
    rig = await Rig("+++++++").start()
    extent = (await rig.put(b"body" * 1_000))[0]
    await rig.writer.close()
    record = await rig.ledger.get(extent.volume, fresh=True)
    reader_ledger_cache = rig.ledger._cache[extent.volume]
    spare = next(number for number in rig.disks if number not in record.disks)
    for index in range(2):
        old = rig.disks[record.disks[index]]
        file = old.fragments.pop((extent.volume, index))
        if index == 0:
            rig.disks[spare].fragments[extent.volume, index] = file
            await rig.ledger.repaired(record, index, spare)
    rig.ledger._cache[extent.volume] = reader_ledger_cache  # As another process would still have it.
    assert await rig.reader.read(extent) == b"body" * 1_000
    assert rig.reader.counters.missing_fragments == 1, "index 1 is gone, index 0 only moved"
    assert [hint.fragment for hint in rig.reader.take_hints()] == [1]
    assert rig.reader.take_hints() == []


async def test_a_disk_that_does_not_answer_a_read_counts_as_missing_after_the_deadline() -> None:
    rig = await Rig(reader_limits=ReaderLimits(deadline_s=0.05)).start()
    extent = (await rig.put(b"body" * 1_000))[0]
    record = await rig.ledger.get(extent.volume)

    async def hang(*args: object) -> int:
        await asyncio.Event().wait()
        return 0

    rig.disks[record.disks[0]].read = hang  # type: ignore[method-assign,assignment]
    assert await rig.reader.read(extent) == b"body" * 1_000
    assert rig.reader.counters.degraded_reads == 1


async def test_a_swapped_record_of_another_stripe_is_never_taken_for_this_one() -> None:
    rig = await Rig().start()
    one = (await rig.put(b"A" * 4_000))[0]
    two = (await rig.put(b"B" * 4_000))[0]
    record = await rig.ledger.get(one.volume)
    size = two.offset - one.offset
    for index, number in enumerate(record.disks[:2]):  # A misdirected write: valid, but elsewhere.
        content = rig.disks[number].fragments[one.volume, index].content
        content[one.offset : one.offset + size] = content[two.offset : two.offset + size]
    assert await rig.reader.read(one) == b"A" * 4_000
    assert rig.reader.counters.corrupt_fragments >= 2


async def test_an_extent_whose_digest_does_not_fit_its_bytes_is_corrupt() -> None:
    rig = await Rig().start()
    good = (await rig.put(b"C" * 4_000))[0]
    other = (await rig.put(b"D" * 4_000))[0]
    rotten = Extent(other.volume, other.offset, other.fragment_size, other.begin, other.length, good.digest)
    with pytest.raises(Corrupt, match="not the object's"):
        await rig.reader.read(rotten)
    with pytest.raises(Corrupt, match="not the object's"):
        await rig.read_all([rotten])


@pytest.mark.parametrize(
    "change",
    [{"volume": 99}, {"offset": 72}, {"offset": 1 << 40}, {"fragment_size": 8}, {"begin": 1 << 30}],
)
async def test_an_extent_that_points_nowhere_is_an_error_and_not_a_crash(change: dict[str, int]) -> None:
    rig = await Rig().start()
    extent = (await rig.put(b"E" * 100))[0]
    fields = {
        name: getattr(extent, name) for name in ("volume", "offset", "fragment_size", "begin", "length")
    }
    with pytest.raises(Corrupt):
        await rig.reader.read(Extent(**{**fields, **change}))


async def test_parity_is_never_taken_for_the_bytes_of_an_object() -> None:
    rig = await Rig().start()
    extent = (await rig.put(b"P" * 400))[0]
    beyond = Extent(extent.volume, extent.offset, extent.fragment_size, 4 * extent.fragment_size, 8)
    with pytest.raises(Corrupt, match="beyond its 4 data fragments"):
        await rig.reader.read(beyond)
    with pytest.raises(Corrupt, match="beyond its 4 data fragments"):
        await rig.read_all([beyond])


async def test_a_stream_that_breaks_in_the_middle_raises_after_right_bytes_only() -> None:
    rig = await Rig().start()
    body = random.Random(5).randbytes(12 * MIB)
    stored = await rig.put_stream(body)
    last = stored.extents[-1]
    record = await rig.ledger.get(last.volume)
    for index in (0, 1, 2):
        rig.disks[record.disks[index]].flip(last.volume, index, last.offset + 100)
    got = bytearray()

    async def read() -> None:
        async for views in rig.reader.stream(stored.extents, 0, len(body)):
            for view in views:
                got.extend(view)

    with pytest.raises(Corrupt):
        await read()
    assert body.startswith(got)
    assert len(got) >= len(body) - last.length - 1
    assert rig.reader.memory.used == 0


async def test_many_small_extents_stream_as_one() -> None:
    rig = await Rig().start()
    bodies = [random.Random(seed).randbytes(seed * 37 + 1) for seed in range(100)]
    extents = [(await rig.put(body))[0] for body in bodies]
    whole = b"".join(bodies)
    assert await rig.read_all(extents) == whole
    for begin, length in ((0, 1), (1, len(whole) - 2), (5_000, 100_000), (len(whole) - 1, 1)):
        assert await rig.read_all(extents, begin, length) == whole[begin : begin + length]


async def test_an_empty_range_yields_nothing() -> None:
    rig = await Rig().start()
    extents = await rig.put(b"x")
    assert [views async for views in rig.reader.stream(extents, 0, 0)] == []
    assert [views async for views in rig.reader.stream([], 0, 0)] == []


async def test_64_slow_readers_stay_within_the_memory() -> None:
    limits = ReaderLimits(memory=16 * MIB, quick_s=0.0)
    rig = await Rig(reader_limits=limits).start()
    body = random.Random(1).randbytes(9 * MIB)
    stored = await rig.put_stream(body)
    readers = [rig.reader.stream(stored.extents, 0, len(body)) for _ in range(64)]
    held = [await asyncio.wait_for(anext(reader), 10) for reader in readers]  # And now they stop reading.
    assert all(held)
    for _ in range(50):
        await asyncio.sleep(0)
    assert rig.reader.memory.used <= limits.memory
    real = sum(len(view) for views in held for view in views)
    assert real <= limits.memory
    for reader in readers[1:]:
        await reader.aclose()
    got = b"".join(bytes(view) for view in held[0])
    async for views in readers[0]:
        got += b"".join(views)
    assert got == body
    assert rig.reader.memory.used == 0


async def test_a_quick_reader_gets_larger_pieces_and_a_slow_one_smaller_ones() -> None:
    rig = await Rig().start()
    stored = await rig.put_stream(bytes(40 * MIB))
    quick = rig.reader.stream(stored.extents, 0, 40 * MIB)
    sizes = [sum(len(view) for view in views) async for views in quick]
    assert max(sizes) > 3 * MIB
    slow = []
    async for views in rig.reader.stream(stored.extents, 0, 10 * MIB):
        slow.append(sum(len(view) for view in views))
        rig.clock.advance(1)
    assert slow[-2] <= 128 * 1024


async def test_readers_beyond_the_memory_wait_and_are_refused_at_the_limit() -> None:
    limits = ReaderLimits(memory=256 * 1024, piece_floor=128 * 1024, memory_wait_s=0.02)
    rig = await Rig(reader_limits=limits).start()
    stored = await rig.put_stream(bytes(2 * MIB))
    readers = [rig.reader.stream(stored.extents, 0, 2 * MIB) for _ in range(3)]
    await anext(readers[0])
    await anext(readers[1])
    with pytest.raises(Overloaded):
        await anext(readers[2])
    for reader in readers:
        await reader.aclose()
    assert rig.reader.memory.used == 0
    assert len(await rig.read_all(stored.extents)) == 2 * MIB


@pytest.mark.parametrize("pieces", [1, 2, 3])
async def test_as_many_stalled_readers_as_a_worker_has_requests_keep_nobody_waiting(pieces: int) -> None:
    edge = Limits()
    count = edge.requests + edge.requests // RESERVE_PART
    rig = await Rig(reader_limits=ReaderLimits(memory_wait_s=0.0)).start()  # Whoever would wait is refused.
    body = random.Random(count).randbytes(2 * MIB)
    stored = await rig.put_stream(body)
    stalled = [rig.reader.stream(stored.extents, 0, 2 * MIB) for _ in range(count - 1)]
    for reader in stalled:
        for _ in range(pieces):
            assert await anext(reader)
            rig.clock.advance(1)
    assert await rig.read_all(stored.extents) == body
    for reader in stalled:
        await reader.aclose()
    assert rig.reader.memory.used == 0


async def test_a_stream_closed_early_gives_everything_back() -> None:
    rig = await Rig().start()
    stored = await rig.put_stream(bytes(20 * MIB))
    for steps in range(4):
        reader = rig.reader.stream(stored.extents, 0, 20 * MIB)
        for _ in range(steps):
            await anext(reader)
        await reader.aclose()
        assert rig.reader.memory.used == 0
        assert rig.reader._open_streams == 0


async def test_hints_are_bounded() -> None:
    rig = await Rig(reader_limits=ReaderLimits(hints=3)).start()
    extents = [(await rig.put(b"%d" % number * 500))[0] for number in range(10)]
    record = await rig.ledger.get(1)
    rig.disks[record.disks[0]].mood = "dead"
    for extent in extents:
        await rig.reader.read(extent)
    assert rig.reader.take_hints() == [], "a disk that is away is not damaged"
    rig.wake()
    rig.disks[record.disks[0]].lose(1, 0)
    for extent in extents:
        await rig.reader.read(extent)
    hints = rig.reader.take_hints()
    assert [hint.offset for hint in hints] == [extent.offset for extent in extents[-3:]]


async def test_a_buffer_is_used_again_only_when_no_view_of_it_is_left() -> None:
    rig = await Rig(reader_limits=ReaderLimits(kept=16 * MIB)).start()
    body = random.Random(3).randbytes(24 * MIB)
    stored = await rig.put_stream(body)
    held = []  # A consumer that keeps everything, as a slow transport's queue does.
    async for views in rig.reader.stream(stored.extents, 0, len(body)):
        held += views
    assert b"".join(held) == body
    held.clear()
    ring = rig.reader._buffers._rings[MIB]
    kept = [id(buffer) for buffer in ring]
    assert await rig.read_all(stored.extents) == body
    assert [id(buffer) for buffer in ring if id(buffer) in kept], "and then they are used again"
    assert rig.reader._buffers.kept <= 16 * MIB
    for _ in range(3):
        assert await rig.read_all(stored.extents, 5_000_000, 9_000_000) == body[5_000_000:14_000_000]
