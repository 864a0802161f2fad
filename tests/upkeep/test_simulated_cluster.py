"""Placement, repair and rebalance as the product decides them, on simulated disks and time: sim/cluster.py.

`OBJSTORE_LONG=1` (make simulate, make chaos): 100 nodes, 3,600 disks, 2,000 tenants, 20,000 volumes, and ten
years of disks that fail at 1.5% a year: some minutes. The short form: 24 nodes, ten times the failures.
"""

import os
import random
from collections import Counter

import pytest

from tests.sim.cluster import DAY_S, YEAR_S, Shape, SimCluster

LONG = bool(os.environ.get("OBJSTORE_LONG"))
SMALL = Shape(racks=6, nodes=2, disks=4, tenants=60, volumes=500, afr=0.15)
EVEN = 0.05  # Share of the mean fill by which the fullest or emptiest disk may differ from it.


def even(cluster: SimCluster) -> None:
    for balance in cluster.balances():
        assert balance.fullest <= (1 + EVEN) * balance.mean, balance
        assert balance.emptiest >= (1 - EVEN) * balance.mean, balance


def begun(shape: Shape, seed: int) -> SimCluster:
    print(f"seed {seed}, {shape}")
    cluster = SimCluster(shape, seed)
    cluster.write(shape.volumes)
    assert cluster.misplaced() == 0
    return cluster


def test_ten_years_of_failing_disks_lose_nothing_and_leave_all_disks_equally_full() -> None:
    shape = Shape() if LONG else SMALL
    cluster = begun(shape, seed=1)
    cluster.run((10 if LONG else 2) * YEAR_S)
    cluster.settle()
    sums = cluster.sums
    print(sums)
    assert sums.failures > (400 if LONG else 10)
    assert sums.rebuilt > 20 * sums.failures
    assert sums.lost == set()
    assert sums.worst <= shape.m
    assert cluster.misplaced() == 0
    assert len(cluster.records) == shape.volumes
    even(cluster)


@pytest.mark.parametrize("seed", range(20 if LONG else 2))
def test_new_nodes_are_filled_and_old_ones_emptied_while_disks_fail(seed: int) -> None:
    cluster = begun(SMALL, seed)
    rng = random.Random(seed)
    cluster.run(30 * DAY_S)
    cluster.add_node("site0", "rack0", "new-0")
    cluster.add_node("site1", "rack1", "new-1")
    leaving = f"node{rng.randrange(2)}-{rng.randrange(2, 6)}-0"
    cluster.drain(leaving)
    cluster.run(cluster.now_s + 60 * DAY_S)
    assert cluster.counted(cluster.disks_of(leaving)) == 0
    cluster.remove(leaving)
    cluster.delete(100)
    cluster.write(50)
    cluster.settle()
    assert cluster.sums.lost == set()
    assert cluster.sums.emptied > 50
    assert cluster.misplaced() == 0
    even(cluster)
    assert cluster.counted(cluster.disks_of("new-0")) > 100


def test_more_disks_failing_at_once_than_parity_lose_what_lay_on_all_of_them_and_nothing_else() -> None:
    """The simulation can lose data: what it says of ten years is not said of anything."""
    cluster = begun(SMALL._replace(afr=0.0), seed=3)
    records = list(cluster.records.values())
    broken = records[0].disks[: SMALL.m + 1]
    expected = {record.id for record in records if len(set(broken) & set(record.disks)) > SMALL.m}
    for number in broken:
        cluster.fail(number)
    assert cluster.sums.lost == expected
    assert records[0].id in expected
    cluster.settle()
    assert len(cluster.records) == SMALL.volumes - len(expected)


def test_the_volume_with_the_least_left_to_lose_is_rebuilt_first() -> None:
    cluster = begun(SMALL._replace(afr=0.0), seed=4)
    one, two = next(iter(cluster.records.values())).disks[:2]
    cluster.fail(one)
    cluster.fail(two)
    lost = Counter(
        record.id for record in cluster.records.values() for number in (one, two) if number in record.disks
    )
    both = {volume for volume, count in lost.items() if count == 2}
    before = {volume: list(cluster.records[volume].disks) for volume in lost}
    while any({one, two} <= set(cluster.records[volume].disks) for volume in both):
        cluster.run(cluster.now_s + 3_600)
    rebuilt = {volume for volume in lost if cluster.records[volume].disks != before[volume]}
    assert len(rebuilt - both) <= 2, "one hour's work at most was done on others"
