"""Payments: every unit that came in is on an invoice or in the wallet, whatever bounces."""

import asyncio
import random
from datetime import date
from decimal import Decimal

import pytest
from msgspec.structs import replace

from objstore.clock import SECOND_US
from objstore.errors import BadArgument, StateForbids
from objstore.meta.kv import DictKv, Transaction, prefix_end
from objstore.meta.schema import decode, encode
from objstore.rental import wallets
from objstore.rental.credit_notes import Credit, issue_credit_note
from objstore.rental.customers import find_customer
from objstore.rental.drafts import ExchangeRate
from objstore.rental.invoices import find_document, list_documents
from objstore.rental.money import Money
from objstore.rental.months import Month
from objstore.rental.payments import (
    METHODS,
    SAME_REFERENCE_MAX,
    find_payment,
    list_open,
    list_payments,
    new_payment,
    receive_payment,
    reverse_payment,
)
from objstore.rental.records import PaymentRecord, WalletEntryRecord, wallet_entry_key, wallet_key
from objstore.rental.settlement import open_amount
from tests.rental.parties import (
    DAY_US,
    ISSUED_US,
    MARCH,
    a_customer,
    a_draft,
    a_market,
    an_id,
    an_invoice,
    line,
    pay,
)
from tests.seed import SEED

APRIL = Month(2026, 4)


async def balance(kv: DictKv) -> int:
    found = await wallets.balance(kv, "acme")
    return 0 if found is None else found.minor


async def test_a_payment_pays_what_is_due_first_and_the_rest_waits_in_the_wallet() -> None:
    kv = await a_market()
    march = await an_invoice(kv, "acme", [line(1_000)])
    april = await an_invoice(kv, "acme", [line(1_000)], month=APRIL)
    first = await pay(kv, 1, "acme", 1_500)
    assert [(one.invoice, one.amount) for one in first.allocations] == [(march.id, 1_190), (april.id, 310)]
    assert [await _state(kv, one.id) for one in (march, april)] == ["paid", "final"]
    second = await pay(kv, 2, "acme", 1_000)
    assert (second.allocations[0].amount, second.to_wallet) == (880, 120)
    assert await balance(kv) == 120
    assert await list_open(kv, "acme") == []
    assert [one.id for one in await list_payments(kv, "acme")] == [an_id(1), an_id(2)]


async def _state(kv: DictKv, document: str) -> str:
    return (await find_document(kv, document)).state


async def test_a_payment_is_counted_where_the_payer_says() -> None:
    kv = await a_market()
    march = await an_invoice(kv, "acme", [line(1_000)])
    april = await an_invoice(kv, "acme", [line(1_000)], month=APRIL)
    await pay(kv, 1, "acme", 1_500, [(april.id, 1_190), (march.id, 10)])
    assert [await _state(kv, one.id) for one in (march, april)] == ["final", "paid"]
    assert await balance(kv) == 300


async def test_a_payment_that_is_written_down_twice_is_counted_once() -> None:
    kv = await a_market()
    await an_invoice(kv, "acme", [line(1_000)])
    first = await pay(kv, 1, "acme", 500)
    assert await pay(kv, 1, "acme", 500) == first
    assert await find_payment(kv, first.id) == first
    with pytest.raises(BadArgument, match="another amount"):
        await pay(kv, 1, "acme", 501)


async def test_the_wallet_pays_an_invoice_and_never_more_than_it_has() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    await pay(kv, 1, "acme", 700, [])
    with pytest.raises(BadArgument, match=r"has 7\.00"):
        await pay(kv, 2, "acme", 701, method="prepaid")
    await pay(kv, 2, "acme", 600, method="prepaid")
    assert await balance(kv) == 100
    assert open_amount(await find_document(kv, invoice.id)) == 590
    await pay(kv, 3, "acme", 590)
    with pytest.raises(BadArgument, match="stays in the wallet"):
        await pay(kv, 4, "acme", 50, method="prepaid")


