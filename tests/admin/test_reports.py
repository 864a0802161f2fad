"""Reports by tenant: what was invoiced, what is owed and for how long, what was used; and who sees whose."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from objstore.clock import SECOND_US
from objstore.meta.kv import Add, Transaction
from objstore.meta.schema import TitleRecord, encode, title_key
from objstore.rental.credit_notes import Credit, issue_credit_note
from objstore.rental.customers import change_customer
from objstore.rental.meters import count, meter_prefix
from objstore.rental.months import Month
from objstore.rental.reports import age_of
from objstore.rental.usage import move_mark
from objstore.upkeep.metering import SETTLE_S, Metering
from tests.admin.api import Api, people, serving
from tests.objects.fakes import FakeClock
from tests.rental.parties import DAY_US, ISSUED_US, MARCH, a_customer, an_id, an_invoice, line, pay

FEBRUARY = Month(2026, 2)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """operator > upper (a reseller) > lower; operator > other; operator > big (a reseller) > mid > small."""
    async with serving() as one:
        one.tokens = await people(one)  # type: ignore[attr-defined]
        await a_customer(one.kv, "big", reseller=True)
        await a_customer(one.kv, "mid", parent="big", reseller=True)
        await a_customer(one.kv, "small", parent="mid", currency="EUR")
        yield one


async def rows(api: Api, path: str, caller: str = "operator") -> list[dict[str, Any]]:
    tokens: dict[str, str] = api.tokens  # type: ignore[attr-defined]
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        mark = "&" if "?" in path else "?"
        answer = await api(
            "GET", f"/api/v1/reports/{path}{mark}limit=2&cursor={cursor}", token=tokens[caller]
        )
        assert answer.status == 200, answer
        found += answer.body["items"]
        if answer.body["next"] is None:
            return found
        cursor = answer.body["next"]


async def test_revenue_is_what_was_invoiced_less_what_was_given_back(api: Api) -> None:
    kv = api.kv
    await an_invoice(kv, "lower", [line(50_00)], month=FEBRUARY)
    march = await an_invoice(kv, "lower", [line(100_00)])
    await pay(kv, 5, "lower", 80_00, [(march.id, 80_00)])
    await issue_credit_note(kv, an_id(77), march.id, [Credit(1, 10_00)], reason="goodwill", now_us=ISSUED_US)
    assert await rows(api, "revenue?month=2026-03") == [
        {
            "tenant": "lower",
            "resellers": ["upper"],
            "month": "2026-03",
            "invoice": march.number,
            "currency": "DZD",
            "net": 90_00,
            "tax": 17_10,
            "total": 107_10,
            "credited": 11_90,
            "received": 80_00,
            "open": 27_10,
        }
    ]
    both = await rows(api, "revenue?month=2026-02&until=2026-04")
    assert [(one["month"], one["total"]) for one in both] == [("2026-02", 59_50), ("2026-03", 107_10)]
    for wrong in ("month=2026-03&until=2026-02", "month=2024-01&until=2026-01", "month=March"):
        assert (await api("GET", f"/api/v1/reports/revenue?{wrong}")).status == 400


@pytest.mark.parametrize(
    ("days", "age"),
    [(-1, 0), (0, 1), (29, 1), (30, 2), (59, 2), (60, 3), (89, 3), (90, 4), (1_000, 4)],
)
def test_a_debt_ages_from_the_moment_it_is_due(days: int, age: int) -> None:
    assert age_of(ISSUED_US, ISSUED_US + days * DAY_US) == age


async def test_what_is_owed_stands_under_its_age(api: Api) -> None:
    kv = api.kv
    await change_customer(kv, "other", payment_terms_days=10)
    await an_invoice(kv, "other", [line(100_00)], month=Month(2025, 12))  # Due on the 14th of January.
    await an_invoice(kv, "other", [line(10_00)])  # Due on the 14th of April.
    api.clock.us = MARCH.end_s * SECOND_US + 10 * DAY_US
    await an_invoice(kv, "small", [line(5_00)])
    found = {one["tenant"]: one for one in await rows(api, "aging")}
    assert set(found) == {"other", "small"}
    other = found["other"]
    ages = ("not_due", "due_30", "due_60", "due_90", "due_longer")
    assert [other[age] for age in ages] == [11_90, 0, 0, 119_00, 0]
    assert (other["open"], other["invoices"], other["currency"]) == (130_90, 2, "DZD")
    assert other["oldest_due"] == "2026-01-14T00:00:00Z"
    assert (found["small"]["currency"], found["small"]["resellers"]) == ("EUR", ["big", "mid"])


async def test_usage_is_summed_over_what_is_sealed(api: Api) -> None:
    kv = api.kv
    for number, tenant in ((1, "lower"), (2, "lower"), (3, "other")):
        title = TitleRecord(tenant=tenant, project="", name=f"b{number}", created_us=1)
        add: dict[bytes, Add] = {}
        count(add, number, "", MARCH.begin_s, stored=1_000, requests=2)
        add[meter_prefix(MARCH.first_hour, number, "") + b"o"] = Add(70)
        await kv.commit(Transaction(put={title_key(number): encode(title)}, add=add))
    await move_mark(kv, MARCH.first_hour)
    await Metering(kv, FakeClock((MARCH.begin_s + 2 * 3_600 + SETTLE_S) * SECOND_US)).run()
    found = {one["tenant"]: one for one in await rows(api, "usage?month=2026-03")}
    assert len(found) == 6  # Those too that used nothing.
    lower = found["lower"]
    assert lower["stored_byte_seconds"] == 2 * 1_000 * 7_200
    assert (lower["requests_a"], lower["sent_internet_bytes"]) == (4, 140)
    assert found["other"]["stored_byte_seconds"] == 1_000 * 7_200
    assert found["big"]["stored_byte_seconds"] == 0


async def test_a_reseller_sees_itself_and_its_customers_and_a_tenant_itself(api: Api) -> None:
    for tenant in ("lower", "other", "small"):
        await an_invoice(api.kv, tenant, [line(10_00)])

    async def seen(caller: str) -> dict[str, list[str]]:
        return {one["tenant"]: one["resellers"] for one in await rows(api, "usage?month=2026-03", caller)}

    assert await seen("upper-billing") == {"upper": [], "lower": []}
    assert await seen("lower-reader") == {"lower": []}
    assert [one["tenant"] for one in await rows(api, "revenue?month=2026-03", "upper-owner")] == ["lower"]
    assert [one["tenant"] for one in await rows(api, "aging", "other-owner")] == ["other"]
