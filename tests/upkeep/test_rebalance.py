"""Rebalancing: what moves, what does not, and that nothing is lost by it."""

import random

import msgspec
import pytest

from objstore.blobs.topology import DEFAULT_POLICY, Policy, Spot, Topology
from objstore.blobs.volumes import Intent, Lane, VolumeRecord, VolumeState
from objstore.meta.kv import Transaction
from objstore.meta.schema import DiskRecord, MemberRecord, disk_key, encode, member_key
from objstore.objects import layout
from objstore.objects.layout import MachinePlace
from objstore.upkeep import plans
from objstore.upkeep.rebalance import DEFAULT_RULES, Rebalance, RebalanceRules
from objstore.upkeep.repair import Repair, RepairReport
from objstore.upkeep.service import Service
from objstore.upkeep.trash import TrashRules, clear
from tests.sim.memory_disk import MemoryDisk
from tests.upkeep.rig import Yard, no_sleep

SIZE = 4_000_000  # Bytes of a disk: a file of the tests is a noticeable part of it.


async def grown(disks: int = 6, added: int = 3, *, objects: int = 6) -> Yard:
    """A store whose first disks are about half full, and then some empty ones."""
    yard = await Yard("+" * disks).start()
    for disk in yard.disks.values():
        disk.total = SIZE
    rng = random.Random(1)
    for number in range(objects):
        await yard.put_object(f"o{number}", rng.randbytes(1_000_000))
        await yard.restart_writer()
    for number in range(disks + 1, disks + added + 1):
        disk = yard.disks[number] = MemoryDisk(number, total=SIZE)
        await yard.ledger.register_disk(number, uuid=disk.uuid, path=disk.path)
    return yard


async def rebalanced(yard: Yard, rules: RebalanceRules = DEFAULT_RULES) -> Rebalance:
    """Until nothing is left to move."""
    work = Rebalance(yard.context(), rules)
    for _ in range(20):
        planned = await work.plan()
        if not planned:
            return work
        assert len({move.volume for move in planned}) == len(planned), "one file of a volume at a time"
        for move in planned:
            await work.move(move)
    raise AssertionError("it does not come to an end")


async def test_new_disks_are_filled_and_every_object_is_read_as_before() -> None:
    yard = await grown()
    work = await rebalanced(yard, RebalanceRules(tolerance=0.2))
    status = work.status
    assert status.even
    assert status.moved >= 6
    assert status.moved_bytes == sum(
        len(file.content) for number in (7, 8, 9) for file in yard.disks[number].fragments.values()
    )
    assert all(yard.disks[number].fragments for number in (7, 8, 9))
    for record in await yard.ledger.volumes():
        assert len(set(record.disks)) == 6
    await yard.check()
    # What lay there before is trash now, and goes after its grace: nothing else does.
    for _ in range(2):
        await clear(yard.context(), TrashRules(grace_s=100))
        yard.clock.advance(101)
    await clear(yard.context(), TrashRules(grace_s=100))
    assert sum(len(disk.fragments) for disk in yard.disks.values()) == 6 * len(await yard.ledger.volumes())
    await yard.check()


async def test_nothing_moves_while_disks_are_about_equally_full() -> None:
    yard = await grown(added=0)
    work = Rebalance(yard.context(), RebalanceRules(tolerance=0.2))
    assert await work.plan() == []
    assert work.status.even


async def test_nothing_moves_when_it_is_switched_off_but_the_state_is_shown() -> None:
    yard = await grown()
    work = Rebalance(yard.context(), RebalanceRules(enabled=False))
    assert await work.plan() == []
    assert not work.status.even
    assert work.status.emptiest == 0


async def test_a_volume_that_has_lost_as_much_as_it_may_is_left_alone() -> None:
    yard = await grown()
    records = await yard.ledger.volumes()
    for record in records[:3]:
        for index in (1, 2):
            await yard.ledger.note_intent(Intent(record.id, index))
    planned = await Rebalance(yard.context()).plan()
    assert planned
    assert {move.volume for move in planned}.isdisjoint(record.id for record in records[:3])
    for index in (1, 2):  # m of every volume's files are away now.
        yard.disks[records[0].disks[index]].mood = "missing"
    assert await Rebalance(yard.context()).plan() == []