async def test_a_cheque_that_bounces_opens_its_invoices_and_takes_back_what_went_to_the_wallet() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    payment = await pay(kv, 1, "acme", 1_500)
    assert (await _state(kv, invoice.id), await balance(kv)) == ("paid", 310)
    for _ in range(2):
        reversed_ = await reverse_payment(kv, payment.id, reason="sans provision", now_us=ISSUED_US + 1)
    assert (reversed_.state, reversed_.reason) == ("reversed", "sans provision")
    assert (await _state(kv, invoice.id), await balance(kv)) == ("final", 0)
    assert await list_open(kv, "acme") == [invoice.id]


async def test_a_wallet_that_was_spent_before_its_cheque_bounced_is_owed_and_filled_first() -> None:
    kv = await a_market()
    payment = await pay(kv, 1, "acme", 1_000, [])
    april = await an_invoice(kv, "acme", [line(1_000)], month=APRIL)
    assert april.prepaid == 1_000
    await reverse_payment(kv, payment.id, reason="sans provision", now_us=ISSUED_US)
    assert await balance(kv) == -1_000
    assert (await an_invoice(kv, "acme", [line(10)], month=MARCH)).prepaid == 0
    await pay(kv, 2, "acme", 1_200, [])
    assert await balance(kv) == 200
    assert await wallets.verify_wallet(kv, "acme") == []


async def test_a_bounce_undoes_what_a_credit_note_gave_back_because_it_had_been_paid() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    payment = await pay(kv, 1, "acme", 1_190)
    await issue_credit_note(kv, an_id(9), invoice.id, None, reason="goodwill", now_us=ISSUED_US)
    assert await balance(kv) == 1_190
    await reverse_payment(kv, payment.id, reason="sans provision", now_us=ISSUED_US)
    assert await balance(kv) == 0
    record = await find_document(kv, invoice.id)
    assert (record.state, open_amount(record)) == ("cancelled", 0)


async def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    kv = await a_market("acme", "bolt")
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    theirs = await an_invoice(kv, "bolt", [line(1_000)])
    draft = await a_draft(kv, "acme", [line(1)], month=APRIL)
    before = await kv.scan(b"", b"\xff", 1_000)
    for amount, invoices in (
        (100, [(theirs.id, 100)]),
        (100, [(draft.id, 1)]),
        (100, [("01NOSUCH", 1)]),
        (100, [(invoice.id, 101)]),
        (2_000, [(invoice.id, 1_191)]),
        (100, [(invoice.id, 50), (invoice.id, 50)]),
        (100, [(invoice.id, 0)]),
        (100, [(invoice.id, -1)]),
    ):
        with pytest.raises(BadArgument):
            await pay(kv, 1, "acme", amount, invoices)
    their_draft = await a_draft(kv, "bolt", [line(1)], month=APRIL)
    note = await issue_credit_note(
        kv, an_id(9), theirs.id, [Credit(1, 1)], reason="goodwill", now_us=ISSUED_US
    )
    before = await kv.scan(b"", b"\xff", 1_000)
    for other in (theirs, their_draft, note):  # As if it were not there.
        with pytest.raises(BadArgument, match=f"^there is no document '{other.id}'$"):
            await pay(kv, 1, "acme", 100, [(other.id, 100)])
    ahead = new_payment(an_id(1), "acme", "especes", Money(1, "DZD"), received_us=ISSUED_US + 2 * DAY_US)
    with pytest.raises(BadArgument, match="lies ahead"):
        await receive_payment(kv, ahead, None, now_us=ISSUED_US)
    born_us = (await find_customer(kv, "acme")).created_us
    for early_us in (born_us - DAY_US - 1, 0, -1):
        early = new_payment(an_id(1), "acme", "especes", Money(1, "DZD"), received_us=early_us)
        with pytest.raises(BadArgument, match="was no customer yet"):
            await receive_payment(kv, early, None, now_us=ISSUED_US)
    with pytest.raises(BadArgument, match="no customer"):
        await pay(kv, 1, "nobody", 1)
    with pytest.raises(BadArgument, match="no administration"):
        await pay(kv, 1, "acme", 1, method="mandat_administratif")
    with pytest.raises(BadArgument, match="no payment"):
        await reverse_payment(kv, an_id(1), reason="", now_us=1)
    assert await kv.scan(b"", b"\xff", 1_000) == before


