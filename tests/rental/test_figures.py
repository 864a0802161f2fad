"""Leases, invoices and months in figures, beside a count by hand."""

import msgspec

from objstore.clock import SECOND_US
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import encode
from objstore.rental.availability import seal_service, served_key
from objstore.rental.figures import (
    PURGE_STATES,
    PurgeFigures,
    billing_figures,
    lease_figures,
    purge_figures,
    unserved,
)
from objstore.rental.leases import after_months
from objstore.rental.months import Month
from objstore.rental.records import LeaseRecord, PurgeRecord, SealedRecord, purge_key
from objstore.rental.service_levels import GrantedCredit, ServiceMonthRecord, service_month_key
from objstore.rental.usage import SEALED_KEY
from tests.rental.parties import DAY_US, ISSUED_US, MARCH, a_draft, a_market, an_id, an_invoice, line, pay

TB = 10**12
NOW_US = MARCH.begin_s * SECOND_US + 10 * DAY_US


def lease(number: int, **given: object) -> LeaseRecord:
    begin_us = MARCH.begin_s * SECOND_US
    base = LeaseRecord(
        id=an_id(number),
        tenant="acme",
        kind="guaranteed",
        state="active",
        capacity=2 * TB,
        begin_us=begin_us,
        end_us=after_months(begin_us, 12),
        term_months=12,
        unit_price="100.005",
    )
    return msgspec.structs.replace(base, **given)


def test_leases_are_counted_by_kind_and_state_and_what_they_promise_and_charge_is_added_up() -> None:
    found = lease_figures(
        [
            lease(1),
            lease(2, tenant="bravo", kind="dedicated", unit="PB", unit_price="7"),
            lease(3, kind="best_effort", currency="TND", unit_price="1"),
            lease(4, state="signed", begin_us=NOW_US + DAY_US),
            lease(5, state="ended"),
            lease(6, ramp=[(MARCH.begin_s * SECOND_US, TB), (NOW_US + DAY_US, 2 * TB)]),
        ],
        NOW_US,
    )
    assert found.count == {
        ("guaranteed", "active"): 2,
        ("dedicated", "active"): 1,
        ("best_effort", "active"): 1,
        ("guaranteed", "signed"): 1,
        ("guaranteed", "ended"): 1,
    }
    assert found.committed == {"acme": 3 * TB, "bravo": 2 * TB}
    # 3 TB at 100.005 and 0.002 PB at 7: 300.029 dinars, rounded once; 2 TB at one dinar of three places.
    assert found.monthly == {"DZD": 30_003, "TND": 2_000}


def test_a_lease_that_ends_is_told_unless_it_will_be_renewed() -> None:
    leases = [
        lease(1, end_us=NOW_US + 29 * DAY_US),
        lease(2, end_us=NOW_US + 30 * DAY_US, notice_us=NOW_US, renews=True),
        lease(3, end_us=NOW_US + 10 * DAY_US, renews=True),
        lease(4, end_us=NOW_US + 89 * DAY_US),
        lease(5, end_us=NOW_US + 5 * DAY_US, state="terminated"),
    ]
    assert lease_figures(leases, NOW_US).ending == {30: 1, 60: 2, 90: 3}


async def test_invoices_are_counted_by_what_is_open_of_them() -> None:
    kv = await a_market("acme", "bravo", "coral", "delta")
    paid = await an_invoice(kv, "acme", [line(1_000)])
    await pay(kv, 1, "acme", paid.total, [(paid.id, paid.total)])
    part = await an_invoice(kv, "bravo", [line(1_000)])
    await pay(kv, 2, "bravo", 190, [(part.id, 190)])
    later = await an_invoice(kv, "coral", [line(2_000)], month=MARCH.following())
    await a_draft(kv, "delta", [line(500)])
    await pay(kv, 3, "delta", 70, [])

    found = await billing_figures(kv, part.due_us + 1)
    assert found.customers == {"tpe_pme": 4}
    assert found.documents == {"invoice": 3, "credit_note": 0}
    assert found.invoices == {"draft": 1, "final": 1, "overdue": 1}
    assert found.settled == 1
    assert found.open == {"DZD": part.total - 190 + later.total}
    assert found.overdue == {"DZD": part.total - 190}
    assert found.oldest_due_us == part.due_us
    assert found.drafted == {"DZD": 595}
    assert found.wallets["DZD"] == 70
    assert (found.late_drafts, found.open_months) == (1, 1)


async def test_a_draft_is_late_when_it_could_be_final_and_the_month_before_is_added_up() -> None:
    kv = await a_market("acme", "bravo")
    draft = await a_draft(kv, "acme", [line(500)])
    await an_invoice(kv, "bravo", [line(1_500)])
    collected_us = MARCH.end_s * SECOND_US + 2 * DAY_US
    found = await billing_figures(kv, collected_us - 1)
    assert (found.late_drafts, found.open_months) == (0, 0)
    assert found.last_month == {"DZD": 2_000}
    found = await billing_figures(kv, collected_us)
    assert (found.late_drafts, found.open_months) == (1, 1)
    may_us = Month(2026, 5).begin_s * SECOND_US
    assert (await billing_figures(kv, may_us)).last_month == {}
    assert draft.made_us == ISSUED_US


async def test_what_was_given_back_for_the_month_before_is_added_up() -> None:
    kv = await a_market("acme", "bravo")
    granted = [
        GrantedCredit(level="gold", share="0.10", net=40),
        GrantedCredit(level="base", share="1", net=2),
    ]
    record = ServiceMonthRecord(invoice="FA-1", uptime="1/2", counted=2, failed=1, credits=granted)
    put = {service_month_key(tenant, MARCH): encode(record) for tenant in ("acme", "bravo")}
    await kv.commit(Transaction(put=put))
    assert (await billing_figures(kv, MARCH.end_s * SECOND_US)).credited == {"DZD": 84}
    assert (await billing_figures(kv, MARCH.end_s * SECOND_US - 1)).credited == {}


async def test_purges_are_counted_and_the_oldest_that_is_not_proven_is_told() -> None:
    kv = DictKv()
    assert await purge_figures(kv) == PurgeFigures(count=dict.fromkeys(PURGE_STATES, 0), oldest_us=0)
    put = {
        purge_key(tenant): encode(PurgeRecord(tenant=tenant, by="root", begun_us=begun, state=state))
        for tenant, begun, state in (("a", 5, "proven"), ("b", 9, "clearing"), ("c", 7, "deleting"))
    }
    await kv.commit(Transaction(put=put))
    found = await purge_figures(kv)
    assert found.count == {"deleting": 1, "clearing": 1, "proven": 1}
    assert found.oldest_us == 7


async def test_minutes_that_nobody_served_are_counted_of_this_month_as_far_as_it_is_sealed() -> None:
    kv = DictKv()
    served = {served_key(MARCH.begin_s // 60 + minute): b"" for minute in (0, 1, 2, 5, 61)}
    await kv.commit(Transaction(put=served))
    await seal_service(kv, MARCH.first_hour + 1)
    now_us = (MARCH.begin_s + 7_000) * SECOND_US
    assert await unserved(kv, now_us) == 0, "no hour is sealed yet"
    await kv.commit(Transaction(put={SEALED_KEY: encode(SealedRecord(hour=MARCH.first_hour + 1))}))
    assert await unserved(kv, now_us) == 60 - 4
    assert await unserved(kv, MARCH.end_s * SECOND_US) == 0, "another month"


async def test_a_store_without_customers_has_figures_too() -> None:
    found = await billing_figures(await a_market(), NOW_US)
    assert found.settled == 0
    assert found.open == found.overdue == found.wallets == {}
