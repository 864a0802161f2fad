"""Nodes go and come back with what they had: nothing removed comes back, nothing that counts is removed.

    rounds      {node away, objects deleted or overwritten, node back, repair, compaction, rebalance, trash};
                what comes back has stale, torn and lost files
    schedules   repair, compaction, trash and clients in random order, while disks go missing and start at any
                call

`OBJSTORE_LONG=1` (make chaos): 1,000 rounds and 10,000 schedules.
"""

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from objstore.blobs.volumes import VolumeRecord, VolumeState
from objstore.errors import StoreError
from objstore.meta.kv import counter
from objstore.meta.schema import volume_key, volume_live_key
from objstore.node.disk import DiskState
from objstore.objects.ledger import DOUBTS, decode_volume
from objstore.upkeep import compaction
from objstore.upkeep.context import Context
from objstore.upkeep.rebalance import Rebalance, RebalanceRules
from objstore.upkeep.repair import Repair
from objstore.upkeep.trash import TrashRules, clear
from tests.sim.memory_disk import MemoryDisk
from tests.upkeep.rig import Yard

LONG = bool(os.environ.get("OBJSTORE_LONG"))
ROUNDS = 1_000 if LONG else 25
SCHEDULES = 10_000 if LONG else 20
OBJECTS = 24
NODES = 9  # One disk each: k+m are 6, and 2 may be away.
GRACE_S = 900.0
TRASH = TrashRules(grace_s=3_600.0, grace_least_s=3_600.0, orphans_most=1.0)
COMPACTION = compaction.CompactionRules(garbage_share=0.2, merge_count=4)


class World(Yard):
    """A store whose disks watch what is removed from them."""

    def watch(self) -> None:
        for disk in self.disks.values():
            disk.before = self._guard(disk)

    def _guard(self, disk: MemoryDisk) -> Callable[[str, int, int], None]:
        def guard(call: str, volume: int, index: int) -> None:
            if call == "purge":
                self.assert_dead(disk.number, volume, index)

        return guard

    def assert_dead(self, disk: int, volume: int, index: int) -> None:
        """Metadata must say that this fragment file counts no more."""
        value = self.kv._values.get(volume_key(volume))
        if value is None:
            return
        record = decode_volume(value)
        if record.state == VolumeState.RETIRED:
            live = counter(self.kv._values.get(volume_live_key(volume)))
            assert live == 0, f"volume {volume} is purged with {live} live bytes in it"
            return
        named = record.disks[index]
        assert named != disk, f"{volume}.{index} on disk {disk} is live, and was purged"
        kept = (volume, index) in self.disks[named].fragments
        assert kept, f"{volume}.{index} on disk {disk} was purged, and disk {named} has none"

    async def check(self) -> None:
        self.reader.close()
        await super().check()

    @asynccontextmanager
    async def upkeep(self) -> AsyncIterator[Context]:
        """A context whose writer and reader end: thousands of them are made."""
        ctx = self.context()
        try:
            yield ctx
        finally:
            await ctx.writer.close()
            ctx.reader.close()

    def keys(self) -> set[bytes]:
        return {key for key in self.kv._values if key.startswith(b"o")}

    async def verified(self) -> None:
        """What the upkeep does every minute: what passes a verification takes writes again."""
        for number, record in (await self.ledger.disks()).items():
            disk = self.disks[number]
            if record.state in DOUBTS or disk.state is DiskState.SUSPECT:
                try:
                    await disk.verify()
                except StoreError:
                    continue
                await self.ledger.change_disk(number, before=DOUBTS, state="healthy")

    async def change(self) -> None:
        """A client writes, overwrites or deletes."""
        name = f"o{self.rng.randrange(OBJECTS)}"
        home = next((key for key in self.objects if key.endswith(b"/" + name.encode())), None)
        try:
            if home is not None and self.rng.random() < 0.4:
                await self.delete(home)
            else:
                size = self.rng.choice([100, 3_000, 3_000, 20_000, 150_000])
                await self.put_object("/" + name, self.rng.randbytes(size))
        except StoreError:
            pass  # Refused: too few disks were there. Nothing was acknowledged.


async def compacted(ctx: Context) -> None:
    for candidate in (await compaction.candidates(ctx, COMPACTION))[:4]:
        await compaction.compact(ctx, candidate.volume, COMPACTION)


async def rebalanced(ctx: Context) -> None:
    work = Rebalance(ctx, RebalanceRules(tolerance=0.3))
    for move in (await work.plan())[:6]:
        await work.move(move)


async def world(seed: int, changes: int, *, yields: bool = False) -> World:
    print(f"seed {seed}")
    made = World("+" * NODES, seed=seed, yields=yields)
    for disk in made.disks.values():
        disk.total = 20_000_000  # So small that rebalancing has something to do.
    await made.start()
    made.watch()
    for _ in range(changes):
        await made.change()
    await made.restart_writer()
    return made