def test_what_came_in_is_checked_before_it_is_written_down() -> None:
    assert METHODS == (
        "virement", "cheque", "cib_edahabia", "carte", "especes", "mandat_administratif", "prepaid",
    )  # fmt: skip
    for method, amount, reference in (
        ("bitcoin", 1, "x"),
        ("cheque", 1, ""),
        ("cheque", 0, "x"),
        ("cheque", -1, "x"),
        ("especes", 1, "x" * 101),
    ):
        with pytest.raises(BadArgument):
            new_payment(an_id(1), "acme", method, Money(amount, "DZD"), received_us=1, reference=reference)


@pytest.mark.parametrize("made", ["", "1", "01KN\0" + "0" * 21, "8" + "0" * 25, "0" * 25 + "u", "0" * 27])
async def test_an_id_that_is_none_becomes_no_key(made: str) -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    with pytest.raises(BadArgument, match="ULID"):
        new_payment(made, "acme", "especes", Money(1, "DZD"), received_us=1)
    with pytest.raises(BadArgument, match="ULID"):
        await issue_credit_note(kv, made, invoice.id, None, reason="sla", now_us=ISSUED_US)


@pytest.mark.parametrize("method", ["especes", "prepaid"])
async def test_cash_and_the_wallets_own_do_not_bounce(method: str) -> None:
    kv = await a_market()
    await an_invoice(kv, "acme", [line(1_000)])
    await pay(kv, 1, "acme", 100, [])
    payment = await pay(kv, 2, "acme", 100, method=method)
    with pytest.raises(StateForbids, match="does not bounce"):
        await reverse_payment(kv, payment.id, reason="", now_us=1)


async def test_cash_that_was_written_down_by_mistake_is_taken_back() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    wrong = await pay(kv, 1, "acme", 10_000, method="especes")
    assert (await _state(kv, invoice.id), await balance(kv)) == ("paid", 10_000 - 1_190)
    undone = await reverse_payment(
        kv, wrong.id, reason="one zero too many", now_us=ISSUED_US, entry_error=True
    )
    assert (undone.state, undone.reason) == ("reversed", "one zero too many")
    assert (await _state(kv, invoice.id), await balance(kv)) == ("final", 0)
    await _all_is_accounted_for(kv)
    await pay(kv, 2, "acme", 1_000, method="especes")
    await _all_is_accounted_for(kv)


async def test_what_the_wallet_paid_is_not_taken_back_as_a_mistake_either() -> None:
    kv = await a_market()
    await an_invoice(kv, "acme", [line(1_000)])
    await pay(kv, 1, "acme", 100, [])
    payment = await pay(kv, 2, "acme", 100, method="prepaid")
    with pytest.raises(StateForbids, match="credit note"):
        await reverse_payment(kv, payment.id, reason="", now_us=1, entry_error=True)


async def came_in(
    kv: DictKv, number: int, reference: str, *, method: str = "cheque", again: bool = False
) -> PaymentRecord:
    payment = new_payment(
        an_id(number), "acme", method, Money(100, "DZD"), received_us=ISSUED_US, reference=reference
    )
    return await receive_payment(kv, payment, [], now_us=ISSUED_US, again=again)


@pytest.mark.parametrize("reference", ["BNA 0012345", "bna  0012345 "])
async def test_a_cheque_is_written_down_once_unless_it_is_meant(reference: str) -> None:
    kv = await a_market()
    first = await came_in(kv, 1, "BNA 0012345")
    before = await kv.scan(b"", b"\xff", 1_000)
    with pytest.raises(StateForbids, match=f"payment {first.id} of 1.00 DZD .*--again"):
        await came_in(kv, 2, reference)
    assert await kv.scan(b"", b"\xff", 1_000) == before
    await came_in(kv, 3, reference, method="virement")  # A transfer's number is another one.
    await came_in(kv, 4, reference, again=True)
    assert await balance(kv) == 300


