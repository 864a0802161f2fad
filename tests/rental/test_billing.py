"""A month's invoices from what was stored and leased: everybody once, in any order of accidents."""

from fractions import Fraction

import msgspec
import pytest

from objstore.clock import SECOND_US
from objstore.errors import BadArgument, MetaUnavailable
from objstore.meta.kv import Add, DictKv, Transaction
from objstore.meta.schema import AccountRecord, TitleRecord, account_key, encode, title_key
from objstore.rental.billing import MonthRun, draft_month
from objstore.rental.carried import list_carried
from objstore.rental.catalogue import publish_plan
from objstore.rental.customers import create_customer, new_customer, set_state
from objstore.rental.invoices import finalise_due, list_documents, read_lines
from objstore.rental.leases import make_lease, sign, terminate
from objstore.rental.meters import SENT_INTERNET, count, meter_prefix
from objstore.rental.months import Month
from objstore.rental.plan_changes import give_plan, start_plans
from objstore.rental.records import Line, customer_key
from objstore.rental.usage import accept_hour, sealed_until
from objstore.upkeep.metering import SETTLE_S, Metering
from tests.objects.fakes import FakeClock
from tests.rental.cards import DAY_S, GB, TB, plan, rate
from tests.rental.parties import DAY_US, MARCH, RULES, a_customer, a_market, randomness
from tests.rental.test_leases import SURVEY, lease

APRIL, MAY = MARCH.following(), MARCH.following().following()


async def a_store(*tenants: str) -> DictKv:
    """Tenants with a plan (10 DZD a GB and month, 1 DZD a GB sent) and a bucket each."""
    kv = await a_market(*tenants)
    card = plan(rate("10", storage_class="STANDARD"), rate("1", meter="egress_internet"), currency="DZD")
    await publish_plan(kv, card, made_us=1)
    for number, tenant in enumerate(tenants, 1):
        await give_plan(kv, tenant, "test", now_us=MARCH.begin_s * SECOND_US)
        title = TitleRecord(tenant=tenant, project="", name=f"of-{tenant}", created_us=1)
        await kv.commit(Transaction(put={title_key(number): encode(title)}))
    return kv


async def store(kv: DictKv, bucket: int, at_s: int, size: int) -> None:
    add: dict[bytes, Add] = {}
    count(add, bucket, "", at_s, stored=size)
    await kv.commit(Transaction(add=add))


async def seal(kv: DictKv, month: Month) -> None:
    await accept_hour(kv, month.first_hour + month.hours)  # However many months were slept through.
    for _ in range(5):  # A run takes a bounded number of hours.
        await Metering(kv, FakeClock((month.end_s + SETTLE_S) * SECOND_US)).run()
    assert await sealed_until(kv) >= month.first_hour + month.hours


async def bill(kv: DictKv, month: Month, *, after: str = "") -> MonthRun:
    """Three days behind the month's end, as late as drafts can be made final."""
    now_us = month.end_s * SECOND_US + 3 * DAY_US
    return await draft_month(kv, month, rules=RULES, now_us=now_us, randomness=randomness(), after=after)


async def close(kv: DictKv, month: Month) -> MonthRun:
    run = await bill(kv, month)
    await finalise_due(kv, now_us=month.end_s * SECOND_US + 3 * DAY_US)
    return run


async def lines_of(kv: DictKv, tenant: str, month: Month) -> list[Line]:
    for document in await list_documents(kv, tenant):
        if document.period_begin_us == month.begin_s * SECOND_US:
            return await read_lines(kv, document)
    return []


async def test_everybodys_month_is_drafted_once_however_often_it_is_run() -> None:
    kv = await a_store("acme", "bravo", "cello")
    await store(kv, 1, MARCH.begin_s, 3 * GB)
    await store(kv, 2, MARCH.begin_s + DAY_S, 31 * GB)
    await seal(kv, MARCH)
    told: list[str] = []
    run = await draft_month(
        kv,
        MARCH,
        rules=RULES,
        now_us=MARCH.end_s * SECOND_US,
        randomness=randomness(),
        progress=lambda so_far: told.append(so_far.after),
    )
    assert (run.tenants, run.drafts, run.nothing, run.problems) == (3, 2, 1, [])
    assert told == ["acme", "bravo", "cello"]
    assert [line.net for line in await lines_of(kv, "acme", MARCH)] == [30_00]
    assert [line.net for line in await lines_of(kv, "bravo", MARCH)] == [300_00]
    before = await kv.scan(b"Y", b"Z", 10_000)
    assert (await bill(kv, MARCH)).drafts == 2
    assert await kv.scan(b"Y", b"Z", 10_000) == before