async def finish(yard: World, repair: Repair) -> None:
    """All disks are there: everything is mended and cleared away; then only what counts is left."""
    yard.wake()
    await yard.verified()
    await yard.restart_writer()
    for _ in range(3):
        report = await repair.run()
        assert report.lost_stripes == 0
    assert await repair.find() == []
    for _ in range(3):
        assert (await clear(yard.context(), TRASH)).stopped == ""
        yard.clock.advance(TRASH.grace_s + 1)
    named = {
        (number, record.id, index)
        for record in await yard.ledger.volumes()
        for index, number in enumerate(record.disks)
    }
    there = {(number, *key) for number, disk in yard.disks.items() for key in disk.fragments}
    empty = {file for file in there if not yard.disks[file[0]].fragments[file[1:]].content}
    assert there - empty <= named, "what was removed is there again"
    await yard.check()
    assert yard.keys() == set(yard.objects), "what was deleted is there again"


async def test_nodes_that_come_back_with_stale_files_bring_nothing_back_and_lose_nothing() -> None:
    seed = int(os.environ.get("OBJSTORE_SEED", "7"))
    yard = await world(seed, OBJECTS)
    repair = Repair(yard.context(), grace_s=GRACE_S)
    for number in range(ROUNDS):
        try:
            async with yard.upkeep() as ctx:
                await one_round(yard, repair, ctx)
        except BaseException:
            print(f"seed {seed}, round {number}")
            raise
    await finish(yard, repair)


async def one_round(yard: World, repair: Repair, ctx: Context) -> None:
    rng = yard.rng
    away = rng.sample(sorted(yard.disks), rng.choice([1, 1, 2]))
    for number in away:
        yard.disks[number].mood = rng.choice(["missing", "dead"])
    for _ in range(rng.randrange(1, 8)):
        await yard.change()
    await yard.restart_writer()
    if rng.random() < 0.6:  # Away for longer than a cable is: its files are rebuilt elsewhere.
        await repair.find()
        yard.clock.advance(GRACE_S + 1)
    while_away: list[Callable[[], Awaitable[object]]] = [
        repair.run,
        lambda: compacted(ctx),
        lambda: clear(ctx, TRASH),
    ]
    rng.shuffle(while_away)
    for step in while_away[: rng.randrange(4)]:
        await attempt(step)
    if rng.random() < 0.3:
        yard.clock.advance(TRASH.grace_s + 1)
        await attempt(lambda: clear(ctx, TRASH))

    if len(away) == 1 or rng.random() < 0.5:
        spoil(yard, away[0])
    for number in away:
        yard.disks[number].mood = "well"
    await yard.verified()
    yard.clock.advance(rng.choice([60.0, TRASH.grace_s + 1]))
    steps: list[Callable[[], Awaitable[object]]] = [
        *while_away,
        lambda: rebalanced(ctx),
    ]
    rng.shuffle(steps)
    for step in steps:
        await attempt(step)
    assert (await repair.run()).lost_stripes == 0
    await yard.check()
    assert yard.keys() == set(yard.objects), "what was deleted is there again"


def spoil(yard: World, number: int) -> None:
    """One node comes back with less than it had: files of an earlier state, torn ones, lost ones."""
    disk = yard.disks[number]
    for key in sorted(disk.fragments):
        chance = yard.rng.random()
        if chance < 0.1:
            disk.lose(*key)
        elif chance < 0.2:
            content = disk.fragments[key].content
            del content[yard.rng.randrange(len(content) + 1) :]


async def attempt(step: Callable[[], Awaitable[object]]) -> None:
    """Upkeep while disks are away may fail, and is tried again."""
    try:
        await step()
    except StoreError:
        pass


async def back_after(yard: World, number: int, *steps: Callable[[], Awaitable[object]]) -> None:
    """The disk is away while `steps` happen, and then there again, as it was."""
    yard.disks[number].mood = "missing"
    for step in steps:
        await step()
    yard.disks[number].mood = "well"
    await yard.verified()


async def small_world() -> tuple[World, VolumeRecord]:
    """One sealed volume of several objects."""
    yard = World("+" * NODES, seed=1)
    await yard.start()
    for number in range(4):
        await yard.put_object(f"/o{number}", yard.rng.randbytes(9_000))
    await yard.restart_writer()
    yard.watch()
    [record] = await yard.ledger.volumes()
    return yard, record


async def test_a_file_that_was_rebuilt_elsewhere_meanwhile_is_trash_where_it_was() -> None:
    yard, record = await small_world()
    number = record.disks[1]
    await back_after(yard, number, Repair(yard.context(), grace_s=0).run)
    moved = await yard.ledger.get(record.id, fresh=True)
    assert moved.disks[1] != number
    assert (record.id, 1) in yard.disks[number].fragments
    repair = Repair(yard.context(), grace_s=0)
    assert (await repair.run()).found == 0
    assert await yard.ledger.get(record.id, fresh=True) == moved
    await finish(yard, repair)
    assert (record.id, 1) not in yard.disks[number].fragments


