"""Placement: pure, so every rule is a table."""

import random
from collections import Counter

import pytest

from objstore.blobs.placement import Candidate, Promise, place, place_one, promise_of
from objstore.errors import TooFewDisks


def disks(count: int, free: int = 1 << 40) -> list[Candidate]:
    return [Candidate(number, free, number) for number in range(1, count + 1)]


@pytest.mark.parametrize(("usable", "k"), [(9, 4), (6, 4), (5, 3), (4, 2), (3, 1)])
def test_with_fewer_disks_k_shrinks_and_m_never_does(usable: int, k: int) -> None:
    chosen = place(disks(usable), k=4, m=2, chance=random.Random(1).random)
    assert chosen.k == k
    assert len(set(chosen.disks)) == len(chosen.disks) == k + 2


@pytest.mark.parametrize("usable", [0, 1, 2])
def test_below_one_and_m_there_is_no_volume(usable: int) -> None:
    with pytest.raises(TooFewDisks, match=f"3 disks wanted, {usable} usable"):
        place(disks(usable), k=4, m=2, chance=random.random)


def test_no_domain_gets_a_second_fragment_before_every_domain_has_one() -> None:
    candidates = [Candidate(number, 1 << 40, number % 4) for number in range(12)]
    for seed in range(50):
        chosen = place(candidates, k=4, m=2, chance=random.Random(seed).random)
        counts = Counter(number % 4 for number in chosen.disks)
        assert sorted(counts.values()) == [1, 1, 2, 2], f"seed {seed}"
        assert chosen.domains == 4


def test_an_emptier_disk_gets_more_volumes() -> None:
    rng = random.Random(7)
    candidates = [*disks(8, free=1 << 38), Candidate(9, 1 << 41, 9)]
    hits = Counter(
        number for _ in range(400) for number in place(candidates, k=2, m=1, chance=rng.random).disks
    )
    assert hits[9] > 1.5 * max(hits[number] for number in range(1, 9))
    assert min(hits[number] for number in range(1, 9)) > 0, "no disk is shunned"


@pytest.mark.parametrize("seed", range(300))
def test_no_other_choice_has_fewer_fragments_in_its_fullest_domain(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 8) for _ in range(rng.randint(1, 9))]
    k, m = rng.randint(1, 12), rng.randint(1, 4)
    candidates = [
        Candidate(number, rng.randint(0, 1 << 41), domain)
        for number, domain in enumerate(domain for domain, size in enumerate(sizes) for _ in range(size))
    ]
    rng.shuffle(candidates)
    print(f"seed {seed}: {k}+{m} over domains of {sizes} disks")
    if len(candidates) < 1 + m:
        with pytest.raises(TooFewDisks):
            place(candidates, k=k, m=m, chance=rng.random)
        return
    chosen = place(candidates, k=k, m=m, chance=rng.random)
    count = min(k + m, len(candidates))
    domain_of = {disk.number: disk.domain for disk in candidates}
    counts = Counter(domain_of[number] for number in chosen.disks)
    assert len(set(chosen.disks)) == len(chosen.disks) == count == chosen.k + m
    assert len(counts) == chosen.domains
    # The least that any choice can have: the smallest bound under which so many fragments fit.
    least = next(most for most in range(1, count + 1) if sum(min(size, most) for size in sizes) >= count)
    most = max(counts.values())
    assert most == least
    named = {Promise.SPARE: most <= max(1, m - 1), Promise.BARE: most == m > 1, Promise.NONE: most > m}
    assert named[chosen.promise]
    assert [promise for promise, holds in named.items() if holds] == [chosen.promise]


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
def test_a_single_fragment_goes_to_the_emptiest_disk_of_the_least_used_domain(seed: int) -> None:
    rng = random.Random(seed)
    print(f"seed {seed}")
    candidates = [
        Candidate(number, rng.randint(0, 5), rng.randint(0, 4)) for number in range(rng.randint(1, 9))
    ]
    held = [rng.randint(0, 6) for _ in range(rng.randint(0, 9))]
    number = place_one(candidates, held)
    chosen = next(disk for disk in candidates if disk.number == number)
    for other in candidates:
        assert held.count(chosen.domain) <= held.count(other.domain)
        if held.count(chosen.domain) == held.count(other.domain):
            assert chosen.free >= other.free
    rng.shuffle(candidates)
    assert place_one(candidates, held) == number, "in whatever order they come"
    assert place_one([], held) is None
