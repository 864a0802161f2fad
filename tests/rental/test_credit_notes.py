"""Credit notes: at most what is left, taxes mirrored to the unit, and what was paid goes to the wallet."""

import asyncio
import random
from fractions import Fraction

import pytest

from objstore.errors import BadArgument
from objstore.meta.kv import DictKv
from objstore.rental import wallets
from objstore.rental.carried import FORWARD, carry
from objstore.rental.credit_notes import Credit, credit_notes, issue_credit_note, mirror_lines, mirror_taxes
from objstore.rental.documents.content import Document
from objstore.rental.documents.pdf import Typesetter
from objstore.rental.focus import rows
from objstore.rental.invoices import finalise_due, find_document, list_documents, read_lines
from objstore.rental.money import Money, round_half_up
from objstore.rental.payments import list_open
from objstore.rental.records import InvoiceRecord, Line, TaxLine
from objstore.rental.series import verify_series
from tests.rental.parties import (
    ISSUED_US,
    a_draft,
    a_market,
    an_id,
    an_invoice,
    line,
    pay,
)
from tests.seed import SEED


async def give(
    kv: DictKv, number: int, invoice: InvoiceRecord, given: list[Credit] | None, reason: str = "billing_error"
) -> InvoiceRecord:
    return await issue_credit_note(kv, an_id(number), invoice.id, given, reason=reason, now_us=ISSUED_US)


async def test_a_credit_note_for_all_of_an_invoice_cancels_it_and_mirrors_it() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_001), line(333, product="reduced"), line(-1)])
    note = await give(kv, 1, invoice, None)
    assert (note.total, note.total_net, note.total_tax) == (
        -invoice.total,
        -invoice.total_net,
        -invoice.total_tax,
    )
    assert [(tax.base, tax.amount) for tax in note.taxes] == [(-t.base, -t.amount) for t in invoice.taxes]
    assert (note.number, note.corrects, note.type) == ("AV-2026-000001", "FA-2026-000001", "credit_note")
    assert note.words.startswith("moins ")
    assert [(one.net, one.corrects) for one in await read_lines(kv, note)] == [(-1_001, 1), (-333, 2), (1, 3)]
    assert (await find_document(kv, invoice.id)).state == "cancelled"
    assert await list_open(kv, "acme") == []
    assert await wallets.balance(kv, "acme") is None  # Nothing was paid, nothing is given back.
    assert (await verify_series(kv, "oran", 2026, "credit_note")).findings == []
    assert [one.id for one in await list_documents(kv, "acme")] == sorted([invoice.id, note.id])


async def test_a_part_that_was_given_back_lowers_what_is_open() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    await give(kv, 1, invoice, [Credit(1, 300, "Remise")])
    await pay(kv, 1, "acme", 1_190 - 357)
    record = await find_document(kv, invoice.id)
    assert (record.state, record.paid, record.credited, record.returned) == ("paid", 833, 357, 0)


async def test_what_was_paid_already_goes_to_the_wallet_and_pays_the_next_invoice() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    await pay(kv, 1, "acme", 1_000)
    await give(kv, 1, invoice, [Credit(1, 500)])  # 595 with tax, of which 190 were open.
    assert await wallets.balance(kv, "acme") == Money(595 - 190, "DZD")
    assert (await find_document(kv, invoice.id)).state == "paid"
    await give(kv, 2, invoice, None, "termination")
    assert await wallets.balance(kv, "acme") == Money(1_000, "DZD")
    assert (await find_document(kv, invoice.id)).state == "cancelled"
    assert await wallets.verify_wallet(kv, "acme") == []


@pytest.mark.parametrize(
    "given",
    [
        [Credit(1, 1_001)],
        [Credit(1, -1)],
        [Credit(1, 0)],
        [Credit(0, 1)],
        [Credit(3, 1)],
        [Credit(1, 1), Credit(1, 1)],
        [Credit(2, -50)],  # A credit of the invoice taken back alone would be a charge.
        [],
    ],
)
async def test_more_than_is_left_of_a_line_or_none_at_all_is_refused_and_changes_nothing(
    given: list[Credit],
) -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000), line(-50)])
    before = await kv.scan(b"", b"\xff", 1_000)
    with pytest.raises(BadArgument):
        await give(kv, 1, invoice, given)
    assert await kv.scan(b"", b"\xff", 1_000) == before


async def test_charges_alone_are_not_given_back_beyond_the_total() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000), line(-50)])
    with pytest.raises(BadArgument, match="left to give back"):
        await give(kv, 1, invoice, [Credit(1, 1_000)])
    await give(kv, 1, invoice, [Credit(1, 1_000), Credit(2, -50)])
    with pytest.raises(BadArgument, match="left to give back"):
        await give(kv, 2, invoice, None)


async def test_no_more_of_a_tax_is_given_back_than_was_charged() -> None:
    kv = await a_market()
    lines = [line(100_00), line(-50_00, kind="discount"), line(100_00, product="reduced")]
    invoice = await an_invoice(kv, "acme", lines)
    assert [(tax.base, tax.amount) for tax in invoice.taxes] == [(50_00, 9_50), (100_00, 9_00)]
    with pytest.raises(BadArgument, match="TVA 19 % was charged on 5000: 5000 of it are left"):
        await give(kv, 1, invoice, [Credit(1, 100_00)])
    note = await give(kv, 2, invoice, [Credit(1, 50_00)])
    assert (note.total_net, note.total_tax) == (-50_00, -9_50)
    with pytest.raises(BadArgument, match="0 of it are left"):
        await give(kv, 3, invoice, [Credit(1, 1)])
    rest = await give(kv, 4, invoice, None)
    assert (rest.total_net, rest.total_tax) == (-100_00, -9_00)


