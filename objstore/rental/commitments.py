"""Leases as they are rated: what was promised to be paid, what is used above it, what of it lies idle.

    charge    = capacity x price x (active seconds / the month's seconds), along the ramp
    overage   average         max(0, byte-seconds stored - byte-seconds leased)
              instantaneous   the same, hour by hour: sealed records know no finer moment
              peak_daily      the highest day's average above the capacity, for all of the time

Leases of one storage class count together: what is stored beyond the sum of their capacities is overage, hour
by hour under the terms of the one in force that began last, of those that have terms for it: only they let
more be stored (leased.py), so one without neither takes them away nor makes it free. An hour that a lease
touches is one of the lease, with its largest capacity; the usage of all other hours is the plan's, and so is
what is stored beyond leases none of which has terms for it: from before they began, or in another class than
what they let a tenant store. Dedicated nodes have none either, and what lies there is not rated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal, NamedTuple, cast

from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.rental.meters import HOUR_S
from objstore.rental.money import parse_decimal
from objstore.rental.months import DAY_HOURS, Month
from objstore.rental.plans import BYTES, PRICE_MAX
from objstore.rental.records import LeaseRecord

Mode = Literal["average", "instantaneous", "peak_daily"]
MODES: Final = ("average", "instantaneous", "peak_daily")
STEPS_MAX: Final = 120


@dataclass(frozen=True, slots=True, order=True)
class Step:
    from_s: int  # Seconds since 1970.
    size: int  # Bytes leased from then on.


@dataclass(frozen=True, slots=True, kw_only=True)
class Overage:
    mode: Mode
    unit_price: Decimal  # A unit and month, in the lease's unit.


class Charge(NamedTuple):
    """What of a commitment one invoice asks for."""

    month: Month
    begin_s: int
    end_s: int
    byte_seconds: int  # Negative: given back, since it was billed in advance and the lease ended.


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """What of a lease is rated."""

    lease: str
    storage_class: str = ""  # Empty: STANDARD.
    steps: tuple[Step, ...]  # The ramp, in order; the first holds from the beginning.
    begin_s: int
    end_s: int  # The first second that is no longer in it; an early termination moves it.
    unit_price: Decimal  # A unit and month.
    unit: str = "TB"
    billing: Literal["advance", "arrears"] = "arrears"
    billed_until_s: int = 0  # Its charge stands on invoices up to here; 0: on none.
    overage: Overage | None = None  # None: there are no terms for what is stored beyond it,
    beyond_is_plans: bool = False  # and it is the plan's; else it is not rated, as on dedicated nodes.
    product: str = "storage"
    charged: tuple[Charge, ...] | None = None  # By the month's own invoice, which is final: as it stands.

    def __post_init__(self) -> None:
        _require(self.unit in BYTES, "unit", f"one of {', '.join(BYTES)}", self.unit)
        _require(self.begin_s <= self.end_s, "end", "not before the beginning", self.end_s)
        _require(1 <= len(self.steps) <= STEPS_MAX, "ramp", f"1 to {STEPS_MAX} steps", len(self.steps))
        moments = [step.from_s for step in self.steps]
        _require(moments[0] <= self.begin_s, "ramp", "known from the beginning on", moments[0])
        _require(moments == sorted(set(moments)), "ramp", "in order, one step at a time", moments)
        _require(min(step.size for step in self.steps) >= 0, "ramp", "0 bytes or more", self.steps)
        prices = [self.unit_price] if self.overage is None else [self.unit_price, self.overage.unit_price]
        for price in prices:
            _require(0 <= price < PRICE_MAX, "price", "0 or more, below 1e15", price)

    def byte_seconds(self, begin_s: int, end_s: int) -> int:
        """Leased in [begin, end), exactly."""
        return sum(
            size * max(0, min(until_s, end_s) - max(from_s, begin_s))
            for from_s, until_s, size in self.spans()
        )

    def touches(self, month: Month) -> bool:
        return max(self.begin_s, month.begin_s) < min(self.end_s, month.end_s)

    def spans(self) -> list[tuple[int, int, int]]:
        """First second, first second after it, bytes: the ramp within the lease."""
        ends = [step.from_s for step in self.steps[1:]] + [self.end_s]
        clipped = [
            (max(step.from_s, self.begin_s), min(end, self.end_s), step.size)
            for step, end in zip(self.steps, ends, strict=True)
        ]
        return [span for span in clipped if span[0] < span[1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentUse:
    """What became of a lease's capacity in a month. All in byte-seconds."""

    lease: str
    storage_class: str
    committed: int
    used: int  # Stored within the capacity, hour by hour.

    @property
    def unused(self) -> int:
        return self.committed - self.used


