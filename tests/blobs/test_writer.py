"""The writer: what it acknowledges is durable, whatever the disks do."""

import asyncio
import os
import random
from collections.abc import Callable
from itertools import combinations

import msgspec
import pytest

from objstore.blobs.stripes import unpack_directory
from objstore.blobs.volumes import Lane, Stored, VolumeState
from objstore.blobs.writer import MIB, BlobStream, BlobWriter
from objstore.errors import (
    Conflict,
    DiskFailed,
    NodeAway,
    Overloaded,
    TooFewDisks,
    Unavailable,
    WriteQuorumNotMet,
)
from objstore.extents import Extent
from objstore.meta.kv import Transaction
from objstore.meta.schema import volume_key
from objstore.node.fragments import FileScan, Seal
from tests.blobs.rig import CLUSTER, FAST, MOODS, SECRET, Rig
from tests.sim.memory_disk import MemoryDisk
from tests.waiting import until, until_true

SEAL = Seal(CLUSTER, SECRET)

Read = asyncio.Future[None] | None


async def ends(rig: Rig, volume: int) -> dict[int, tuple[int, str]]:
    """Per fragment index: where its last whole record ends, and what lies behind."""
    record = await rig.ledger.get(volume, fresh=True)
    found = {}
    for index, number in enumerate(record.disks):
        disk = rig.disks[number]
        if (volume, index) in disk.fragments:
            scan = FileScan(SEAL, disk.read, volume, index)
            async for _ in scan.records(verify=True, stop=record.length or None):
                pass
            found[index] = (scan.end, scan.tail)
    return found


async def settled(rig: Rig) -> None:
    """Let the writer's housekeeping run until it has nothing to seal."""
    rig.clock.advance(2)
    await until(lambda: not rig.writer._closing, "volumes are sealed")


async def all_sealed(rig: Rig) -> bool:
    return {record.state for record in await rig.ledger.volumes()} == {VolumeState.SEALED}


async def test_bodies_that_arrive_during_a_flush_share_the_next_stripe() -> None:
    rig = await Rig().start()
    bodies = [bytes([number]) * (number + 1) for number in range(100)]
    stored = await asyncio.gather(*(rig.writer.put(body, b"o%d" % at, b"") for at, body in enumerate(bodies)))
    assert rig.writer.counters.stripes <= 2
    assert rig.writer.counters.bodies == 100
    for body, one in zip(bodies, stored, strict=True):
        assert await rig.reader.read(one.extents[0]) == body


async def test_a_lone_body_is_flushed_at_once() -> None:
    rig = await Rig().start()
    await rig.put(b"first")
    before = [disk.calls["append"] for disk in rig.disks.values()]
    await rig.put(b"second")
    assert [disk.calls["append"] for disk in rig.disks.values()] == [count + 1 for count in before]


@pytest.mark.parametrize(
    ("moods", "k", "intents"),
    [
        # Six disks, 4+2, in the middle of a volume: how the next stripe stands.
        ("++++++", 4, 0),
        ("x+++++", 4, 1),  # One lost: k+1 stand; an intent, and a fresh volume for what follows.
        ("+++++!", 4, 1),
        ("++~+++", 4, 1),
        ("+++/++", 4, 1),
        ("+#++++", 4, 1),
        ("++++?+", 4, 1),
        ("xx++++", 2, 0),  # Two lost: below the quorum, written again as 2+2.
        ("+!+~++", 2, 0),
        ("++++xx", 2, 0),
        ("xxx+++", 1, 0),  # Three left: 1+2.
    ],
)
async def test_a_write_survives_what_the_disks_do_to_it(moods: str, k: int, intents: int) -> None:
    rig = await Rig().start()
    first = await rig.put(b"before" * 100)
    rig.moods(moods)
    stored = await rig.writer.put(b"during" * 100, b"o-during", b"")
    record = await rig.ledger.get(stored.extents[0].volume)
    assert record.k == k
    assert len(stored.intents) == intents
    bad = [number for number, mood in enumerate(moods, 1) if mood != "+"]
    for intent in stored.intents:
        assert record.disks[intent.index] in bad
    after = await rig.writer.put(b"after", b"o-after", b"")
    if bad:
        assert not set((await rig.ledger.get(after.extents[0].volume)).disks) & set(bad)
        assert set(await rig.ledger.usable_disks()) >= {1, 2, 3, 4, 5, 6} - set(bad)
        if "#" not in moods:  # A full disk is full, not suspect.
            assert not set(await rig.ledger.usable_disks()) & set(bad)
    for extents, body in ((first, b"before" * 100), (stored.extents, b"during" * 100)):
        if len(bad) <= 2:
            assert await rig.reader.read(extents[0]) == body


