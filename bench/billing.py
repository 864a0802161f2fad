"""A month rated: sealed usage records as bytes to invoices' lines with their taxes, on one core.

    python -m bench.billing [--tenants 2000] [--month 2026-03] [--seed 1]

Each tenant has a bucket with four meters in every hour (storage, requests A and B, traffic); one in five has
a lease. Records are made outside the clock, one tenant's at a time; measured is the CPU of decoding them and
adding them up in batches (rental/tally.py), rating (rental/rating.py) and taxes (rental/taxes.py).

    the month       at most 120 s for 2,000 tenants, 744 hours, 4 meters: six million records
    one invoice     at most 50 ms, the slowest of all; the clock of one core, neighbours included
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Final

if __package__ in (None, ""):  # Run as `bench/billing.py`.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from objstore.meta.schema import encode
from objstore.rental.commitments import Commitment, Overage, Step
from objstore.rental.meters import HOUR_S, REQUESTS_A, REQUESTS_B, SENT_INTERNET, STORED
from objstore.rental.months import Month
from objstore.rental.plans import Plan, parse_plan
from objstore.rental.rating import rate_month
from objstore.rental.records import Line, UsageRecord
from objstore.rental.tally import BATCH, Tally
from objstore.rental.taxes import Case, TaxRule, parse_rules, tax_lines, totals
from objstore.rental.usage import usage_prefix

ROOT: Final = Path(__file__).resolve().parent.parent
TB: Final = 10**12
METERS: Final = (STORED, REQUESTS_A, REQUESTS_B, SENT_INTERNET)
MONTH_BAR_S: Final = 120.0
INVOICE_BAR_S: Final = 0.050
TOLD_EVERY_S: Final = 1.0

Records = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Outcome:
    """What was measured: CPU seconds of each tenant, and what came of it."""

    records: int = 0
    lines: int = 0
    invoices_s: list[float] = field(default_factory=list)

    @property
    def month_s(self) -> float:
        return sum(self.invoices_s)


def make_records(tenant: str, month: Month, size: int, rng: random.Random) -> Records:
    """A tenant's month, in the order of keys, as the service that seals hours writes it."""
    found: Records = []
    bucket = rng.randrange(1, 2**32).to_bytes(8, "big") + b"\0"
    digests = [rng.randbytes(32) for _ in range(8)]
    for hour in range(month.first_hour, month.first_hour + month.hours):
        size = max(0, size + rng.randrange(-(10**9), 2 * 10**9))
        quantities = {
            STORED: size * HOUR_S,
            REQUESTS_A: rng.randrange(10**5),
            REQUESTS_B: rng.randrange(10**6),
            SENT_INTERNET: rng.randrange(10**11),
        }
        for meter in sorted(METERS):
            record = UsageRecord(
                quantity=quantities[meter],
                project="archive",
                bucket="scans",
                sealed_us=(hour + 1) * HOUR_S * 10**6,
                previous=digests[hour % 8],
                digest=digests[(hour + 1) % 8],
            )
            found.append((usage_prefix(tenant, hour) + bucket + meter, encode(record)))
    return found


def invoice(
    tenant: str,
    month: Month,
    records: Records,
    plan: Plan,
    leases: list[Commitment],
    rules: tuple[TaxRule, ...],
) -> tuple[Line, ...]:
    """From a tenant's records to what is to be paid."""
    tally = Tally(tenant, month)
    for at in range(0, len(records), BATCH):
        tally.add(records[at : at + BATCH])
    lines = rate_month(plan, tally.usage(), month, commitments=leases).lines
    case = Case(
        country="DZ", customer_kind="tpe_pme", profile="standard", day=date(month.year, month.month, 28)
    )
    assert totals(lines, tax_lines(lines, rules, case), plan.currency).total.minor > 0
    return lines


def lease_of(tenant: str, month: Month, size: int) -> Commitment:
    return Commitment(
        lease=tenant,
        steps=(Step(month.begin_s, size), Step(month.begin_s + 10 * 86_400, 2 * size)),
        begin_s=month.begin_s,
        end_s=month.following().end_s,
        unit_price=Decimal("1200.00"),
        overage=Overage(mode="peak_daily", unit_price=Decimal("1900.00")),
    )


def measure(tenants: int, month: Month, seed: int, say: Callable[[str], None]) -> Outcome:
    """Rate that many tenants' month."""
    rng = random.Random(seed)
    plan = parse_plan((ROOT / "config/plans/tpe_pme.toml").read_text())
    rules = parse_rules((ROOT / "config/taxes.toml").read_text())
    outcome = Outcome()
    told = time.monotonic()
    for number in range(tenants):
        tenant = f"tenant-{number:05d}"
        size = rng.randrange(TB // 10, 50 * TB)
        records = make_records(tenant, month, size, rng)
        leases = [lease_of(tenant, month, size)] if number % 5 == 0 else []
        begun = time.process_time()
        lines = invoice(tenant, month, records, plan, leases, rules)
        outcome.invoices_s.append(time.process_time() - begun)
        outcome.records += len(records)
        outcome.lines += len(lines)
        if time.monotonic() - told > TOLD_EVERY_S:
            told = time.monotonic()
            say(f"\r{number + 1:,} of {tenants:,} tenants, {outcome.month_s:.1f} s of CPU ")
    return outcome


def table(outcome: Outcome, tenants: int) -> list[str]:
    """The figures, with bar and verdict; the month's bar is that of 2,000 tenants, in proportion."""
    bar_s = MONTH_BAR_S * tenants / 2_000
    slowest_s, median_s = max(outcome.invoices_s), statistics.median(outcome.invoices_s)
    return [
        f"{outcome.records:,} records of {tenants:,} tenants, {outcome.lines:,} lines",
        f"the month      {outcome.month_s:8.2f} s    bar {bar_s:8.2f} s    {_verdict(outcome.month_s, bar_s)}"
        f"    {outcome.month_s / outcome.records * 1e6:.2f} us a record",
        f"one invoice    {slowest_s * 1e3:8.2f} ms   bar {INVOICE_BAR_S * 1e3:8.2f} ms"
        f"   {_verdict(slowest_s, INVOICE_BAR_S)}    median {median_s * 1e3:.2f} ms",
    ]


def passed(outcome: Outcome, tenants: int) -> bool:
    return outcome.month_s <= MONTH_BAR_S * tenants / 2_000 and max(outcome.invoices_s) <= INVOICE_BAR_S


def _verdict(value: float, bar: float) -> str:
    return "ok    " if value <= bar else "MISSED"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tenants", type=int, default=2_000)
    parser.add_argument("--month", type=Month.parse, default=Month(2026, 3))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()

    def say(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)

    outcome = measure(given.tenants, given.month, given.seed, say)
    say("\n")
    print("\n".join(table(outcome, given.tenants)))
    return 0 if passed(outcome, given.tenants) else 1


if __name__ == "__main__":
    sys.exit(main())