async def test_a_move_that_was_planned_is_not_made_once_it_is_not_right_any_more() -> None:
    yard = await grown()
    work = Rebalance(yard.context())
    one, two, three, *_ = await work.plan()
    await yard.ledger.retire(one.volume)
    for record in await yard.ledger.volumes():
        if record.id == two.volume:
            await yard.ledger.repaired(record, two.file, 9 if two.target != 9 else 8)
        if record.id == three.volume:
            yard.disks[three.target].suspicion = "a sync failed"
    assert [await work.move(move) for move in (one, two, three)] == [False, False, False]
    assert work.status.moved == 0
    assert yard.disks[three.target].calls["replace_begin"] == 0


async def test_rebalancing_waits_for_repair_even_between_two_files() -> None:
    yard = await grown()
    service = Service(
        yard.context(),
        holder=b"u" * 16,
        alive=lambda writer: True,
        rebalance_rules=RebalanceRules(tolerance=0.2),
        sleep=no_sleep,
    )
    assert await service._claim.keep()
    assert await service.rebalance() == "0 files moved; it waits for repair", "it has not looked yet"
    await service.repair()
    real = service._rebalance.move

    async def then_damage_is_found(planned: plans.Relocation) -> bool:
        done = await real(planned)
        service._last_repair = RepairReport(found=3, repaired=1)
        return done

    service._rebalance.move = then_damage_is_found  # type: ignore[method-assign]
    assert await service.rebalance() == "1 files moved; it waits for repair"
    assert (await service.status())["rebalance"]["left"] > 0
    service._last_repair = RepairReport(found=3, repaired=1, waiting=2)
    service._rebalance.move = real  # type: ignore[method-assign]
    assert "it waits" not in await service.rebalance(), "what waits for a disk is no work"


async def test_a_copy_that_reads_back_otherwise_is_never_named_by_its_record() -> None:
    yard = await grown()
    work = Rebalance(yard.context())
    move = (await work.plan())[0]
    target = yard.disks[move.target]
    before = await yard.ledger.get(move.volume, fresh=True)

    def rots(call: str, volume: int, index: int) -> None:
        if call == "read" and (volume, index) == (move.volume, move.file):
            target.fragments[volume, index].content[200] ^= 4

    target.before = rots
    assert not await work.move(move)
    assert "other bytes" in work.status.failure
    assert await yard.ledger.get(move.volume, fresh=True) == before
    target.before = None
    await yard.check()


@pytest.mark.parametrize("point", ["repair-rebuilt", "repair-replaced"])
async def test_a_crash_between_copy_and_record_leaves_the_old_state_or_the_new(point: str) -> None:
    class Crash(BaseException):
        pass

    def crash(name: str) -> None:
        if name == point:
            raise Crash

    yard = await grown()
    work = Rebalance(yard.context(crash))
    move = (await work.plan())[0]
    with pytest.raises(Crash):
        await work.move(move)
    await yard.check()
    for _ in range(2):
        await clear(yard.context(), TrashRules(grace_s=100))
        yard.clock.advance(101)
    await yard.check()
    await rebalanced(yard, RebalanceRules(tolerance=0.2))
    await yard.check()


async def test_a_volume_outside_its_policy_moves_file_by_file_until_it_conforms() -> None:
    """The gateway's own disks are pool "fast" now: the default policy's volumes have to leave them."""
    yard = await grown(6, 6)
    for number in range(7, 13):
        disk = yard.disks[number]
        record = (await yard.ledger.disks())[number]
        await put_disk(yard, number, msgspec.structs.replace(record, node=b"n" * 15 + bytes([number])))
        assert disk.total == SIZE
    await join(yard, range(7, 13))
    await layout.stage(
        yard.kv,
        lambda plan: msgspec.structs.replace(plan, machines={layout.OWN: MachinePlace(pool="fast")}),
    )
    await apply(yard)
    work = Rebalance(yard.context(), RebalanceRules(tolerance=1.0))
    first = await work.plan()
    assert work.status.misplaced == len(await yard.ledger.volumes())
    assert {move.reason for move in first} == {"its disk is not one of the policy's sites and pool"}
    work = await rebalanced(yard, RebalanceRules(tolerance=1.0))
    assert work.status.misplaced == 0
    for volume in await yard.ledger.volumes():
        assert min(volume.disks) > 6
    await yard.check()


async def put_disk(yard: Yard, number: int, record: DiskRecord) -> None:
    await yard.kv.commit(Transaction(put={disk_key(number): encode(record)}))


async def join(yard: Yard, numbers: range) -> None:
    for number in numbers:
        member = MemberRecord(role="node", name=f"n{number}", state="joined", addresses=["x:1"])
        key = member_key(b"n" * 15 + bytes([number]))
        await yard.kv.commit(Transaction(put={key: encode(member)}))


