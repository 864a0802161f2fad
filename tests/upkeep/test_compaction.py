"""Compaction: what lives moves, what is dead goes, and nothing that a home holds is ever lost."""

import contextlib
import random

import msgspec
import pytest

from objstore.blobs.volumes import VolumeState
from objstore.errors import Unavailable
from objstore.meta.kv import Transaction
from objstore.meta.schema import object_key, volume_key
from objstore.objects.ledger import encode_volume
from objstore.upkeep.compaction import CompactionRules, candidates, compact, gain
from objstore.upkeep.context import Context
from objstore.upkeep.walk import headers
from tests.upkeep.rig import BUCKET, Yard

MIB = 1024 * 1024


async def filled(seed: int = 1) -> Yard:
    """A sealed small and a sealed bulk volume, each with live and dead bytes of every kind of home."""
    yard = await Yard(seed=seed).start()
    rng = random.Random(seed)
    for number in range(40):
        await yard.put_object(f"small{number}", rng.randbytes(rng.randint(1, 9_000)))
    for number in range(4):
        await yard.put_object(
            f"large{number}", rng.randbytes(rng.randint(200_000, 5 * MIB)), paged=number % 2 == 1
        )
    await yard.put_multipart("multi", [rng.randbytes(2 * MIB), rng.randbytes(1_000_000)])
    for number in range(0, 40, 2):
        await yard.delete(object_key(BUCKET, b"small%d" % number))
    for number in range(2):
        await yard.put_object(f"large{number}", rng.randbytes(300_000))
    await yard.restart_writer()
    await yard.check()
    return yard


async def compact_all(ctx: Context, yard: Yard) -> None:
    for volume, state in (await yard.states()).items():
        if state == VolumeState.SEALED:
            outcome = await compact(ctx, volume)
            assert outcome.retired, outcome


@pytest.mark.parametrize("seed", range(4))
async def test_everything_that_lives_is_moved_and_everything_else_retired(seed: int) -> None:
    print(f"seed {seed}")
    yard = await filled(seed)
    ctx = yard.context()
    before = await yard.states()
    await compact_all(ctx, yard)
    await ctx.writer.close()
    after = await yard.states()
    assert all(after[volume] == VolumeState.RETIRED for volume in before)
    await yard.check()
    for volume in before:  # Nothing points into them any more.
        assert (await yard.ledger.lengths([volume]))[0][1] == 0
    for disk in yard.disks.values():
        for volume, index in list(disk.fragments):
            if volume in before:
                disk.lose(volume, index)
    await yard.check()


async def test_what_no_commit_ever_claimed_is_garbage_from_the_start() -> None:
    yard = await Yard().start()
    await yard.put_object("kept", b"k" * 1000)
    stream = yard.writer.stream(object_key(BUCKET, b"never"))
    await stream.write(bytes(9 * MIB))  # The client leaves.
    await stream.finish(b"about")
    await yard.restart_writer()
    found = {candidate.volume: candidate for candidate in await candidates(yard.context())}
    assert found[2].garbage == 1.0
    outcome = await compact(yard.context(), 2)
    assert outcome.retired
    assert outcome.moved == 0
    assert outcome.dead_bytes == 9 * MIB
    await yard.check()


async def test_a_completed_multipart_object_survives_because_its_parts_are_homes() -> None:
    yard = await Yard().start()
    await yard.put_multipart("multi", [b"p" * 5 * MIB, b"q" * 100_000])
    await yard.restart_writer()
    ctx = yard.context()
    await compact_all(ctx, yard)
    await ctx.writer.close()
    await yard.check()


