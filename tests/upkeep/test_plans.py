"""What repair and rebalancing decide, as plain functions."""

import random
from itertools import permutations

import msgspec

from objstore.blobs.placement import admits, judge
from objstore.blobs.topology import DEFAULT_POLICY, Spot, Topology
from objstore.blobs.volumes import Lane, VolumeRecord, VolumeState
from objstore.upkeep.plans import MISPLACED, conforming_moves
from tests.seed import SEED

SIZE = 1 << 40


def three_sites() -> Topology:
    """Three sites of two nodes with two disks each, numbered from 1."""
    return Topology(
        Spot(
            number=1 + 4 * site + 2 * node + disk,
            free=SIZE - disk - node,
            size=SIZE,
            site="abc"[site],
            node=f"{site}{node}",
            device=disk,
        )
        for site in range(3)
        for node in range(2)
        for disk in range(2)
    )


def volume(disks: list[int]) -> VolumeRecord:
    return VolumeRecord(
        id=1,
        k=4,
        m=2,
        disks=disks,
        lane=Lane.SMALL,
        writer=b"w" * 16,
        state=VolumeState.SEALED,
        length=1_000,
    )


def misplaced(topology: Topology, record: VolumeRecord) -> bool:
    verdict = judge(topology, DEFAULT_POLICY, k=4, m=2, disks=record.disks, chance=lambda: 0.5, size=0)
    return any(fault in MISPLACED for fault in verdict.faults.values())


def moved_until_it_conforms(record: VolumeRecord, topology: Topology, chance: random.Random) -> int:
    """How many moves it takes, one at a time."""
    for count in range(10):
        if not misplaced(topology, record):
            return count
        [move] = conforming_moves([record], topology, lambda record: DEFAULT_POLICY, chance.random, limit=10)
        at = {"disks": record.disks, "file": move.file, "target": move.target}
        assert admits(topology, DEFAULT_POLICY, k=4, m=2, **at)
        after = list(record.disks)
        after[move.file] = move.target
        record = msgspec.structs.replace(record, disks=after)
    raise AssertionError(f"{record.disks} after ten moves")


def test_a_volume_of_two_sites_is_spread_over_three_by_moves_each_of_which_may_be_done() -> None:
    topology, chance = three_sites(), random.Random(SEED)
    print(f"OBJSTORE_TEST_SEED={SEED}")
    for here, there in permutations(range(3), 2):
        for _ in range(20):
            disks = [1 + 4 * here + disk for disk in range(4)]
            disks += chance.sample([1 + 4 * there + disk for disk in range(4)], 2)
            chance.shuffle(disks)
            assert 2 <= moved_until_it_conforms(volume(disks), topology, chance) <= 5


def test_moves_that_wait_for_each_other_do_not_wait_for_ever() -> None:
    """Two sites are full, each with two files on one node: to swap them, neither can be first."""
    topology, chance = three_sites(), random.Random(SEED)
    print(f"OBJSTORE_TEST_SEED={SEED}")
    moved_until_it_conforms(volume([11, 12, 4, 5, 6, 2]), topology, chance)
    for _ in range(100):
        moved_until_it_conforms(volume(chance.sample(range(1, 13), 6)), topology, chance)