async def apply(yard: Yard) -> None:
    value, record = await layout.read_layout(yard.kv)
    new = layout.applied(record, record.serial, yard.clock.now_us())
    await yard.kv.commit(Transaction(expect={layout.LAYOUT_KEY: value}, put={layout.LAYOUT_KEY: encode(new)}))


# --- decisions alone ------------------------------------------------------------------------------


def made(number: int, disks: list[int], length: int = 10, policy: str = "") -> VolumeRecord:
    return VolumeRecord(
        id=number,
        k=len(disks) - 2,
        m=2,
        disks=disks,
        state=VolumeState.SEALED,
        lane=Lane.SMALL,
        writer=bytes(16),
        policy=policy,
        length=length,
    )


def spots(count: int, **about: object) -> list[Spot]:
    return [
        Spot(number, free=1_000, size=1_000, node=f"n{number}", device=number, **about)  # type: ignore[arg-type]
        for number in range(1, count + 1)
    ]


def default(record: VolumeRecord) -> Policy:
    return DEFAULT_POLICY


@pytest.mark.parametrize("seed", range(5))
def test_evening_out_ends_and_leaves_no_disk_far_from_the_mean(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    topology = Topology(spots(24))
    records = {
        number: made(number, rng.sample(range(1, 13), 6), rng.randint(2, 8)) for number in range(1, 400)
    }
    for _ in range(200):
        moves = plans.evening_moves(list(records.values()), topology, default, tolerance=0.05, limit=50)
        if not moves:
            break
        for move in moves:
            disks = list(records[move.volume].disks)
            assert disks[move.file] == move.source
            disks[move.file] = move.target
            assert len(set(disks)) == 6
            records[move.volume] = made(move.volume, disks, move.size)
    else:
        pytest.fail("it does not come to an end")
    found = plans.balances(records.values(), topology, 0.05)
    assert all(balance.even for balance in found), found


def test_disks_of_one_device_are_not_filled_from_one_another() -> None:
    same = [Spot(number, free=1_000, size=1_000, device=1) for number in range(1, 9)]
    assert (
        plans.evening_moves(
            [made(1, [1, 2, 3, 4, 5, 6], 300)], Topology(same), default, tolerance=0.05, limit=10
        )
        == []
    )


def test_each_pool_is_evened_out_by_itself() -> None:
    """One pool is fuller than the other, and within both all is even: nothing can be gained."""
    first = [spot._replace(pool="a") for spot in spots(12) if spot.number <= 6]
    second = [spot for spot in spots(12) if spot.number > 6]
    records = [made(1, [1, 2, 3, 4, 5, 6], 500, "a"), made(2, [7, 8, 9, 10, 11, 12], 100)]
    policies = {"a": Policy(name="a", pool="a"), "": DEFAULT_POLICY}
    topology = Topology([*first, *second])
    moves = plans.evening_moves(
        records, topology, lambda record: policies[record.policy], tolerance=0.05, limit=10
    )
    assert moves == []
    assert all(balance.even for balance in plans.balances(records, topology, 0.05))


def test_what_was_found_to_conform_is_judged_again_when_its_disks_have_moved() -> None:
    topology = Topology([*spots(8)])
    records = [made(1, [1, 2, 3, 4, 5, 6])]
    conformity = plans.Conformity()
    assert conformity.misplaced(records, topology, default) == []
    moved = Topology([spot._replace(node="n1") if spot.number < 4 else spot for spot in spots(8)])
    assert conformity.misplaced(records, moved, default) == records
    assert conformity.misplaced(records, topology, default) == []


async def test_a_disk_to_be_emptied_is_emptied_with_copies_that_were_read_back() -> None:
    yard = await grown(6, 1)
    await yard.ledger.set_disk_state(1, "draining")
    target = yard.disks[7]

    def rots(call: str, number: int, index: int) -> None:
        if call == "read":
            target.fragments[number, index].content[200] ^= 4

    target.before = rots
    report = await Repair(yard.context()).run()
    assert report.moved == 0
    assert len(report.failures) == report.moving
    assert all(1 in record.disks for record in await yard.ledger.volumes())
    target.before = None
    report = await Repair(yard.context()).run()
    assert report.moved == report.moving > 0
    assert all(1 not in record.disks for record in await yard.ledger.volumes())
    await yard.check()