async def test_a_disk_whose_node_does_not_answer_this_process_is_suspect_to_nobody_else() -> None:
    def away(call: str, volume: int, index: int) -> None:
        raise NodeAway("no answer")

    rig = await Rig("+++++++").start()
    first = await rig.put(b"before" * 100)
    volume = first[0].volume
    cut_off = (await rig.ledger.get(volume)).disks[2]
    rig.disks[cut_off].before = away
    stored = await rig.writer.put(b"during" * 100, b"o-during", b"")
    assert [intent.index for intent in stored.intents] == [2]
    after = await rig.put(b"after")
    assert cut_off not in (await rig.ledger.get(after[0].volume)).disks, "this process rests it"
    assert cut_off in await rig.ledger.usable_disks()


async def test_nodes_that_are_back_unheard_are_written_to_when_too_few_others_are_left() -> None:
    rig = await Rig().start()
    rig.moods("@@@@xx")
    extents = await rig.put(b"during" * 100)
    assert sorted((await rig.ledger.get(extents[0].volume)).disks) == [1, 2, 3, 4]
    rig.moods("++++++")
    assert await rig.reader.read(extents[0]) == b"during" * 100


async def test_a_disk_rests_no_longer_than_its_node_is_away_when_others_go() -> None:
    rig = await Rig().start()
    await rig.put(b"before")
    rig.moods("@@++++")
    await rig.put(b"without two")
    rig.moods("+++xxx")
    extents = await rig.put(b"without others")
    assert sorted((await rig.ledger.get(extents[0].volume)).disks) == [1, 2, 3]


async def test_those_who_wait_for_one_question_do_not_ask_another() -> None:
    rig = await Rig().start()
    rig.moods("@@@@xx")
    for disk in rig.disks.values():
        disk.returned = False
    ended = await asyncio.gather(
        *(rig.put_stream(b"body" * 1_000, b"o-%d" % number) for number in range(4)), return_exceptions=True
    )
    assert all(isinstance(failure, TooFewDisks) for failure in ended), ended
    assert [disk.calls["look_again"] for disk in rig.disks.values()] == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("moods", ["xxxx++", "!!!!!!", "~~~~~~", "######", "??????"])
async def test_a_write_below_one_and_m_disks_is_refused_and_nothing_hangs(moods: str) -> None:
    rig = await Rig().start()
    await rig.put(b"before")
    rig.moods(moods)
    with pytest.raises(Unavailable):
        await rig.writer.put(b"during", b"o-during", b"")
    rig.wake()
    for number in rig.disks:
        await rig.ledger.set_disk_state(number, "healthy")
    rig.clock.advance(60)
    extents = await rig.put(b"after")
    assert await rig.reader.read(extents[0]) == b"after"


@pytest.mark.parametrize("k", [1, 2, 4])
async def test_with_m_four_two_fragments_to_spare_are_asked_for(k: int) -> None:
    count = k + 4
    rig = await Rig("+" * count, k=k, m=4).start()
    await rig.put(b"before")
    rig.moods("x" * 3 + "+" * (count - 3))  # k+1 left: enough for m < 4 only.
    try:
        stored = await rig.writer.put(b"during", b"o", b"")
    except TooFewDisks:
        assert count - 3 < 5
    else:
        assert (await rig.ledger.get(stored.extents[0].volume)).id == 2, "written again elsewhere"
        assert stored.intents == []


async def test_disks_that_came_since_the_process_last_looked_are_found_by_the_first_write_and_read() -> None:
    heard: dict[int, MemoryDisk] = {}

    async def find_disks() -> None:
        rig.disks.update(heard)

    rig = await Rig(find_disks=find_disks).start()
    for number in list(rig.disks)[1:]:  # Of all but one nobody here has heard.
        heard[number] = rig.disks.pop(number)
    extents = await rig.put(b"the first object of a store")
    assert len((await rig.ledger.get(extents[0].volume)).disks) == 6, "on all of them"

    for number in heard:  # Nor has the process that is asked for the object.
        del rig.disks[number]
    assert await rig.reader.read(extents[0]) == b"the first object of a store"
    assert rig.reader.counters.degraded_reads == 0


