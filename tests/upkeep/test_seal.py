"""Sealing dead writers' volumes at the length that the disks show."""

import asyncio
import random
from typing import Any

import pytest

from objstore.blobs.volumes import NOBODY, VolumeState
from objstore.errors import Conflict, Unavailable
from objstore.extents import Extent
from objstore.meta.schema import object_key
from objstore.upkeep import seal
from objstore.upkeep.homes import open_home
from objstore.upkeep.repair import RepairReport, repair_file
from objstore.upkeep.seal import find_length, seal_dead, seal_volume
from tests.upkeep.rig import BUCKET, Yard

DEAD = lambda writer: False  # noqa: E731
ALIVE = lambda writer: True  # noqa: E731


async def test_a_dead_writers_volumes_are_sealed_behind_their_last_whole_stripe() -> None:
    yard = await Yard().start()
    for number in range(5):
        await yard.put_object(f"o{number}", bytes(1_000 * number + 1))
    await yard.put_object("large", bytes(5_000_000))
    ends = {volume.record.id: volume.end for volume in yard.writer._lanes[""].current.values()}
    assert await seal_dead(yard.context(), ALIVE) == []
    sealed = await seal_dead(yard.context(), DEAD)
    assert {record.id: record.length for record in sealed} == ends
    assert set((await yard.states()).values()) == {VolumeState.SEALED}
    await yard.check()
    stored = await yard.writer.put(b"late", b"o-late", b"")  # The dead one wakes, and is fenced.
    with pytest.raises((Conflict, AssertionError)):
        await yard.commit(stored, b"o-late", b"record")


async def test_a_writer_that_wakes_while_its_volume_is_measured_publishes_nothing_behind_the_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = await Yard().start()
    await yard.put_object("o", bytes(10_000))
    waking = yard.writer

    async def measured(*args: Any) -> int:
        length = await find_length(*args)
        try:
            await yard.put_object("late", b"late" * 5_000)
        except Conflict:  # Not acknowledged.
            await waking.recheck([1])
            await yard.put_object("late", b"late" * 5_000)
        return length

    monkeypatch.setattr(seal, "find_length", measured)
    [record] = await seal_dead(yard.context(), DEAD)
    await yard.check()
    assert object_key(BUCKET, b"late") in yard.objects
    assert record.writer == NOBODY


@pytest.mark.parametrize("seed", range(10))
async def test_after_a_power_cut_every_acknowledged_stripe_is_within_the_length(seed: int) -> None:
    print(f"seed {seed}")
    yard = await Yard(seed=seed).start()
    rng = random.Random(seed)
    for number in range(rng.randint(1, 12)):
        await yard.put_object(f"o{number}", rng.randbytes(rng.choice([10, 5_000, 300_000])))
    stream = yard.writer.stream(b"o-cut")  # Unsynced stripes behind the acknowledged ones.
    await stream.write(bytes(9_000_000))
    while stream._sent:
        await asyncio.sleep(0)
    for disk in yard.disks.values():
        disk.lose_power(rng)
    lost = rng.sample(list(yard.disks), rng.randint(0, 2))
    for number in lost:
        yard.disks[number].mood = "missing"
    try:
        await seal_dead(yard.context(), DEAD)
    finally:
        yard.wake()
    await seal_dead(yard.context(), DEAD)
    assert VolumeState.OPEN not in (await yard.states()).values()
    await yard.check()
    for key in yard.objects:
        body = await yard.body_of(key)
        assert body == yard.objects[key]


async def test_nothing_is_decided_while_the_disks_that_know_are_away() -> None:
    yard = await Yard().start()
    await yard.put_object("o", bytes(10_000))
    record = await yard.ledger.get(1)
    for number in record.disks[:3]:
        yard.disks[number].mood = "missing"
    with pytest.raises(Unavailable):
        await find_length(yard.context(), record)
    assert await seal_dead(yard.context(), DEAD) == []
    yard.wake()
    assert len(await seal_dead(yard.context(), DEAD)) == 1
    await yard.check()


async def test_a_stripe_below_k_fragments_is_no_stripe() -> None:
    yard = await Yard().start()
    await yard.put_object("o", bytes(10_000))
    record = await yard.ledger.get(1)
    end = yard.writer._lanes[""].current[0].end
    await yard.writer.put(bytes(10_000), b"o-never", b"")
    for index in (0, 2, 5):
        disk = yard.disks[record.disks[index]]
        del disk.fragments[1, index].content[end + 100 :]
    assert await find_length(yard.context(), record) == end


async def test_a_rotten_stripe_in_the_middle_does_not_cut_off_what_follows() -> None:
    yard = await Yard().start()
    await yard.put_object("first", bytes(10_000))
    offset = yard.writer._lanes[""].current[0].end
    await yard.put_object("second", bytes(10_000))
    await yard.put_object("third", b"3" * 10_000)
    end = yard.writer._lanes[""].current[0].end
    record = await yard.ledger.get(1)
    for index in range(5):
        yard.disks[record.disks[index]].flip(1, index, offset + 20)
    sealed = await seal_volume(yard.context(), record)
    assert sealed.length == end