async def test_a_copy_that_no_record_names_is_kept_while_the_disk_that_it_names_has_lost_its_own() -> None:
    yard, record = await small_world()
    number = record.disks[1]
    await back_after(yard, number, Repair(yard.context(), grace_s=0).run)
    await clear(yard.context(), TRASH)
    yard.clock.advance(TRASH.grace_s + 1)
    named = (await yard.ledger.get(record.id, fresh=True)).disks[1]
    yard.disks[named].lose(record.id, 1)
    await clear(yard.context(), TRASH)
    assert (record.id, 1) in yard.disks[number].fragments
    await finish(yard, Repair(yard.context(), grace_s=0))


async def test_a_file_of_an_earlier_state_is_rebuilt_and_what_it_has_is_not_believed() -> None:
    yard, record = await small_world()
    number = record.disks[1]
    old = yard.disks[number].fragments[record.id, 1]
    good = bytes(old.content)

    async def goes_back() -> None:
        del old.content[len(good) // 2 :]  # What it had before its newest writes.

    await back_after(yard, number, goes_back)
    await yard.check()
    repair = Repair(yard.context(), grace_s=0)
    assert (await repair.run()).repaired == 1
    assert bytes(yard.disks[number].fragments[record.id, 1].content) == good
    await finish(yard, repair)


async def test_a_file_of_a_volume_that_was_removed_meanwhile_goes_when_its_disk_is_back() -> None:
    yard, record = await small_world()
    number = record.disks[1]

    async def all_is_deleted() -> None:
        for home in list(yard.objects):
            await yard.delete(home)

    async def cleared() -> None:
        for _ in range(3):
            await clear(yard.context(), TRASH)
            yard.clock.advance(TRASH.grace_s + 1)

    repair = Repair(yard.context(), grace_s=0)
    await back_after(
        yard,
        number,
        repair.run,  # Elsewhere, so that the record names this disk no more,
        all_is_deleted,
        lambda: compacted(yard.context()),
        cleared,  # and is forgotten without it.
    )
    assert record.id not in await yard.states()
    assert (record.id, 1) in yard.disks[number].fragments
    await finish(yard, repair)
    assert (record.id, 1) not in yard.disks[number].fragments
    assert yard.objects == {}


async def test_what_was_deleted_while_its_disk_was_away_is_kept_until_the_disk_was_seen() -> None:
    """The record of a removed volume stays as long as a file of it may come back."""
    yard, record = await small_world()
    number = record.disks[1]

    async def removed() -> None:
        for home in list(yard.objects):
            await yard.delete(home)
        await compacted(yard.context())
        for _ in range(3):
            await clear(yard.context(), TRASH)
            yard.clock.advance(TRASH.grace_s + 1)
        assert (await yard.states())[record.id] is VolumeState.RETIRED

    await back_after(yard, number, removed)
    await finish(yard, Repair(yard.context(), grace_s=0))
    assert record.id not in await yard.states()


@pytest.mark.parametrize("part", range(10 if LONG else 1))
async def test_in_no_order_of_repair_and_removal_with_disks_coming_and_going_is_a_live_fragment_removed(
    part: int,
) -> None:
    count = SCHEDULES // (10 if LONG else 1)
    for seed in range(part * count, (part + 1) * count):
        await one_schedule(seed)


async def one_schedule(seed: int) -> None:
    yard = await world(seed, OBJECTS // 3, yields=True)
    rng = random.Random(seed)
    for disk in yard.disks.values():
        disk.before = unsteady(yard, disk, rng)
    async with yard.upkeep() as ctx:
        await in_any_order(yard, rng, ctx)
    for disk in yard.disks.values():
        disk.before = None
    yard.watch()
    async with yard.upkeep() as ctx:
        await finish(yard, Repair(ctx, grace_s=0))
    await yard.writer.close()


async def in_any_order(yard: World, rng: random.Random, ctx: Context) -> None:
    repair = Repair(ctx, grace_s=rng.choice([0.0, GRACE_S]))
    steps: list[Callable[[], Awaitable[object]]] = [
        repair.run,
        lambda: clear(ctx, TRASH),
        lambda: compacted(ctx),
        lambda: rebalanced(ctx),
        yard.change,
        yard.restart_writer,
        yard.verified,
    ]
    for _ in range(rng.randrange(4, 14)):
        for number in rng.sample(sorted(yard.disks), rng.choice([0, 0, 1, 2])):
            disk = yard.disks[number]
            disk.mood = "well" if disk.mood != "well" else rng.choice(["missing", "dead", "read-only"])
        if rng.random() < 0.5:
            yard.clock.advance(rng.choice([60.0, GRACE_S, TRASH.grace_s + 1]))
        await attempt(rng.choice(steps))


def unsteady(yard: World, disk: MemoryDisk, rng: random.Random) -> Callable[[str, int, int], None]:
    """A disk that may go, or start, right before any call of it; what it purges is watched."""
    guard = yard._guard(disk)

    def before(call: str, volume: int, index: int) -> None:
        guard(call, volume, index)
        if rng.random() < 0.01:
            gone = sum(other.mood in ("missing", "dead") for other in yard.disks.values())
            if disk.mood == "well" and gone < 2:
                disk.mood = rng.choice(["missing", "dead"])
            else:
                disk.mood = "well"

    return before
