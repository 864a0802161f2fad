"""Credit notes: what of a final invoice is given back, and nothing but that.

A credit note is issued in one commit: lines that are at most what is left of the invoice's own, its taxes
mirrored, a number of its own series, and what becomes of the invoice. What had been paid already goes to the
customer's wallet. Its amounts are below zero, so that all documents of a customer add up.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import msgspec

from objstore.errors import BadArgument
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import decode
from objstore.rental import wallets
from objstore.rental.carried import part_of
from objstore.rental.changes import Change, commit_change
from objstore.rental.drafts import seller_snapshot
from objstore.rental.lines import check_lines, pack_lines, read_document_pages, unpack_lines
from objstore.rental.money import Money, parse_decimal, round_half_up
from objstore.rental.names import check_id
from objstore.rental.records import (
    CustomerRecord,
    InvoiceRecord,
    Line,
    TaxLine,
    credit_key,
    document_key,
    lines_key,
    tenant_document_key,
)
from objstore.rental.sellers import read_seller
from objstore.rental.series import CREDIT_NOTE, issue
from objstore.rental.settlement import find_final, open_amount, put_settled
from objstore.rental.words import in_words

REASONS: Final = ("billing_error", "sla", "goodwill", "termination")
NOTES_MAX: Final = 200  # Of one invoice.
NOTES_AT_ONCE: Final = 50


@dataclass(frozen=True, slots=True)
class Credit:
    """A part of a line that is given back."""

    line: int  # Of the invoice, from 1.
    amount: int  # Net, smallest units; of the line's own sign, and at most what is left of it.
    description: str = ""  # Empty: the line's own.


async def issue_credit_note(
    kv: Kv,
    document: str,
    invoice: str,
    given: Sequence[Credit] | None,
    *,
    reason: str,
    now_us: int,
) -> InvoiceRecord:
    """Give back a part of an invoice, or all that is left of it.

    Args:
        document: the new credit note's id, a ULID; the same again is the same credit note, issued once.
        invoice: the invoice's id.
        given: None: all that is left.

    Raises: BadArgument (no such invoice, a draft, more than is left), Overloaded, Corrupt.
    """
    if reason not in REASONS:
        raise BadArgument(f"a reason is one of {', '.join(REASONS)}", name="reason", value=reason)
    check_id(document, "credit note")

    async def decide(change: Change) -> InvoiceRecord:
        there = await change.record(document_key(document), InvoiceRecord)
        if there is None:
            return await put_credit_note(change, document, invoice, given, reason=reason, now_us=now_us)
        if there.type != CREDIT_NOTE or await change.value(credit_key(invoice, document)) is None:
            raise BadArgument(f"{document} is another document", name="document", value=document)
        return there

    return await commit_change(kv, decide, what=f"invoice {invoice}")


async def put_credit_note(
    change: Change,
    document: str,
    invoice: str,
    given: Sequence[Credit] | None,
    *,
    reason: str,
    now_us: int,
) -> InvoiceRecord:
    """`issue_credit_note` as a part of a greater change; the document is a new one."""
    if await change.value(document_key(document)) is not None:
        raise BadArgument(f"there is a document {document}", name="document", value=document)
    original = await find_final(change, invoice)
    seller = await read_seller(change, original.seller)
    lines = unpack_lines(await read_document_pages(change.kv, original.id, original.pages))
    # What was credited before is scanned, not expected: each credit note changes the invoice, which is.
    before = await credited_before(change.kv, invoice)
    if given is None:
        given = credits_left(lines, before)
    mirrored, taxes = mirror_taxes(original.taxes, lines, before, mirror_lines(lines, before, given))
    net = sum(line.net for line in mirrored)
    total = net + sum(tax.amount for tax in taxes)
    left = original.total - original.credited
    if total > 0 or -total > left or not mirrored:
        raise BadArgument(
            f"{original.number} has {Money(left, original.currency)} left to give back, not "
            f"{Money(-total, original.currency)}",
            name="credits",
        )
    language = decode(original.customer_snapshot, CustomerRecord).language
    stored = pack_lines(check_lines(mirrored))
    record = InvoiceRecord(
        id=document,
        type=CREDIT_NOTE,
        tenant=original.tenant,
        seller=original.seller,
        state="final",
        period_begin_us=original.period_begin_us,
        period_end_us=original.period_end_us,
        currency=original.currency,
        customer_snapshot=original.customer_snapshot,
        seller_snapshot=seller_snapshot(seller),
        pages=len(stored),
        taxes=taxes,
        total_net=net,
        total_tax=total - net,
        total=total,
        words=in_words(Money(total, original.currency), language),
        made_us=now_us,
        corrects=original.number,
        reason=reason,
        purchase_order=original.purchase_order,
        fx=original.fx,
    )
    record = await issue(change, seller, record, stored, now_us=now_us)
    _put_note(change, record, original, stored)
    await _give_back(change, original, -total, record)
    return record


def _put_note(
    change: Change, record: InvoiceRecord, original: InvoiceRecord, stored: Sequence[bytes]
) -> None:
    change.put(document_key(record.id), record)
    for page, value in enumerate(stored):
        change.put_value(lines_key(record.id, page), value)
    change.put_value(tenant_document_key(record.tenant, record.id), b"")
    change.put_value(credit_key(original.id, record.id), b"")


async def _give_back(change: Change, original: InvoiceRecord, amount: int, note: InvoiceRecord) -> None:
    """Against what is open of the invoice; what was paid already goes to the wallet."""
    returned = max(0, amount - open_amount(original))
    put_settled(
        change,
        original,
        now_us=note.issued_us,
        credited=original.credited + amount,
        returned=original.returned + returned,
    )
    await wallets.move(
        change,
        original.tenant,
        Money(returned, original.currency),
        kind=wallets.CREDITED,
        document=note.id,
        at_us=note.issued_us,
    )


async def credit_notes(kv: Kv, invoice: str) -> AsyncIterator[InvoiceRecord]:
    """Of an invoice, in order of making."""
    prefix = credit_key(invoice, "")
    async for pairs in pages(kv, prefix, prefix_end(prefix), NOTES_AT_ONCE):
        values = await kv.get_many([document_key(key[len(prefix) :].decode()) for key, _ in pairs])
        for value in values:
            if value is not None:
                yield decode(value, InvoiceRecord)


async def credited_before(kv: Kv, invoice: str) -> dict[int, int]:
    """What was given back of an invoice's lines: by line from 1, net, of the line's own sign.

    Raises: BadArgument (no more credit notes fit), Corrupt.
    """
    found: dict[int, int] = {}
    count = 0
    async for record in credit_notes(kv, invoice):
        count += 1
        for line in unpack_lines(await read_document_pages(kv, record.id, record.pages)):
            found[line.corrects] = found.get(line.corrects, 0) - line.net
    if count >= NOTES_MAX:
        raise BadArgument(f"an invoice has at most {NOTES_MAX} credit notes", name="invoice", value=invoice)
    return found


def credits_left(lines: Sequence[Line], before: Mapping[int, int]) -> list[Credit]:
    """All that was not given back yet."""
    left = [(number, line.net - before.get(number, 0)) for number, line in enumerate(lines, 1)]
    return [Credit(number, amount) for number, amount in left if amount]


def mirror_lines(lines: Sequence[Line], before: Mapping[int, int], given: Sequence[Credit]) -> list[Line]:
    """A credit note's lines, below zero where the invoice's are above it, each with the invoice's tax line.

    Raises: BadArgument (no such line, one twice, or more than is left of it).
    """
    mirrored: list[Line] = []
    seen: set[int] = set()
    for credit in given:
        if not 1 <= credit.line <= len(lines) or credit.line in seen:
            raise BadArgument(
                f"line {credit.line} is named twice, or is none of {len(lines)}",
                name="line",
                value=str(credit.line),
            )
        seen.add(credit.line)
        line = lines[credit.line - 1]
        left = line.net - before.get(credit.line, 0)
        if not credit.amount or credit.amount * left < 0 or abs(credit.amount) > abs(left):
            raise BadArgument(
                f"line {credit.line} has {left} left to give back, not {credit.amount}",
                name="amount",
                value=str(credit.amount),
            )
        mirrored.append(
            msgspec.structs.replace(
                part_of(line, -credit.amount),
                kind="credit",
                description=credit.description or line.description,
                corrects=credit.line,
            )
        )
    return mirrored


def mirror_taxes(
    taxes: Sequence[TaxLine], lines: Sequence[Line], before: Mapping[int, int], mirrored: Sequence[Line]
) -> tuple[list[Line], list[TaxLine]]:
    """The taxes of what is given back: with all that was given back before they are those of the sum, so
    that credit notes for all of an invoice give back its very tax.

    Returns:
        The lines with their places among the credit note's own tax lines, and these.

    Raises: BadArgument, where more of a rate would be given back than was charged.
    """
    found: list[TaxLine] = []
    places: dict[int, int] = {}
    for number, tax in enumerate(taxes, 1):
        base = sum(line.net for line in mirrored if line.tax == number)
        if not any(line.tax == number for line in mirrored):
            continue
        gone = sum(amount for line, amount in before.items() if lines[line - 1].tax == number)
        if not min(0, tax.base) <= gone - base <= max(0, tax.base):
            # Of a line whose discount stands beside it, say: more tax of this rate than there was.
            raise BadArgument(
                f"{tax.label} was charged on {tax.base}: {tax.base - gone} of it are left to give back, not "
                f"{-base}",
                name="credits",
            )
        amount = _tax_of(tax, gone) - _tax_of(tax, gone - base)
        found.append(msgspec.structs.replace(tax, base=base, amount=amount))
        places[number] = len(found)
    return [msgspec.structs.replace(line, tax=places[line.tax]) for line in mirrored], found


def _tax_of(tax: TaxLine, base: int) -> int:
    if base == tax.base:
        return tax.amount
    return round_half_up(base * Fraction(parse_decimal(tax.rate, "rate")))