async def test_a_failed_append_seals_the_volume_at_its_offset_and_leaves_no_hole() -> None:
    rig = await Rig().start()
    for _ in range(3):
        await rig.put(b"x" * 1000)
    end = rig.writer._lanes[""].current[Lane.SMALL].end
    rig.moods("//++++")
    extents = await rig.put(b"y" * 1000)
    assert extents[0].volume == 2
    await settled(rig)
    record = await rig.ledger.get(1, fresh=True)
    assert (record.state, record.length) == (VolumeState.SEALED, end)
    assert all(found[0] == end for found in (await ends(rig, 1)).values())


async def test_a_writer_that_was_paused_cannot_publish_into_a_sealed_volume() -> None:
    rig = await Rig().start()
    stored = await rig.writer.put(b"late", b"o-late", b"")
    volume = stored.extents[0].volume
    await rig.ledger.seal(volume, 64)  # Another process took it for dead.
    with pytest.raises(Conflict):
        await rig.commit(stored, b"o-late", b"record")
    assert await rig.kv.get(b"o-late") is None
    assert await rig.ledger.lengths([volume]) == [(64, 0)]
    await rig.writer.close()
    assert (await rig.ledger.get(volume, fresh=True)).length == 64


async def test_a_volume_with_a_long_stream_stays_open_until_the_stream_has_ended() -> None:
    rig = await Rig(limits=FAST._replace(volume_size=2 * MIB)).start()
    stream = rig.writer.stream(b"o-stream")
    await stream.write(bytes(20 * MIB))
    for _ in range(50):
        await asyncio.sleep(0.002)
    assert {record.state for record in await rig.ledger.volumes()} == {VolumeState.OPEN}
    stored = await stream.finish(b"about")
    assert len(stored.fences) >= 2
    await rig.commit(stored, b"o-stream", b"record")
    await settled(rig)
    assert VolumeState.SEALED in {record.state for record in await rig.ledger.volumes()}


async def test_a_full_volume_is_followed_by_another() -> None:
    rig = await Rig(limits=FAST._replace(volume_size=40_000)).start()
    bodies = [random.Random(seed).randbytes(20_000) for seed in range(30)]
    extents = [await rig.put(body) for body in bodies]
    assert len({extent[0].volume for extent in extents}) > 3
    for body, extent in zip(bodies, extents, strict=True):
        assert await rig.reader.read(extent[0]) == body
    await settled(rig)
    for record in await rig.ledger.volumes():
        if record.state == VolumeState.SEALED:
            assert set((await ends(rig, record.id)).values()) == {(record.length, "")}


async def test_an_idle_volume_is_sealed() -> None:
    rig = await Rig().start()
    await rig.put(b"x")
    rig.clock.advance(3_601)
    await until_true(lambda: all_sealed(rig))
    assert (await rig.put(b"y"))[0].volume == 2


async def test_the_length_is_noted_while_the_volume_is_open() -> None:
    rig = await Rig().start()
    await rig.put(b"x" * 999)
    rig.clock.advance(2)
    async with asyncio.timeout(60):
        while not (await rig.ledger.lengths([1]))[0][0]:
            await asyncio.sleep(0.002)
    assert await rig.ledger.lengths([1]) == [(rig.writer._lanes[""].current[Lane.SMALL].end, 999)]


async def test_close_flushes_seals_and_takes_no_more() -> None:
    rig = await Rig().start()
    waiting = asyncio.ensure_future(rig.put(b"last words"))
    await asyncio.sleep(0)
    await rig.writer.close()
    extents = await waiting
    assert await rig.reader.read(extents[0]) == b"last words"
    assert {record.state for record in await rig.ledger.volumes()} == {VolumeState.SEALED}
    with pytest.raises(Overloaded):
        await rig.writer.put(b"x", b"o", b"")
    with pytest.raises(Overloaded):
        rig.writer.stream(b"o")


async def test_the_queue_of_small_bodies_is_bounded() -> None:
    rig = await Rig(limits=FAST._replace(queue_bytes=10_000)).start()
    puts = [asyncio.ensure_future(rig.put(bytes(1_000))) for _ in range(20)]
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) >= 10
    assert sum(isinstance(outcome, list) for outcome in outcomes) >= 5
    assert rig.writer.counters.queue_bytes == 0


