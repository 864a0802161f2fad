"""Placement: which disks a new volume gets, and what that promises. Pure: same arguments, same answer.

Decided once, when a volume is made. As few fragments in one failure domain as the topology allows; within
that by free space, with chance, so that an emptier disk fills faster and no disk is shunned. What a domain is
comes from outside (`Candidate.domain`): a device on one machine, a node, a rack or a site on many.

The aim is at most m-1 fragments of a stripe in one domain: then any one domain may be lost, and a disk of
another beside it. Where the topology does not allow that, a weaker promise is made, and it has a name
(`Promise`). It is never bought with a smaller k: a code of 1+2 over three racks would cost twice the space of
4+2, which is for an operator to decide.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from objstore.errors import TooFewDisks
from objstore.node.disk import Usage


class Promise(StrEnum):
    """What a volume survives, by the most fragments that one domain holds of it. Ordered: best first."""

    SPARE = "spare"  # At most m-1 (1 if m is 1): any one domain may go, and with m > 1 a disk beside it.
    BARE = "bare"  # m: any one domain may go, and then nothing more.
    NONE = "none"  # More than m: there is a domain whose loss loses data.

    @property
    def words(self) -> str:
        return _WORDS[self]


_WORDS = {
    Promise.SPARE: "any one failure domain may be lost, with parity to spare",
    Promise.BARE: "any one failure domain may be lost, and then nothing more",
    Promise.NONE: "there is a failure domain whose loss loses data",
}


class Candidate(NamedTuple):
    """A disk that may hold new fragment files."""

    number: int
    free: int  # Bytes.
    domain: Hashable  # Disks of one domain fail together.


class Placement(NamedTuple):
    k: int  # The policy's, or less when too few disks are usable; m is always the policy's.
    disks: list[int]  # k+m different disks; fragment i goes to disks[i].
    domains: int  # Different failure domains among them.
    promise: Promise


Domain = Callable[[int, Usage], Hashable]
"""A disk's failure domain, by its number and what it says of itself."""


def device_domain(number: int, usage: Usage) -> Hashable:
    """On one machine: directories of one device fail together."""
    return usage.device


def promise_of(domains: Iterable[Hashable], m: int) -> Promise:
    """What a volume promises whose fragments lie in these domains, one entry a fragment."""
    most = max(Counter(domains).values(), default=0)
    if most <= max(1, m - 1):
        return Promise.SPARE
    return Promise.BARE if most <= m else Promise.NONE


def place(candidates: Sequence[Candidate], *, k: int, m: int, chance: Callable[[], float]) -> Placement:
    """Choose k+m different disks, or with fewer usable ones the same m over the largest k that fits.

    No other choice of as many disks has fewer fragments in its fullest domain.

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
    # The best disk of every domain, then the second best of every domain, and so on: no domain gets another
    # fragment while there is one with fewer that has a disk left.
    seen: Counter[Hashable] = Counter()
    rounds: list[tuple[int, int]] = []  # (which of its domain, place in the ranking)
    for position, disk in enumerate(ranked):
        rounds.append((seen[disk.domain], position))
        seen[disk.domain] += 1
    count = min(k + m, len(ranked))
    taken = [ranked[position] for _, position in sorted(rounds)[:count]]
    domains = [disk.domain for disk in taken]
    return Placement(count - m, [disk.number for disk in taken], len(set(domains)), promise_of(domains, m))


_SCALE = float(1 << 40)  # Weights around 1 for a terabyte: the powers stay representable.


def place_one(candidates: Iterable[Candidate], held: Iterable[Hashable]) -> int | None:
    """The disk for one fragment of a volume that exists; None without candidates.

    In the domain with the fewest of the volume's other fragments, there the one with the most free space.

    Args:
        candidates: disks without a fragment of the volume.
        held: the domains of its other fragments, one entry a fragment.
    """
    counts = Counter(held)
    best = min(candidates, key=lambda disk: (counts[disk.domain], -disk.free, disk.number), default=None)
    return best.number if best is not None else None
