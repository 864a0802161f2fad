"""Placement: which disks a new volume gets. Pure: the same arguments, the same answer.

Decided once, when a volume is made. One fragment per failure domain while there are enough of
them; by free space, with chance, so that an emptier disk fills faster and no disk is shunned.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from objstore.errors import TooFewDisks


class Candidate(NamedTuple):
    """A disk that may hold new fragment files."""

    number: int
    free: int  # Bytes.
    domain: Hashable  # Disks of one domain fail together. The disk's own number on one machine.


class Placement(NamedTuple):
    k: int  # The policy's, or less when too few disks are usable; m is always the policy's.
    disks: list[int]  # k+m different disks; fragment i goes to disks[i].
    domains: int  # Different failure domains among them: below k+m the promise is weaker.


def place(candidates: Sequence[Candidate], *, k: int, m: int, chance: Callable[[], float]) -> Placement:
    """Choose k+m different disks, or with fewer usable ones the same m over the largest k that fits.

    Args:
        chance: numbers in [0, 1), one is taken for each candidate.

    Raises: TooFewDisks below 1+m.
    """
    assert k >= 1
    assert m >= 1
    if len(candidates) < 1 + m:
        raise TooFewDisks(wanted=1 + m, usable=len(candidates))
    # Weighted sampling without replacement (Efraimidis and Spirakis): the largest u ** (1 / weight).
    ranked = sorted(
        candidates, key=lambda disk: max(chance(), 1e-12) ** (1.0 / max(disk.free, 1) * _SCALE), reverse=True
    )
    count = min(k + m, len(ranked))
    taken: list[Candidate] = []
    per_domain: dict[Hashable, int] = {}
    level = 0
    while len(taken) < count:  # First one disk of every domain, then a second, and so on.
        level += 1
        for disk in ranked:
            if len(taken) < count and disk not in taken and per_domain.get(disk.domain, 0) < level:
                taken.append(disk)
                per_domain[disk.domain] = per_domain.get(disk.domain, 0) + 1
    return Placement(count - m, [disk.number for disk in taken], len(per_domain))


_SCALE = float(1 << 40)  # Weights around 1 for a terabyte: the powers stay representable.