async def test_a_client_that_leaves_takes_no_one_along() -> None:
    rig = await Rig().start()
    puts = [asyncio.ensure_future(rig.put(b"%d" % number)) for number in range(10)]
    await asyncio.sleep(0)
    puts[3].cancel()
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert [isinstance(outcome, list) for outcome in outcomes] == [number != 3 for number in range(10)]


async def test_a_bug_in_one_append_is_never_taken_for_a_failed_disk() -> None:
    rig = await Rig().start()

    def buggy(call: str, volume: int, index: int) -> None:
        if call == "append":
            raise TypeError("a bug")

    rig.disks[3].before = buggy
    with pytest.raises(TypeError):
        await rig.writer.put(b"x", b"o", b"")
    assert await rig.ledger.usable_disks() == [1, 2, 3, 4, 5, 6]


async def test_a_disk_that_hangs_is_given_up_after_the_deadline() -> None:
    rig = await Rig(limits=FAST._replace(deadline_s=0.05)).start()
    await rig.put(b"before")
    hung = asyncio.Event()

    async def hang(*args: object, **kwargs: object) -> None:
        hung.set()
        await asyncio.Event().wait()

    rig.disks[2].append = hang  # type: ignore[method-assign]
    stored = await rig.writer.put(b"during", b"o", b"")
    assert hung.is_set()
    assert len(stored.intents) == 1
    assert 2 not in await rig.ledger.usable_disks()


async def test_placement_fails_over_when_a_file_cannot_be_created() -> None:
    rig = await Rig("+++++++").start()
    rig.disks[4].mood = "sync-error"
    rig.disks[5].before = lambda call, volume, index: fail() if call == "create" else None

    def fail() -> None:
        raise DiskFailed("no inode")

    extents = [await rig.put(b"body %d" % number) for number in range(5)]
    assert await rig.reader.read(extents[4][0]) == b"body 4"
    for record in await rig.ledger.volumes():
        assert record.id == 1 or 5 not in record.disks or record.state != VolumeState.OPEN


# Streams.


@pytest.mark.parametrize(
    "size", [1, 8, 65_536, 65_537, 4 * MIB - 16 * 1024, 4 * MIB, 4 * MIB + 1, 13_000_001]
)
async def test_a_stream_reads_back_as_it_was_written(size: int) -> None:
    rig = await Rig().start()
    rng = random.Random(size)
    body = rng.randbytes(size)
    stream = rig.writer.stream(b"o-home")
    at = 0
    while at < size:
        step = rng.randint(1, 3_000_000)
        await stream.write(body[at : at + step])
        at += step
    stored = await stream.finish(b"about")
    await rig.commit(stored, b"o-home", b"record")
    assert sum(extent.length for extent in stored.extents) == size
    assert await rig.read_all(stored.extents) == body
    for _ in range(5):
        begin = rng.randrange(size)
        length = rng.randint(1, size - begin)
        assert await rig.read_all(stored.extents, begin, length) == body[begin : begin + length]
    assert rig.writer.memory.used == 0


async def test_the_last_stripe_of_a_stream_carries_about_and_every_one_its_place() -> None:
    rig = await Rig().start()
    stored = await rig.put_stream(bytes(9 * MIB))
    entries = []
    for extent in stored.extents:
        scan = FileScan(
            SEAL, rig.disks[(await rig.ledger.get(extent.volume)).disks[0]].read, extent.volume, 0
        )
        async for header, _ in scan.records():
            if header.offset == extent.offset:
                start = header.directory_offset
                where = Extent(
                    extent.volume, extent.offset, extent.fragment_size, start, header.payload_size - start
                )
                entries += unpack_directory(await rig.reader.read(where))
    assert [entry.about for entry in entries] == [b"", b"", b"about"]
    offset = 0
    for entry, extent in zip(entries, stored.extents, strict=True):
        assert (entry.home, entry.blob_offset, entry.length) == (b"o-home", offset, extent.length)
        offset += extent.length


@pytest.mark.parametrize("about", [b"", b"a" * 40_000])
async def test_an_about_too_long_for_its_stripe_goes_into_one_of_its_own(about: bytes) -> None:
    rig = await Rig().start()
    stream = rig.writer.stream(b"o-home")
    await stream.write(b"body" * 1000)
    stored = await stream.finish(about)
    assert await rig.read_all(stored.extents) == b"body" * 1000
    assert rig.writer.counters.bodies == (1 if about else 0)


