"""Scrub and repair: what is damaged is found and rebuilt to the byte."""

import random
from collections.abc import Callable, Coroutine, Sequence
from itertools import combinations
from typing import Any

import pytest

from objstore.blobs.volumes import Intent, VolumeState
from objstore.errors import Corrupt, Unavailable
from objstore.node.disk import Buffer
from objstore.upkeep.repair import Repair, RepairReport, repair_file
from objstore.upkeep.scrub import cursor, scrub_volume, step
from objstore.upkeep.walk import headers
from tests.upkeep.rig import Yard

Read = Callable[[int, int, int, Sequence[memoryview]], Coroutine[Any, Any, int]]


async def sealed(moods: str = "++++++") -> Yard:
    yard = await Yard(moods).start()
    rng = random.Random(1)
    for number in range(12):
        await yard.put_object(f"o{number}", rng.randbytes(rng.randint(1, 9_000)))
    await yard.put_object("large", rng.randbytes(3_000_000))
    await yard.restart_writer()
    return yard


def snapshot(yard: Yard) -> dict[tuple[int, int], bytes]:
    return {key: bytes(file.content) for disk in yard.disks.values() for key, file in disk.fragments.items()}


async def test_an_undamaged_store_is_scrubbed_without_a_finding() -> None:
    yard = await sealed()
    before = snapshot(yard)
    ctx = yard.context()
    reports = []
    while (report := await step(ctx)) is not None:
        reports.append(report)
    assert [report.volume for report in reports] == [1, 2]
    assert all(not report.damaged and not report.unread for report in reports)
    assert sum(report.bytes for report in reports) > 4_500_000
    assert snapshot(yard) == before
    assert (await cursor(ctx)).finished_us > 0


async def test_a_restarted_scrub_goes_on_where_it_was() -> None:
    yard = await sealed()
    first = await step(yard.context())
    second = await step(yard.context())
    assert first is not None
    assert second is not None
    assert (first.volume, second.volume) == (1, 2)


