"""Service levels: five-minute error rates to uptime, and uptime to a credit.

    error rate of an interval   failures of ours / requests; 0 where nobody asked. The part u of its
                                minutes that was not served has failed: u + (1 - u) x failures / requests
    uptime of a period          1 - mean of the error rates of all its intervals that count
    credit                      the part of the affected charges, before tax, that the tier below says

What the tenant caused (4xx, quota, its own rate limit's 503) is no failure: the counters leave it out.
Intervals within an exclusion (announced maintenance, the tenant's own line) do not count. Uptime is an exact
fraction and a tier is strict: 95 % is not below 95 %.

Source: the S3 Service Level Agreement, with the error rate by interval of its first text.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from objstore.clock import SECOND_US, utc_text
from objstore.errors import BadArgument
from objstore.meta.schema import Record
from objstore.rental.captions import caption
from objstore.rental.money import Money, round_half_up
from objstore.rental.months import Month
from objstore.rental.plans import ANY, STANDARD, Value
from objstore.rental.records import Line

INTERVAL_S: Final = 300
MINUTES: Final = 5  # Of an interval.
TIERS_MAX: Final = 10
CHARGES: Final = ("usage", "commitment", "overage")  # Kinds of lines of which a credit gives back.
PROOF: Final = ("interval_utc", "requests", "failures", "minutes_unserved", "error_rate", "excluded")
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}", re.ASCII)


class CreditTier(Value, frozen=True, kw_only=True):
    below: Decimal  # Uptime: "0.999".
    credit: Decimal  # Of the affected charges: "0.10".


class ServiceLevel(Value, frozen=True, kw_only=True):
    id: str
    tiers: tuple[CreditTier, ...]  # The highest uptime first, the smallest credit first.
    storage_class: str = STANDARD  # Whose charges are affected; * for all.


class ServiceLevelRecord(Record, frozen=True, array_like=True, kw_only=True):
    """At Y S <sla>."""

    level: ServiceLevel
    made_us: int = 0


class ServiceEventRecord(Record, frozen=True, array_like=True, kw_only=True):
    """At Y M <id>: what gateways cannot know."""

    id: str
    kind: str  # maintenance | outage
    begin_us: int
    end_us: int
    reason: str
    tenant: str = ""  # Empty: everybody's.
    made_us: int = 0


class GrantedCredit(Record, frozen=True, array_like=True, kw_only=True):
    level: str
    share: str  # Decimal text: "0.10" of the affected charges.
    net: int  # Smallest units, before tax; positive: so much is given back.


class ServiceMonthRecord(Record, frozen=True, array_like=True, kw_only=True):
    """At Y s <tenant> 00 <begin 8>: the month was held against its levels, and this came of it."""

    invoice: str  # Number of the month's invoice.
    uptime: str  # "num/den", exact.
    counted: int  # Intervals of five minutes,
    failed: int  # and how many of them had an error or were not served throughout.
    credits: list[GrantedCredit]
    made_us: int = 0


def service_event_key(event: str) -> bytes:
    return b"YM" + event.encode()


def service_month_key(tenant: str, month: Month) -> bytes:
    return b"Ys" + tenant.encode() + b"\0" + (month.begin_s * SECOND_US).to_bytes(8, "big")


S3_STANDARD: Final = ServiceLevel(
    id="s3-standard",
    tiers=(
        CreditTier(below=Decimal("0.999"), credit=Decimal("0.10")),
        CreditTier(below=Decimal("0.99"), credit=Decimal("0.25")),
        CreditTier(below=Decimal("0.95"), credit=Decimal(1)),
    ),
)


@dataclass(frozen=True, slots=True)
class Interval:
    """Five minutes in which a tenant asked for something."""

    requests: int
    failures: int  # Of ours, among them.

    def __post_init__(self) -> None:
        assert 0 <= self.failures <= self.requests

    @property
    def error_rate(self) -> Fraction:
        return Fraction(self.failures, self.requests) if self.requests else Fraction(0)


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A time that does not count, and why."""

    begin_s: int
    end_s: int
    reason: str

    def __post_init__(self) -> None:
        if self.begin_s >= self.end_s or not self.reason:
            raise BadArgument("an exclusion has a beginning, a later end and a reason", name="exclusion")


@dataclass(frozen=True, slots=True)
class Row:
    """What the proof says of one interval."""

    begin_s: int
    requests: int
    failures: int
    excluded: str  # Why; empty: it counts.
    unserved: int = 0  # Minutes of it.

    @property
    def error_rate(self) -> Fraction:
        lost = Fraction(self.unserved, MINUTES)
        return lost + (1 - lost) * Interval(self.requests, self.failures).error_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """A period held against a service level."""

    level: ServiceLevel
    begin_s: int
    end_s: int
    counted: int  # Intervals.
    # The proof: every interval with a failure or a minute unserved, and every one excluded; no other had any.
    rows: tuple[Row, ...]

    @property
    def uptime(self) -> Fraction:
        """1 if no interval counts."""
        lost = sum((row.error_rate for row in self.rows if not row.excluded), Fraction(0))
        return 1 - lost / self.counted if self.counted else Fraction(1)

    @property
    def credit(self) -> Decimal:
        """The part of the affected charges that is given back."""
        reached = [tier.credit for tier in self.level.tiers if self.uptime < Fraction(tier.below)]
        return max(reached, default=Decimal(0))

    @property
    def failed(self) -> int:
        """Intervals that count and had a failure, or a minute unserved."""
        return sum(not row.excluded for row in self.rows)

    def uptime_text(self) -> str:
        return percent_text(self.uptime)