@pytest.mark.parametrize("moods", ["x+++++", "++/+++", "++++++/"[:6], "#+++++", "xx++++", "//++++", "+~!+++"])
async def test_a_stream_goes_on_when_disks_fail_under_it(moods: str) -> None:
    rig = await Rig().start()
    body = random.Random(moods).randbytes(30_000_000)
    stream = rig.writer.stream(b"o-home")
    failed = None
    try:
        for at in range(0, len(body), 1_000_000):
            if at == 11_000_000:
                rig.moods(moods)
            await stream.write(body[at : at + 1_000_000])
        stored = await stream.finish(b"about")
    except WriteQuorumNotMet as failure:
        failed = failure
    finally:
        stream.abort()
    bad = {number for number, mood in enumerate(moods, 1) if mood != "+"}
    if failed is not None:
        # Two disks failed before the first volume was synced: its bytes had left memory.
        assert len(bad) == 2
        return
    await rig.commit(stored, b"o-home", b"record")
    assert await rig.read_all(stored.extents) == body
    rig.wake()
    for disk in rig.disks.values():
        disk.lose_power()  # Only what was synced is left.
    assert await rig.read_all(stored.extents) == body
    for volume in {extent.volume for extent in stored.extents}:
        assert {intent.index for intent in stored.intents if intent.volume == volume} == {
            index for index, number in enumerate((await rig.ledger.get(volume)).disks) if number in bad
        }
    await rig.writer.close()
    for record in await rig.ledger.volumes():
        good = [index for index, number in enumerate(record.disks) if number not in bad]
        found = await ends(rig, record.id)
        assert all(found[index][0] == record.length for index in good if record.length)


async def test_two_failed_syncs_refuse_a_stream_whose_bytes_have_left_memory() -> None:
    rig = await Rig().start()
    stream = rig.writer.stream(b"o-home")
    await stream.write(bytes(10 * MIB))
    rig.moods("!!++++")
    with pytest.raises(WriteQuorumNotMet, match="4 of 5 fragments durable"):
        await stream.finish(b"")
    assert rig.writer.memory.used == 0
    stored = await rig.put_stream(b"next" * 100_000)
    assert await rig.read_all(stored.extents) == b"next" * 100_000


async def test_streams_that_end_together_share_their_sync() -> None:
    rig = await Rig().start()
    for disk in rig.disks.values():
        sync = disk.sync

        async def slow(volume: int, index: int, sync=sync) -> None:  # type: ignore[no-untyped-def]
            for _ in range(200):  # Many turns of the loop: the appends of all others end meanwhile.
                await asyncio.sleep(0)
            await sync(volume, index)

        disk.sync = slow  # type: ignore[method-assign]
    streams = [rig.writer.stream(b"o%d" % number) for number in range(20)]
    for stream in streams:
        await stream.write(bytes(100_000))
    stored = await asyncio.gather(*(stream.finish(b"") for stream in streams))
    assert len(stored) == 20
    assert rig.writer.counters.syncs <= 3


async def test_a_stream_is_not_acknowledged_before_its_sync() -> None:
    rig = await Rig().start()
    stored = await rig.put_stream(bytes(range(256)) * 40_000)
    for disk in rig.disks.values():
        disk.lose_power()
    assert await rig.read_all(stored.extents) == bytes(range(256)) * 40_000


async def test_64_streams_stay_within_the_memory_and_all_end() -> None:
    limits = FAST._replace(memory=24 * MIB)
    rig = await Rig(limits=limits).start()
    peak = 0
    body = random.Random(64).randbytes(3 * MIB)

    async def upload(number: int) -> Stored:
        nonlocal peak
        stream = rig.writer.stream(b"o%d" % number)
        try:
            for at in range(0, len(body), 300_000):
                await stream.write(body[at : at + 300_000])
                peak = max(peak, rig.writer.memory.used + rig.writer._pooled)
            return await stream.finish(b"")
        finally:
            stream.abort()

    stored = await asyncio.gather(*(upload(number) for number in range(64)))
    assert 0 < peak <= limits.memory
    assert rig.writer.memory.used == 0
    assert await rig.read_all(stored[17].extents) == body


