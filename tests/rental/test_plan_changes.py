"""Which plan a tenant has in which month: a month rates alike for ever, whatever is given later."""

import asyncio
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.meta.kv import DictKv
from objstore.meta.schema import AccountRecord, ClassTerms, account_key, decode
from objstore.rental.catalogue import publish_plan
from objstore.rental.customers import create_customer, find_customer, new_customer, set_state
from objstore.rental.first_plans import why_no_plan
from objstore.rental.months import Month
from objstore.rental.plan_changes import give_plan, plan_in, start_plans
from objstore.rental.plans import Plan
from objstore.rental.records import CustomerRecord, SellerRecord
from objstore.rental.sellers import create_seller
from tests.rental.cards import MARCH, SharedKv, plan, rate

APRIL, MAY, JUNE = Month(2026, 4), Month(2026, 5), Month(2026, 6)


def during(month: Month, day: int = 10) -> int:
    return (month.begin_s + day * 86_400) * SECOND_US


async def new_store(**given: object) -> DictKv:
    """A tenant since March, and three plans; the third bills a class for at least a size and an age."""
    kv = SharedKv()
    await create_seller(kv, SellerRecord(id="oran", name="Oran Cloud", address=["1, quai"], country="DZ"))
    for code, price in (("one", "1"), ("two", "2"), ("three", "3")):
        least = {"min_object_bytes": 4_096, "min_duration_days": 30} if code == "three" else {}
        card = plan(rate(price, storage_class="STANDARD", **least), currency="DZD")
        await publish_plan(kv, msgspec.structs.replace(card, code=code), made_us=1)
    customer = new_customer("tpe_pme", "acme", "oran", **given)
    await create_customer(kv, customer, now_us=during(MARCH, 3), trial_days=30)
    return kv


async def plans(kv: DictKv, *months: Month) -> list[str]:
    customer = await find_customer(kv, "acme")
    return [(await plan_in(kv, customer, month)).code for month in months]


async def classes(kv: DictKv) -> dict[str, ClassTerms]:
    value = await kv.get(account_key("acme"))
    assert value is not None
    return decode(value, AccountRecord).classes


async def test_a_tenant_without_a_plan_is_not_rated_and_its_first_one_holds_at_once() -> None:
    kv = await new_store()
    with pytest.raises(BadArgument, match="'acme' has no version of a plan in 2026-03"):
        await plans(kv, MARCH)
    customer = await give_plan(kv, "acme", "three", now_us=during(MARCH))
    assert (customer.plan, customer.plan_version, customer.next_plan) == ("three", 1, "")
    assert await plans(kv, MARCH, APRIL) == ["three", "three"]
    assert await classes(kv) == {"": ClassTerms(4_096, 30 * 86_400)}


async def test_another_plan_holds_from_the_next_month_on_and_begins_once() -> None:
    kv = await new_store()
    await give_plan(kv, "acme", "one", now_us=during(MARCH))
    customer = await give_plan(kv, "acme", "three", now_us=during(APRIL))
    assert (customer.plan, customer.next_plan, customer.next_plan_version) == ("one", "three", 1)
    assert await start_plans(kv, now_us=during(APRIL, 20)) == 0
    assert await classes(kv) == {}
    assert await start_plans(kv, now_us=MAY.begin_s * SECOND_US) == 1
    assert await start_plans(kv, now_us=during(MAY)) == 0
    customer = await find_customer(kv, "acme")
    assert (customer.plan, customer.plan_version, customer.next_plan) == ("three", 1, "")
    assert await classes(kv) == {"": ClassTerms(4_096, 30 * 86_400)}
    assert await plans(kv, MARCH, APRIL, MAY, JUNE) == ["one", "one", "three", "three"]


async def test_what_has_not_begun_may_be_replaced_and_what_has_begun_never() -> None:
    kv = await new_store()
    await give_plan(kv, "acme", "one", now_us=during(MARCH))
    await give_plan(kv, "acme", "two", now_us=during(APRIL))
    await give_plan(kv, "acme", "three", now_us=during(APRIL, 11))
    assert await plans(kv, APRIL, MAY) == ["one", "three"]
    # May begins, and nobody has run the step before the next plan is given.
    customer = await give_plan(kv, "acme", "one", now_us=during(MAY))
    assert (customer.plan, customer.next_plan) == ("three", "one")
    assert await classes(kv) == {"": ClassTerms(4_096, 30 * 86_400)}
    assert await plans(kv, MARCH, APRIL, MAY, JUNE) == ["one", "one", "three", "one"]
    assert await start_plans(kv, now_us=during(JUNE)) == 1
    assert await classes(kv) == {}


async def test_a_plan_that_was_set_when_the_tenant_was_made_holds_for_all_months_before_another() -> None:
    kv = await new_store(plan="two", plan_version=1)
    assert await plans(kv, MARCH, APRIL) == ["two", "two"]
    await give_plan(kv, "acme", "one", now_us=during(MAY))
    await start_plans(kv, now_us=during(JUNE))
    assert await plans(kv, MARCH, APRIL, MAY, JUNE) == ["two", "two", "two", "one"]