async def test_a_month_that_is_not_over_or_not_sealed_is_not_drafted() -> None:
    kv = await a_store("acme")
    with pytest.raises(BadArgument, match="2026-03 is not over"):
        await draft_month(kv, MARCH, rules=RULES, now_us=MARCH.end_s * SECOND_US - 1, randomness=randomness())
    with pytest.raises(BadArgument, match="not all hours of 2026-03 are sealed"):
        await bill(kv, MARCH)


async def test_what_is_wrong_with_one_customer_is_told_and_stops_no_other() -> None:
    kv = await a_store("acme", "cello")
    await a_customer(kv, "bravo")  # Without a version of a plan.
    for bucket in (1, 2):
        await store(kv, bucket, MARCH.begin_s, GB)
    requests = {meter_prefix(MARCH.first_hour, 1, "") + b"a": Add(5)}
    await kv.commit(Transaction(add=requests))
    await seal(kv, MARCH)
    run = await bill(kv, MARCH)
    assert (run.drafts, [tenant for tenant, _ in run.problems]) == (2, ["bravo"])
    assert run.unpriced == [("acme", "requests_a")]


async def test_a_broken_record_of_one_tenant_holds_up_nobody_else() -> None:
    kv = await a_store("broken", "whole")
    for bucket in (1, 2):
        await store(kv, bucket, MARCH.begin_s, 10 * GB)
    await seal(kv, MARCH)
    (key, _), *_ = await kv.scan(b"hbroken\0", b"hbroken\1", 1)
    await kv.commit(Transaction(put={key: b"\x93\x01no"}))
    run = await bill(kv, MARCH)
    assert [tenant for tenant, _ in run.problems] == ["broken"]
    assert (run.tenants, run.drafts) == (2, 1)


async def test_what_went_before_it_came_by_another_gateways_clock_holds_up_nobody() -> None:
    kv = await a_store("acme", "bravo")
    await store(kv, 1, MARCH.begin_s + 100, GB)  # A part, and behind it
    await store(kv, 1, MARCH.begin_s + 99, -GB)  # its abort, by a clock that is a second late.
    await store(kv, 2, MARCH.begin_s, GB)
    await kv.commit(Transaction(add={meter_prefix(MARCH.first_hour, 1, "") + SENT_INTERNET: Add(3 * GB)}))
    await seal(kv, MARCH)
    run = await bill(kv, MARCH)
    assert (run.drafts, run.problems) == (2, [])
    assert [line.net for line in await lines_of(kv, "acme", MARCH)] == [3_00]
    assert [line.net for line in await lines_of(kv, "bravo", MARCH)] == [10_00]


async def test_a_run_that_is_cut_off_goes_on_where_it_ended() -> None:
    kv = await a_store("acme", "bravo")
    for bucket in (1, 2):
        await store(kv, bucket, MARCH.begin_s, GB)
    await seal(kv, MARCH)
    seen: list[str] = []

    def cut_off(run: MonthRun) -> None:
        seen.append(run.after)
        raise MetaUnavailable("cut off")

    with pytest.raises(MetaUnavailable):
        await draft_month(
            kv,
            MARCH,
            rules=RULES,
            now_us=MARCH.end_s * SECOND_US,
            randomness=randomness(),
            progress=cut_off,
        )
    run = await bill(kv, MARCH, after=seen[-1])
    assert (run.tenants, run.drafts) == (1, 1)
    assert await lines_of(kv, "acme", MARCH)
    assert await lines_of(kv, "bravo", MARCH)