async def test_clients_that_dribble_do_not_hold_the_memory() -> None:
    rig = await Rig(limits=FAST._replace(memory=3 * 384 * 1024, pressure_s=2.0)).start()
    slow = [rig.writer.stream(b"o-slow%d" % number) for number in range(3)]
    for stream in slow:
        await stream.write(b"a drop")
    quick = asyncio.ensure_future(rig.put_stream(bytes(2 * MIB)))
    await until(lambda: rig.writer.memory.waiting)
    rig.clock.advance(3)
    stored = await asyncio.wait_for(quick, 60)
    assert sum(extent.length for extent in stored.extents) == 2 * MIB
    assert rig.writer.counters.pressure_flushes >= 1
    for stream in slow:
        await stream.write(b", and another")
        one = await stream.finish(b"about")
        assert await rig.read_all(one.extents) == b"a drop, and another"


async def test_no_memory_within_the_limit_is_a_clear_refusal() -> None:
    rig = await Rig(limits=FAST._replace(memory=400 * 1024, memory_wait_s=0.02, pressure_s=3600)).start()
    slow = rig.writer.stream(b"o-slow")
    await slow.write(b"a drop")
    with pytest.raises(Overloaded, match="memory"):
        await rig.writer.stream(b"o").write(b"x")
    slow.abort()
    assert rig.writer.memory.used == 0


async def test_an_aborted_stream_gives_everything_back() -> None:
    rig = await Rig().start()
    stream = rig.writer.stream(b"o")
    await stream.write(bytes(9 * MIB))
    stream.abort()
    stream.abort()
    await until(lambda: not rig.writer.memory.used)
    assert all(volume.pins == 0 for volume in rig.writer._lanes[""].current.values())


# Every acknowledged byte, under random failures.


@pytest.mark.parametrize("seed", range(200 if os.environ.get("OBJSTORE_LONG") else 6))
async def test_no_acknowledged_byte_is_lost_under_random_failures_of_m_disks(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    rig = await Rig("+" * 8, limits=FAST._replace(volume_size=200_000), seed=seed).start()
    kept: dict[bytes, tuple[list[Extent], bytes]] = {}
    refused = 0
    for step in range(60):
        if rng.random() < 0.25:  # A new state of the world: at most m disks are not well.
            rig.wake()
            for number in rig.disks:
                await rig.ledger.set_disk_state(number, "healthy")
            rig.clock.advance(60)
            for number in rng.sample(range(1, 9), rng.randint(0, 2)):
                rig.disks[number].mood = MOODS[rng.choice("x?~!#/")]
        jobs = []
        for part in range(rng.randint(1, 5)):
            home = b"o%d-%d" % (step, part)
            body = rng.randbytes(rng.choice([1, 100, 4096, 30_000, 700_000]))
            jobs.append((home, body))

        async def store(home: bytes, body: bytes) -> Stored:
            return await (
                rig.put_stream(body, home) if len(body) > 100_000 else rig.writer.put(body, home, b"")
            )

        outcomes = await asyncio.gather(*(store(*job) for job in jobs), return_exceptions=True)
        for (home, body), outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Stored):
                await rig.commit(outcome, home, b"record")
                kept[home] = (outcome.extents, body)
                assert await rig.read_all(outcome.extents) == body
            else:
                assert isinstance(outcome, Unavailable), outcome
                refused += 1
    assert len(kept) > 100
    rig.wake()
    for disk in rig.disks.values():
        disk.lose_power(rng)
    for extents, body in kept.values():
        assert await rig.read_all(extents) == body


def writer_points() -> list[str]:
    return [
        "volume-recorded",
        "volume-created",
        "stripe-encoded",
        "stripe-appended",
        "stripe-synced",
        "volume-sealed",
    ]


class Crash(BaseException):
    """The process is gone: nothing catches it."""