async def test_an_object_overwritten_while_it_moves_keeps_its_new_bytes() -> None:
    yard = await Yard().start()
    home = await yard.put_object("contested", b"old" * 1000)
    await yard.put_object("other", b"o" * 5000)
    await yard.restart_writer()
    ctx = yard.context()
    put = ctx.writer.put

    async def overtaken(body, home, about, **more):  # type: ignore[no-untyped-def]
        stored = await put(body, home, about, **more)
        if len(body) == 3000 and yard.objects[home] == b"old" * 1000:
            await yard.put_object("contested", b"new" * 1000)
        return stored

    ctx.writer.put = overtaken  # type: ignore[method-assign]
    outcome = await compact(ctx, 1)
    assert outcome.retired
    assert outcome.moved == 1
    assert outcome.dead == 1
    assert await yard.body_of(home) == b"new" * 1000
    await ctx.writer.close()
    await yard.check()


@pytest.mark.parametrize("deed", ["overwrite", "delete"])
async def test_a_change_between_compactions_look_and_its_commit_wins(deed: str) -> None:
    yard = await Yard().start()
    home = await yard.put_object("contested", b"old" * 1000)
    await yard.restart_writer()
    ctx = yard.context()
    commit = yard.kv.commit
    meddled = False

    async def meddling(transaction: Transaction) -> None:
        nonlocal meddled
        if home in transaction.put and not meddled:
            meddled = True  # Compaction has read the record and is about to commit.
            if deed == "overwrite":
                await yard.put_object("contested", b"new" * 1000)
            else:
                await yard.delete(home)
        await commit(transaction)

    yard.kv.commit = meddling  # type: ignore[method-assign]
    outcome = await compact(ctx, 1)
    assert meddled
    assert (outcome.retired, outcome.moved, outcome.dead) == (True, 0, 1)
    if deed == "overwrite":
        assert await yard.body_of(home) == b"new" * 1000
    else:
        assert await yard.kv.get(home) is None
    await ctx.writer.close()
    await yard.check()


async def test_an_open_volume_is_left_alone() -> None:
    yard = await Yard().start()
    await yard.put_object("x", b"x")
    outcome = await compact(yard.context(), 1)
    assert not outcome.retired
    assert (await yard.states())[1] == VolumeState.OPEN


async def test_a_home_of_an_unknown_kind_keeps_its_volume_and_raises_an_alarm() -> None:
    yard = await Yard().start()
    await yard.put(b"from a later release", b"!unknown", b"")
    await yard.restart_writer()
    ctx = yard.context()
    outcome = await compact(ctx, 1)
    assert not outcome.retired
    assert "known kind" in ctx.alarms.raised["compaction of volume 1"]


async def test_bytes_that_cannot_be_read_keep_their_volume() -> None:
    yard = await Yard().start()
    await yard.put_object("rotten", b"r" * 4000)
    await yard.put_object("fine", b"f" * 4000)
    await yard.restart_writer()
    record = await yard.ledger.get(1, fresh=True)
    for index in (0, 1, 2):  # One more than can be lost.
        yard.disks[record.disks[index]].flip(1, index, 64 + 56 + 8 + 100)
    ctx = yard.context()
    outcome = await compact(ctx, 1)
    assert not outcome.retired
    assert outcome.stuck
    assert (await yard.states())[1] == VolumeState.SEALED
    assert await yard.body_of(object_key(BUCKET, b"fine")) == b"f" * 4000


async def test_with_m_disks_away_compaction_goes_on_and_with_more_it_waits() -> None:
    yard = await filled()
    ctx = yard.context()
    yard.moods("xx++++")
    volume = next(iter(await yard.states()))
    outcome = await compact(ctx, volume)
    assert outcome.retired
    await yard.check()
    yard.moods("xxx+++")
    with pytest.raises(Unavailable):
        await compact(ctx, volume + 1)