async def test_a_plan_that_is_changed_later_does_not_change_a_month_that_is_over() -> None:
    kv = await a_store("acme")
    card = msgspec.structs.replace(plan(rate("99"), currency="DZD"), code="dear")
    await publish_plan(kv, card, made_us=1)
    await store(kv, 1, MARCH.begin_s, GB)
    await seal(kv, APRIL)
    await give_plan(kv, "acme", "dear", now_us=MARCH.begin_s * SECOND_US)
    await start_plans(kv, now_us=APRIL.begin_s * SECOND_US)
    assert (await bill(kv, MARCH)).drafts == 1
    assert (await bill(kv, APRIL)).drafts == 1
    assert [line.net for line in await lines_of(kv, "acme", MARCH)] == [10_00]
    assert [line.net for line in await lines_of(kv, "acme", APRIL)] == [99_00]


async def test_usage_that_comes_when_the_month_is_final_goes_to_the_next_invoice_once() -> None:
    kv = await a_store("acme")
    await store(kv, 1, MARCH.begin_s, 3 * GB)
    await seal(kv, MARCH)
    await close(kv, MARCH)
    sent = {meter_prefix(MARCH.first_hour + 5, 1, "") + SENT_INTERNET: Add(7 * GB)}
    await kv.commit(Transaction(add=sent))
    await seal(kv, APRIL)
    for corrections in (1, 0):
        run = await bill(kv, MARCH)
        assert (run.final, run.drafts, run.corrections) == (1, 0, corrections)
    await close(kv, APRIL)
    found = {line.kind: line.net for line in await lines_of(kv, "acme", APRIL)}
    assert found == {"usage": 30_00, "correction": 7_00}


