"""Reads of disks that are late: asked of others, within a budget, and around those known for it."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from objstore.blobs.reader import MIB, ReaderLimits
from objstore.clock import Clock, SystemClock
from objstore.errors import Unavailable
from objstore.extents import Extent
from objstore.node.slowness import Change, Slowness, SlownessRules
from tests.blobs.rig import Rig
from tests.sim.memory_disk import MemoryDisk
from tests.sim.replacing import replace as put_in_place

BLOCK = 64 * 1024
QUICK = SlownessRules(patience_unknown_s=0.01)
PATIENT = replace(QUICK, patience_min_s=10.0)
LATE_S = 1.0


class Late:
    """A rig, objects in it, and its disks in the order of their volume's fragments."""

    def __init__(self, rig: Rig, bodies: list[bytes], extents: list[Extent], disks: list[MemoryDisk]) -> None:
        self.rig, self.disks = rig, disks
        # Of those in one stripe, that are whole in one fragment. The first is in the first.
        self.objects = [
            (body, extent)
            for body, extent in zip(bodies, extents, strict=True)
            if extent.fragment_size > 10_000
            and extent.begin % extent.fragment_size + extent.length <= extent.fragment_size
        ]
        self.body, self.extent = self.objects[0]
        assert self.extent.begin < self.extent.fragment_size
        self.measure(rig.clock)

    def measure(self, clock: Clock) -> None:
        self.slowness = Slowness(spare=self.rig.m, clock=clock, rules=QUICK)
        self.reader = self.rig.new_reader(ReaderLimits(deadline_s=20.0), self.slowness, clock)

    def hold(self, *fragments: int) -> None:
        for fragment in fragments:
            self.disks[fragment].held = asyncio.Event()

    def let_go(self, *fragments: int) -> None:
        for fragment in fragments:
            held, self.disks[fragment].held = self.disks[fragment].held, None
            assert held is not None
            held.set()

    def eject(self, *fragments: int) -> None:
        """The first of them is the slowest. From then on nothing is late enough for a hedge."""
        self.slowness.rules = PATIENT
        numbers = [self.disks[fragment].number for fragment in fragments]
        for _ in range(1 + QUICK.strikes):  # The first one finds out what is usual.
            for number in self.rig.disks:
                for _ in range(20):
                    slow_s = LATE_S / (1 + numbers.index(number)) if number in numbers else 0.001
                    self.slowness.took(number, BLOCK, slow_s)
            self.judge()
        assert set(self.slowness.ejected) == set(numbers)

    def judge(self) -> None:
        self.slowness.judge(dict.fromkeys(self.rig.disks, (0, 0.0)))

    def asked(self, fragment: int) -> int:
        return self.disks[fragment].calls["read"]

    async def read(self) -> None:
        assert await self.reader.read(self.extent) == self.body

    async def read_all(self, but: int = -1) -> None:
        for body, extent in self.objects:
            if extent.begin // extent.fragment_size != but:
                assert await self.reader.read(extent) == body


async def late(moods: str = "++++++", *, k: int = 4, m: int = 2) -> Late:
    rig = await Rig(moods, k=k, m=m).start()
    bodies = [rig.rng.randbytes(3_000) for _ in range(16)]
    extents = [extent for (extent,) in await asyncio.gather(*(rig.put(body) for body in bodies))]
    record = await rig.ledger.get(extents[-1].volume)
    return Late(rig, bodies, extents, [rig.disks[number] for number in record.disks])


@pytest.fixture
async def one() -> Late:
    return await late()


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_a_disk_is_late_with_is_read_from_others(one: Late) -> None:
    one.hold(0)
    await one.read()
    assert one.reader.hedges.won >= 1
    assert one.reader.counters.degraded_reads == 0, "nothing is wrong with it"
    assert one.reader.counters.missing_fragments == 0
    assert one.reader.take_hints() == []


async def test_what_is_late_and_rotten_besides_is_noted(one: Late) -> None:
    one.disks[0].flip(one.extent.volume, 0, one.extent.offset + 100)
    one.hold(0)
    await one.read()
    one.let_go(0)
    await turns()
    assert [hint.fragment for hint in one.reader.take_hints()] == [0]