@pytest.mark.parametrize("point", writer_points())
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_a_crash_at_any_point_loses_nothing_that_was_acknowledged(point: str, nth: int) -> None:
    seen = 0

    def crash(name: str) -> None:
        nonlocal seen
        if name == point:
            seen += 1
            if seen >= nth:
                raise Crash(name)

    rig = await Rig(limits=FAST._replace(volume_size=300_000), crash_point=crash).start()
    rng = random.Random(nth)
    kept: dict[bytes, tuple[list[Extent], bytes]] = {}
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)

    async def work(life: int) -> None:
        for number in range(30):
            home = b"o%d-%d" % (life, number)
            body = rng.randbytes(rng.choice([100, 5_000, 400_000]))
            stored = await (
                rig.put_stream(body, home) if len(body) > 100_000 else rig.writer.put(body, home, b"")
            )
            await rig.commit(stored, home, b"record")
            kept[home] = (stored.extents, body)

    for life in range(2):  # It crashes, and the writer after it crashes at the same point.
        task = asyncio.ensure_future(work(life))
        async with asyncio.timeout(60):  # Threads encode what is large: how many turns that takes is theirs.
            while seen < nth:
                await asyncio.sleep(0)
                if task.done():  # What is full is sealed a while after its last use.
                    rig.clock.advance(rig.limits.linger_s)
                    await asyncio.sleep(rig.limits.tick_s)
        task.cancel()
        await asyncio.wait([task])
        for disk in rig.disks.values():
            disk.lose_power(rng)
        for extents, body in kept.values():
            assert await rig.read_all(extents) == body
        seen = 0
        rig.writer = rig.new_writer()
    rig.crash_point = lambda name: None
    rig.writer = rig.new_writer()
    later = await rig.put(b"life goes on")
    assert await rig.reader.read(later[0]) == b"life goes on"


@pytest.mark.parametrize("lost", list(combinations(range(6), 2)))
async def test_any_m_disks_may_go_after_the_answer(lost: tuple[int, int]) -> None:
    rig = await Rig().start()
    bodies = [random.Random(seed).randbytes(3_000) for seed in range(10)]
    extents = await asyncio.gather(*(rig.put(body) for body in bodies))
    stored = await rig.put_stream(b"large" * 400_000)
    for number, disk in rig.disks.items():
        if number - 1 in lost:
            disk.mood = "missing"
    for body, found in zip(bodies, extents, strict=True):
        assert await rig.reader.read(found[0]) == body
    assert await rig.read_all(stored.extents) == b"large" * 400_000


def test_a_writer_refuses_nonsense() -> None:
    with pytest.raises(AssertionError):
        BlobWriter(
            disks={},
            ledger=None,  # type: ignore[arg-type]
            k=4,
            m=2,
            writer=b"short",
            cluster=CLUSTER,
            secret=1,
            codec=None,  # type: ignore[arg-type]
        )


async def test_a_writer_whose_volume_was_sealed_by_another_goes_on_in_a_fresh_one() -> None:
    rig = await Rig().start()
    stored = await rig.writer.put(b"late", b"o-late", b"")
    await rig.ledger.seal(stored.extents[0].volume, 64)
    with pytest.raises(Conflict):
        await rig.commit(stored, b"o-late", b"record")
    await rig.writer.recheck(stored.fences)
    again = await rig.put(b"late")
    assert again[0].volume != stored.extents[0].volume
    assert await rig.reader.read(again[0]) == b"late"


async def test_a_volume_that_others_have_sealed_and_removed_is_not_sealed_again_and_again() -> None:
    rig = await Rig().start()
    volume = (await rig.put(b"x"))[0].volume
    other = (await rig.put_stream(b"y" * 1_000_000)).extents[0].volume
    await rig.kv.commit(Transaction(delete=[volume_key(volume)]))
    rig.writer.leave(rig.disks)
    await settled(rig)
    assert (await rig.ledger.get(other, fresh=True)).state == VolumeState.SEALED, "the others do not wait"


async def test_a_writer_notices_by_itself_that_its_volume_was_sealed() -> None:
    rig = await Rig().start()
    await rig.put(b"x")
    await rig.ledger.seal(1, 64)
    rig.clock.advance(2)
    await until(lambda: Lane.SMALL not in rig.writer._lanes[""].current)
    assert (await rig.put(b"y"))[0].volume == 2


async def test_an_aborted_streams_late_stripe_does_not_keep_its_volume_open() -> None:
    rig = await Rig().start()
    stream = rig.writer.stream(b"o")
    await stream.write(bytes(9 * MIB))
    stream.abort()  # Its stripes are still on their way.
    await until(lambda: not stream._sent)
    assert all(volume.pins == 0 for volume in rig.writer._lanes[""].current.values())
    rig.clock.advance(3_700)
    await until_true(lambda: all_sealed(rig))


async def test_closing_under_a_busy_stream_opens_no_new_volume() -> None:
    rig = await Rig(limits=FAST._replace(volume_size=MIB)).start()
    stream = rig.writer.stream(b"o")
    await stream.write(bytes(20 * MIB))
    await rig.writer.close()
    while stream._sent:
        await asyncio.wait(list(stream._sent))
    assert VolumeState.OPEN not in {record.state for record in await rig.ledger.volumes()}


