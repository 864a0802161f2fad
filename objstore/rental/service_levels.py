"""Service levels: five-minute error rates to uptime, and uptime to a credit.

    error rate of an interval   failures of ours / requests; 0 where nobody asked
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from objstore.clock import utc_text
from objstore.errors import BadArgument
from objstore.meta.schema import Record
from objstore.rental.captions import caption
from objstore.rental.money import round_half_up
from objstore.rental.months import SECOND_US
from objstore.rental.plans import ANY, STANDARD, Value
from objstore.rental.records import Line

INTERVAL_S: Final = 300
TIERS_MAX: Final = 10
CHARGES: Final = ("usage", "commitment", "overage")  # Kinds of lines of which a credit gives back.
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

    @property
    def error_rate(self) -> Fraction:
        return Interval(self.requests, self.failures).error_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """A period held against a service level."""

    level: ServiceLevel
    begin_s: int
    end_s: int
    counted: int  # Intervals.
    rows: tuple[
        Row, ...
    ]  # The proof: every interval with a failure, and every one excluded; all others had none.

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

    def uptime_text(self) -> str:
        """In percent, four places, rounded down: never better than it was."""
        scaled = self.uptime * 1_000_000
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
) -> Assessment:
    """Hold [begin, end) against a service level.

    Args:
        begin_s, end_s: whole intervals: multiples of 300.
        measured: by slot (seconds since 1970 // 300); a slot that is missing had no request.
        exclusions: an interval that one touches does not count.
    """
    assert begin_s % INTERVAL_S == end_s % INTERVAL_S == 0
    assert begin_s < end_s
    first, last = begin_s // INTERVAL_S, end_s // INTERVAL_S
    excluded = dict(_excluded(exclusions, first, last))
    rows = [
        Row(slot * INTERVAL_S, interval.requests, interval.failures, excluded.get(slot, ""))
        for slot, interval in measured.items()
        if first <= slot < last and (interval.failures or slot in excluded)
    ]
    rows += [Row(slot * INTERVAL_S, 0, 0, why) for slot, why in excluded.items() if slot not in measured]
    return Assessment(
        level=level,
        begin_s=begin_s,
        end_s=end_s,
        counted=last - first - len(excluded),
        rows=tuple(sorted(rows, key=lambda row: row.begin_s)),
    )


def _excluded(exclusions: Iterable[Exclusion], first: int, last: int) -> Iterator[tuple[int, str]]:
    for exclusion in exclusions:
        begin = max(first, exclusion.begin_s // INTERVAL_S)
        end = min(last, -(-exclusion.end_s // INTERVAL_S))
        for slot in range(begin, end):
            yield slot, exclusion.reason


def credit_lines(assessment: Assessment, lines: Sequence[Line], language: str = "fr") -> list[Line]:
    """What is given back of the affected class's charges, before tax: a line for each product.

    Args:
        lines: all of the period's invoice. Its discounts are borne by all charges of their product alike.
    """
    level = assessment.level
    found: list[Line] = []
    for product in sorted({line.product for line in lines}):
        charged = [line for line in lines if line.product == product and line.kind in CHARGES]
        whole = sum(line.net for line in charged)
        affected = sum(line.net for line in charged if level.storage_class in (ANY, line.storage_class))
        discounts = sum(line.net for line in lines if line.product == product and line.kind == "discount")
        base = affected + Fraction(discounts * affected, whole) if whole else Fraction(0)
        amount = round_half_up(base * Fraction(assessment.credit))
        if amount > 0:
            found.append(
                Line(
                    kind="credit",
                    description=f"{caption('sla_credit', language)} ({assessment.uptime_text()} %)",
                    storage_class="" if level.storage_class == ANY else level.storage_class,
                    begin_us=assessment.begin_s * SECOND_US,
                    end_us=assessment.end_s * SECOND_US,
                    net=-amount,
                    product=product,
                )
            )
    return found


def proof_csv(assessment: Assessment) -> str:
    """The proof as a table: every interval that failed or was excluded."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("interval_utc", "requests", "failures", "error_rate", "excluded"))
    for row in assessment.rows:
        writer.writerow((utc_text(row.begin_s), row.requests, row.failures, row.error_rate, row.excluded))
    return table.getvalue()
