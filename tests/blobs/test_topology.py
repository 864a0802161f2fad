"""Placement over sites, racks, nodes and devices: random topologies, small enough to try every choice."""

import random
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objstore.blobs.placement import (
    Fault,
    Promise,
    admits,
    judge,
    place_volume,
    promised,
    rules_of,
    substitute,
)
from objstore.blobs.topology import Level, Policy, Rules, Spot, Topology
from objstore.errors import TooFewDisks, WeakerPromise

GIB = 1 << 30
EVERYWHERE = Policy()


@st.composite
def spots(draw: st.DrawFn, *, disks_max: int = 24) -> list[Spot]:
    """Disks in a tree of random shape; a few are away, to be emptied, or in a pool."""
    found: list[Spot] = []
    for site in range(draw(st.integers(1, 3))):
        for rack in range(draw(st.integers(1, 3))):
            for node in range(draw(st.integers(1, 3))):
                pool = draw(st.sampled_from(["", "", "", "leased"]))
                for device in range(draw(st.integers(1, 3))):
                    found.append(
                        Spot(
                            number=len(found) + 1,
                            free=draw(st.integers(0, 8)) * GIB,
                            size=8 * GIB,
                            site=f"s{site}",
                            rack=f"r{rack}",
                            node=f"n{site}.{rack}.{node}",
                            device=device if draw(st.booleans()) else 0,
                            pool=pool,
                            usable=draw(st.integers(0, 9)) > 0,
                            leaving=draw(st.integers(0, 9)) == 0,
                        )
                    )
    return found[:disks_max]


POLICIES = st.sampled_from(
    [
        EVERYWHERE,
        Policy(name="here", sites=("s0",)),
        Policy(name="two", sites=("s0", "s1"), spread="rack"),
        Policy(name="leased", pool="leased"),
        Policy(name="apart", spread="site"),
    ]
)
CODES = st.sampled_from([(2, 1), (4, 2), (3, 3), (8, 4)])


def crowded(topology: Topology, disks: list[int], level: Level) -> int:
    return topology.fullest(disks, level)


def keeps(topology: Topology, rules: Rules, disks: list[int]) -> bool:
    return all(crowded(topology, disks, level) <= rules.caps[level] for level in Level)


@settings(max_examples=100, deadline=None)
@given(spots(), POLICIES, CODES, st.integers(0, 2**32))
def test_a_new_volume_keeps_its_policy_and_its_promise_whatever_the_topology(
    found: list[Spot], policy: Policy, code: tuple[int, int], seed: int
) -> None:
    topology, (k, m) = Topology(found), code
    allowed = {spot.number for spot in found if policy.admits(spot.site, spot.pool) and spot.takes}
    chance = random.Random(seed).random
    if len(allowed) < 1 + m:
        with pytest.raises(TooFewDisks):
            place_volume(topology, policy, k=k, m=m, chance=chance)
        return
    placed = place_volume(topology, policy, k=k, m=m, chance=chance)
    assert len(set(placed.disks)) == len(placed.disks) == placed.k + m == min(k + m, len(allowed))
    assert set(placed.disks) <= allowed
    rules = rules_of(topology, policy, placed.k + m, m, takes=True)
    assert keeps(topology, rules, placed.disks)
    assert placed.level == rules.level
    limit = {Promise.SPARE: max(1, m - 1), Promise.BARE: m, Promise.NONE: k + m}[placed.promise]
    assert crowded(topology, placed.disks, placed.level) <= limit


@settings(max_examples=100, deadline=None)
@given(spots(disks_max=9), CODES)
def test_the_promise_is_the_best_that_any_choice_of_disks_can_make(
    found: list[Spot], code: tuple[int, int]
) -> None:
    topology, (k, m) = Topology(found), code
    allowed = [spot.number for spot in found if spot.takes and not spot.pool]
    count = min(k + m, len(allowed))
    if count < 1 + m:
        return
    spare = max(1, m - 1)
    possible = {
        level
        for level in Level
        if level >= topology.base
        and any(topology.fullest(choice, level) <= spare for choice in combinations(allowed, count))
    }
    rules = rules_of(topology, EVERYWHERE, count, m, takes=True)
    assert rules.level == max(possible, default=topology.base)
    least = min(topology.fullest(choice, rules.level) for choice in combinations(allowed, count))
    assert rules.caps[rules.level] == max(least, min(spare, count))
    assert any(keeps(topology, rules, list(choice)) for choice in combinations(allowed, count))


