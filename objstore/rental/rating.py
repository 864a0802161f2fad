"""Usage to lines: what a month comes to. Pure: the same usage and plan give the same lines, always.

The order of things, each on what the one before left:

    usage -> free allowance -> tiers -> commitments and overage -> discounts      (here)
          -> service level credits -> tax -> what was paid in advance    (service_levels, taxes, invoices)

Quantities are exact fractions; an amount is rounded half up once, when its line is made. Prices and tiers
hold for a tenant's whole month; `split` says what part of a line a project or a bucket bears, and never loses
a unit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal, NamedTuple

import msgspec

from objstore.clock import SECOND_US
from objstore.rental.captions import caption, line_caption
from objstore.rental.commitments import Commitment, CommitmentUse, Pool, charges
from objstore.rental.money import Money, round_half_up
from objstore.rental.months import Month
from objstore.rental.plans import (
    ANY,
    BYTES,
    EARLY_ACCRUED,
    EARLY_DELETE,
    STANDARD,
    STORAGE,
    SUBSCRIPTION,
    Discount,
    Plan,
    Rate,
)
from objstore.rental.records import Line
from objstore.rental.tally import Usage, UsageKey

_ZERO: Final = Fraction(0)
_FREE: Final = Decimal(0)


class Part(NamedTuple):
    """A piece of a quantity at one price."""

    quantity: Fraction  # What the price is multiplied with.
    unit_price: Decimal
    tier: int  # From 1; 0: none, or the free allowance.
    covers: Fraction  # Units of use that it stands for: less than the quantity where a minimum is billed.
    free: bool = False
    lump: bool = False  # A fixed amount: its quantity is a number of months.


class Member(NamedTuple):
    """What one bucket has of that which a line bills."""

    key: UsageKey
    quantity: int


@dataclass(frozen=True, slots=True)
class Rated:
    """A tenant's month."""

    lines: tuple[Line, ...]
    members: tuple[tuple[Member, ...], ...]  # Of each line, in the same order: whose use it is.
    uses: tuple[CommitmentUse, ...] = ()
    unpriced: Mapping[UsageKey, int] | None = None  # Use that the plan has no price for: it is not billed.

    def net(self, currency: str) -> Money:
        return Money(sum(line.net for line in self.lines), currency)


def rate_month(
    plan: Plan,
    usage: Usage,
    month: Month,
    *,
    commitments: Sequence[Commitment] = (),
    discounts: Sequence[Discount] = (),
    active_s: int | None = None,
    language: str = "fr",
) -> Rated:
    """Rate what a tenant used and leased.

    Args:
        commitments: the tenant's leases, with what of them was billed before.
        discounts: the tenant's own; they follow the plan's.
        active_s: seconds of the month in which the tenant had the plan, for subscriptions; None: all.

    Source: RENTAL 1.4.
    """
    clerk = _Clerk(plan, month, language)
    pools = _pools(usage, month, commitments)
    clerk.use(usage, pools, month.seconds if active_s is None else active_s)
    for commitment in sorted(commitments, key=lambda one: (one.begin_s, one.lease)):
        clerk.commitment(commitment)
    for storage_class, pool in pools.items():
        clerk.overage(pool, _members(usage, STORAGE, storage_class))
    for discount in (*plan.discounts, *discounts):
        clerk.discount(discount)
    return Rated(
        tuple(clerk.lines),
        tuple(clerk.members),
        tuple(use for pool in pools.values() for use in pool.uses()),
        clerk.unpriced,
    )


# The arithmetic of one rate.


