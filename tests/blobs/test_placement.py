"""Placement on one machine: pure, so every rule is a table. Over sites and nodes: test_topology.py."""

import random
from collections import Counter

import pytest

from objstore.blobs.placement import Promise, judge, place_volume, promise_of, substitute
from objstore.blobs.topology import DEFAULT_POLICY, Level, Spot, Topology
from objstore.errors import TooFewDisks


def disks(count: int, free: int = 1 << 40) -> list[Spot]:
    return [Spot(number, free, free, device=number) for number in range(1, count + 1)]


@pytest.mark.parametrize(("usable", "k"), [(9, 4), (6, 4), (5, 3), (4, 2), (3, 1)])
def test_with_fewer_disks_k_shrinks_and_m_never_does(usable: int, k: int) -> None:
    chosen = place_volume(Topology(disks(usable)), DEFAULT_POLICY, k=4, m=2, chance=random.Random(1).random)
    assert chosen.k == k
    assert len(set(chosen.disks)) == len(chosen.disks) == k + 2


@pytest.mark.parametrize("usable", [0, 1, 2])
def test_below_one_and_m_there_is_no_volume(usable: int) -> None:
    with pytest.raises(TooFewDisks, match=f"3 disks wanted, {usable} usable"):
        place_volume(Topology(disks(usable)), DEFAULT_POLICY, k=4, m=2, chance=random.random)


def test_no_device_gets_a_second_fragment_before_every_device_has_one() -> None:
    topology = Topology(Spot(number, 1 << 40, 1 << 40, device=number % 4) for number in range(12))
    for seed in range(50):
        chosen = place_volume(topology, DEFAULT_POLICY, k=4, m=2, chance=random.Random(seed).random)
        counts = Counter(number % 4 for number in chosen.disks)
        assert sorted(counts.values()) == [1, 1, 2, 2], f"seed {seed}"


def test_an_emptier_disk_gets_more_volumes() -> None:
    rng = random.Random(7)
    topology = Topology([*disks(8, free=1 << 38), Spot(9, 1 << 41, 1 << 41, device=9)])
    hits = Counter(
        number
        for _ in range(400)
        for number in place_volume(topology, DEFAULT_POLICY, k=2, m=1, chance=rng.random).disks
    )
    assert hits[9] > 1.5 * max(hits[number] for number in range(1, 9))
    assert min(hits[number] for number in range(1, 9)) > 0, "no disk is shunned"


@pytest.mark.parametrize("seed", range(300))
def test_no_other_choice_has_fewer_fragments_on_its_fullest_device(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 8) for _ in range(rng.randint(1, 9))]
    k, m = rng.randint(1, 12), rng.randint(1, 4)
    spots = [
        Spot(number, rng.randint(0, 1 << 41), 1 << 41, device=device)
        for number, device in enumerate(device for device, size in enumerate(sizes) for _ in range(size))
    ]
    rng.shuffle(spots)
    topology = Topology(spots)
    print(f"seed {seed}: {k}+{m} over devices of {sizes} disks")
    if len(spots) < 1 + m:
        with pytest.raises(TooFewDisks):
            place_volume(topology, DEFAULT_POLICY, k=k, m=m, chance=rng.random)
        return
    chosen = place_volume(topology, DEFAULT_POLICY, k=k, m=m, chance=rng.random)
    count = min(k + m, len(spots))
    assert len(set(chosen.disks)) == len(chosen.disks) == count == chosen.k + m
    # The least that any choice can have: the smallest bound under which so many fragments fit.
    least = next(most for most in range(1, count + 1) if sum(min(size, most) for size in sizes) >= count)
    most = topology.fullest(chosen.disks, Level.DEVICE)
    assert most == least
    named = {Promise.SPARE: most <= max(1, m - 1), Promise.BARE: most == m > 1, Promise.NONE: most > m}
    device = {Promise.SPARE} if chosen.level > Level.DEVICE else {p for p, holds in named.items() if holds}
    assert chosen.promise in device


@pytest.mark.parametrize(
    ("domains", "m", "promise"),
    [
        ("abcdef", 2, Promise.SPARE),
        ("abcdea", 2, Promise.BARE),
        ("aabbcc", 2, Promise.BARE),
        ("aabbcc", 3, Promise.SPARE),
        ("aaabcd", 2, Promise.NONE),
        ("aaaaaa", 2, Promise.NONE),
        ("abc", 1, Promise.SPARE),
        ("aab", 1, Promise.NONE),
    ],
)
def test_a_promise_is_named_by_the_fullest_domain(domains: str, m: int, promise: Promise) -> None:
    assert promise_of(domains, m) is promise
    assert promise.words


@pytest.mark.parametrize("seed", range(100))
def test_a_single_fragment_goes_to_the_least_used_device_that_has_room(seed: int) -> None:
    rng = random.Random(seed)
    print(f"seed {seed}")
    spots = [Spot(n, rng.randint(0, 5), 5, device=rng.randint(0, 4)) for n in range(rng.randint(5, 12))]
    held = rng.sample(range(len(spots)), 4)
    device = {spot.number: spot.device for spot in spots}
    number = substitute(
        Topology(spots), DEFAULT_POLICY, k=2, m=2, disks=held, file=3, chance=rng.random, size=3
    )
    fit = [spot for spot in spots if spot.free >= 3 and spot.number not in held]
    if not fit:
        assert number is None
        return
    counts = Counter(device[one] for one in held[:3])
    assert number in {spot.number for spot in fit}
    assert counts[device[number]] == min(counts[spot.device] for spot in fit)


def test_a_device_that_holds_a_fragment_on_a_disk_that_is_away_gets_no_second_one() -> None:
    """The other disk of that device is the only one in sight: what stands beside it counts all the same."""
    away = Spot(3, 0, 1 << 33, rack="r", node="n2", device=0, usable=False)
    topology = Topology(
        [
            Spot(1, 0, 1 << 33, rack="p", node="n0", leaving=True),
            Spot(2, 0, 1 << 33, rack="q", node="n1", usable=False),
            away,
            away._replace(number=4, device=1),
            away._replace(number=5, usable=True),
        ]
    )
    verdict = judge(topology, DEFAULT_POLICY, k=2, m=1, disks=[1, 2, 3], chance=random.Random(1).random)
    assert list(verdict.faults) == [0]
    assert verdict.moves == []