@settings(max_examples=100, deadline=None)
@given(spots(disks_max=9), POLICIES, st.sampled_from([(2, 1), (2, 2), (3, 2)]), st.data())
def test_a_volume_is_mended_with_the_fewest_moves_and_never_leaves_its_policy(
    found: list[Spot], policy: Policy, code: tuple[int, int], data: st.DataObject
) -> None:
    topology, (k, m) = Topology(found), code
    if len(found) < k + m:
        return
    disks = data.draw(st.permutations([spot.number for spot in found]))[: k + m]
    verdict = judge(topology, policy, k=k, m=m, disks=disks, chance=random.Random(1).random)
    after = list(disks)
    for move in verdict.moves:
        assert after[move.file] == move.disk
        after[move.file] = move.target
        spot = topology.spots[move.target]
        assert spot.takes
        assert policy.admits(spot.site, spot.pool)
        assert verdict.faults[move.file] is move.fault
    assert len(set(after)) == k + m
    rules = rules_of(topology, policy, k + m, m)
    stay = {spot.number for spot in found if policy.admits(spot.site, spot.pool) and not spot.leaving}
    goal = stay & ({spot.number for spot in found if spot.takes} | set(disks))
    ways = [
        sum(number not in choice for number in disks)
        for choice in combinations(sorted(goal), k + m)
        if keeps(topology, rules, list(choice))
    ]
    if len(verdict.moves) == len(verdict.faults):
        assert keeps(topology, rules, after)
        assert set(after) <= stay
        assert min(ways) == len(verdict.moves), "another choice needs fewer moves"
        again = judge(topology, policy, k=k, m=m, disks=after, chance=random.Random(2).random)
        assert again.conforms
        assert not again.moves
    else:
        assert not ways, "there is a way, and it was not found"


@settings(max_examples=100, deadline=None)
@given(spots(), POLICIES, CODES, st.data())
def test_a_lost_file_is_made_anew_within_the_policy_or_nowhere(
    found: list[Spot], policy: Policy, code: tuple[int, int], data: st.DataObject
) -> None:
    topology, (k, m) = Topology(found), code
    if len(found) < k + m:
        return
    disks = data.draw(st.permutations([spot.number for spot in found]))[: k + m]
    file, size = data.draw(st.integers(0, k + m - 1)), data.draw(st.integers(0, 8)) * GIB
    chosen = substitute(
        topology, policy, k=k, m=m, disks=disks, file=file, chance=random.Random(1).random, size=size
    )
    fit = {
        spot.number
        for spot in found
        if policy.admits(spot.site, spot.pool) and spot.takes and spot.free >= size
    } - set(disks)
    assert (chosen in fit) if fit else chosen is None