async def test_of_a_disk_that_answers_before_the_others_its_answer_is_taken(one: Late) -> None:
    one.hold(*range(6))
    reading = asyncio.ensure_future(one.read())
    while not one.asked(2):
        await asyncio.sleep(0.001)
    one.let_go(0)
    await reading
    assert (one.reader.hedges.won, one.reader.hedges.lost) == (0, 1)


async def test_a_late_disk_that_fails_and_others_that_are_too_few_are_the_usual_failures(one: Late) -> None:
    one.hold(0)
    for fragment in (1, 2, 3):
        one.disks[fragment].mood = "dead"
    reading = asyncio.ensure_future(one.reader.read(one.extent))
    while not one.reader.hedges.failed:
        if one.asked(5):
            await turns()
            assert not reading.done(), "the late one may still come"
            one.disks[0].mood = "dead"
            one.let_go(0)
            one.disks[0].lose(one.extent.volume, 0)
        await asyncio.sleep(0.001)
    with pytest.raises(Unavailable, match="2 of 4 fragments"):
        await reading
    assert one.reader.counters.failed_reads == 1


async def test_a_large_read_waits_for_no_late_disk_either() -> None:
    one = await late()
    body = random.Random(0).randbytes(5 * MIB)
    stored = await one.rig.put_stream(body)
    record = await one.rig.ledger.get(stored.extents[0].volume)
    one.rig.disks[record.disks[1]].held = asyncio.Event()
    found = [b"".join(views) async for views in one.reader.stream(stored.extents, 0, len(body))]
    assert b"".join(found) == body
    assert one.reader.hedges.won > 0


async def test_hedges_end_with_the_budget_and_then_reads_wait_for_the_disk(one: Late) -> None:
    one.hold(0)
    for _ in range(10):  # What it begins with.
        await one.read()
    reading = asyncio.ensure_future(one.read())
    while not one.reader.hedges.withheld:
        await asyncio.sleep(0.001)
    assert not reading.done()
    one.let_go(0)
    await reading
    assert one.reader.hedges.won + one.reader.hedges.lost <= 10 + 0.05 * one.reader.counters.reads


async def test_a_reconstruction_of_which_one_fragment_is_late_asks_for_one_more(one: Late) -> None:
    one.disks[0].mood = "dead"
    one.hold(2)
    await one.read()
    assert one.asked(5) == 1
    assert one.reader.hedges.won >= 1
    assert one.reader.counters.degraded_reads == 1


async def test_a_cancelled_read_leaves_nothing_behind(one: Late) -> None:
    before = asyncio.all_tasks()
    one.hold(0, 1)
    for stage in (0, 2):
        reading = asyncio.ensure_future(one.read())
        while not one.asked(stage):
            await asyncio.sleep(0.001)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    await turns()
    assert asyncio.all_tasks() == before


async def test_what_lost_is_not_waited_for_longer_than_it_takes_to_call_it_late(one: Late) -> None:
    one.hold(0)
    before = asyncio.all_tasks()
    for _ in range(5):
        await one.read()
    async with asyncio.timeout(60):
        while asyncio.all_tasks() != before:
            await asyncio.sleep(0.01)


async def test_a_late_disk_is_found_out_by_the_reads_that_it_lost_and_is_back_when_it_is_quick(
    one: Late,
) -> None:
    one.measure(SystemClock())
    for _ in range(10):
        await one.read_all()
    one.judge()
    one.hold(0)
    rounds = 0
    while not one.slowness.ejected:
        rounds += 1
        assert rounds < 100
        for _ in range(5):
            await one.read_all(but=0)
        await one.read()  # Within the budget: the others have earned it.
        while one.reader._racing._stragglers:
            await asyncio.sleep(0.001)
        one.judge()
    assert set(one.slowness.ejected) == {one.disks[0].number}
    asked = one.asked(0)
    for _ in range(20):
        await one.read_all()
    assert one.asked(0) == asked
    assert one.reader.counters.avoided_reads >= 20
    one.let_go(0)
    one.slowness._seen[one.disks[0].number].out_until = 0  # Its time is over.
    back: list[Change] = []
    for _ in range(QUICK.probes):
        assert back == []
        back = await one.reader.probe()
    assert [(change.disk, change.slow) for change in back] == [(one.disks[0].number, False)]
    asked = one.asked(0)
    await one.read()
    assert one.asked(0) == asked + 1