async def test_a_draft_and_a_credit_note_have_no_credit_notes_and_a_reason_is_one_of_four() -> None:
    kv = await a_market("acme", "bolt")
    draft = await a_draft(kv, "bolt", [line(1)])
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    note = await give(kv, 1, invoice, [Credit(1, 10)])
    for record in (draft, note):
        with pytest.raises(BadArgument):
            await give(kv, 2, record, [Credit(1, 1)])
    with pytest.raises(BadArgument, match="reason"):
        await give(kv, 2, invoice, None, "whim")


async def test_a_credit_note_that_is_asked_for_again_is_issued_once() -> None:
    kv = await a_market("acme", "bolt")
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    other = await an_invoice(kv, "bolt", [line(1_000)])
    first = await give(kv, 1, invoice, [Credit(1, 10)])
    assert await give(kv, 1, invoice, [Credit(1, 10)]) == first
    assert (await find_document(kv, invoice.id)).credited == 12
    with pytest.raises(BadArgument, match="another document"):
        await give(kv, 1, other, [Credit(1, 10)])


@pytest.mark.parametrize("seed", range(SEED, SEED + 20))
async def test_credit_notes_in_any_pieces_give_back_an_invoice_to_the_unit(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    kv = await a_market()
    products = ["storage", "reduced"]
    lines = [line(rng.randrange(1, 2_000), product=rng.choice(products)) for _ in range(rng.randrange(1, 30))]
    invoice = await an_invoice(kv, "acme", lines)
    paid = rng.choice([0, invoice.total, rng.randrange(invoice.total)])
    if paid:
        await pay(kv, 1, "acme", paid)
    left = [one.net for one in lines]
    for number in range(1, 40):
        chosen = [place for place in range(len(left)) if left[place] and rng.random() < 0.5]
        if not chosen:
            continue
        given = [Credit(place + 1, rng.randrange(1, left[place] + 1)) for place in chosen]
        for one in given:
            left[one.line - 1] -= one.amount
        await give(kv, number, invoice, given)
    if any(left):
        await give(kv, 99, invoice, None)
    notes = [note async for note in credit_notes(kv, invoice.id)]
    assert sum(note.total_net for note in notes) == -invoice.total_net
    assert sum(note.total_tax for note in notes) == -invoice.total_tax
    record = await find_document(kv, invoice.id)
    assert (record.state, record.credited, record.returned) == ("cancelled", invoice.total, paid)
    assert await wallets.balance(kv, "acme") == (Money(paid, "DZD") if paid else None)
    report = await verify_series(kv, "oran", 2026, "credit_note")
    assert (report.count, report.findings) == (len(notes), [])


async def test_two_that_give_back_the_same_at_once_give_it_back_once() -> None:
    kv = await a_market()
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    asked = [give(kv, number, invoice, [Credit(1, 600)]) for number in (1, 2)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(isinstance(one, BadArgument) for one in results) == [False, True]
    assert (await find_document(kv, invoice.id)).credited == 714


def test_the_tax_of_a_part_is_that_of_its_base_and_the_last_part_takes_what_rounding_left() -> None:
    lines = [Line(kind="usage", description="", net=5, tax=1)] * 3
    tax = TaxLine(label="TVA 19 %", rate="0.19", base=15, amount=3)  # 2.85.
    before: dict[int, int] = {}
    amounts = []
    for number in (1, 2, 3):
        mirrored = mirror_lines(lines, before, [Credit(number, 5)])
        _, (mine,) = mirror_taxes([tax], lines, before, mirrored)
        amounts.append(mine.amount)
        before[number] = 5
    assert amounts == [-1, -1, -1]
    assert amounts[0] == -round_half_up(5 * Fraction(19, 100))


async def test_an_invoice_that_the_wallet_paid_goes_back_to_the_wallet() -> None:
    kv = await a_market()
    await pay(kv, 1, "acme", 5_000, [])
    invoice = await an_invoice(kv, "acme", [line(1_000)])
    assert invoice.state == "paid"
    await give(kv, 1, invoice, None)
    assert await wallets.balance(kv, "acme") == Money(5_000, "DZD")
    assert (await finalise_due(kv, now_us=ISSUED_US)).issued == 0


async def test_an_invoice_and_its_credit_note_print_and_export_to_their_totals() -> None:
    kv = await a_market()
    await carry(kv, "acme", {"sla/1": line(-70, kind="credit")}, source="", now_us=1)
    await carry(kv, "acme", {"fee": line(33, kind="adjustment")}, source="", now_us=1)
    await carry(kv, "acme", {"late": line(5, kind="correction")}, source="", now_us=1)
    invoice = await an_invoice(kv, "acme", [line(1_001), line(-800, product="reduced")])
    note = await give(kv, 1, invoice, [Credit(1, 500)], "sla")
    typesetter = Typesetter()
    for record in (invoice, note):
        lines = await read_lines(kv, record)
        cost = sum(Fraction(str(row["BilledCost"])) for row in rows(record, lines))
        assert cost == Money(record.total, record.currency).exact
        assert typesetter.render(Document.of(record, lines)).startswith(b"%PDF")
    assert [one.meter for one in await read_lines(kv, invoice)][-1] == FORWARD
    assert invoice.total_net == 1_001 - 70 + 33 + 5