@settings(max_examples=100, deadline=None)
@given(spots(), CODES, st.integers(0, 2**32), st.data())
def test_what_is_admitted_conforms_and_what_conforms_is_admitted(
    found: list[Spot], code: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    topology, (k, m) = Topology(found), code
    try:
        placed = place_volume(topology, EVERYWHERE, k=k, m=m, chance=random.Random(seed).random)
    except TooFewDisks:
        return
    k = placed.k
    if not judge(topology, EVERYWHERE, k=k, m=m, disks=placed.disks, chance=random.random).conforms:
        return
    file = data.draw(st.integers(0, k + m - 1))
    for spot in found:
        moved = [spot.number if at == file else number for at, number in enumerate(placed.disks)]
        admitted = admits(topology, EVERYWHERE, k=k, m=m, disks=placed.disks, file=file, target=spot.number)
        fine = len(set(moved)) == k + m and spot.takes
        if fine and spot.number != placed.disks[file]:
            fine = judge(topology, EVERYWHERE, k=k, m=m, disks=moved, chance=random.random).conforms
        else:
            fine = False
        assert admitted == fine


def rack_of(number: int, racks: list[int]) -> int:
    for rack, size in enumerate(racks):
        if number < size:
            return rack
        number -= size
    raise AssertionError


def test_every_disk_gets_its_share_of_the_free_space_over_unequal_racks() -> None:
    racks = [12, 24, 24, 36]  # Disks; 4 a node. With 8+4 at most 3 in a rack: the shares fit without a cut.
    found = [
        Spot(
            number + 1, (1 + number % 3) * GIB, 4 * GIB, "a", f"r{rack_of(number, racks)}", f"n{number // 4}"
        )
        for number in range(sum(racks))
    ]
    found = [spot._replace(device=spot.number) for spot in found]
    topology, rng, rounds = Topology(found), random.Random(20), 4_000
    hits = Counter(
        number
        for _ in range(rounds)
        for number in place_volume(topology, EVERYWHERE, k=4, m=4, chance=rng.random).disks
    )
    total = sum(spot.free for spot in found)
    for spot in found:
        share = rounds * 8 * spot.free / total
        assert abs(hits[spot.number] - share) < 6 * share**0.5, f"disk {spot.number}: {hits[spot.number]}"


def test_a_small_rack_does_not_cap_the_others_and_is_not_filled_first() -> None:
    # Three fragments of 6 in each large rack would be too many for 4+2 (2 a rack at the most), so that the
    # small one must take 2 of every volume; with 3+3 the large ones may have more, and take it.
    found = [Spot(n + 1, 10 * GIB, 10 * GIB, "a", f"r{min(n // 10, 2)}", f"n{n}") for n in range(22)]
    topology, rng = Topology(found), random.Random(3)
    small = [
        sum(number > 20 for number in place_volume(topology, EVERYWHERE, k=k, m=m, chance=rng.random).disks)
        for k, m in [(2, 4)] * 500
    ]
    assert 0.35 < sum(small) / len(small) < 0.75, "its share is 6 * 2 / 22"


@pytest.mark.parametrize(
    ("sites", "racks", "nodes", "code", "level", "promise", "above"),
    [
        (1, 1, 1, (4, 2), Level.NODE, Promise.NONE, {}),
        (1, 1, 6, (4, 2), Level.NODE, Promise.SPARE, {Level.RACK: Promise.NONE}),
        (1, 3, 2, (4, 2), Level.NODE, Promise.SPARE, {Level.RACK: Promise.BARE}),
        (1, 6, 1, (4, 2), Level.RACK, Promise.SPARE, {Level.SITE: Promise.NONE}),
        (3, 1, 4, (8, 4), Level.NODE, Promise.SPARE, {Level.SITE: Promise.BARE}),
        (4, 1, 3, (8, 4), Level.SITE, Promise.SPARE, {}),
        (2, 1, 3, (4, 2), Level.NODE, Promise.SPARE, {Level.SITE: Promise.NONE}),
    ],
)
def test_the_failure_domain_is_the_highest_level_at_which_the_aim_is_possible(
    sites: int,
    racks: int,
    nodes: int,
    code: tuple[int, int],
    level: Level,
    promise: Promise,
    above: dict[Level, Promise],
) -> None:
    places = [(s, r, n) for s in range(sites) for r in range(racks) for n in range(nodes)]
    topology = Topology(
        Spot(3 * at + disk + 1, GIB, GIB, f"s{s}", f"r{r}", f"n{s}{r}{n}", disk)
        for at, (s, r, n) in enumerate(places)
        for disk in range(3)
    )
    k, m = code
    placed = (
        place_volume(topology, EVERYWHERE, k=k, m=m, chance=random.Random(4).random)
        if len(places) > 1
        else None
    )
    if placed is not None:
        assert (placed.level, placed.promise) == (level, promise)
    named = promised(topology, EVERYWHERE, min(k, 3 * len(places) - m), m)
    assert named[level] is promise
    for other, weaker in above.items():
        assert named[other] is weaker


def test_on_one_machine_devices_are_the_failure_domains() -> None:
    found = [Spot(number, GIB, GIB, device=number % 3) for number in range(1, 7)]
    placed = place_volume(Topology(found), EVERYWHERE, k=4, m=2, chance=random.Random(5).random)
    assert (placed.level, placed.promise) == (Level.DEVICE, Promise.BARE)


def test_a_policy_that_requires_a_promise_makes_no_volume_with_a_weaker_one() -> None:
    found = [Spot(number, GIB, GIB, "a", "r", f"n{number % 3}", number) for number in range(1, 7)]
    strict = Policy(name="strict", require="spare")
    with pytest.raises(
        WeakerPromise, match=r"'strict' requires the promise 'spare'.*2 of 6 fragments in one node"
    ):
        place_volume(Topology(found), strict, k=4, m=2, chance=random.random)
    bare = Policy(name="bare", require="bare")
    assert place_volume(Topology(found), bare, k=4, m=2, chance=random.random).promise is Promise.BARE


def test_a_node_of_a_pool_takes_only_the_volumes_of_policies_that_name_it() -> None:
    found = [
        Spot(number, GIB, GIB, "a", "r", f"n{number}", pool="leased" if number > 6 else "")
        for number in range(1, 13)
    ]
    topology = Topology(found)
    leased = Policy(name="leased", pool="leased")
    for seed in range(20):
        chance = random.Random(seed).random
        assert max(place_volume(topology, EVERYWHERE, k=4, m=2, chance=chance).disks) <= 6
        assert min(place_volume(topology, leased, k=4, m=2, chance=chance).disks) > 6
    verdict = judge(topology, leased, k=4, m=2, disks=[1, 2, 3, 10, 11, 12], chance=random.random)
    assert verdict.faults == dict.fromkeys((0, 1, 2), Fault.OUTSIDE)
    assert sorted(move.target for move in verdict.moves) == [7, 8, 9]
