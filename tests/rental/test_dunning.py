"""Dunning: what is overdue, which states follow, and that all of it ends when it is paid."""

import pytest

from objstore.meta.kv import DictKv
from objstore.rental.customers import (
    RESELLER,
    account_state,
    change_customer,
    create_customer,
    find_customer,
    new_customer,
    set_state,
)
from objstore.rental.dunning import STRICTNESS, review, review_all, wanted_state
from objstore.rental.invoices import find_document
from objstore.rental.months import Month
from objstore.rental.payments import reverse_payment
from objstore.rental.records import InvoiceRecord
from tests.rental.parties import DAY_US, ISSUED_US, SELLER, a_customer, a_market, an_invoice, line, pay


async def dun(kv: DictKv, invoice: InvoiceRecord, days: int) -> str:
    """The state of acme so many days behind the due date, and a second."""
    await review_all(kv, now_us=invoice.due_us + days * DAY_US + 1_000_000)
    return await account_state(kv, "acme")


async def test_an_account_becomes_stricter_as_days_go_by_and_is_active_again_once_all_is_paid() -> None:
    kv = await a_market("acme", "bolt")
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    states = [await dun(kv, invoice, days) for days in (-1, 0, 1, 14, 15, 44, 45, 400)]
    assert states == [
        "active", "active", "past_due", "past_due", "read_only", "read_only", "suspended", "suspended",
    ]  # fmt: skip
    assert (await find_document(kv, invoice.id)).state == "overdue"
    assert (await find_customer(kv, "acme")).state_reason == "dunning"
    await pay(kv, 1, "acme", 1_189)
    assert await dun(kv, invoice, 401) == "suspended"
    await pay(kv, 2, "acme", 1)
    assert await review(kv, "acme", now_us=invoice.due_us + 402 * DAY_US) == (0, "active")
    assert (await find_document(kv, invoice.id)).state == "paid"
    assert (await find_customer(kv, "acme")).state_reason == ""
    assert await account_state(kv, "bolt") == "active"


async def test_an_invoice_is_overdue_behind_its_due_date_and_not_on_it() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    assert (await review_all(kv, now_us=invoice.due_us)).overdue == 0
    run = await review_all(kv, now_us=invoice.due_us + 1)
    assert (run.overdue, run.moved) == (1, [])
    assert (await review_all(kv, now_us=invoice.due_us + 2)).overdue == 0


async def test_a_cheque_that_bounces_makes_its_invoice_overdue_again() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    assert await dun(kv, invoice, 20) == "read_only"
    payment = await pay(kv, 1, "acme", 1_190)
    assert await dun(kv, invoice, 21) == "active"
    await reverse_payment(kv, payment.id, reason="sans provision", now_us=ISSUED_US)
    assert (await find_document(kv, invoice.id)).state == "final"
    assert await dun(kv, invoice, 22) == "read_only"
    assert (await find_document(kv, invoice.id)).state == "overdue"


async def test_what_bounced_after_the_wallet_had_paid_with_it_is_owed_as_an_invoice_is() -> None:
    kv = await a_market()
    payment = await pay(kv, 1, "acme", 1_190, [])
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    assert (invoice.state, invoice.prepaid) == ("paid", 1_190)
    assert await dun(kv, invoice, 20) == "active"
    await reverse_payment(kv, payment.id, reason="sans provision", now_us=invoice.due_us)
    states = [await dun(kv, invoice, days) for days in (0, 2, 20)]
    assert states == ["active", "past_due", "read_only"]
    await pay(kv, 2, "acme", 1_000)
    assert await dun(kv, invoice, 50) == "suspended"
    await pay(kv, 3, "acme", 190)
    assert await dun(kv, invoice, 51) == "active"


async def test_a_state_that_an_operator_gave_is_the_operators_to_end() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    await set_state(kv, "acme", "read_only", reason="abuse", now_us=ISSUED_US)
    assert await dun(kv, invoice, 100) == "read_only"
    await pay(kv, 1, "acme", 1_190)
    assert await dun(kv, invoice, 101) == "read_only"


@pytest.mark.parametrize("state", ["past_due", "read_only"])
async def test_a_state_that_a_reseller_gave_keeps_nobody_from_being_dunned(state: str) -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    await set_state(kv, "acme", state, reason=f"{RESELLER}upper: mine", now_us=ISSUED_US)
    states = [await dun(kv, invoice, days) for days in (-1, 2, 20, 50)]
    assert states == [state, state, "read_only", "suspended"]
    assert (await find_customer(kv, "acme")).state_reason == "dunning"


async def test_what_a_trial_left_is_read_for_as_long_as_what_is_not_paid_and_no_longer() -> None:
    kv = await a_market("other")
    for tenant in ("acme", "stopped"):
        record = new_customer("tpe_pme", tenant, "oran")
        record = await create_customer(kv, record, now_us=ISSUED_US, trial_days=10)
    await set_state(kv, "stopped", "read_only", reason=f"{RESELLER}upper: mine", now_us=ISSUED_US)
    for days, wanted in ((0, "read_only"), (SELLER.suspended_days, "read_only"), (50, "suspended")):
        await review_all(kv, now_us=record.trial_ends_us + days * DAY_US)
        assert [await account_state(kv, one) for one in ("acme", "stopped")] == [wanted, wanted]


async def test_the_oldest_open_invoice_decides() -> None:
    kv = await a_market()
    first = await an_invoice(kv, "acme", [line(1_000)])
    second = await an_invoice(kv, "acme", [line(10)], month=Month(2026, 4))
    assert await dun(kv, first, 50) == "suspended"
    await pay(kv, 1, "acme", 1_190, [(first.id, 1_190)])
    # Issued a month later, it is due 30 days later.
    assert second.due_us - first.due_us == 30 * DAY_US
    assert await dun(kv, first, 50) == "read_only"
    assert await dun(kv, first, 40) == "past_due"


async def test_a_trial_that_is_over_may_store_no_more_until_the_customer_is_active() -> None:
    kv = await a_market("other")
    record = new_customer("tpe_pme", "acme", "oran")
    record = await create_customer(kv, record, now_us=ISSUED_US, trial_days=10)
    assert await review(kv, "acme", now_us=record.trial_ends_us - 1) == (0, "")
    assert await review(kv, "acme", now_us=record.trial_ends_us) == (0, "read_only")
    assert (await find_customer(kv, "acme")).state_reason == "trial"
    assert await review(kv, "acme", now_us=record.trial_ends_us + 9 * DAY_US) == (0, "")
    assert await account_state(kv, "acme") == "read_only"


async def test_who_leaves_is_not_dunned() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    await set_state(kv, "acme", "terminating", reason="contract ended", now_us=ISSUED_US)
    assert await dun(kv, invoice, 500) == "terminating"


async def test_a_customer_that_was_active_needs_no_papers_to_be_active_again() -> None:
    kv = await a_market("other")
    await a_customer(kv, "acme")
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    assert await dun(kv, invoice, 20) == "read_only"
    await change_customer(kv, "acme", identity_checked_us=0)
    await pay(kv, 1, "acme", 1_190)
    assert await dun(kv, invoice, 21) == "active"


@pytest.mark.parametrize("state", STRICTNESS)
def test_what_dunning_did_follows_the_days_in_both_directions(state: str) -> None:
    found = [wanted_state(state, "dunning", days * DAY_US, SELLER) for days in (-5, 0, 1, 2, 15, 16, 45, 46)]
    assert found == [
        "active", "active", "active", "past_due", "past_due", "read_only", "read_only", "suspended",
    ]  # fmt: skip
