"""A month's invoices from sealed usage records: rated from bytes, and drafted from metadata, on one core.

    python -m bench.billing [--tenants 2000] [--month 2026-03] [--seed 1] [--drafts] [--scratch DIR]

Each tenant has a bucket with four meters in every hour (storage, requests A and B, traffic); one in five has
a lease. Records are made outside the clock. Measured is CPU:

    the month       decoding records and adding them up in batches (rental/tally.py), rating them
                    (rental/rating.py) and taxes (rental/taxes.py); at most 120 s for 2,000 tenants, 744 hours
                    and 4 meters: six million records
    one invoice     the same for one tenant: at most 50 ms, the slowest of all
    --drafts        the month again, read from LMDB and drafted into it (rental/billing.py): some 2 GB in the
                    scratch directory; commits go straight into LMDB: journal and syncs are the committer's
"""

import argparse
import asyncio
import heapq
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Final

if __package__ in (None, ""):  # Run as `bench/billing.py`.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from objstore.clock import SECOND_US
from objstore.errors import Conflict
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.kv_lmdb import End, LmdbState
from objstore.meta.schema import encode
from objstore.rental.billing import MonthRun, draft_month
from objstore.rental.catalogue import publish_plan
from objstore.rental.commitments import Commitment, Overage, Step
from objstore.rental.customers import create_customer, new_customer
from objstore.rental.meters import HOUR_S, REQUESTS_A, REQUESTS_B, SENT_INTERNET, STORED
from objstore.rental.months import Month
from objstore.rental.plan_changes import give_plan
from objstore.rental.plans import Plan, parse_plan
from objstore.rental.rating import rate_month
from objstore.rental.records import (
    LeaseRecord,
    Line,
    SealedRecord,
    SellerRecord,
    UsageRecord,
    lease_key,
    tenant_lease_key,
)
from objstore.rental.sellers import create_seller
from objstore.rental.tally import BATCH, Tally
from objstore.rental.taxes import Case, TaxRule, parse_rules, tax_lines, totals
from objstore.rental.usage import SEALED_KEY, usage_prefix

ROOT: Final = Path(__file__).resolve().parent.parent
TB: Final = 10**12
METERS: Final = (STORED, REQUESTS_A, REQUESTS_B, SENT_INTERNET)
MONTH_BAR_S: Final = 120.0
INVOICE_BAR_S: Final = 0.050
TOLD_EVERY_S: Final = 1.0
MISSED: Final = "MISSED"

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


# From metadata to drafts.


class StateKv:
    """LMDB as the committer writes it, without its journal: reads and commits of one process."""

    def __init__(self, state: LmdbState) -> None:
        self._state = state

    async def get(self, key: bytes) -> bytes | None:
        return self._state.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._state.get_many(keys)

    async def scan(
        self, start: bytes, end: bytes, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        return self._state.scan(start, end, limit, reverse=reverse)

    async def commit(self, transaction: Transaction) -> None:
        assert not transaction.add, "drafts count nothing"
        for key, expected in transaction.expect.items():
            if self._state.get(key) != expected:
                raise Conflict(key)
        self._state.commit(transaction.put, transaction.delete, End(0, 0, 0, 0, 0), {})


async def make_directory(tenants: int, month: Month) -> DictKv:
    """Seller, plan, customers and leases; all hours of the month are sealed."""
    kv = DictKv()
    begin_us = month.begin_s * SECOND_US
    await create_seller(kv, SellerRecord(id="oran", name="Oran", address=["1, quai"], country="DZ"))
    card = parse_plan((ROOT / "config/plans/tpe_pme.toml").read_text())
    await publish_plan(kv, card, made_us=begin_us)
    for number in range(tenants):
        tenant = f"tenant-{number:05d}"
        customer = new_customer(
            "tpe_pme",
            tenant,
            "oran",
            legal_name=tenant,
            address=["2, rue"],
            country="DZ",
            identity_checked_us=1,
        )
        await create_customer(kv, customer, now_us=begin_us, trial_days=0)
        await give_plan(kv, tenant, card.code, now_us=begin_us)
        if number % 5 == 0:
            lease = LeaseRecord(
                id=tenant,
                tenant=tenant,
                kind="guaranteed",
                state="active",
                capacity=20 * TB,
                begin_us=begin_us,
                end_us=month.following().end_s * SECOND_US,
                term_months=2,
                unit_price="1200.00",
                overage_mode="peak_daily",
                overage_price="1900.00",
            )
            put = {lease_key(tenant): encode(lease), tenant_lease_key(tenant, tenant): b""}
            await kv.commit(Transaction(put=put))
    sealed = encode(SealedRecord(hour=month.first_hour + month.hours))
    await kv.commit(Transaction(put={SEALED_KEY: sealed}))
    return kv


def usage_of_all(tenants: int, month: Month, rng: random.Random) -> Iterator[tuple[bytes, bytes]]:
    for number in range(tenants):
        yield from make_records(f"tenant-{number:05d}", month, rng.randrange(TB // 10, 50 * TB), rng)


async def measure_drafts(
    tenants: int, month: Month, seed: int, scratch: Path, say: Callable[[str], None]
) -> tuple[MonthRun, float]:
    """Draft that many customers' month; what it came to, and its CPU seconds."""
    directory = await make_directory(tenants, month)
    say("filling LMDB\n")
    state = LmdbState.create(scratch / "state", bytes(16))
    try:
        known = await directory.scan(b"", b"\xff", 100 * tenants + 100)
        state.load(heapq.merge(known, usage_of_all(tenants, month, random.Random(seed))))
        told = time.monotonic()

        def progress(run: MonthRun) -> None:
            nonlocal told
            if time.monotonic() - told > TOLD_EVERY_S:
                told = time.monotonic()
                say(f"\r{run.tenants:,} of {tenants:,} tenants ")

        rules = parse_rules((ROOT / "config/taxes.toml").read_text())
        begun = time.process_time()
        run = await draft_month(
            StateKv(state),
            month,
            rules=rules,
            now_us=month.end_s * SECOND_US,
            randomness=random.Random(seed).randbytes,
            progress=progress,
        )
        return run, time.process_time() - begun
    finally:
        state.close()


def drafts_row(run: MonthRun, spent_s: float, tenants: int) -> str:
    bar_s = MONTH_BAR_S * tenants / 2_000
    whole = run.drafts == tenants and not run.problems
    verdict = _verdict(spent_s, bar_s) if whole else MISSED
    return (
        f"with metadata  {spent_s:8.2f} s    bar {bar_s:8.2f} s    {verdict}"
        f"    {run.drafts:,} drafts, {len(run.problems):,} problems"
    )


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
    return "ok    " if value <= bar else MISSED


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tenants", type=int, default=2_000)
    parser.add_argument("--month", type=Month.parse, default=Month(2026, 3))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--drafts", action="store_true")
    parser.add_argument("--scratch", type=Path, default=None)
    given = parser.parse_args()
    if given.scratch is not None:
        given.scratch.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)

    outcome = measure(given.tenants, given.month, given.seed, say)
    say("\n")
    print("\n".join(table(outcome, given.tenants)))
    good = passed(outcome, given.tenants)
    if given.drafts:
        scratch = Path(tempfile.mkdtemp(prefix="billing-", dir=given.scratch))
        try:
            run, spent_s = asyncio.run(measure_drafts(given.tenants, given.month, given.seed, scratch, say))
        finally:
            shutil.rmtree(scratch)
        say("\n")
        row = drafts_row(run, spent_s, given.tenants)
        print(row)
        good = good and MISSED not in row
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
