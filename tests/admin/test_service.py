"""Service levels through the API: a month as it stands, as it was settled, and what operators tell of."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from objstore.clock import SECOND_US
from objstore.meta.kv import Transaction
from objstore.meta.schema import encode
from objstore.rental.availability import EVERYBODY, ServedDayRecord, day_key
from objstore.rental.catalogue import publish_plan, put_service_level
from objstore.rental.meters import HOUR_S
from objstore.rental.months import Month
from objstore.rental.plan_changes import give_plan
from objstore.rental.service_levels import S3_STANDARD
from objstore.rental.usage import move_mark
from objstore.s3.availability import Availability
from objstore.upkeep.metering import SETTLE_S, Metering
from tests.admin.api import Api, people, serving
from tests.objects.fakes import FakeClock
from tests.rental.cards import plan, rate
from tests.rental.parties import DAY_US

APRIL = Month(2026, 4)
BEGIN = APRIL.begin_s
DAY = APRIL.first_hour // 24


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """`lower` was promised s3-standard from April on; three hours of April are sealed, one is open."""
    async with serving() as one:
        await people(one)
        kv = one.kv
        await put_service_level(kv, S3_STANDARD, made_us=1)
        card = plan(rate("10", storage_class="STANDARD"), currency="DZD", sla="s3-standard")
        await publish_plan(kv, card, made_us=1)
        await give_plan(kv, "lower", "test", now_us=BEGIN * SECOND_US - DAY_US)
        await move_mark(kv, APRIL.first_hour)
        counts = Availability()
        # From 00:05 to 02:59 all minutes but 01:00 to 01:02 were served, and two of eight requests failed.
        bits = sum(1 << minute for minute in range(5, 180) if minute not in (60, 61))
        served = ServedDayRecord(minutes=bits.to_bytes(180, "little"))
        await kv.commit(Transaction(put={day_key(EVERYBODY, DAY): encode(served)}))
        for at_s, requests, failures in ((1_200, 8, 2), (3_600, 4, 0), (3 * HOUR_S, 7, 3)):
            for number in range(requests):
                counts.note("lower", number < failures)
            counts.turn(BEGIN + at_s)
        await counts.commit(kv)
        one.clock.us = (BEGIN + 3 * HOUR_S + SETTLE_S) * SECOND_US
        await Metering(kv, FakeClock(one.clock.us)).run()
        yield one


async def get(api: Api, path: str, **given: Any) -> Any:
    answer = await api("GET", f"/api/v1/{path}", **given)
    assert answer.status == 200, answer
    return answer.body


async def test_a_month_is_shown_as_far_as_it_is_sealed_with_its_proof(api: Api) -> None:
    shown = await get(api, "tenants/lower/service")
    items = shown.pop("items")
    # 36 intervals: a quarter of one, two fifths of another: 1 - 0.65 / 36.
    assert shown == {
        "month": "2026-04",
        "begin": "2026-04-01T00:00:00Z",
        "end": "2026-04-01T03:00:00Z",
        "uptime": "98.1944",
        "counted": 36,
        "levels": [{"level": "s3-standard", "share": "0.25"}],
        "open_requests": 7,
        "open_failures": 3,
        "invoice": "",
        "credits": [],
        "next": None,
    }
    assert [(one["begin"][11:16], one["error_rate"], one["minutes_unserved"]) for one in items] == [
        ("00:20", "1/4", 0),
        ("01:00", "2/5", 2),
    ]


async def test_the_proof_comes_in_pages(api: Api) -> None:
    first = await get(api, "tenants/lower/service?month=2026-04&limit=1")
    second = await get(api, f"tenants/lower/service?month=2026-04&limit=1&cursor={first['next']}")
    assert [one["begin"][11:16] for one in first["items"] + second["items"]] == ["00:20", "01:00"]
    assert second["next"] is None


async def test_the_report_has_every_customer_as_it_stands(api: Api) -> None:
    rows = {one["tenant"]: one for one in (await get(api, "reports/service-levels"))["items"]}
    assert rows["lower"] == {
        "tenant": "lower",
        "resellers": ["upper"],
        "level": "s3-standard",
        "uptime": "98.1944",
        "failed": 2,
        "share": "0.25",
        "currency": "DZD",
        "credit": None,
    }
    # Nothing was promised to it; the minutes are those of the store.
    assert (rows["other"]["level"], rows["other"]["uptime"], rows["other"]["share"]) == ("", "98.8888", "0")
    assert (await get(api, "reports/service-levels?month=2026-05"))["items"] == []


async def test_a_reseller_sees_how_its_customers_were_served(api: Api) -> None:
    token = await api.token_of("upper-reader")
    rows = (await get(api, "reports/service-levels", token=token))["items"]
    assert {one["tenant"]: one["share"] for one in rows} == {"upper": "0", "lower": "0.25"}


async def test_maintenance_is_announced_and_taken_back(api: Api) -> None:
    body = {"kind": "maintenance", "begin": "2026-04-02T00:00:00Z", "end": "2026-04-02T01:00:00Z"}
    refused = await api("POST", "/api/v1/service-events", body)
    assert refused.status == 400
    made = await api("POST", "/api/v1/service-events", {**body, "reason": "new switches"})
    assert (made.status, made.body["reason"], made.body["tenant"]) == (201, "new switches", "")
    assert (await get(api, "service-events"))["items"] == [made.body]
    late = {**body, "begin": "2026-04-01T00:00:00Z", "reason": "we forgot to say"}
    answer = await api("POST", "/api/v1/service-events", late)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (400, "/begin")
    for status in (200, 404):
        assert (await api("DELETE", f"/api/v1/service-events/{made.body['id']}")).status == status
