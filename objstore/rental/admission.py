"""What may be sold: guaranteed capacity never above what is usable, at no moment of a lease.

    usable(t)   = (raw(t) - spare(t)) x fill_max x k/(k+m)
    guaranteed    for all t in [begin, end):  sold_g(t) + C                <= usable(t)
    best effort   for all t in [begin, end):  sold_g(t) + (sold_b(t)+C)/w  <= usable(t)
    dedicated     nodes of its own: in no other lease, over enough failure domains, and C <= what they give

`spare` are the largest failure domains, so many as a policy says: room in which what they held is rebuilt.
What is sold and what is usable are step functions over [begin, end): each is known by its steps, so "for all
t" is a look at every moment at which one of them changes.

Pure: no clock, no metadata. Moments are integers (microseconds since 1970 where leases are meant), sizes are
bytes.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import Final, NamedTuple

from objstore.errors import BadArgument

FILL_MAX: Final = Fraction(85, 100)
OVERSUBSCRIPTION: Final = Fraction(3, 2)
SPARE_DOMAINS: Final = 1


class Span(NamedTuple):
    """So many bytes in [begin, end)."""

    begin: int
    end: int
    size: int


class Curve:
    """A step function of time: `base` until the first moment, then each value from its moment on."""

    __slots__ = ("base", "moments", "values")

    def __init__(self, base: int, steps: Iterable[tuple[int, int]] = ()) -> None:
        """Args: steps: (moment, value from then on), in order of moments."""
        self.base = base
        self.moments: list[int] = []
        self.values: list[int] = []
        for moment, value in steps:
            assert not self.moments or self.moments[-1] < moment
            self.moments.append(moment)
            self.values.append(value)

    @classmethod
    def total(cls, spans: Iterable[Span]) -> "Curve":
        """The sum of spans."""
        deltas: Counter[int] = Counter()
        for begin, end, size in spans:
            if begin < end:
                deltas[begin] += size
                deltas[end] -= size
        moments = sorted(deltas)
        return cls(0, zip(moments, accumulate(deltas[moment] for moment in moments), strict=True))

    def at(self, moment: int) -> int:
        place = bisect_right(self.moments, moment)
        return self.values[place - 1] if place else self.base

    def changes(self, begin: int, end: int | None) -> list[int]:
        """`begin`, and every later moment before `end` (None: ever) at which it changes."""
        first = bisect_right(self.moments, begin)
        return [begin, *(one for one in self.moments[first:] if end is None or one < end)]


class Shortage(NamedTuple):
    """What is too much at the worst moment. There the rest fits exactly if `size` bytes less are sold."""

    moment: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How much of a pool may be sold."""

    k: int
    m: int
    fill_max: Fraction = FILL_MAX  # Of disks' bytes.
    spare_domains: int = SPARE_DOMAINS
    oversubscription: Fraction = OVERSUBSCRIPTION  # Of best effort capacity; guaranteed has none, ever.

    def __post_init__(self) -> None:
        if self.k < 1 or self.m < 1:
            raise BadArgument(
                "a code has data and parity fragments", name="codec", value=f"{self.k}+{self.m}"
            )
        if not 0 < self.fill_max <= 1:
            raise BadArgument("disks are filled to above 0 and at most 1", name="fill_max")
        if self.spare_domains < 0:
            raise BadArgument("0 or more failure domains are spare", name="spare_domains")
        if self.oversubscription < 1:
            raise BadArgument("best effort is sold once at the least", name="oversubscription")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A storage node: what it brings, and to which failure domain."""

    id: str
    domain: str  # The failure domain in which it stands: often itself.
    disks: Sequence[int]  # Bytes of each that is well and stays.
    pool: str = ""
    until: int | None = None  # From this moment on it is somebody's own; None: it stays.


class RawEvent(NamedTuple):
    """Raw bytes that come (or go, if negative) at a moment and are not those of the nodes yet (or still)."""

    moment: int
    raw: int


def usable_size(raws: Collection[int], rules: Rules, extra: int = 0) -> int:
    """Usable bytes, rounded down.

    Args:
        raws: bytes of each failure domain.
        extra: raw bytes beside them, or fewer.
    """
    spare = sum(sorted(raws, reverse=True)[: rules.spare_domains])
    raw = sum(raws) + extra - spare
    return max(0, int(raw * rules.fill_max * Fraction(rules.k, rules.k + rules.m)))


def usable_curve(nodes: Collection[Node], events: Iterable[RawEvent], rules: Rules) -> Curve:
    """Usable bytes over time."""
    later = sorted(events)
    moments = sorted(
        {event.moment for event in later} | {node.until for node in nodes if node.until is not None}
    )

    def value(moment: int | None) -> int:
        raws: Counter[str] = Counter()
        for node in nodes:
            if node.until is None or moment is None or moment < node.until:
                raws[node.domain] += sum(node.disks)
        extra = sum(event.raw for event in later if moment is not None and event.moment <= moment)
        return usable_size(raws.values(), rules, extra)

    return Curve(value(None), [(moment, value(moment)) for moment in moments])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sales:
    """What is sold of a pool, and what there is to sell."""

    usable: Curve
    rules: Rules
    guaranteed: Sequence[Span] = ()
    best_effort: Sequence[Span] = ()
    _curves: list[Curve] = field(default_factory=list, repr=False)  # Both sums, made when first asked for.

    def sold_guaranteed(self) -> Curve:
        return self._sums()[0]

    def sold_best_effort(self) -> Curve:
        return self._sums()[1]

    def _sums(self) -> list[Curve]:
        if not self._curves:
            self._curves.extend((Curve.total(self.guaranteed), Curve.total(self.best_effort)))
        return self._curves

    def weight(self, guaranteed: int, best_effort: int) -> Fraction:
        """Bytes that must be usable for so much to be sold."""
        return guaranteed + best_effort / self.rules.oversubscription

    def shortage_with(self, spans: Sequence[Span], *, best_effort: bool = False) -> Shortage | None:
        """Why a lease is not admitted: the moment at which most is missing; None: it is admitted.

        Args:
            spans: the lease's capacity along its ramp; they do not overlap.
        """
        worst: Shortage | None = None
        sold_g, sold_b = self._sums()
        for begin, end, size in spans:
            if size <= 0 or begin >= end:
                continue
            for moment in _changes((self.usable, sold_g, sold_b), begin, end):
                wanted = (
                    self.weight(sold_g.at(moment), sold_b.at(moment) + size)
                    if best_effort
                    else sold_g.at(moment) + size
                )
                worst = _worse(worst, moment, wanted - self.usable.at(moment))
        return worst

    def oversold(self, begin: int, end: int | None = None) -> Shortage | None:
        """Where guaranteed capacity is sold above what is usable, at its worst in [begin, end)."""
        worst: Shortage | None = None
        sold = self.sold_guaranteed()
        for moment in _changes((self.usable, sold), begin, end):
            worst = _worse(worst, moment, sold.at(moment) - self.usable.at(moment))
        return worst

    def sellable(self, begin: int, end: int | None = None) -> int:
        """Guaranteed bytes that could still be sold for all of [begin, end)."""
        sold = self.sold_guaranteed()
        moments = _changes((self.usable, sold), begin, end)
        return max(0, min(self.usable.at(moment) - sold.at(moment) for moment in moments))


def _changes(curves: Iterable[Curve], begin: int, end: int | None) -> list[int]:
    return sorted({moment for curve in curves for moment in curve.changes(begin, end)})


def _worse(worst: Shortage | None, moment: int, missing: int | Fraction) -> Shortage | None:
    size = -int(-missing // 1)  # Rounded up.
    if size > 0 and (worst is None or size > worst.size):
        return Shortage(moment, size)
    return worst


def at_risk(
    spans: Iterable[tuple[str, Span]], usable: Callable[[int], int], moments: Iterable[int]
) -> set[str]:
    """The leases for which something is missing: at each moment the last ones that do not fit.

    Args:
        spans: (lease, capacity), in the order of signing: who came first is served first.
        usable: bytes, by moment.
    """
    known = list(spans)
    found: set[str] = set()
    for moment in moments:
        left = usable(moment)
        for lease, span in known:
            if span.begin <= moment < span.end:
                left -= span.size
                if left < 0:
                    found.add(lease)
    return found


# Nodes of one's own.


def check_dedicated(nodes: Sequence[Node], rules: Rules, size: int, *, taken: Collection[str] = ()) -> int:
    """Usable bytes of nodes that are to be somebody's own.

    Args:
        size: bytes that the lease promises.
        taken: ids of nodes of other dedicated leases.

    Raises:
        BadArgument: a node is taken, or named twice; too few failure domains: k+m are needed, or as many as
            hold a volume with at most m fragments in each; or the nodes give less than `size`.
    """
    ids = [node.id for node in nodes]
    if len(set(ids)) < len(ids):
        raise BadArgument("a node is named twice", name="nodes")
    for node in ids:
        if node in taken:
            raise BadArgument(f"node {node} is in another lease", name="nodes", value=node)
    disks: Counter[str] = Counter()
    raws: Counter[str] = Counter()
    for each in nodes:
        disks[each.domain] += len(each.disks)
        raws[each.domain] += sum(each.disks)
    fragments = rules.k + rules.m
    held = sum(min(count, rules.m) for count in disks.values())
    if held < fragments:
        raise BadArgument(
            f"{len(disks)} failure domains hold {held} of {fragments} fragments,"
            f" with at most {rules.m} in each",
            name="nodes",
        )
    usable = usable_size(list(raws.values()), rules)
    if size > usable:
        raise BadArgument(
            f"its nodes give {usable} usable bytes, {size} are to be promised", name="bytes", value=str(size)
        )
    return usable
