"""The service that issues invoices and duns."""

from objstore.rental.customers import account_state, change_customer
from objstore.rental.invoices import find_document
from objstore.rental.months import SECOND_US
from objstore.upkeep.context import Alarms
from objstore.upkeep.invoicing import ALARM, Invoicing
from tests.objects.fakes import FakeClock
from tests.rental.parties import DAY_US, MARCH, a_draft, a_market, line, pay


async def test_a_month_goes_from_draft_to_paid_as_the_clock_goes_on() -> None:
    kv = await a_market()
    clock = FakeClock(MARCH.end_s * SECOND_US)
    draft = await a_draft(kv, "acme", [line(1_000)], now_us=clock.now)
    alarms = Alarms()
    service = Invoicing(kv, clock, alarms)
    assert await service.run() == "0 invoices issued, 1 drafts wait, 0 became overdue, 0 accounts changed"
    clock.now += 2 * DAY_US
    assert await service.run() == "1 invoices issued, 0 drafts wait, 0 became overdue, 0 accounts changed"
    clock.now += 46 * DAY_US
    assert await service.run() == "0 invoices issued, 0 drafts wait, 1 became overdue, 1 accounts changed"
    assert await account_state(kv, "acme") == "read_only"
    await pay(kv, 1, "acme", 1_190, now_us=clock.now)
    assert await service.run() == "0 invoices issued, 0 drafts wait, 0 became overdue, 1 accounts changed"
    assert await account_state(kv, "acme") == "active"
    assert (await find_document(kv, draft.id)).state == "paid"
    assert alarms.raised == {}


async def test_a_draft_that_cannot_be_final_raises_an_alarm_until_it_can() -> None:
    kv = await a_market("acme", "bolt")
    clock = FakeClock(MARCH.end_s * SECOND_US + 2 * DAY_US)
    for tenant in ("acme", "bolt"):
        await a_draft(kv, tenant, [line(1_000)], now_us=clock.now)
    await change_customer(kv, "acme", legal_name="Another")
    alarms = Alarms()
    service = Invoicing(kv, clock, alarms)
    assert (await service.run()).startswith("1 invoices issued")
    assert "'acme' changed: draft again" in alarms.raised[ALARM]
    await a_draft(kv, "acme", [line(1_000)], now_us=clock.now)
    assert (await service.run()).startswith("1 invoices issued")
    assert alarms.raised == {}
