"""What the planner is told: a code, and how fast things fail and are mended. Values only.

Hours everywhere; a year has 8,766. Rates are per hour. All failures are Poisson: of a disk, of a place on a
disk (a *latent* error: nobody knows until something reads it), and of a *domain* (node, rack, site), which
takes all or a share of its fragments at once. What it is not about: software and people, who lose more data
than disks do.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from objstore.errors import BadArgument

HOURS_A_YEAR: Final = 8766.0
FRAGMENTS_MAX: Final = 256  # A code word of GF(2^8) has that many places.
PARITY_MAX: Final = 32  # Beyond it the exact chain takes minutes, and nobody stores data so.
BLOCK_SIZE: Final = 4096  # Bytes. The least that an error on a disk takes with it.

DISKS: Final = "disk failures"  # The causes of loss, beside the domains' names.
LATENT: Final = "latent errors"


@dataclass(frozen=True, slots=True)
class Code:
    """Any k of k+m fragments are enough."""

    k: int
    m: int

    def __post_init__(self) -> None:
        if self.k < 1 or self.m < 1:
            raise BadArgument(f"codec {self}: at least one data and one parity fragment are needed")
        if self.n > FRAGMENTS_MAX:
            raise BadArgument(f"codec {self}: {self.n} fragments, at most {FRAGMENTS_MAX} are possible")
        if self.m > PARITY_MAX:
            raise BadArgument(f"codec {self}: {self.m} parity fragments, at most {PARITY_MAX} can be judged")

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"

    @property
    def n(self) -> int:
        return self.k + self.m

    @property
    def overhead(self) -> float:
        """Bytes on disks per byte stored."""
        return self.n / self.k


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One level of places that fail as a whole. A stripe fills one after another, with `fragments` each."""

    name: str  # "rack": for people.
    fragments: int  # Of one stripe, in one such place, at the most.
    rate: float  # Events per place and hour.
    lost: float = 1.0  # The chance of each fragment there to be gone for good, in such an event.
    repair_h: float | None = None  # Mean, from the event to fragments restored; None: as of a disk.

    def __post_init__(self) -> None:
        if self.fragments < 1:
            raise BadArgument(f"domain {self.name}: at least one fragment must lie in it")
        if not 0 <= self.rate < math.inf:
            raise BadArgument(f"domain {self.name}: its rate must not be negative")
        if not 0 < self.lost <= 1:
            raise BadArgument(f"domain {self.name}: lost must be above 0% and at most 100%")
        if self.repair_h is not None and not 0 < self.repair_h < math.inf:
            raise BadArgument(f"domain {self.name}: repair must take some time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One stripe, and what happens to its fragments."""

    code: Code
    failure_rate: float  # Of one fragment's disk, per hour.
    repair_h: float  # Mean, from a failure to its fragment restored: detection, grace, queue and copying.
    serial: bool = False  # One fragment after another is restored, not all of a stripe side by side.
    latent_rate: float = 0.0  # Of one fragment, per hour: it is corrupt, and nobody knows.
    scrub_h: float = 14 * 24.0  # Every fragment is read once in this time.
    domains: tuple[
        Domain, ...
    ] = ()  # From the narrowest (node) to the widest (site), each nested in the next.

    def __post_init__(self) -> None:
        if not 0 <= self.failure_rate < math.inf:
            raise BadArgument("the rate of failures must not be negative")
        if not 0 < self.repair_h < math.inf:
            raise BadArgument("repair must take some time")
        if not 0 <= self.latent_rate < math.inf:
            raise BadArgument("the rate of latent errors must not be negative")
        if not 0 < self.scrub_h < math.inf:
            raise BadArgument("the scrub period must be above zero")
        sizes = [domain.fragments for domain in self.domains]
        if sizes != sorted(sizes):
            raise BadArgument("domains must be given from the narrowest to the widest")
        if len({domain.name for domain in self.domains}) < len(sizes):
            raise BadArgument("two domains have the same name")

    @property
    def latent_repair_h(self) -> float:
        """Mean hours from a latent error to its fragment restored: half a period of waiting, then repair."""
        return self.scrub_h / 2 + self.repair_h

    @property
    def causes(self) -> list[str]:
        """Whatever happens at all in this model."""
        found = [DISKS] if self.failure_rate else []
        found += [LATENT] if self.latent_rate else []
        return found + [domain.name for domain in self.domains if domain.rate]

    def without(self, cause: str) -> "Model":
        """The same world, but this never happens."""
        if cause == DISKS:
            return replace(self, failure_rate=0.0)
        if cause == LATENT:
            return replace(self, latent_rate=0.0)
        assert cause in self.causes
        kept = tuple(domain for domain in self.domains if domain.name != cause)
        return replace(self, domains=kept)

    def layout(self) -> list[list[int]]:
        """For each level of domains, narrowest first, the place of every fragment.

        A wide domain is filled before the next is begun, and so is every narrow one within it.
        """
        spans = [(0, self.code.n)]
        levels: list[list[int]] = []
        for domain in reversed(self.domains):
            spans = [
                (start, min(start + domain.fragments, end))
                for begin, end in spans
                for start in range(begin, end, domain.fragments)
            ]
            levels.append([place for place, (start, end) in enumerate(spans) for _ in range(start, end)])
        return levels[::-1]


def hourly_rate(annual: float) -> float:
    """The rate of a Poisson process that strikes within a year with this probability (an AFR). In [0, 1)."""
    assert 0 <= annual < 1
    return -math.log1p(-annual) / HOURS_A_YEAR


def latent_rate(*, per_disk_year: float, disk_size: int, object_size: int, k: int) -> float:
    """Latent errors that hit the bytes of one object on one disk, per hour.

    Args:
        per_disk_year: places on one disk that become unreadable or wrong, a year.
        disk_size: bytes.
        object_size: bytes. An object of more than one stripe is counted as one: exact for one latent error
            beside lost disks, pessimistic for two (they may lie in different stripes).
    """
    assert per_disk_year >= 0
    assert disk_size > 0
    assert object_size > 0
    fragment_size = max(-(-object_size // k), BLOCK_SIZE)
    return per_disk_year / HOURS_A_YEAR * min(fragment_size / disk_size, 1.0)