def parts_of(rate: Rate, used: Fraction, free: Fraction = _ZERO) -> list[Part]:
    """What a quantity of use is billed as.

    Args:
        used: in the rate's unit.
        free: the allowance in the same unit; more than was used is not carried over.
    """
    assert used >= 0
    assert free >= 0
    if not used:
        return []
    if rate.model == "flat":
        return [Part(Fraction(1), rate.tiers[0].flat, 0, used, lump=True)]
    allowed = min(used, free)
    parts = [Part(allowed, _FREE, 0, allowed, free=True)] if allowed else []
    paid = used - allowed
    billed = max(paid, Fraction(rate.min_billable))
    if not billed:
        return parts
    if rate.model == "package":
        count = -(-billed // Fraction(rate.package))
        parts.append(Part(Fraction(count), rate.tiers[0].unit_price, 0, paid))
    elif rate.model == "volume":
        parts += _volume(rate, billed, paid)
    else:
        parts += _graduated(rate, billed, paid)
    return parts


def _volume(rate: Rate, billed: Fraction, paid: Fraction) -> list[Part]:
    for number, tier in enumerate(rate.tiers, start=1):
        if tier.up_to is None or billed <= Fraction(tier.up_to):
            lump = [Part(Fraction(1), tier.flat, number, _ZERO, lump=True)] if tier.flat else []
            return [*lump, Part(billed, tier.unit_price, number, paid)]
    raise AssertionError("the last tier has no end")


def _graduated(rate: Rate, billed: Fraction, paid: Fraction) -> list[Part]:
    parts: list[Part] = []
    lower = _ZERO
    for number, tier in enumerate(rate.tiers, start=1):
        upper = billed if tier.up_to is None else min(billed, Fraction(tier.up_to))
        if upper <= lower:
            break
        if tier.flat:
            parts.append(Part(Fraction(1), tier.flat, number, _ZERO, lump=True))
        covers = max(_ZERO, min(upper, paid) - lower)
        parts.append(Part(upper - lower, tier.unit_price, number if len(rate.tiers) > 1 else 0, covers))
        lower = upper
    return parts


def allowance(rate: Rate, month: Month, stored: int) -> Fraction:
    """Units that are free.

    Args:
        stored: byte-seconds of the tenant's whole month: what a ratio is of is their average.
    """
    average = Fraction(stored, month.seconds)
    return Fraction(rate.free_fixed) + Fraction(rate.free_ratio) * average / rate.base(month)


# Lines.


class _Clerk:
    """Writes one month's lines, in the order in which it is asked to."""

    def __init__(self, plan: Plan, month: Month, language: str) -> None:
        self._plan = plan
        self._month = month
        self._language = language
        self.lines: list[Line] = []
        self.members: list[tuple[Member, ...]] = []
        self.unpriced: dict[UsageKey, int] = {}
        self._left: list[int] = []  # Of each line's net: what discounts have left of it.

    def use(self, usage: Usage, pools: Mapping[str, Pool], active_s: int) -> None:
        stored = max(0, usage.total(STORAGE))
        groups = self._groups(usage)
        for rate in self._plan.items:
            if rate.meter == SUBSCRIPTION:
                self._subscription(rate, active_s)
                continue
            members = groups.get(rate, [])
            base = rate.base(self._month)
            # Gateways whose clocks differ may leave what was there for a moment a moment below nothing.
            used = max(_ZERO, sum((_beside_leases(member, pools) for member in members), _ZERO)) / base
            for part in parts_of(rate, used, allowance(rate, self._month, stored)):
                self._use_line(rate, part, base, tuple(members))

    def commitment(self, commitment: Commitment) -> None:
        for charge in charges(commitment, self._month):
            if not charge.byte_seconds:
                continue
            self._lease_line(
                "commitment",
                commitment,
                commitment.unit_price,
                Fraction(charge.byte_seconds, BYTES[commitment.unit] * charge.month.seconds),
                charge.begin_s,
                charge.end_s,
                charge.byte_seconds,
            )

    def overage(self, pool: Pool, members: tuple[Member, ...]) -> None:
        for lease, byte_seconds in pool.overages():
            if byte_seconds:
                assert lease.overage is not None
                self._lease_line(
                    "overage",
                    lease,
                    lease.overage.unit_price,
                    byte_seconds / (BYTES[lease.unit] * self._month.seconds),
                    self._month.begin_s,
                    self._month.end_s,
                    byte_seconds,
                    members,
                )

    def discount(self, discount: Discount) -> None:
        """One line for each product, each with its own tax; what is given back is discounted, too."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for index, line in enumerate(self.lines):
            if self._left[index] and _is_discounted(line, discount):
                groups.setdefault((line.product, line.net < 0), []).append(index)
        for (product, _), indexes in groups.items():
            left = [self._left[index] for index in indexes]
            amount = round_half_up(sum(left) * Fraction(discount.rate))
            for index, share in zip(indexes, apportion(amount, [abs(one) for one in left]), strict=True):
                self._left[index] -= share
            if amount:
                self._add(
                    Line(
                        kind="discount",
                        description=discount.description,
                        begin_us=self._month.begin_s * SECOND_US,
                        end_us=self._month.end_s * SECOND_US,
                        net=-amount,
                        product=product,
                        plan=self._plan.code,
                        plan_version=self._plan.version,
                    ),
                    tuple(member for index in indexes for member in self.members[index]),
                )

    def _groups(self, usage: Usage) -> dict[Rate, list[Member]]:
        groups: dict[Rate, list[Member]] = {}
        for key, quantity in sorted(usage.totals.items()):
            rate = _rate_of(self._plan, key)
            if rate is not None:
                groups.setdefault(rate, []).append(Member(key, quantity))
            elif quantity:
                self.unpriced[key] = quantity
        return groups

    def _subscription(self, rate: Rate, active_s: int) -> None:
        assert 0 <= active_s <= self._month.seconds
        tier = rate.tiers[0]
        flat = rate.model == "flat"
        quantity = Fraction(active_s, self._month.seconds if flat else rate.base(self._month))
        if quantity:
            part = Part(quantity, tier.flat if flat else tier.unit_price, 0, quantity, lump=flat)
            self._use_line(rate, part, Fraction(active_s) / quantity, ())

    def _use_line(self, rate: Rate, part: Part, base: Fraction | int, members: tuple[Member, ...]) -> None:
        named = "" if rate.storage_class == ANY else rate.storage_class
        self._add(
            Line(
                kind="usage",
                description=line_caption(
                    rate.meter, self._language, storage_class=named, tier=part.tier, included=part.free
                ),
                meter=rate.meter,
                storage_class=named,
                project=_common(member.key.project for member in members),
                bucket=_common(member.key.bucket for member in members),
                begin_us=self._month.begin_s * SECOND_US,
                end_us=self._month.end_s * SECOND_US,
                quantity=fraction_text(part.quantity),
                unit="Months" if part.lump else _label(rate, part),
                unit_price=price_text(part.unit_price),
                tier=part.tier,
                net=self._amount(part.unit_price, part.quantity),
                product=rate.product,
                plan=self._plan.code,
                plan_version=self._plan.version,
                consumed=whole_text(part.covers * base),
            ),
            members,
        )

    def _lease_line(
        self,
        kind: Literal["commitment", "overage"],
        lease: Commitment,
        unit_price: Decimal,
        quantity: Fraction,
        begin_s: int,
        end_s: int,
        consumed: Fraction | int,
        members: tuple[Member, ...] = (),
    ) -> None:
        storage_class = lease.storage_class or STANDARD
        what = "commitment_returned" if quantity < 0 else kind
        self._add(
            Line(
                kind=kind,
                description=line_caption(what, self._language, storage_class=storage_class),
                meter=STORAGE,
                storage_class=storage_class,
                project=_common(member.key.project for member in members),
                bucket=_common(member.key.bucket for member in members),
                begin_us=begin_s * SECOND_US,
                end_us=end_s * SECOND_US,
                quantity=fraction_text(quantity),
                unit=f"{lease.unit}-Months",
                unit_price=price_text(unit_price),
                net=self._amount(unit_price, quantity),
                product=lease.product,
                plan=self._plan.code,
                plan_version=self._plan.version,
                lease=lease.lease,
                consumed=whole_text(Fraction(consumed)),
            ),
            members,
        )

    def _amount(self, unit_price: Decimal, quantity: Fraction) -> int:
        return Money.of(Fraction(unit_price) * quantity, self._plan.currency).minor

    def _add(self, line: Line, members: tuple[Member, ...]) -> None:
        self.lines.append(line)
        self.members.append(members)
        self._left.append(line.net)


def _rate_of(plan: Plan, key: UsageKey) -> Rate | None:
    """What was early is storage, unless the plan prices it apart: in one sum or day by day, never both."""
    rate = plan.rate_for(key.meter, key.storage_class, key.region)
    if rate is None and key.meter in (EARLY_DELETE, EARLY_ACCRUED):
        storage = plan.rate_for(STORAGE, key.storage_class, key.region)
        if storage is not None and (storage.early == "accrual") == (key.meter == EARLY_ACCRUED):
            return storage
    return rate


def _pools(usage: Usage, month: Month, commitments: Sequence[Commitment]) -> dict[str, Pool]:
    """The leases of the month, by storage class."""
    by_class: dict[str, list[Commitment]] = {}
    for commitment in commitments:
        name = "" if commitment.storage_class == STANDARD else commitment.storage_class
        by_class.setdefault(name, []).append(commitment)
    stored: dict[str, int] = {}
    for key, quantity in usage.totals.items():
        if key.meter == STORAGE:
            stored[key.storage_class] = stored.get(key.storage_class, 0) + quantity
    for name in by_class:
        assert sum(usage.hourly.get(name, ())) == stored.get(name, 0), "the hours are not those of the total"
    return {
        name: Pool(leases, month, usage.hourly.get(name, ())) for name, leases in sorted(by_class.items())
    }


def _beside_leases(member: Member, pools: Mapping[str, Pool]) -> Fraction:
    """What of a member's use the plan bills: storage in hours that no lease touches, and all else."""
    pool = pools.get(member.key.storage_class)
    if pool is None or member.key.meter != STORAGE or not member.quantity:
        return Fraction(member.quantity)
    stored = pool.stored()
    return Fraction(member.quantity * pool.beside(), stored) if stored else _ZERO


def _is_discounted(line: Line, discount: Discount) -> bool:
    if line.kind not in discount.kinds:
        return False
    if discount.meters and line.meter not in discount.meters:
        return False
    return not discount.storage_classes or line.storage_class in discount.storage_classes


def _label(rate: Rate, part: Part) -> str:
    if rate.model == "package" and not part.free:
        return f"{price_text(rate.package)} {rate.label}"
    return rate.label


def _common(names: Iterable[str]) -> str:
    """The name that all have; empty: they differ, or there are none."""
    found = set(names)
    return found.pop() if len(found) == 1 else ""


# Whose a line is.


def split(line: Line, members: Sequence[Member], by: Literal["project", "bucket"]) -> list[Line]:
    """A line by those who share it, by what each used. Their amounts sum to the line's.

    Returns: one line for each project, or for each of its buckets, in order; the line itself if nobody's.
    """
    weights: dict[tuple[str, str], int] = {}
    for member in members:
        place = (member.key.project, member.key.bucket if by == "bucket" else "")
        weights[place] = weights.get(place, 0) + member.quantity
    whole = sum(weights.values())
    if not whole:
        return [line]
    places = sorted(weights)
    shares = apportion(line.net, [weights[place] for place in places])
    return [
        msgspec.structs.replace(
            line,
            project=place[0],
            bucket=place[1],
            net=net,
            quantity=_part_text(line.quantity, Fraction(weights[place], whole), fraction_text),
            consumed=_part_text(line.consumed, Fraction(weights[place], whole), whole_text),
        )
        for place, net in zip(places, shares, strict=True)
    ]


def apportion(amount: int, weights: Sequence[int]) -> list[int]:
    """Whole shares, as the weights are, that sum to the amount: largest remainders, the first of equals.

    Args:
        weights: 0 or more, not all 0 unless the amount is.
    """
    whole = sum(weights)
    if not whole:
        assert not amount
        return [0] * len(weights)
    sign = -1 if amount < 0 else 1
    shares = [abs(amount) * weight // whole for weight in weights]
    remainders = [abs(amount) * weight % whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda index: -remainders[index])
    for index in order[: abs(amount) - sum(shares)]:
        shares[index] += 1
    return [sign * share for share in shares]


def corrections(billed: Iterable[Line], rated: Iterable[Line], language: str = "fr") -> list[Line]:
    """What a month that was billed comes to by now, less what was billed: a line for each difference.

    Args:
        billed: the lines of that month that stand on final invoices, corrections among them.
        rated: the same month, rated again.
    """
    found: dict[tuple[str, ...], tuple[Line, int, Fraction]] = {}
    for sign, lines in ((-1, billed), (1, rated)):
        for line in lines:
            place = (line.meter, line.storage_class, line.project, line.bucket, line.product, line.lease)
            _, net, consumed = found.get(place, (line, 0, _ZERO))
            found[place] = (line, net + sign * line.net, consumed + sign * _consumed(line))
    return [
        msgspec.structs.replace(
            line,
            kind="correction",
            description=_correction_caption(line, language),
            quantity="",
            unit_price="",
            tier=0,
            tax=0,
            net=net,
            consumed=whole_text(consumed),
        )
        for line, net, consumed in found.values()
        if net
    ]


def billed_until(lines: Iterable[Line]) -> dict[str, int]:
    """Up to which second each lease's charge was billed, for Commitment.billed_until_s.

    Args:
        lines: of the tenant's earlier invoices, in their order.
    """
    until: dict[str, int] = {}
    for line in lines:
        if line.kind == "commitment":
            if line.quantity.startswith("-"):  # Given back.
                until[line.lease] = min(until.get(line.lease, 0), line.begin_us // SECOND_US)
            else:
                until[line.lease] = max(until.get(line.lease, 0), line.end_us // SECOND_US)
    return until


def _correction_caption(line: Line, language: str) -> str:
    word = caption("correction", language)
    return (
        f"{word}: {line_caption(line.meter, language, storage_class=line.storage_class)}"
        if line.meter
        else word
    )


def _consumed(line: Line) -> Fraction:
    """Byte-seconds, requests or bytes of use; what a lease promises is none."""
    return Fraction(line.consumed) if line.consumed and line.kind != "commitment" else _ZERO


# Numbers as text.


def fraction_text(quantity: Fraction) -> str:
    """'num/den', as in Line.quantity."""
    return f"{quantity.numerator}/{quantity.denominator}"


def whole_text(quantity: Fraction) -> str:
    """'num', or 'num/den' where it is no whole number, as in Line.consumed."""
    return str(quantity)


def price_text(price: Decimal) -> str:
    """Plain decimal text, as in Line.unit_price."""
    return f"{price:f}"


def _part_text(text: str, share: Fraction, form: Callable[[Fraction], str]) -> str:
    return form(Fraction(text) * share) if text else ""


def _members(usage: Usage, meter: str, storage_class: str) -> tuple[Member, ...]:
    return tuple(
        Member(key, quantity)
        for key, quantity in sorted(usage.totals.items())
        if key.meter == meter and key.storage_class == storage_class
    )