async def test_a_volume_is_sealed_behind_what_was_synced_and_not_behind_what_was_given_up() -> None:
    """Else a power cut between the record and the files leaves a length that no walk can reach."""
    rig = await Rig().start()
    kept = await rig.put_stream(bytes(5_000_000))
    await rig.commit(kept, b"o-home", b"record")
    stream = rig.writer.stream(b"o-left")
    await stream.write(bytes(9_000_000))
    while stream._sent:
        await asyncio.sleep(0)
    stream.abort()
    volume = kept.extents[0].volume
    synced = {
        number: {key: file.synced for key, file in disk.fragments.items()}
        for number, disk in rig.disks.items()
    }
    await rig.writer.close()
    record = await rig.ledger.get(volume, fresh=True)
    assert record.length
    for index, number in enumerate(record.disks):
        assert synced[number][volume, index] >= record.length
    assert await rig.new_reader().read(msgspec.structs.replace(kept.extents[-1], length=1, digest=0)) == b"\0"


async def pour(
    stream: BlobStream, body: bytes, *, step: int, read: Callable[[], Read] = lambda: None
) -> None:
    """Put a body into the stream's own memory, as an intake does."""
    at = 0
    while at < len(body):
        if stream.is_full:
            await stream.turn(read())
        room = stream.room()
        if room is None:
            await stream.write(body[at : at + 1])
            at += 1
            continue
        take = min(step, len(room), len(body) - at)
        room[:take] = body[at : at + take]
        stream.took(take)
        at += take


@pytest.mark.parametrize("size", [1, 3 * MIB, 4 * MIB - 16 * 1024, 4 * MIB, 13 * MIB + 5])
async def test_a_stream_filled_in_its_own_memory_reads_back_as_it_was(size: int) -> None:
    rig = await Rig().start()
    body = os.urandom(size)
    stream = rig.writer.stream(b"o-home")
    await pour(stream, body, step=1_000_003)
    stored = await stream.finish(b"about")
    assert await rig.read_all(stored.extents) == body
    assert sum(extent.length for extent in stored.extents) == size
    assert rig.writer.memory.used == 0


async def test_memory_that_is_still_being_read_is_not_used_again() -> None:
    rig = await Rig().start()
    readers: list[asyncio.Future[None]] = []
    seen: list[tuple[memoryview, bytes]] = []
    stream = rig.writer.stream(b"o-home")
    body = os.urandom(24 * MIB)

    def read() -> asyncio.Future[None]:
        assert stream._buffer is not None
        view = memoryview(stream._buffer.data)[: stream._buffer.capacity]
        seen.append((view, bytes(view)))
        readers.append(asyncio.get_running_loop().create_future())
        return readers[-1]

    await pour(stream, body, step=MIB, read=read)
    stored = await stream.finish(b"about")
    assert await rig.read_all(stored.extents) == body
    assert len(readers) >= 5
    assert all(bytes(view) == content for view, content in seen)
    assert rig.writer.memory.used == len(readers) * 6 * MIB  # And it still counts.
    for reader in readers:
        reader.set_result(None)
    await asyncio.sleep(0)
    assert rig.writer.memory.used == 0


async def test_a_stream_that_waits_for_its_sender_gives_its_memory_up_when_asked() -> None:
    rig = await Rig(limits=FAST._replace(memory=3 * 384 * 1024, pressure_s=2.0)).start()
    slow = [rig.writer.stream(b"o-slow%d" % number) for number in range(3)]
    for number, stream in enumerate(slow):
        await stream.write(b"a drop")
        if number == 0:  # Its memory is there, and nothing has come into it.
            await stream.flush(None)
            await stream._next_buffer()

        def hurry(stream: BlobStream = stream) -> None:
            asyncio.get_running_loop().create_task(stream.flush(None))

        stream.hurry = hurry
    quick = asyncio.ensure_future(rig.put_stream(bytes(2 * MIB)))
    await until(lambda: rig.writer.memory.waiting)
    rig.clock.advance(3)
    stored = await asyncio.wait_for(quick, 60)
    assert sum(extent.length for extent in stored.extents) == 2 * MIB
    for stream in slow:
        assert stream.room() is None
        stream.hurry = None
        await stream.write(b", and another")
        one = await stream.finish(b"about")
        assert await rig.read_all(one.extents) == b"a drop, and another"
    assert rig.writer.memory.used == 0
