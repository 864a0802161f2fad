"""The service that drafts months, issues invoices and duns."""

from objstore.clock import SECOND_US
from objstore.meta.kv import DictKv
from objstore.rental.catalogue import put_tax_rule
from objstore.rental.customers import account_state, change_customer
from objstore.rental.invoices import list_documents, list_drafts
from objstore.rental.plan_changes import give_plan
from objstore.rental.records import InvoiceRecord
from objstore.rental.series import verify_series
from objstore.upkeep.context import Alarms
from objstore.upkeep.invoicing import REFUSED, Invoicing
from objstore.upkeep.metering import SETTLE_S
from tests.objects.fakes import FakeClock
from tests.rental.cards import GB
from tests.rental.parties import DAY_US, MARCH, RULES, a_customer, pay, randomness
from tests.rental.test_billing import a_store, seal, store

SEALED_US = (MARCH.end_s + SETTLE_S) * SECOND_US


async def a_month(*tenants: str) -> tuple[DictKv, FakeClock, Alarms, Invoicing]:
    """March is over and sealed; each tenant stored 31 GB for all of it, at 10 DZD a GB and month."""
    kv = await a_store(*tenants)
    for rule in RULES:
        await put_tax_rule(kv, rule, made_us=1)
    for number, _ in enumerate(tenants, 1):
        await store(kv, number, MARCH.begin_s, 31 * GB)
    await seal(kv, MARCH)
    clock, alarms = FakeClock(SEALED_US), Alarms()
    return kv, clock, alarms, Invoicing(kv, clock, alarms, randomness=randomness())


async def only(kv: DictKv, tenant: str) -> InvoiceRecord:
    (record,) = await list_documents(kv, tenant)
    return record


async def test_a_month_goes_from_usage_to_a_paid_invoice_as_the_clock_goes_on() -> None:
    kv, clock, alarms, service = await a_month("acme")
    assert "2026-03: 1 drafts, 0 final" in await service.run()
    assert await service.run() == (
        "drafted before; 0 invoices issued, 1 drafts wait; 0 became overdue, 0 accounts changed"
    )
    assert (await only(kv, "acme")).total_net == 31_000
    clock.now += 2 * DAY_US
    assert "1 invoices issued" in await service.run()
    assert (await only(kv, "acme")).number == "FA-2026-000001"
    clock.now += 20 * DAY_US
    assert "2026-03: 0 drafts, 1 final, 0 corrections; 0 invoices issued" in await service.run()
    clock.now += 26 * DAY_US
    assert "1 became overdue, 1 accounts changed" in await service.run()
    assert await account_state(kv, "acme") == "read_only"
    await pay(kv, 1, "acme", 36_890, now_us=clock.now)
    assert "0 became overdue, 1 accounts changed" in await service.run()
    assert await account_state(kv, "acme") == "active"
    assert (await only(kv, "acme")).state == "paid"
    assert alarms.raised == {}


async def test_before_a_month_is_over_and_sealed_nothing_of_it_is_drafted() -> None:
    kv, clock, _, service = await a_month("acme")
    clock.now = MARCH.end_s * SECOND_US - 1
    await service.run()
    assert await list_drafts(kv) == []
    clock.now = (MARCH.following().end_s + SETTLE_S) * SECOND_US  # Of April no hour is sealed.
    assert "not all hours of 2026-04 are sealed yet" in await service.run()


async def test_a_customer_that_changed_after_its_draft_is_drafted_again_and_then_issued() -> None:
    kv, clock, alarms, service = await a_month("acme", "bravo")
    clock.now = SEALED_US + 2 * DAY_US - 3_600 * SECOND_US
    await service.run()
    await change_customer(kv, "acme", legal_name="Another")
    clock.now += 3_600 * SECOND_US
    assert "1 invoices issued" in await service.run()
    assert "'acme' changed: draft again" in alarms.raised[REFUSED]
    clock.now += 6 * 3_600 * SECOND_US
    assert "1 invoices issued" in await service.run()
    assert alarms.raised == {}
    assert (await verify_series(kv, "oran", 2026, "invoice")).count == 2


async def test_a_customer_without_a_plan_is_an_alarm_until_it_has_one_and_holds_up_no_other() -> None:
    kv, clock, alarms, service = await a_month("acme")
    await a_customer(kv, "zoe")
    clock.now += 2 * DAY_US
    assert "1 invoices issued" in await service.run()
    assert "zoe" in alarms.raised[REFUSED]
    await give_plan(kv, "zoe", "test", now_us=clock.now)
    clock.now += 6 * 3_600 * SECOND_US
    await service.run()
    assert alarms.raised == {}


async def test_no_month_is_forgotten_because_it_could_not_be_drafted_in_its_time() -> None:
    kv, clock, alarms, service = await a_month("acme")
    month = MARCH
    for _ in range(3):
        month = month.following()
        await seal(kv, month)
    clock.now = (month.end_s + SETTLE_S) * SECOND_US
    assert "2026-03: 1 drafts, 0 final" in await service.run()
    found = await list_documents(kv, "acme")
    assert [one.total_net for one in found] == [31_000] * 4
    assert len({one.period_begin_us for one in found}) == 4
    assert [one.state for one in found].count("final") == 3, "of June late usage may still come"
    assert alarms.raised == {}
    await a_customer(kv, "zoe")  # Of March, and without a plan.
    clock.now += DAY_US
    await service.run()
    assert "no version of a plan in 2026-03" in alarms.raised[REFUSED]


async def test_a_store_that_rents_nothing_out_has_nothing_to_do() -> None:
    assert await Invoicing(DictKv(), FakeClock(), Alarms()).run() == "no customers"
