"""The benchmark of a month's rating: it rates what it says, and its verdicts can fail."""

import random
from pathlib import Path

from bench.billing import (
    INVOICE_BAR_S,
    Outcome,
    drafts_row,
    make_records,
    measure,
    measure_drafts,
    passed,
    table,
)
from objstore.rental.months import Month

FEBRUARY = Month(2026, 2)


def test_every_hour_and_meter_of_every_tenant_is_rated() -> None:
    said: list[str] = []
    outcome = measure(6, FEBRUARY, 1, said.append)
    assert outcome.records == 6 * 672 * 4
    assert len(outcome.invoices_s) == 6
    # A subscription, storage, requests beyond the free ones and traffic are on each, a lease on two.
    assert outcome.lines >= 6 * 3 + 2


async def test_drafts_are_made_of_every_tenant_from_metadata(tmp_path: Path) -> None:
    run, _ = await measure_drafts(6, FEBRUARY, 1, tmp_path, lambda text: None)
    assert (run.tenants, run.drafts, run.problems) == (6, 6, [])
    assert drafts_row(run, 0.0, 6).count("ok") == 1
    assert drafts_row(run, 1.0, 6).count("MISSED") == 1  # 0.36 s for six.
    assert drafts_row(run, 0.0, 7).count("MISSED") == 1  # One has no invoice.


def test_records_come_in_the_order_of_their_keys() -> None:
    keys = [key for key, _ in make_records("acme", FEBRUARY, 10**12, random.Random(1))]
    assert keys == sorted(set(keys))


def test_a_month_or_an_invoice_that_takes_too_long_misses_its_bar() -> None:
    quick = Outcome(records=10, lines=1, invoices_s=[INVOICE_BAR_S / 2] * 2)
    late = Outcome(records=10, lines=1, invoices_s=[INVOICE_BAR_S / 2, INVOICE_BAR_S * 2])
    long = Outcome(records=10, lines=1, invoices_s=[INVOICE_BAR_S] * 3_000)
    assert [passed(one, 2_000) for one in (quick, late, long)] == [True, False, False]
    assert [sum("MISSED" in line for line in table(one, 2_000)) for one in (quick, late, long)] == [0, 1, 1]
