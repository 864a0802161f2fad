"""The picture of what is sold, billed and sealed, as metrics show it."""

import math
from fractions import Fraction

import msgspec

from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import RotationRecord, encode
from objstore.metrics import render
from objstore.rental.capacity import Capacity
from objstore.rental.meters import HOUR_S
from objstore.rental.records import SealedRecord, lease_key
from objstore.rental.usage import SEALED_KEY
from objstore.upkeep.figures import POOLS_SHOWN, ROTATION_KEY, SHARED, Figures
from objstore.upkeep.metering import SETTLE_S
from objstore.upkeep.quotas import OTHER
from tests.objects.fakes import FakeClock
from tests.rental.parties import a_market, an_invoice, line
from tests.rental.test_figures import TB, lease

SHOWN = 7  # Tenants that the metrics name.
FULL = Capacity(
    pool="",
    raw=10 * TB,
    failed=0,
    spare=TB,
    usable=6 * TB,
    sold_guaranteed=5 * TB,
    sold_best_effort=TB,
    sold_share=Fraction(5, 6),
    used_logical=4 * TB,
    used_physical=6 * TB,
    overhead=Fraction(3, 2),
    reserved=7,
    free=3 * TB,
    sellable=TB,
    fill=Fraction(2, 3),
    growth=Fraction(TB, 3),
    runway_days=3,
    full_days=6,
    lead_days=90,
    order_now=True,
    next_event=None,
    at_risk=(),
    oversold=0,
)


def pool(name: str, **given: object) -> Capacity:
    values = {field: getattr(FULL, field) for field in Capacity.__dataclass_fields__}
    return Capacity(**{**values, "pool": name, **given})


def samples(figures: Figures, name: str) -> dict[tuple[str, ...], float]:
    (family,) = [one for one in figures.families() if one.name == name]
    return {labels: number for labels, (number,) in family.samples}


def watched(kv: DictKv, *pools: Capacity) -> tuple[Figures, FakeClock]:
    async def report() -> list[Capacity]:
        return list(pools)

    clock = FakeClock()
    return Figures(kv, clock, report, SHOWN), clock


async def test_a_pool_is_told_with_what_there_is_what_is_sold_and_how_long_it_lasts() -> None:
    rests = pool("cold", growth=None, runway_days=None, full_days=None, order_now=False)
    figures, _ = watched(DictKv(), FULL, rests)
    await figures.look()
    assert samples(figures, "pool_usable_bytes") == {(SHARED,): 6 * TB, ("cold",): 6 * TB}
    assert samples(figures, "pool_sold_bytes")[SHARED, "guaranteed"] == 5 * TB
    assert samples(figures, "pool_runway_days") == {(SHARED,): 3, ("cold",): math.inf}
    assert samples(figures, "pool_growth_bytes_per_day") == {(SHARED,): TB / 3}
    page = render(figures.families()).decode()
    assert 'objstore_pool_runway_days{pool="cold"} +Inf' in page


async def test_of_many_pools_those_that_need_somebody_are_shown_first() -> None:
    calm = [pool(f"p{number:03}", order_now=False, usable=number) for number in range(POOLS_SHOWN + 5)]
    figures, _ = watched(DictKv(), *calm, pool("short"), pool("sold", oversold=1, usable=1))
    await figures.look()
    shown = [labels[0] for labels in samples(figures, "pool_raw_bytes")]
    assert shown[:3] == ["sold", "short", f"p{POOLS_SHOWN + 4:03}"]
    assert len(shown) == POOLS_SHOWN


async def test_tenants_with_the_largest_promises_are_named_and_the_rest_is_one() -> None:
    kv = DictKv()
    figures, clock = watched(kv)
    begin_us = clock.now - clock.now % 1_000_000
    put = {}
    for number in range(SHOWN + 2):
        one = lease(number, tenant=f"t{number}", capacity=number + 1)
        one = msgspec.structs.replace(one, begin_us=begin_us, end_us=begin_us + 10**13)
        put[lease_key(one.id)] = encode(one)
    await kv.commit(Transaction(put=put))
    await figures.look()
    committed = samples(figures, "tenant_committed_bytes")
    assert len(committed) == SHOWN + 1
    assert committed[OTHER,] == 1 + 2
    assert samples(figures, "leases") == {("guaranteed", "active"): SHOWN + 2}


async def test_what_is_open_of_invoices_is_told_by_state_and_currency() -> None:
    kv = await a_market("acme")
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    figures, clock = watched(kv)
    clock.now = invoice.due_us + 1
    await figures.look()
    assert samples(figures, "billing_invoices") == {
        ("draft",): 0,
        ("final",): 0,
        ("overdue",): 1,
        ("settled",): 0,
    }
    assert samples(figures, "billing_overdue_minor_units") == {("DZD",): invoice.total}
    assert samples(figures, "billing_oldest_due_timestamp_seconds") == {(): invoice.due_us / 1e6}
    assert samples(figures, "customers") == {("tpe_pme",): 1}


async def test_hours_wait_from_the_moment_at_which_they_should_be_sealed() -> None:
    kv = DictKv()
    figures, clock = watched(kv)
    hour = clock.now // 1_000_000 // HOUR_S
    await kv.commit(Transaction(put={SEALED_KEY: encode(SealedRecord(hour=hour))}))
    await figures.look()
    clock.now = ((hour + 1) * HOUR_S + SETTLE_S) * 1_000_000 - 1
    assert samples(figures, "metering_hours_waiting") == {(): 0}
    clock.now += 1
    assert samples(figures, "metering_hours_waiting") == {(): 1}
    assert samples(figures, "metering_lag_seconds") == {(): HOUR_S + SETTLE_S}
    assert samples(figures, "metering_sealed_until_timestamp_seconds") == {(): hour * HOUR_S}


async def test_a_change_of_the_master_key_is_told_while_it_is_under_way() -> None:
    kv = DictKv()
    figures, _ = watched(kv)
    for record, began in (
        (RotationRecord(under="k", began_us=5_000_000, done=3), 5),
        (RotationRecord(under="k", began_us=5_000_000, done=9, finished_us=6_000_000), 0),
    ):
        await kv.commit(Transaction(put={ROTATION_KEY: encode(record)}))
        await figures.look()
        assert samples(figures, "master_key_rotation_began_timestamp_seconds") == {(): began}
        assert samples(figures, "master_key_rotation_sealed") == {(): record.done}


async def test_before_anybody_has_looked_and_when_another_process_does_there_is_nothing_to_show() -> None:
    figures, _ = watched(await a_market("acme"), FULL)
    assert not any(family.samples for family in figures.families())
    await figures.look()
    assert samples(figures, "pool_raw_bytes")
    figures.forget()
    assert not any(family.samples for family in figures.families())