def commitment_of(lease: LeaseRecord) -> Commitment:
    """What of a lease's record is rated; one that was ended early is so until that moment."""
    end_us = min(lease.end_us, lease.ended_us) if lease.ended_us else lease.end_us
    begin_s = lease.begin_us // SECOND_US
    steps = [Step(from_us // SECOND_US, size) for from_us, size in lease.ramp]
    if not steps:
        steps = [Step(begin_s, lease.capacity)]
    elif steps[0].from_s > begin_s:
        steps = [Step(begin_s, 0), *steps]
    overage = None
    if lease.overage_mode:
        _require(lease.overage_mode in MODES, "overage", f"one of {', '.join(MODES)}", lease.overage_mode)
        overage = Overage(mode=cast(Mode, lease.overage_mode), unit_price=parse_decimal(lease.overage_price))
    return Commitment(
        lease=lease.id,
        storage_class=lease.storage_class,
        steps=tuple(steps),
        begin_s=begin_s,
        end_s=max(begin_s, end_us // SECOND_US),
        unit_price=parse_decimal(lease.unit_price),
        unit=lease.unit,
        billing="advance" if lease.billing == "advance" else "arrears",
        billed_until_s=lease.billed_until_us // SECOND_US,
        overage=overage,
        beyond_is_plans=overage is None and lease.kind != "dedicated",
        product=lease.product,
    )


def charges(commitment: Commitment, month: Month) -> list[Charge]:
    """What the invoice of that month asks for, by the month that it is for.

    In arrears: all until the month's end that is not billed yet. In advance: until the end of the next one.
    So a lease that was signed after last month's invoice is caught up with. What was billed beyond an end
    that came early is given back. What a final invoice has charged is not decided again.
    """
    if commitment.charged is not None:
        return list(commitment.charged)
    last = month.following() if commitment.billing == "advance" else month
    begin_s = max(commitment.begin_s, commitment.billed_until_s)
    end_s = min(commitment.end_s, last.end_s)
    if commitment.billed_until_s > commitment.end_s:
        billed = replace(commitment, end_s=commitment.billed_until_s)
        return [
            charge._replace(byte_seconds=-charge.byte_seconds)
            for charge in _by_month(billed, commitment.end_s, billed.end_s)
        ]
    return _by_month(commitment, begin_s, end_s)


def _by_month(commitment: Commitment, begin_s: int, end_s: int) -> list[Charge]:
    found: list[Charge] = []
    while begin_s < end_s:
        month = Month.containing(begin_s)
        until_s = min(month.end_s, end_s)
        found.append(Charge(month, begin_s, until_s, commitment.byte_seconds(begin_s, until_s)))
        begin_s = until_s
    return found


# What is stored, against what is leased. Lists have an element for each hour of a month.


class Pool:
    """The leases of one storage class, in one month, and what was stored in it."""

    def __init__(self, commitments: Sequence[Commitment], month: Month, stored: Sequence[int]) -> None:
        """
        Args:
            commitments: of that class; those that do not touch the month count for nothing.
            stored: byte-seconds of each hour of the month; none at all: nothing was stored.
        """
        self._month = month
        self._stored = stored or [0] * month.hours
        assert len(self._stored) == month.hours
        self._leases = sorted(
            (one for one in commitments if one.touches(month)),
            key=lambda one: (one.begin_s, one.lease),
        )
        self._capacities = [_capacities(one, month) for one in self._leases]
        self._terms = [self._terms_of(hour) for hour in range(month.hours)] if self._leases else []

    def beside(self) -> int:
        """Byte-seconds that are the plan's: of hours that no lease touches, and beyond leases without terms
        for it."""
        if not self._leases:
            return self.stored()
        beside = 0
        for hour, lease in enumerate(self._terms):
            if lease is None:
                beside += self._stored[hour]
            elif lease.overage is None and lease.beyond_is_plans:
                beside += max(0, self._excess(hour))
        return beside

    def stored(self) -> int:
        """Byte-seconds of the whole month."""
        return sum(self._stored)

    def overages(self) -> list[tuple[Commitment, Fraction]]:
        """Byte-seconds that are billed above the capacity, by the lease under whose terms they are."""
        hours: dict[str, dict[int, int]] = {}
        for hour, lease in enumerate(self._terms):
            if lease is not None:
                hours.setdefault(lease.lease, {})[hour] = self._excess(hour)
        return [
            (lease, _billed_above(hours[lease.lease], lease.overage.mode))
            for lease in self._leases
            if lease.overage is not None and lease.lease in hours
        ]

    def uses(self) -> list[CommitmentUse]:
        """Of each lease: those that began first are filled first."""
        left = list(self._stored)
        found: list[CommitmentUse] = []
        for lease, capacities in zip(self._leases, self._capacities, strict=True):
            used = 0
            for hour, size in enumerate(capacities):
                taken = min(left[hour], (size or 0) * HOUR_S)
                left[hour] -= taken
                used += taken
            committed = lease.byte_seconds(self._month.begin_s, self._month.end_s)
            found.append(
                CommitmentUse(
                    lease=lease.lease,
                    storage_class=lease.storage_class,
                    committed=committed,
                    used=min(used, committed),  # An hour that is touched in part counts whole above.
                )
            )
        return found

    def _terms_of(self, hour: int) -> Commitment | None:
        """The lease that says what becomes of bytes above the capacity; None: no lease touches the hour."""
        touching = [
            lease
            for lease, capacities in zip(self._leases, self._capacities, strict=True)
            if capacities[hour] is not None
        ]
        with_terms = [lease for lease in touching if lease.overage is not None]
        candidates = with_terms or touching  # In the order in which they began.
        return candidates[-1] if candidates else None

    def _excess(self, hour: int) -> int:
        """Byte-seconds stored in an hour less those leased; may be negative."""
        leased = sum(capacities[hour] or 0 for capacities in self._capacities)
        return self._stored[hour] - leased * HOUR_S


def _billed_above(excess: Mapping[int, int], mode: Mode) -> Fraction:
    """Args: excess: byte-seconds above the capacity by hour of the month; negative: below it."""
    if mode == "average":
        return Fraction(max(0, sum(excess.values())))
    if mode == "instantaneous":
        return Fraction(sum(max(0, one) for one in excess.values()))
    days: dict[int, list[int]] = {}
    for hour, one in excess.items():
        days.setdefault(hour // DAY_HOURS, []).append(one)
    peak = max((Fraction(sum(day), len(day)) for day in days.values()), default=Fraction(0))
    return max(Fraction(0), peak) * len(excess)


def _capacities(commitment: Commitment, month: Month) -> list[int | None]:
    """Bytes leased in each hour of the month: the most if it changes within; None: outside the lease."""
    sizes: list[int | None] = [None] * month.hours
    for from_s, until_s, size in commitment.spans():
        first = max(0, from_s // HOUR_S - month.first_hour)
        last = min(month.hours, -(-until_s // HOUR_S) - month.first_hour)
        for hour in range(first, last):
            sizes[hour] = max(sizes[hour] or 0, size)
    return sizes


def _require(fits: bool, name: str, rule: str, value: object) -> None:
    if not fits:
        raise BadArgument(
            f"a lease's {name} must be {rule}: {str(value)[:100]}", name=name, value=str(value)[:100]
        )