def percent_text(part: Fraction) -> str:
    """In percent, four places, rounded down: never better than it was."""
    scaled = part * 1_000_000
    whole = scaled.numerator // scaled.denominator
    return f"{whole // 10_000}.{whole % 10_000:04d}"


def service_level_key(level: str) -> bytes:
    """Raises: BadArgument, for what no service level is called."""
    if not _ID.fullmatch(level):
        raise BadArgument("a service level's id is 1 to 48 of a-z, 0-9, _ and -", name="id", value=level)
    return b"YS" + level.encode()


def check_level(level: ServiceLevel) -> ServiceLevel:
    """Raises: BadArgument."""
    service_level_key(level.id)
    if not 1 <= len(level.tiers) <= TIERS_MAX:
        raise BadArgument(f"a service level has 1 to {TIERS_MAX} tiers", name="tiers")
    for tier in level.tiers:
        for name, value in (("below", tier.below), ("credit", tier.credit)):
            if not value.is_finite() or not 0 < value <= 1:
                raise BadArgument(f"{name} is above 0 and at most 1: {value}", name=name, value=str(value))
    for higher, lower in zip(level.tiers, level.tiers[1:], strict=False):
        if higher.below <= lower.below or higher.credit >= lower.credit:
            raise BadArgument("a lower uptime has a tier of its own, and a larger credit", name="tiers")
    return level


def assess(
    level: ServiceLevel,
    begin_s: int,
    end_s: int,
    measured: Mapping[int, Interval],
    exclusions: Sequence[Exclusion] = (),
    unserved: Collection[int] = (),
) -> Assessment:
    """Hold [begin, end) against a service level.

    Args:
        begin_s, end_s: whole intervals: multiples of 300.
        measured: by slot (seconds since 1970 // 300); a slot that is missing had no request.
        exclusions: an interval that one touches does not count.
        unserved: minutes (seconds since 1970 // 60) in which nobody could have been served.
    """
    assert begin_s % INTERVAL_S == end_s % INTERVAL_S == 0
    assert begin_s < end_s
    first, last = begin_s // INTERVAL_S, end_s // INTERVAL_S
    excluded = dict(_excluded(exclusions, first, last))
    lost = Counter(minute // MINUTES for minute in set(unserved))
    failed = (slot for slot, interval in measured.items() if interval.failures)
    rows = []
    for slot in sorted({*excluded, *lost, *failed}):
        if first <= slot < last:
            interval = measured.get(slot, Interval(0, 0))
            row = Row(
                slot * INTERVAL_S, interval.requests, interval.failures, excluded.get(slot, ""), lost[slot]
            )
            rows.append(row)
    return Assessment(
        level=level, begin_s=begin_s, end_s=end_s, counted=last - first - len(excluded), rows=tuple(rows)
    )


def _excluded(exclusions: Iterable[Exclusion], first: int, last: int) -> Iterator[tuple[int, str]]:
    for exclusion in exclusions:
        begin = max(first, exclusion.begin_s // INTERVAL_S)
        end = min(last, -(-exclusion.end_s // INTERVAL_S))
        for slot in range(begin, end):
            yield slot, exclusion.reason


def credit_lines(
    assessment: Assessment,
    lines: Sequence[Line],
    currency: str,
    language: str = "fr",
    *,
    of: Callable[[Line], bool] = lambda line: True,
) -> list[Line]:
    """What is given back of the affected class's charges, before tax: a line for each product.

    Its description has the calculation: uptime; share x charges.

    Args:
        lines: all of the period's invoice. Its discounts are borne by all charges of their product alike.
        of: which charges the level is for; where leases have levels of their own, not for all.
    """
    level = assessment.level
    found: list[Line] = []
    for product in sorted({line.product for line in lines}):
        charged = [line for line in lines if line.product == product and line.kind in CHARGES]
        whole = sum(line.net for line in charged)
        affected = sum(
            line.net for line in charged if level.storage_class in (ANY, line.storage_class) and of(line)
        )
        discounts = sum(line.net for line in lines if line.product == product and line.kind == "discount")
        # As it is printed: whoever reads the line can work it out again.
        base = round_half_up(affected + Fraction(discounts * affected, whole)) if whole else 0
        amount = round_half_up(base * Fraction(assessment.credit))
        if amount > 0:
            found.append(
                Line(
                    kind="credit",
                    description=_credit_words(assessment, Money(base, currency), language),
                    storage_class="" if level.storage_class == ANY else level.storage_class,
                    begin_us=assessment.begin_s * SECOND_US,
                    end_us=assessment.end_s * SECOND_US,
                    net=-amount,
                    product=product,
                )
            )
    return found


def _credit_words(assessment: Assessment, base: Money, language: str) -> str:
    """'Avoir de niveau de service s3-standard 2026-03 (99,8947 %; 10 % × 100,00)'."""
    share = f"{(assessment.credit * 100).normalize():f}"
    worked = f"({assessment.uptime_text()} %; {share} % × {base})"
    if language != "en":
        worked = worked.replace(".", ",")
    month = Month.containing(assessment.begin_s)
    return f"{caption('sla_credit', language)} {assessment.level.id} {month} {worked}"


def proof_csv(assessment: Assessment) -> str:
    """The proof as a table: every interval that failed, was not served throughout, or was excluded."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(PROOF)
    for row in assessment.rows:
        begin = utc_text(row.begin_s)
        writer.writerow((begin, row.requests, row.failures, row.unserved, str(row.error_rate), row.excluded))
    return table.getvalue()
