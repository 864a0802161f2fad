"""The trash: metadata's verdict, a grace, and a guard against metadata that is too old."""

import pytest

from objstore.blobs.volumes import VolumeState
from objstore.meta.kv import counter_value
from objstore.meta.schema import serial_key
from objstore.upkeep.compaction import compact
from objstore.upkeep.trash import ALARM, DAY_S, TrashRules, clear
from tests.upkeep.rig import Yard

RULES = TrashRules(grace_s=7 * DAY_S)


async def with_a_retired_volume() -> Yard:
    yard = await Yard().start()
    await yard.put_object("kept", b"k" * 5_000)
    home = await yard.put_object("deleted", b"d" * 50_000)
    await yard.delete(home)
    await yard.restart_writer()
    ctx = yard.context()
    assert (await compact(ctx, 1)).retired
    await ctx.writer.close()
    return yard


def files(yard: Yard, volume: int) -> int:
    return sum((volume, index) in disk.fragments for disk in yard.disks.values() for index in range(6))


async def test_a_retired_volume_stays_readable_for_its_grace_and_then_goes() -> None:
    yard = await with_a_retired_volume()
    ctx = yard.context()
    report = await clear(ctx, RULES)
    assert (report.retired, report.purged) == (6, 0)
    yard.clock.advance(7 * DAY_S - 60)
    assert (await clear(ctx, RULES)).purged == 0
    assert files(yard, 1) == 6
    yard.clock.advance(120)
    report = await clear(ctx, RULES)
    assert (report.purged, report.forgotten) == (6, 1)
    assert files(yard, 1) == 0
    assert 1 not in await yard.states()
    await yard.check()


async def test_a_file_beyond_the_volume_counter_stops_all_removal_and_calls_an_operator() -> None:
    yard = await with_a_retired_volume()
    ctx = yard.context()
    await clear(ctx, RULES)
    yard.clock.advance(8 * DAY_S)
    await yard.disks[3].create(99, 0)
    report = await clear(ctx, RULES)
    assert "older than the data" in report.stopped
    assert ALARM in ctx.alarms.raised
    assert files(yard, 1) == 6, "nothing is removed, however old"
    yard.disks[3].lose(99, 0)
    assert (await clear(ctx, RULES)).purged == 6
    assert ctx.alarms.raised == {}


async def test_metadata_restored_to_yesterday_removes_nothing() -> None:
    yard = await Yard().start()
    await yard.put_object("old", b"o")
    await yard.restart_writer()
    backup = dict(await yard.kv.scan(b"", b"\xff", 10_000))
    await yard.put_object("new", b"n" * 1000)
    await yard.restart_writer()
    for key, _ in await yard.kv.scan(b"", b"\xff", 10_000):
        if key not in backup:
            del yard.kv._values[key]
            yard.kv._keys.remove(key)
    yard.kv._values.update(backup)
    for _ in range(3):
        report = await clear(yard.context(), RULES)
        assert report.stopped
        yard.clock.advance(30 * DAY_S)
    assert files(yard, 2) == 6


async def test_orphans_are_removed_after_their_grace_and_too_many_of_them_are_not() -> None:
    yard = await Yard().start()
    await yard.put_object("kept", b"k")
    await yard.restart_writer()
    yard.kv._values[serial_key("volumes")] = counter_value(500)
    await yard.disks[1].create(5, 0)
    ctx = yard.context()
    await clear(ctx, RULES)
    yard.clock.advance(8 * DAY_S)
    assert (await clear(ctx, RULES)).purged == 1
    for volume in range(10, 90):
        await yard.disks[2].create(volume, 0)
    report = await clear(ctx, RULES)
    assert "more than garbage explains" in report.stopped
    assert report.retired == 0
    await yard.check()


async def test_a_stale_copy_goes_only_while_the_named_disk_has_its_own() -> None:
    yard = await Yard("+++++++").start()
    await yard.put_object("o", b"o" * 10_000)
    await yard.restart_writer()
    record = await yard.ledger.get(1, fresh=True)
    spare = next(number for number in yard.disks if number not in record.disks)
    file = yard.disks[record.disks[0]].fragments[1, 0]
    await yard.ledger.repaired(record, 0, spare)
    assert (await clear(yard.context(), RULES)).retired == 0, "the only copy of this fragment file"
    yard.disks[spare].fragments[1, 0] = file
    assert (await clear(yard.context(), RULES)).retired == 1
    assert (await yard.states())[1] == VolumeState.SEALED
    await yard.check()


async def test_under_the_low_water_mark_the_grace_gives_way_but_never_below_a_day() -> None:
    yard = await with_a_retired_volume()
    ctx = yard.context()
    await clear(ctx, RULES)
    for disk in yard.disks.values():
        disk.total = 60_000  # Never 99% free, whatever is purged.
    rules = RULES._replace(low_water=0.99)
    yard.clock.advance(DAY_S - 60)
    assert (await clear(ctx, rules)).purged == 0
    yard.clock.advance(120)
    assert (await clear(ctx, rules)).purged == 6
    await yard.check()


async def test_a_disk_that_is_away_keeps_its_volumes_record_until_it_was_seen() -> None:
    yard = await with_a_retired_volume()
    ctx = yard.context()
    await clear(ctx, RULES)
    yard.clock.advance(8 * DAY_S)
    yard.disks[4].mood = "missing"
    report = await clear(ctx, RULES)
    assert report.forgotten == 0
    assert (await yard.states())[1] == VolumeState.RETIRED
    yard.wake()
    assert (await clear(ctx, RULES)).forgotten == 1


async def test_a_disk_given_up_for_good_keeps_no_record_waiting() -> None:
    yard = await with_a_retired_volume()
    ctx = yard.context()
    await clear(ctx, RULES)
    yard.clock.advance(8 * DAY_S)
    yard.disks[4].mood = "missing"
    await yard.ledger.set_disk_state(4, "failed", "given up")
    assert (await clear(ctx, RULES)).forgotten == 1


async def test_files_of_open_and_sealed_volumes_are_never_touched() -> None:
    yard = await Yard().start()
    await yard.put_object("sealed", b"s")
    await yard.restart_writer()
    await yard.put_object("open", b"o")
    for _ in range(2):
        report = await clear(yard.context(), RULES)
        assert (report.retired, report.purged) == (0, 0)
        yard.clock.advance(30 * DAY_S)
    await yard.check()


class Crash(BaseException):
    """The process is gone."""


async def test_a_crash_while_purging_leaves_work_for_the_next_pass() -> None:
    yard = await with_a_retired_volume()
    await clear(yard.context(), RULES)
    yard.clock.advance(8 * DAY_S)
    seen = 0

    def crash(name: str) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise Crash

    with pytest.raises(Crash):
        await clear(yard.context(crash), RULES)
    assert files(yard, 1) == 4
    assert (await clear(yard.context(), RULES)).purged == 4
    assert 1 not in await yard.states()