async def test_a_plan_of_another_currency_or_that_is_not_offered_then_or_accrues_is_not_given() -> None:
    kv = await new_store()
    await give_plan(kv, "acme", "one", now_us=during(MARCH))
    accruing = rate(storage_class="COLD", min_duration_days=9, early="accrual")
    for code, card, said in (
        ("euro", plan(rate(), currency="EUR"), "in EUR, 'acme' is invoiced in DZD"),
        ("ended", plan(rate(), currency="DZD", valid_to=date(2026, 4, 1)), "not offered on 2026-04-01"),
        ("coming", plan(rate(), currency="DZD", valid_from=date(2026, 4, 2)), "not offered on 2026-04-01"),
        ("accruing", plan(accruing, currency="DZD"), "meters them once"),
    ):
        await publish_plan(kv, msgspec.structs.replace(card, code=code), made_us=1)
        with pytest.raises(BadArgument, match=said):
            await give_plan(kv, "acme", code, now_us=during(MARCH))
    for tenant, code, said in (("nobody", "one", "no .*'nobody'"), ("acme", "none", "no plan 'none'")):
        with pytest.raises(BadArgument, match=said):
            await give_plan(kv, tenant, code, now_us=during(MARCH))
    assert await plans(kv, MARCH, APRIL) == ["one", "one"]


async def test_two_who_give_a_plan_at_once_leave_one_of_them_everywhere() -> None:
    kv = await new_store()
    await give_plan(kv, "acme", "one", now_us=during(MARCH))
    await asyncio.gather(*(give_plan(kv, "acme", code, now_us=during(MARCH)) for code in ("two", "three")))
    customer = await find_customer(kv, "acme")
    assert await plans(kv, MARCH, APRIL) == ["one", customer.next_plan]


async def test_the_newest_version_is_given_unless_one_is_named() -> None:
    kv = await new_store()
    second: Plan = msgspec.structs.replace(
        plan(rate("9", free_fixed=Decimal(1)), currency="DZD"), code="one", version=2
    )
    await publish_plan(kv, second, made_us=1)
    assert (await give_plan(kv, "acme", "one", now_us=during(MARCH))).plan_version == 2
    assert (await give_plan(kv, "acme", "one", 1, now_us=during(MARCH))).next_plan_version == 1


async def first_plan(kv: DictKv, code: str, *, trial_days: int = 0, **given: object) -> CustomerRecord:
    """A new customer that names this plan."""
    complete = {"legal_name": "New", "address": ["1"], "country": "DZ", "identity_checked_us": 1}
    record = new_customer("tpe_pme", "new", "oran", plan=code, **{**complete, **given})
    return await create_customer(kv, record, now_us=during(MARCH, 5), trial_days=trial_days)


@pytest.mark.parametrize("trial_days", [0, 30])
async def test_a_customer_has_the_plan_that_it_names_from_its_first_hour_on(trial_days: int) -> None:
    kv = await new_store()
    customer = await first_plan(kv, "three", trial_days=trial_days)
    assert (customer.plan, customer.plan_version, await find_customer(kv, "new")) == ("three", 1, customer)
    assert (await plan_in(kv, customer, MARCH)).code == "three"
    value = await kv.get(account_key("new"))
    assert value is not None
    assert decode(value, AccountRecord).classes == {"": ClassTerms(4_096, 30 * 86_400)}
    assert await why_no_plan(kv, customer, during(MARCH)) == ""


async def test_a_customer_whose_plan_is_not_published_gets_it_when_it_becomes_active() -> None:
    kv = await new_store()
    customer = await first_plan(kv, "late", trial_days=30)
    assert customer.plan_version == 0
    assert "no version of plan 'late' is published" in await why_no_plan(kv, customer, during(MARCH))
    card = msgspec.structs.replace(plan(rate("1"), currency="DZD"), code="late")
    await publish_plan(kv, card, made_us=1)
    customer = await set_state(kv, "new", "active", reason="", now_us=during(APRIL))
    assert (customer.plan_version, customer.state_reason) == (1, "")
    assert (await plan_in(kv, customer, APRIL)).code == "late"
    value = await kv.get(account_key("new"))
    assert value is not None
    assert decode(value, AccountRecord).state == "active"


@pytest.mark.parametrize(
    ("fields", "given", "words"),
    [
        ({"valid_from": date(2026, 4, 1)}, {}, "no version of plan 'card' is offered on 2026-03-06"),
        ({"valid_to": date(2026, 3, 1)}, {}, "is offered on"),
        ({}, {"currency": "EUR"}, "is in DZD, 'new' is invoiced in EUR"),
    ],
)
async def test_a_plan_that_does_not_fit_is_not_given_and_the_reason_is_said(
    fields: dict[str, Any], given: dict[str, Any], words: str
) -> None:
    kv = await new_store()
    card = msgspec.structs.replace(plan(rate("1"), currency="DZD"), code="card", **fields)
    await publish_plan(kv, card, made_us=1)
    customer = await first_plan(kv, "card", **given)
    assert customer.plan_version == 0
    assert words in await why_no_plan(kv, customer, during(MARCH, 5))


async def test_the_newest_version_that_is_offered_is_the_first_plan() -> None:
    kv = await new_store()
    base = msgspec.structs.replace(plan(rate("1"), currency="DZD"), code="card")
    for version, begins in ((1, None), (2, None), (3, date(2026, 6, 1))):
        card = msgspec.structs.replace(base, version=version, valid_from=begins)
        await publish_plan(kv, card, made_us=1)
    assert (await first_plan(kv, "card")).plan_version == 2


async def test_the_plan_that_a_tenant_has_may_be_given_again_and_changes_nothing() -> None:
    kv = await new_store()
    customer = await first_plan(kv, "two")
    assert await give_plan(kv, "new", "two", now_us=during(MARCH)) == customer