async def test_a_cheque_that_bounced_may_be_presented_again() -> None:
    kv = await a_market()
    first = await came_in(kv, 1, "A1")
    await reverse_payment(kv, first.id, reason="sans provision", now_us=ISSUED_US)
    second = await came_in(kv, 2, "A1")
    with pytest.raises(StateForbids, match=second.id):
        await came_in(kv, 3, "A1")
    assert await balance(kv) == 100


@pytest.mark.parametrize(("reversed_one", "left"), [(1, 2), (2, 1)])
async def test_of_two_payments_with_one_reference_the_one_that_stands_keeps_a_third_out(
    reversed_one: int, left: int
) -> None:
    kv = await a_market()
    await came_in(kv, 1, "A1")
    await came_in(kv, 2, "A1", again=True)
    await reverse_payment(kv, an_id(reversed_one), reason="twice", now_us=ISSUED_US, entry_error=True)
    with pytest.raises(StateForbids, match=an_id(left)):
        await came_in(kv, 3, "A1")
    await reverse_payment(kv, an_id(left), reason="twice", now_us=ISSUED_US, entry_error=True)
    await came_in(kv, 3, "A1")
    assert await balance(kv) == 100


async def test_only_so_many_payments_that_stand_share_a_reference() -> None:
    kv = await a_market()
    for number in range(1, SAME_REFERENCE_MAX + 1):
        await came_in(kv, number, "A1", again=True)
    another = SAME_REFERENCE_MAX + 1
    with pytest.raises(StateForbids, match=f"{SAME_REFERENCE_MAX} payments by cheque"):
        await came_in(kv, another, "A1", again=True)
    await reverse_payment(kv, an_id(7), reason="bounced", now_us=ISSUED_US)
    await came_in(kv, another, "A1", again=True)
    assert await balance(kv) == 100 * SAME_REFERENCE_MAX


async def test_of_two_clerks_who_write_the_same_cheque_down_at_once_one_is_told() -> None:
    kv = await a_market()
    done = await asyncio.gather(*(came_in(kv, number, "A1") for number in (1, 2)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["PaymentRecord", "StateForbids"]
    assert await balance(kv) == 100


async def test_payments_without_a_reference_are_not_taken_for_each_other() -> None:
    kv = await a_market()
    for number in (1, 2):
        await came_in(kv, number, "", method="especes")
    assert await balance(kv) == 200


async def test_an_administration_pays_by_mandate() -> None:
    kv = await a_market("other")
    await a_customer(kv, "town", "administration", purchase_order="BC 1")
    await an_invoice(kv, "town", [line(100)])
    assert (await pay(kv, 1, "town", 119, method="mandat_administratif")).allocations[0].amount == 119


async def test_money_in_another_currency_is_counted_at_the_rate_that_is_frozen_with_it() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_345_210)])
    rate = ExchangeRate(Decimal("134.521"), "DZD", "Banque d'Algérie", date(2026, 4, 3))
    payment = new_payment(
        an_id(1), "acme", "virement", Money(10_001, "EUR"), received_us=ISSUED_US, reference="v", fx=rate
    )
    payment = await receive_payment(kv, payment, None, now_us=ISSUED_US)
    assert payment.amount == 1_345_345  # 100.01 x 134.521 = 13 453.44521, half up.
    assert (payment.fx, payment.foreign) == ("134.521 DZD 2026-04-03 Banque d'Algérie", "100.01 EUR")
    assert (await find_document(kv, invoice.id)).paid == 1_345_345
    euros = new_payment(an_id(2), "acme", "especes", Money(1, "EUR"), received_us=1)
    with pytest.raises(BadArgument):
        await receive_payment(kv, euros, [(invoice.id, 1)], now_us=1)


async def test_two_payments_at_once_pay_an_invoice_once() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    await asyncio.gather(*(pay(kv, number, "acme", 1_000) for number in (1, 2, 3)))
    assert (await find_document(kv, invoice.id)).paid == 1_190
    assert await balance(kv) == 3_000 - 1_190


