"""A deposed holder: whatever it was about to do is refused, and nothing is lost."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from objstore.blobs.volumes import VolumeState
from objstore.errors import Conflict, Unavailable
from objstore.meta.kv import Add, DictKv, Transaction
from objstore.meta.schema import object_key, volume_live_key
from objstore.upkeep import compaction, trash
from objstore.upkeep.claims import PATIENCE_S, Claim, ClaimedKv, Deposed
from objstore.upkeep.context import Context
from objstore.upkeep.repair import Repair, RepairReport, repair_file
from objstore.upkeep.scrub import step
from objstore.upkeep.seal import seal_dead
from objstore.upkeep.service import Service
from objstore.upkeep.sweep import LiveBytesAudit, Sweep
from tests.blobs.rig import StepClock
from tests.upkeep.rig import BUCKET, Yard, no_sleep
from tests.waiting import until


class Rivals:
    """Two processes of one store: `first` holds the claim; `depose` lets the second take it."""

    def __init__(self, yard: Yard, crash_point: Callable[[str], None] = lambda name: None) -> None:
        self.yard = yard
        self.claims = [Claim(yard.kv, "upkeep", number.to_bytes(16, "big"), yard.clock) for number in (1, 2)]
        self.first, self.second = (yard.context(crash_point).under(claim) for claim in self.claims)

    async def start(self) -> "Rivals":
        assert await self.claims[0].keep()
        return self

    async def depose(self) -> None:
        assert not await self.claims[1].keep(), "the second sees the first"
        self.yard.clock.advance(PATIENCE_S + 1)
        assert await self.claims[1].keep()


async def worn() -> Yard:
    """Sealed volumes with garbage, one of a dead writer, one lost file, and a counter that is wrong."""
    yard = await Yard("+++++++").start()
    rng = random.Random(5)
    for number in range(24):
        await yard.put_object(f"o{number}", rng.randbytes(9_000))
    await yard.put_object("large", rng.randbytes(3_000_000))
    await yard.restart_writer()
    for number in range(0, 24, 2):
        await yard.delete(object_key(BUCKET, b"o%d" % number))
    await yard.put_object("of the dead", b"d" * 9_000)
    yard.writer = yard.new_writer()
    yard.clock.advance(60)
    return yard


async def repair(ctx: Context) -> object:
    return await Repair(ctx).run()


async def scrub(ctx: Context) -> object:
    while await step(ctx) is not None:
        pass
    return None


async def compact(ctx: Context) -> object:
    return await compaction.compact(ctx, 1)


async def empty_trash(ctx: Context) -> object:
    await ctx.ledger.retire(2)
    return await trash.clear(ctx, trash.TrashRules(grace_s=0, grace_least_s=0))


async def seal(ctx: Context) -> object:
    return await seal_dead(ctx, lambda writer: False)


async def sweep(ctx: Context) -> object:
    await Sweep(ctx, [LiveBytesAudit(ctx)], sleep=no_sleep).run()
    return None


@pytest.mark.parametrize("work", [repair, scrub, compact, empty_trash, seal, sweep])
async def test_a_process_that_lost_its_claim_while_it_slept_changes_nothing(
    work: Callable[[Context], Awaitable[object]],
) -> None:
    yard = await worn()
    if work is sweep:
        await yard.kv.commit(Transaction(add={volume_live_key(2): Add(777)}))
    yard.disks[(await yard.ledger.get(1)).disks[1]].lose(1, 1)
    rivals = await Rivals(yard).start()
    await rivals.depose()
    before = await decided(yard)
    with pytest.raises(Deposed):
        await work(rivals.first)
    after = await decided(yard)
    made = {key[1:] for key in after if key[:1] == b"V" and key not in before}
    # Compaction writes before it commits: into volumes that its own writer made, and that stay orphans.
    assert {key: value for key, value in after.items() if key[1:9] not in made} == before


async def decided(yard: Yard) -> dict[bytes, bytes]:
    """All metadata but what living writers note of their own volumes: numbers and lengths."""
    return {key: value for key, value in await yard.kv.scan(b"", b"\xff", 100_000) if key[:1] not in b"NL"}


@pytest.mark.parametrize(
    "point",
    [
        "repair-rebuilt",
        "repair-replaced",
        "compaction-written",
        "compaction-moved",
        "compaction-batch",
        "seal-measured",
        "seal-recorded",
        "trash-purging",
        "sweep-page",
    ],
)
async def test_a_claim_taken_over_midway_makes_the_old_ones_commit_fail_and_nothing_is_lost(
    point: str,
) -> None:
    yard = await worn()
    reached: list[str] = []

    def taken(name: str) -> None:
        if name == point and not reached:
            reached.append(name)
            # As the second process would write it, at exactly this point: 16 s have gone by here.
            key = rivals.claims[0].key
            yard.kv._values[key] = b"\x93\x01\xc4\x10" + bytes(15) + b"\x02" + b"\x63"

    rivals = Rivals(yard, taken)
    await rivals.start()
    works: dict[str, Callable[[Context], Awaitable[object]]] = {
        "repair": repair, "compaction": compact, "seal": seal, "trash": empty_trash, "sweep": sweep,
    }  # fmt: skip
    if point.startswith("repair"):
        yard.disks[(await yard.ledger.get(1)).disks[1]].lose(1, 1)
    if point.startswith("trash"):
        await compaction.compact(rivals.first, 2)  # Its bytes live elsewhere: the trash may have it.
        await empty_trash(rivals.first)  # Marked now, purged by the next pass.
        yard.clock.advance(1)
    if point == "sweep-page":
        await yard.kv.commit(Transaction(add={volume_live_key(1): Add(777)}))
    with pytest.raises(Deposed):
        await works[point.partition("-")[0]](rivals.first)
    assert reached == [point]
    assert not rivals.claims[0].held
    if point == "sweep-page":
        await yard.kv.commit(Transaction(add={volume_live_key(1): Add(-777)}))
    await yard.check()

    # Its successor, the same process that now holds the claim, finishes all of it.
    assert not await rivals.claims[1].keep() or rivals.claims[1].held
    assert await rivals.claims[1].keep()
    ctx = rivals.second
    for work in (seal, repair, compact, sweep):
        await work(ctx)
    await trash.clear(ctx, trash.TrashRules(grace_s=0, grace_least_s=0))
    assert (await Repair(ctx).run()).found == 0
    assert (await yard.states()).get(1, VolumeState.RETIRED) == VolumeState.RETIRED
    await yard.check()


async def test_a_file_is_neither_replaced_nor_purged_by_a_deposed_process() -> None:
    yard = await worn()
    rivals = await Rivals(yard).start()
    yard.disks[(await yard.ledger.get(1)).disks[1]].lose(1, 1)
    await rivals.depose()
    with pytest.raises(Deposed):
        await repair_file(rivals.first, 1, 1, RepairReport())
    assert sum(disk.calls["replace"] for disk in yard.disks.values()) == 0


async def test_ones_own_renewal_refuses_no_commit_of_ones_own() -> None:
    kv, clock = DictKv(), StepClock()
    claim = Claim(kv, "x", b"1" * 16, clock)
    assert await claim.keep()
    overtaken = 0

    class Overtaken(DictKv):
        """The first commit finds that the claim was renewed under way."""

        async def commit(self, transaction: Transaction) -> None:
            nonlocal overtaken
            if not overtaken:
                overtaken += 1
                assert await claim.keep()
            await kv.commit(transaction)

    await ClaimedKv(Overtaken(), claim).commit(Transaction(put={b"Swork": b"done"}))
    assert await kv.get(b"Swork") == b"done"
    assert overtaken == 1


async def test_a_conflict_that_is_not_about_the_claim_is_the_callers() -> None:
    kv, clock = DictKv(), StepClock()
    claim = Claim(kv, "x", b"1" * 16, clock)
    await claim.keep()
    with pytest.raises(Conflict, match="Swork"):
        await ClaimedKv(kv, claim).commit(Transaction(expect={b"Swork": b"old"}, put={b"Swork": b"new"}))
    assert claim.held


async def test_a_renewal_whose_answer_was_lost_is_no_loss_of_the_claim() -> None:
    clock = StepClock()

    class Lossy(DictKv):
        lose = False

        async def commit(self, transaction: Transaction) -> None:
            await super().commit(transaction)
            if self.lose:
                self.lose = False
                raise Unavailable("the answer did not come")

    kv = Lossy()
    claim = Claim(kv, "x", b"1" * 16, clock)
    await claim.keep()
    kv.lose = True
    with pytest.raises(Unavailable):
        await claim.keep()
    assert await claim.keep()
    await ClaimedKv(kv, claim).commit(Transaction(put={b"Swork": b"done"}))


async def test_who_could_not_do_the_work_leaves_the_claim_to_another() -> None:
    yard = await Yard().start()
    unfit = False

    async def turn(seconds: float) -> None:
        await asyncio.sleep(0.001)

    def made(number: int) -> Service:
        return Service(yard.context(), holder=bytes([number]) * 16, alive=lambda writer: True, sleep=turn)

    first, second = made(1), made(2)
    first.stand_by_while(lambda: unfit)
    first.start()
    await until(lambda: first.leads, "the first has the claim")
    second.start()
    unfit = True
    await until(lambda: second.leads and not first.leads, "the second has it")
    await first.close()
    await second.close()