async def test_a_length_below_what_was_noted_as_durable_raises_an_alarm() -> None:
    yard = await Yard().start()
    await yard.put_object("o", bytes(10_000))
    record = await yard.ledger.get(1)
    volume = yard.writer._lanes[""].current[0]
    await yard.ledger.extend(1, volume.fence, volume.end)
    for index in range(4):
        del yard.disks[record.disks[index]].fragments[1, index].content[64:]
    ctx = yard.context()
    sealed = await seal_volume(ctx, record)
    assert sealed.length == volume.end, "metadata decides"
    assert "length of volume 1" in ctx.alarms.raised


async def test_a_volume_without_a_byte_is_sealed_at_zero() -> None:
    yard = await Yard().start()
    await yard.put_object("o", b"x")
    await yard.ledger.create(k=4, m=2, disks=[1, 2, 3, 4, 5, 6], lane=0, writer=b"w" * 16, policy="")
    sealed = await seal_dead(yard.context(), lambda writer: writer != b"w" * 16)
    assert [(record.id, record.length) for record in sealed] == [(2, 0)]


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("point", ["seal-measured", "seal-recorded"])
async def test_a_crash_while_sealing_is_finished_by_the_next(point: str) -> None:
    def crash(name: str) -> None:
        if name == point:
            raise Crash

    yard = await Yard().start()
    await yard.put_object("o", b"o" * 10_000)
    end = yard.writer._lanes[""].current[0].end
    with pytest.raises(Crash):
        await seal_dead(yard.context(crash), DEAD)
    await yard.check()
    await seal_dead(yard.context(), DEAD)
    record = await yard.ledger.get(1, fresh=True)
    assert (record.state, record.length) == (VolumeState.SEALED, end)
    await yard.check()


async def test_a_young_volume_is_left_until_news_of_its_writer_has_come() -> None:
    yard = await Yard().start()
    await yard.put_object("o", b"o")
    assert await seal_dead(yard.context(), DEAD, young_s=30) == []
    yard.clock.advance(31)
    assert len(await seal_dead(yard.context(), DEAD, young_s=30)) == 1


async def test_disks_given_up_for_good_do_not_keep_a_volume_open() -> None:
    yard = await Yard().start()
    await yard.put_object("o", b"o" * 10_000)
    record = await yard.ledger.get(1)
    end = yard.writer._lanes[""].current[0].end
    await yard.writer.put(bytes(10_000), b"o-never", b"")
    del yard.disks[record.disks[5]].fragments[1, 5].content[end + 100 :]
    for number in record.disks[:2]:
        yard.disks[number].mood = "missing"
    with pytest.raises(Unavailable):
        await find_length(yard.context(), record)
    for number in record.disks[:2]:
        await yard.ledger.set_disk_state(number, "failed")
    assert await find_length(yard.context(), record) == end
    await yard.check()


async def test_a_length_covers_nothing_that_a_power_cut_could_still_take() -> None:
    """Whole stripes of a killed writer may lie in the page cache only: a length that covers them before they
    are synced leaves a place in the volume that no walk gets over, and repair never mends the file again."""
    yard = await Yard().start()
    home = await yard.put_object("o", bytes(300_000))
    stream = yard.writer.stream(b"o-cut")
    await stream.write(bytes(9_000_000))
    while stream._sent:
        await asyncio.sleep(0)

    class PowerCut(BaseException): ...

    def cut(name: str) -> None:
        if name == "seal-recorded":
            raise PowerCut

    with pytest.raises(PowerCut):
        await seal_dead(yard.context(cut), DEAD)
    for disk in yard.disks.values():
        disk.lose_power()
    await seal_dead(yard.context(), DEAD)
    volume = (await open_extents(yard, home))[0].volume
    record = await yard.ledger.get(volume, fresh=True)
    yard.disks[record.disks[0]].lose(volume, 0)
    await repair_file(yard.context(), volume, 0, RepairReport())
    await yard.check()


async def open_extents(yard: Yard, home: bytes) -> list[Extent]:
    found = await open_home(yard.kv, home)
    assert found is not None
    return [place.extent for place in found.places.values()]


async def test_disks_given_up_and_disks_away_count_together() -> None:
    """2+2 with one disk gone for good: with two more away the last one knows too little to decide."""
    yard = await Yard("++++", k=2, m=2).start()
    await yard.put_object("o", bytes(10_000))
    record = await yard.ledger.get(1)
    lacking, gone, *away = record.disks
    for file in yard.disks[lacking].fragments.values():
        del file.content[:]  # Acknowledged without this one.
    await yard.ledger.set_disk_state(gone, "failed")
    for number in (gone, *away):
        yard.disks[number].mood = "missing"
    with pytest.raises(Unavailable):
        await find_length(yard.context(), record)
    for number in away:
        yard.disks[number].mood = "well"
    await seal_dead(yard.context(), DEAD)
    await yard.check()