@pytest.mark.parametrize("billing", ["advance", "arrears"])
async def test_a_lease_is_charged_for_every_second_once_also_when_it_is_ended_early(billing: str) -> None:
    kv = await a_store("acme")
    begin_us = (MARCH.begin_s + 10 * DAY_S) * SECOND_US
    record = lease(
        months=6,
        begin_us=begin_us,
        capacity=TB,
        currency="DZD",
        billing=billing,
        unit_price="31.00",
        fee_share="0",
    )
    await make_lease(kv, record, now_us=MARCH.begin_s * SECOND_US)
    await sign(kv, record.id, SURVEY, now_us=MARCH.begin_s * SECOND_US)
    await store(kv, 1, MARCH.begin_s + 10 * DAY_S, GB)  # Within the lease: not billed beside it.
    end_s = MAY.begin_s + 5 * DAY_S
    lines: list[Line] = []
    month = MARCH
    for _ in range(5):
        if month == MAY:
            await terminate(kv, record.id, at_us=end_s * SECOND_US, now_us=(MAY.begin_s + DAY_S) * SECOND_US)
            assert (await bill(kv, APRIL)).corrections == 0  # What was promised is not corrected.
        await seal(kv, month)
        await close(kv, month)
        lines += await lines_of(kv, "acme", month)
        month = month.following()
    charged = [line for line in lines if line.kind == "commitment"]
    assert sum(int(line.consumed) for line in charged) == TB * (end_s - begin_us // SECOND_US)
    assert any(line.net < 0 for line in charged) == (billing == "advance")
    usage = [line for line in lines if line.kind == "usage"]
    assert sum(Fraction(line.consumed) for line in usage) == GB * (month.begin_s - end_s)
    assert await list_carried(kv, "acme") == []


async def test_months_of_a_lease_in_advance_are_invoiced_in_order() -> None:
    kv = await a_store("acme")
    record = lease(begin_us=MARCH.begin_s * SECOND_US, capacity=TB, billing="advance")
    await make_lease(kv, record, now_us=MARCH.begin_s * SECOND_US)
    await sign(kv, record.id, SURVEY, now_us=MARCH.begin_s * SECOND_US)
    await seal(kv, APRIL)
    assert (await bill(kv, APRIL)).drafts == 1
    charged = [Fraction(line.quantity) for line in await lines_of(kv, "acme", APRIL)]
    assert charged == [1, 1, 1]  # March, which was left out, April and May.
    [(tenant, why)] = (await bill(kv, MARCH)).problems
    assert (tenant, "a month behind 2026-03 was invoiced already" in why) == ("acme", True)


async def test_who_became_a_customer_within_the_month_pays_the_subscription_from_then_on() -> None:
    kv = await a_market()
    await publish_plan(kv, plan(rate("1", meter="subscription", unit="Hour"), currency="DZD"), made_us=1)
    since_us = (MARCH.begin_s + 10 * DAY_S) * SECOND_US
    customer = new_customer("internal", "late", "oran", currency="DZD")
    await create_customer(kv, customer, now_us=since_us)
    for tenant in ("acme", "late"):
        await give_plan(kv, tenant, "test", now_us=since_us)
    await seal(kv, MARCH)
    assert (await bill(kv, MARCH)).problems == []
    nets = [[line.net for line in await lines_of(kv, tenant, MARCH)] for tenant in ("acme", "late")]
    assert nets == [[31 * 24 * 100], [21 * 24 * 100]]
    assert (await bill(kv, Month(2026, 2))).nothing == 2


async def test_who_was_purged_pays_until_then_and_no_more() -> None:
    kv = await a_market()
    await publish_plan(kv, plan(rate("1", meter="subscription", unit="Hour"), currency="DZD"), made_us=1)
    customer = await give_plan(kv, "acme", "test", now_us=MARCH.begin_s * SECOND_US)
    gone = msgspec.structs.replace(customer, state_since_us=(APRIL.begin_s + 2 * DAY_S) * SECOND_US)
    account = AccountRecord(state="purged")
    put = {customer_key("acme"): encode(gone), account_key("acme"): encode(account)}
    await kv.commit(Transaction(put=put))
    await seal(kv, MAY)
    for month in (MARCH, APRIL, MAY):
        assert (await bill(kv, month)).problems == []
    nets = [[line.net for line in await lines_of(kv, "acme", month)] for month in (MARCH, APRIL, MAY)]
    assert nets == [[744 * 100], [48 * 100], []]


async def test_who_is_on_trial_is_not_invoiced() -> None:
    kv = await a_market()
    await publish_plan(kv, plan(rate("1", meter="subscription", unit="Hour"), currency="DZD"), made_us=1)
    customer = new_customer("tpe_pme", "trying", "oran", currency="DZD")
    await create_customer(kv, customer, now_us=MARCH.begin_s * SECOND_US, trial_days=90)
    for tenant in ("acme", "trying"):
        await give_plan(kv, tenant, "test", now_us=MARCH.begin_s * SECOND_US)
    await seal(kv, MARCH)
    run = await bill(kv, MARCH)
    assert (run.drafts, run.nothing, await lines_of(kv, "trying", MARCH)) == (1, 1, [])


async def test_what_was_used_on_trial_is_not_invoiced_later_on() -> None:
    kv = await a_market()
    rates = (rate("1", meter="subscription", unit="Hour"), rate("10", storage_class="STANDARD"))
    await publish_plan(kv, plan(*rates, currency="DZD"), made_us=1)
    customer = new_customer(
        "tpe_pme", "trying", "oran", currency="DZD", legal_name="T", address=["1"], country="DZ",
        identity_checked_us=1,
    )  # fmt: skip
    await create_customer(kv, customer, now_us=MARCH.begin_s * SECOND_US, trial_days=40)
    for tenant in ("acme", "trying"):
        await give_plan(kv, tenant, "test", now_us=MARCH.begin_s * SECOND_US)
    title = TitleRecord(tenant="trying", project="", name="b", created_us=1)
    await kv.commit(Transaction(put={title_key(1): encode(title)}))
    await store(kv, 1, MARCH.begin_s, 30 * GB)
    await seal(kv, MAY)
    active_us = (APRIL.begin_s + 9 * DAY_S) * SECOND_US + 1
    await set_state(kv, "trying", "read_only", reason="trial", now_us=active_us - 1)
    assert (await bill(kv, MARCH)).nothing == 1  # Nothing was ordered yet.
    await set_state(kv, "trying", "active", reason="signed", now_us=active_us)
    for month in (MARCH, APRIL, MAY):
        assert (await bill(kv, month)).problems == []
    nets = [sorted(line.net for line in await lines_of(kv, "trying", month)) for month in (MARCH, APRIL, MAY)]
    # Of April's 720 hours 21 days are left, and of stored bytes the hour that had begun is not billed.
    assert nets == [[], [round(30 * 10_00 * 503 / 720), 504 * 100], [30 * 10_00, 744 * 100]]