async def test_no_more_than_m_of_a_volumes_fragments_are_left_out() -> None:
    one = await late("+++++++", k=4, m=1)
    one.rig.m = 3  # More than one may be ejected.
    one.measure(one.rig.clock)
    one.eject(2, 0)
    await one.read()
    assert one.asked(0) == 1, "the slower one is left out, this one is not"
    assert one.reader.counters.avoided_reads == 0


async def test_a_slow_disk_is_read_where_others_are_away(one: Late) -> None:
    one.eject(0)
    for fragment in (4, 5):
        one.disks[fragment].mood = "dead"
    await one.read()
    assert one.asked(0) == 1
    assert one.asked(1) == 0


async def test_a_slow_disk_is_read_where_others_turn_out_to_be_rotten(one: Late) -> None:
    one.eject(0)
    for fragment in (1, 2, 3):
        one.disks[fragment].lose(one.extent.volume, fragment)
    await one.read()
    assert one.asked(0) == 1
    assert one.reader.counters.failed_reads == 0
    await turns()
    assert sorted(hint.fragment for hint in one.reader.take_hints()) == [1, 2, 3], "and that is for repair"


async def test_slow_disks_are_the_last_that_a_reconstruction_asks(one: Late) -> None:
    one.eject(1)
    one.disks[0].mood = "dead"
    await one.read()
    assert [one.asked(fragment) for fragment in range(1, 6)] == [0, 1, 1, 1, 1]


async def test_a_file_that_has_moved_is_no_damage_for_reads_around_a_slow_disk() -> None:
    one = await late("+++++++")
    await one.rig.writer.close()
    spare = next(number for number in one.rig.disks if one.rig.disks[number] not in one.disks)
    record = await one.rig.ledger.get(one.extent.volume, fresh=True)
    content = bytes(one.disks[1].fragments[record.id, 1].content)
    await put_in_place(one.rig.disks[spare], record.id, 1, [content])
    await one.rig.ledger.repaired(record, 1, spare)
    one.rig.ledger._cache[record.id] = record  # As another process would still have it.
    one.disks[1].lose(record.id, 1)
    one.eject(0)
    await one.read()
    await turns()
    assert one.asked(0) == 0
    assert one.reader.take_hints() == []


async def test_what_the_page_cache_has_is_read_from_a_slow_disk_too(one: Late) -> None:
    one.eject(0)
    one.disks[0].yields = False
    await one.read()
    assert one.asked(0) == 1
    assert one.reader.counters.avoided_reads == 0


async def test_new_volumes_do_without_slow_disks_and_open_ones_are_left() -> None:
    rig = await Rig("++++++++").start()
    slowness = Slowness(spare=2, clock=rig.clock)
    writer = rig.new_writer(slowness=slowness)
    first = (await writer.put(b"x" * 100, b"o-home", b"")).extents[0].volume
    before = await rig.ledger.get(first)
    slow = before.disks[:2]
    make_slow(slowness, rig, slow)
    writer.leave(slow)
    after = await rig.ledger.get((await writer.put(b"y" * 100, b"o-home", b"")).extents[0].volume)
    assert after.id != first
    assert (after.k, after.m) == (4, 2)
    assert set(after.disks).isdisjoint(slow)
    await writer.close()


async def test_a_slow_disk_is_written_to_where_a_volume_would_be_narrower_without_it() -> None:
    rig = await Rig("++++++").start()
    slowness = Slowness(spare=2, clock=rig.clock)
    writer = rig.new_writer(slowness=slowness)
    make_slow(slowness, rig, [3])
    record = await rig.ledger.get((await writer.put(b"y" * 100, b"o-home", b"")).extents[0].volume)
    assert (record.k, record.m) == (4, 2)
    assert 3 in record.disks
    await writer.close()


def make_slow(slowness: Slowness, rig: Rig, disks: Sequence[int]) -> None:
    """By their appends."""
    for round_ in range(2 + QUICK.strikes):
        count = 10 * round_
        slowness.judge({disk: (count, count * (0.5 if disk in disks else 0.005)) for disk in rig.disks})
    assert slowness.slow == set(disks)
