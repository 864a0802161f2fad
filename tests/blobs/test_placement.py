"""Placement: pure, so every rule is a table."""

import random
from collections import Counter

import pytest

from objstore.blobs.placement import Candidate, place
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