async def test_candidates_are_chosen_by_garbage_narrow_code_and_smallness() -> None:
    yard = await Yard().start()
    for number in range(3):
        await yard.put_object(f"a{number}", bytes(MIB))
        await yard.restart_writer()
    assert await candidates(yard.context()) == []
    await yard.put_object("a1", b"small now")
    reasons = {one.volume: one.reason for one in await candidates(yard.context())}
    assert reasons == {2: "garbage"}
    rules = CompactionRules(merge_count=2)
    reasons = {one.volume: one.reason for one in await candidates(yard.context(), rules)}
    assert reasons == {1: "small", 2: "garbage", 3: "small"}
    yard.moods("x+++++")
    await yard.put_object("b", bytes(MIB))
    await yard.put_object("c", bytes(MIB))
    yard.wake()
    await yard.restart_writer()
    for number in yard.disks:
        await yard.ledger.set_disk_state(number, "healthy")
    assert "narrow code" in {one.reason for one in await candidates(yard.context())}


async def test_tiny_bodies_are_not_rewritten_for_ever() -> None:
    yard = await Yard().start()
    for number in range(30):
        await yard.put_object(f"tiny{number}", b"x")
    await yard.restart_writer()
    ctx = yard.context()
    assert [one.reason for one in await candidates(ctx)] == ["garbage"], "directories look like garbage"
    assert await gain(ctx, 1) > 0.15, "thirty lone stripes can be merged"
    assert (await compact(ctx, 1)).retired
    await ctx.writer.close()
    merged = max(await yard.states())
    assert await gain(yard.context(), merged) < 0.15, "and then they are left alone"


class Crash(BaseException):
    """The process is gone: nothing catches it."""


async def reached(yard: Yard, point: str, nth: int) -> int:
    """Compact everything; from when `point` is reached for the nth time on nothing gets past a crash point.

    Returns: how often it was reached before, that time included.
    """
    seen = 0

    def crash(name: str) -> None:
        nonlocal seen
        if seen == nth:
            raise Crash  # Another task of a process that is gone.
        if name == point:
            seen += 1
            if seen == nth:
                raise Crash

    with contextlib.suppress(Crash):
        await compact_all(yard.context(crash), yard)
    return seen


@pytest.mark.parametrize("when", ["first", "middle", "last"])
@pytest.mark.parametrize(
    "point", ["compaction-written", "compaction-batch", "compaction-moved", "compaction-retired"]
)
async def test_a_crash_at_any_point_of_compaction_loses_nothing(point: str, when: str) -> None:
    times = await reached(await filled(), point, -1)
    assert times > 1
    nth = {"first": 1, "middle": times // 2, "last": times}[when]
    yard = await filled()
    assert await reached(yard, point, nth) == nth
    for disk in yard.disks.values():
        disk.lose_power(yard.rng)
    await yard.check()
    # And again in the run after it, unless this was the last there was to do.
    again = await reached(yard, point, 1)
    assert again == 1 or (when == "last" and point in ("compaction-batch", "compaction-retired"))
    for disk in yard.disks.values():
        disk.lose_power(yard.rng)
    await yard.check()
    ctx = yard.context()
    for record in await yard.ledger.volumes():  # The dead writers' volumes, as seal.py does.
        if record.state == VolumeState.OPEN:
            size = min(len(yard.disks[n].fragments[record.id, i].content) for i, n in enumerate(record.disks))
            await yard.ledger.seal(record.id, size)
    await compact_all(ctx, yard)
    await ctx.writer.close()
    await yard.check()


async def test_a_volume_whose_live_bytes_were_not_all_seen_is_not_retired() -> None:
    """A length that is too short, for whatever reason, must not lead to the trash of what lies behind it."""
    yard = await Yard().start()
    for number in range(6):
        await yard.put_object(f"o{number}", bytes(5_000 + number))
    await yard.restart_writer()
    record = await yard.ledger.get(1, fresh=True)
    found = [header async for header in headers(yard.context(), record, record.length)]
    short = msgspec.structs.replace(record, length=found[0].end)
    await yard.kv.commit(Transaction(put={volume_key(1): encode_volume(short)}))
    ctx = yard.context()
    outcome = await compact(ctx, 1)
    assert not outcome.retired
    assert any("live" in words for words in outcome.stuck)
    assert "compaction of volume 1" in ctx.alarms.raised
    await yard.check()