@pytest.mark.parametrize("seed", range(8))
async def test_planted_rot_is_found_wherever_it_is_and_repaired_to_the_byte(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    yard = await sealed()
    good = snapshot(yard)
    record = await yard.ledger.get(1 + seed % 2)
    planted = rng.sample(range(6), 2)
    for index in planted:
        disk = yard.disks[record.disks[index]]
        content = disk.fragments[record.id, index].content
        match rng.choice(["flip", "torn", "lost", "zeros"]):
            case "flip":
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            case "torn":
                del content[rng.randrange(len(content)) :]
            case "lost":
                disk.lose(record.id, index)
            case "zeros":
                start = rng.randrange(len(content) - 200)
                content[start : start + 200] = bytes(200)
    report = await scrub_volume(yard.context(), record)
    damaged = {index for index in planted if snapshot(yard).get((record.id, index)) != good[record.id, index]}
    assert damaged == set()
    assert set(report.damaged) <= set(planted)
    assert report.repaired == len(report.damaged)
    assert snapshot(yard) == good
    await yard.check()


@pytest.mark.parametrize("lost", list(combinations(range(6), 2)))
async def test_every_pair_of_lost_fragment_files_is_rebuilt_to_the_byte(lost: tuple[int, int]) -> None:
    yard = await sealed()
    good = snapshot(yard)
    for disk in yard.disks.values():
        for volume, index in list(disk.fragments):
            if index in lost:
                disk.lose(volume, index)
    report = await Repair(yard.context()).run()
    assert (report.found, report.repaired, report.endangered) == (4, 4, 2)
    assert snapshot(yard) == good
    assert (await Repair(yard.context()).run()).found == 0


async def test_an_intent_is_worked_off_and_forgotten() -> None:
    yard = await Yard().start()
    await yard.put_object("before", b"b" * 5_000)
    yard.moods("x+++++")
    await yard.put_object("during", b"d" * 5_000)
    yard.wake()
    await yard.ledger.set_disk_state(1, "healthy")
    assert len(await yard.ledger.intents()) == 1
    assert (await Repair(yard.context()).run()).found == 0, "not before its volume is sealed"
    await yard.restart_writer()
    report = await Repair(yard.context()).run()
    assert report.repaired == 1
    assert await yard.ledger.intents() == []
    record = await yard.ledger.get(1, fresh=True)
    files = {index: yard.disks[number].fragments[1, index] for index, number in enumerate(record.disks)}
    assert {len(file.content) for file in files.values()} == {record.length}
    await yard.check()


async def test_what_is_noted_of_a_rotten_file_does_not_say_that_stripes_are_missing() -> None:
    yard = await sealed()
    record = (await yard.ledger.volumes())[0]
    yard.disks[record.disks[2]].flip(record.id, 2, 64 + 100)
    await yard.ledger.note_intent(Intent(record.id, 2))
    reasons = [each.reason for each in await Repair(yard.context()).find()]
    assert reasons == ["acknowledged stripes in it are missing or do not verify"]


async def test_a_lost_disk_is_rebuilt_elsewhere_after_a_grace() -> None:
    yard = await sealed("++++++++")
    before = {record.id: record for record in await yard.ledger.volumes()}
    dead = before[1].disks[0]
    yard.disks[dead].mood = "missing"
    repair = Repair(yard.context(), grace_s=900)
    assert (await repair.run()).found == 0, "a cable is put back sooner"
    yard.clock.advance(901)
    report = await repair.run()
    assert report.repaired == report.found >= 1
    for record in await yard.ledger.volumes():
        assert dead not in record.disks
        assert len(set(record.disks)) == 6
    await yard.check()


async def test_without_a_spare_disk_repair_waits_and_says_so() -> None:
    yard = await sealed()
    for number in (1, 2):
        yard.disks[number].mood = "missing"
    repair = Repair(yard.context(), grace_s=0)
    report = await repair.run()
    assert (report.found, report.repaired, report.waiting, report.endangered) == (4, 0, 4, 2)
    assert "endangered volumes" in repair._ctx.alarms.raised
    yard.wake()
    assert (await repair.run()).found == 0
    assert repair._ctx.alarms.raised == {}


async def test_the_most_endangered_volumes_come_first() -> None:
    yard = await sealed()
    one, two = await yard.ledger.volumes()
    yard.disks[one.disks[0]].lose(1, 0)
    for index in (1, 3):
        yard.disks[two.disks[index]].lose(2, index)
    report = await Repair(yard.context()).run(limit=2)
    assert report.repaired == 2
    assert (1, 0) not in yard.disks[one.disks[0]].fragments
    assert (2, 1) in yard.disks[two.disks[1]].fragments


class Together:
    """Counts the large reads that are under way at once."""

    def __init__(self, yard: Yard) -> None:
        self.most = self._now = 0
        for disk in yard.disks.values():
            disk.read = self._counted(disk.read)  # type: ignore[assignment, method-assign]

    def _counted(self, read: Read) -> Read:
        async def counted(volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int:
            large = sum(map(len, buffers)) > 100_000
            self._now += large
            self.most = max(self.most, self._now)
            try:
                return await read(volume, index, position, buffers)
            finally:
                self._now -= large

        return counted


@pytest.mark.parametrize(("lost", "at_once"), [(1, 1), (2, 4)])
async def test_repair_reads_one_fragment_at_a_time_at_first_but_all_of_a_volume_that_can_lose_no_more(
    lost: int, at_once: int
) -> None:
    yard = await Yard().start()
    await yard.put_object("large", bytes(3_000_000))  # One stripe.
    await yard.restart_writer()
    (record,) = await yard.ledger.volumes()
    assert (record.k, record.m) == (4, 2)
    for index in range(lost):
        yard.disks[record.disks[index]].lose(record.id, index)
    together = Together(yard)
    assert (await Repair(yard.context()).run(limit=1)).repaired == 1
    assert together.most == at_once
    assert (await Repair(yard.context()).run()).found == lost - 1
    await yard.check()


async def test_a_stripe_lost_for_good_keeps_its_place_and_its_neighbours() -> None:
    yard = await sealed()
    record = await yard.ledger.get(1, fresh=True)
    for index in (0, 1, 2):
        yard.disks[record.disks[index]].flip(1, index, 64 + 56 + 8)  # The first stripe's first block.
    yard.disks[record.disks[3]].lose(1, 3)
    report = RepairReport()
    assert await repair_file(yard.context(), 1, 3, report)
    assert report.lost_stripes == 1
    file = yard.disks[record.disks[3]].fragments[1, 3]
    assert len(file.content) == record.length
    for number in range(1, 12):
        home = next(key for key in yard.objects if key.endswith(b"o%d" % number))
        assert await yard.body_of(home) == yard.objects[home]


async def test_an_open_volume_is_verified_and_left_to_its_writer() -> None:
    yard = await Yard().start()
    await yard.put_object("o", b"o" * 9_000)
    volume = yard.writer._lanes[""].current[0]
    await yard.ledger.extend(1, volume.fence, volume.end)
    record = await yard.ledger.get(1)
    yard.disks[record.disks[0]].flip(1, 0, 64 + 100)
    before = snapshot(yard)
    report = await scrub_volume(yard.context(), record)
    assert list(report.damaged) == [0]
    assert report.repaired == 0
    assert snapshot(yard) == before
    await yard.restart_writer()
    report = await scrub_volume(yard.context(), (await yard.ledger.volumes())[0])
    assert report.repaired == 1
    await yard.check()


async def test_a_fragment_file_that_its_writer_has_open_is_never_replaced() -> None:
    yard = await Yard().start()
    await yard.put_object("o", b"o" * 9_000)
    before = snapshot(yard)
    assert not await repair_file(yard.context(), 1, 0, RepairReport())
    assert snapshot(yard) == before
    assert sum(disk.calls["replace"] for disk in yard.disks.values()) == 0


@pytest.mark.parametrize("state", ["failed", "retired"])
async def test_a_disk_given_up_by_metadata_is_emptied_without_a_grace(state: str) -> None:
    yard = await sealed("+++++++")
    number = (await yard.ledger.get(1)).disks[2]
    await yard.ledger.set_disk_state(number, state)
    report = await Repair(yard.context(), grace_s=900).run()
    assert report.repaired == report.found >= 1
    assert all(number not in record.disks for record in await yard.ledger.volumes())
    await yard.check()


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("point", ["repair-rebuilt", "repair-replaced"])
async def test_a_crash_in_repair_leaves_the_old_state_or_the_new(point: str) -> None:
    def crash(name: str) -> None:
        if name == point:
            raise Crash

    yard = await sealed("+++++++")
    dead = (await yard.ledger.get(1)).disks[0]
    yard.disks[dead].mood = "missing"
    with pytest.raises(Crash):
        await Repair(yard.context(crash), grace_s=0).run()
    await yard.check()
    report = await Repair(yard.context(), grace_s=0).run()
    assert report.repaired == report.found >= 1
    assert VolumeState.OPEN not in (await yard.states()).values()
    await yard.check()


async def test_a_fragment_that_is_only_late_is_never_overwritten_with_zeros() -> None:
    """Its stripe has k good fragments, this one among them; its file is rebuilt because of another stripe."""
    yard = await sealed()
    record = await yard.ledger.get(1)
    offset = await third_stripe(yard, 1)
    for index in (3, 4):
        yard.disks[record.disks[index]].flip(1, index, offset + 70)
    victim = yard.disks[record.disks[0]]
    victim.flip(1, 0, 64 + 70)  # What the repair is for: damage in the first stripe.
    good = bytes(victim.fragments[1, 0].content)

    real = victim.read

    async def late(volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int:
        if index == 0 and position > offset:
            raise Unavailable("a disk read is overdue")
        return await real(volume, index, position, buffers)

    victim.read = late  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await repair_file(yard.context(), 1, 0, RepairReport())
    victim.read = real  # type: ignore[method-assign]
    assert victim.fragments[1, 0].content == good
    await repair_file(yard.context(), 1, 0, RepairReport())
    await yard.check()


async def third_stripe(yard: Yard, volume: int) -> int:
    record = await yard.ledger.get(volume)
    return [header.offset async for header in headers(yard.context(), record, record.length)][2]


async def test_repair_holds_one_stripe_in_memory_however_large_the_file_is() -> None:
    yard = await Yard().start()
    await yard.put_object("large", random.Random(3).randbytes(24_000_000))
    await yard.restart_writer()
    record = (await yard.ledger.volumes())[0]
    good = bytes(yard.disks[record.disks[2]].fragments[1, 2].content)
    yard.disks[record.disks[2]].lose(1, 2)
    largest = 0
    target = yard.disks[record.disks[2]]
    real = target.replace_append

    async def measured(name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        nonlocal largest
        largest = max(largest, sum(len(buffer) for buffer in buffers))
        await real(name, offset, buffers)

    target.replace_append = measured  # type: ignore[method-assign]
    assert await repair_file(yard.context(), 1, 2, RepairReport())
    assert target.fragments[1, 2].content == good
    assert len(good) > 5_000_000
    assert largest < 1_100_000, "a fragment is at most a MiB"


async def test_a_repair_that_fails_midway_leaves_no_temporary_file() -> None:
    yard = await sealed()
    record = await yard.ledger.get(1)
    yard.disks[record.disks[0]].lose(1, 0)
    for index in (1, 2, 3):
        yard.disks[record.disks[index]].mood = "missing"
    with pytest.raises(Unavailable):
        await repair_file(yard.context(), 1, 0, RepairReport())
    assert yard.disks[record.disks[0]].replacing == {}
    assert yard.disks[record.disks[0]].calls["replace_abandon"] == 1


async def test_a_disk_to_be_emptied_is_still_read_from_and_nothing_of_it_is_taken_for_lost() -> None:
    """Its stripe is k of k+m elsewhere damaged: only the draining disk's own fragment still saves it."""
    yard = await sealed("+++++++")
    record = await yard.ledger.get(1)
    leaving = record.disks[0]
    for index in (1, 2):
        yard.disks[record.disks[index]].flip(1, index, 64 + 70)
    await yard.ledger.set_disk_state(leaving, "draining")
    real = yard.disks[leaving].read

    async def late(volume: int, index: int, position: int, buffers: Sequence[memoryview]) -> int:
        raise Unavailable("a disk read is overdue")

    yard.disks[leaving].read = late  # type: ignore[method-assign]
    report = await Repair(yard.context()).run()
    assert (report.lost_stripes, report.endangered) == (0, 0)
    yard.disks[leaving].read = real  # type: ignore[method-assign]
    report = await Repair(yard.context()).run()
    assert report.moved == report.moving == 1, "the other volume's file has moved already"
    assert all(leaving not in record.disks for record in await yard.ledger.volumes())
    await yard.check()


async def test_moves_off_a_disk_come_after_every_real_damage() -> None:
    yard = await sealed("+++++++")
    one, two = await yard.ledger.volumes()
    leaving = one.disks[0]
    await yard.ledger.set_disk_state(leaving, "draining")
    lost = next(index for index, number in enumerate(two.disks) if number != leaving)
    yard.disks[two.disks[lost]].lose(2, lost)
    report = await Repair(yard.context()).run(limit=1)
    assert report.repaired == 1
    assert (2, lost) in yard.disks[two.disks[lost]].fragments


async def test_a_file_that_cannot_be_rebuilt_keeps_no_other_waiting() -> None:
    yard = await sealed()
    one, two = await yard.ledger.volumes()
    for index in (0, 1, 2):
        yard.disks[one.disks[index]].lose(1, index)
    yard.disks[two.disks[0]].lose(2, 0)
    for disk in yard.disks.values():
        real = disk.read

        async def read(
            volume: int, index: int, position: int, buffers: Sequence[memoryview], real: Any = real
        ) -> int:
            if volume == 1:
                raise Unavailable("a disk read is overdue")
            return int(await real(volume, index, position, buffers))

        disk.read = read  # type: ignore[method-assign]
    repair = Repair(yard.context())
    for _ in range(4):
        await repair.run(limit=1)
    assert (2, 0) in yard.disks[two.disks[0]].fragments


async def test_a_late_disk_given_up_for_good_lets_its_volumes_be_rebuilt_around_what_is_lost() -> None:
    yard = await sealed("+++++++")
    record = await yard.ledger.get(1)
    offset = await third_stripe(yard, 1)
    for index in (3, 4):
        yard.disks[record.disks[index]].flip(1, index, offset + 70)
    away = yard.disks[record.disks[0]]
    away.mood = "missing"
    repair = Repair(yard.context(), grace_s=0)
    report = await repair.run()
    assert report.lost_stripes == 0
    assert any(failure.startswith("1.") for failure in report.failures), (
        "it may come back: nothing is decided"
    )
    await yard.ledger.set_disk_state(away.number, "failed", "given up")
    report = await repair.run()
    assert report.failures == []
    assert report.repaired == report.found >= 1
    again = await yard.ledger.get(1, fresh=True)
    assert away.number not in again.disks
    readable = 0
    for home, body in yard.objects.items():
        try:
            assert await yard.body_of(home) == body
            readable += 1
        except Corrupt:
            pass
    assert len(yard.objects) - 3 <= readable <= len(yard.objects), "one stripe of many"


async def test_a_damaged_fragment_of_a_lost_stripe_keeps_its_good_blocks() -> None:
    yard = await Yard().start()
    small = await yard.put_object("whole", b"w" * 3_000)
    await yard.put_object("bulk", bytes(100_000))
    await yard.restart_writer()
    record = await yard.ledger.get(1)
    ctx = yard.context()
    found = [header async for header in headers(ctx, record, record.length)]
    stripe = found[-1]
    assert stripe.fragment_size > 3 * 4_096
    for index in (0, 1, 2):  # The last block of each of three fragments: k are no longer whole.
        end = stripe.end if stripe.end < record.length else record.length
        yard.disks[record.disks[index]].flip(1, index, end - 20)
    before = bytes(yard.disks[record.disks[0]].fragments[1, 0].content)
    report = RepairReport()
    assert await repair_file(ctx, 1, 0, report)
    assert report.lost_stripes == 1
    assert yard.disks[record.disks[0]].fragments[1, 0].content == before
    assert await yard.body_of(small) == b"w" * 3_000
