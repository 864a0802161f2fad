"""The benchmark of a month's rating: it rates what it says, and its verdicts can fail."""

import random

from bench.billing import INVOICE_BAR_S, Outcome, make_records, measure, passed, table
from objstore.rental.months import Month

FEBRUARY = Month(2026, 2)


def test_every_hour_and_meter_of_every_tenant_is_rated() -> None:
    said: list[str] = []
    outcome = measure(6, FEBRUARY, 1, said.append)
    assert outcome.records == 6 * 672 * 4
    assert len(outcome.invoices_s) == 6
    # A subscription, storage, requests beyond the free ones and traffic are on each, a lease on two.
    assert outcome.lines >= 6 * 3 + 2


def test_records_come_in_the_order_of_their_keys() -> None:
    keys = [key for key, _ in make_records("acme", FEBRUARY, 10**12, random.Random(1))]
    assert keys == sorted(set(keys))


def test_a_month_or_an_invoice_that_takes_too_long_misses_its_bar() -> None:
    quick = Outcome(records=10, lines=1, invoices_s=[INVOICE_BAR_S / 2] * 2)
    late = Outcome(records=10, lines=1, invoices_s=[INVOICE_BAR_S / 2, INVOICE_BAR_S * 2])
    long = Outcome(records=10, lines=1, invoices_s=[INVOICE_BAR_S] * 3_000)
    assert [passed(one, 2_000) for one in (quick, late, long)] == [True, False, False]
    assert [sum("MISSED" in line for line in table(one, 2_000)) for one in (quick, late, long)] == [0, 1, 1]