@pytest.mark.parametrize("place", [1, 2, 3])
async def test_whoever_touches_a_wallet_is_found_out(place: int) -> None:
    kv = await a_market()
    for number in (1, 2, 3):
        await pay(kv, number, "acme", 100, [])
    assert await wallets.verify_wallet(kv, "acme") == []
    key = wallet_entry_key("acme", place)
    value = await kv.get(key)
    assert value is not None
    entry = decode(value, WalletEntryRecord)
    for forged in (replace(entry, amount=99), replace(entry, document="x"), replace(entry, balance=0)):
        await kv.commit(Transaction(put={key: encode(forged)}))
        assert await wallets.verify_wallet(kv, "acme")
    await kv.commit(Transaction(delete=[key]))
    assert await wallets.verify_wallet(kv, "acme")
    await kv.commit(Transaction(put={key: value}))
    assert await wallets.verify_wallet(kv, "acme") == []
    await kv.commit(Transaction(delete=[wallet_key("acme")]))
    assert [number for number, _ in await wallets.list_entries(kv, "acme", after=1)] == [2, 3]


@pytest.mark.parametrize("seed", range(SEED, SEED + 30))
async def test_whatever_is_paid_credited_and_reversed_every_unit_is_accounted_for(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    kv = await a_market()
    month = MARCH
    payments: list[PaymentRecord] = []
    for number in range(1, 60):
        kind = rng.randrange(6)
        documents = [one for one in await list_documents(kv, "acme") if one.type == "invoice"]
        if kind <= 1:
            at_us = month.end_s * SECOND_US + 3 * DAY_US
            await an_invoice(kv, "acme", [line(rng.randrange(3_000))], month=month, now_us=at_us)
            month = month.following()
        elif kind <= 3:
            chosen: list[tuple[str, int]] | None = None if rng.random() < 0.5 else []
            method = "prepaid" if rng.random() < 0.3 else "cheque"
            try:
                payments.append(await pay(kv, number, "acme", rng.randrange(1, 3_000), chosen, method=method))
            except BadArgument:
                assert method == "prepaid"  # The wallet had less, or no invoice took it.
        elif kind == 4 and documents:
            invoice = rng.choice(documents)
            given = None if rng.random() < 0.3 else [Credit(1, rng.randrange(1, 1_500))]
            try:
                await issue_credit_note(
                    kv, an_id(1_000 + number), invoice.id, given, reason="goodwill", now_us=ISSUED_US
                )
            except BadArgument:
                pass  # More than is left; what was refused has changed nothing, as the sums show.
        elif payments:
            payment = rng.choice(payments)
            if payment.method == "cheque":
                await reverse_payment(kv, payment.id, reason="", now_us=ISSUED_US)
    await _all_is_accounted_for(kv)


async def _all_is_accounted_for(kv: DictKv) -> None:
    documents = await list_documents(kv, "acme")
    invoices = [one for one in documents if one.type == "invoice"]
    owed = sum(one.total for one in documents)  # Credit notes are below zero.
    stood = [one for one in await list_payments(kv, "acme", limit=1_000) if one.state == "received"]
    came = sum(one.amount for one in stood if one.method != "prepaid")
    still = sum(open_amount(one) for one in invoices)
    assert owed - came == still - await balance(kv)
    assert all(open_amount(one) >= 0 for one in invoices)
    assert sorted(await list_open(kv, "acme")) == sorted(one.id for one in invoices if open_amount(one))
    for one in invoices:
        allocated = sum(part.amount for pay_ in stood for part in pay_.allocations if part.invoice == one.id)
        assert one.paid == allocated
        settled = not open_amount(one)
        cancelled = one.credited == one.total > 0
        assert one.state == ("cancelled" if cancelled else "paid" if settled else "final")
        assert 0 <= one.returned <= one.credited <= one.total
    assert await wallets.verify_wallet(kv, "acme") == []
    entries = await kv.scan(b"Yw", prefix_end(b"Yw"), 1_000)
    assert sum(decode(value, WalletEntryRecord).amount for _, value in entries) == await balance(kv)
