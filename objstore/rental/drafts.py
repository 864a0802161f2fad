"""Drafts of invoices: one of a tenant's month, made again as often as its usage changes.

Rated lines, what the tenant carries from before, taxes, totals, the total in words: one commit. A draft keeps
what it was made from, seller and customer too; if these change it is refused as final and has to be made
again. There is one invoice of a tenant and month at most, whoever asks how often.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

import msgspec

from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.ids import Randomness, ulid
from objstore.meta.kv import Kv
from objstore.meta.schema import encode
from objstore.rental.carried import carry_forward, list_carried, take_carried
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import no_such_customer
from objstore.rental.lines import check_lines, pack_lines
from objstore.rental.money import Money, parse_decimal
from objstore.rental.months import Month
from objstore.rental.names import check_text
from objstore.rental.records import (
    CustomerRecord,
    InvoiceRecord,
    Line,
    PeriodRecord,
    SellerRecord,
    customer_key,
    document_key,
    draft_key,
    lines_key,
    period_key,
    tenant_document_key,
)
from objstore.rental.sellers import read_seller
from objstore.rental.series import INVOICE
from objstore.rental.settlement import DRAFT, no_such_document
from objstore.rental.taxes import Case, TaxRule, rule_for, tax_lines, totals
from objstore.rental.words import in_words


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """What one unit of a document's currency is worth elsewhere, as it was: frozen with the document."""

    rate: Decimal
    into: str
    source: str  # "Banque d'Algérie"
    day: date

    def __str__(self) -> str:
        return f"{self.rate:f} {self.into} {self.day.isoformat()} {self.source}"

    @classmethod
    def parse(cls, text: str) -> "ExchangeRate":
        """The inverse of str(). Raises: BadArgument."""
        try:
            rate, into, day, source = text.split(" ", 3)
            found = cls(parse_decimal(rate, "exchange rate"), into, source, date.fromisoformat(day))
        except ValueError as failure:
            raise BadArgument(
                f"an exchange rate is like '134.5 DZD 2026-03-31 Banque centrale': {text!r}",
                name="fx",
                value=text[:100],
            ) from failure
        check_text(text, "fx", size_max=200)
        if found.rate <= 0 or not Money(0, into).currency or not source:
            raise BadArgument("an exchange rate is above 0 and has a source", name="fx", value=text)
        return found


def customer_snapshot(customer: CustomerRecord) -> bytes:
    """What a document keeps of a customer: what is printed or taxed, nothing of how its account stands."""
    return encode(
        msgspec.structs.replace(
            customer,
            documents=[],
            customers=0,
            reseller=False,
            identity_checked_us=0,
            state_since_us=0,
            state_reason="",
            trial_ends_us=0,
            billed_from_us=0,
            purge_after_us=0,
            next_plan="",
            next_plan_version=0,
        )
    )


def seller_snapshot(seller: SellerRecord) -> bytes:
    """What a document keeps of a seller: all that is printed, nothing of how it treats its customers."""
    plain = SellerRecord(id=seller.id, name=seller.name, address=[], country=seller.country)
    return encode(
        msgspec.structs.replace(
            seller,
            collection_hours=plain.collection_hours,
            past_due_days=plain.past_due_days,
            read_only_days=plain.read_only_days,
            suspended_days=plain.suspended_days,
            reversibility_days=plain.reversibility_days,
        )
    )


async def draft_invoice(
    kv: Kv,
    tenant: str,
    month: Month,
    lines: Sequence[Line],
    *,
    rules: Sequence[TaxRule],
    now_us: int,
    randomness: Randomness,
    fx: ExchangeRate | None = None,
) -> InvoiceRecord | None:
    """Make the draft of a tenant's month, or make it again; the invoice as it is now.

    The same lines make the same draft, and change nothing. A month that is final is left as it is: what it
    comes to by now is `correct_month`'s.

    Args:
        lines: as rated, net; what the tenant carries is added here, and taxes.
        rules: tax rules of all countries.

    Returns:
        None if there is nothing to invoice; a draft that there was is gone then.

    Raises: BadArgument (no such customer, no tax rule, too many lines), Overloaded.
    """
    check_lines(lines)

    async def decide(change: Change) -> InvoiceRecord | None:
        return await _draft(change, tenant, month, lines, rules, now_us, randomness, fx)

    return await commit_change(kv, decide, what=f"the invoice of {tenant!r} for {month}")


async def _draft(
    change: Change,
    tenant: str,
    month: Month,
    lines: Sequence[Line],
    rules: Sequence[TaxRule],
    now_us: int,
    randomness: Randomness,
    fx: ExchangeRate | None,
) -> InvoiceRecord | None:
    customer = await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
    seller = await read_seller(change, customer.seller)
    begin_us = month.begin_s * SECOND_US
    period = await change.record(period_key(tenant, begin_us), PeriodRecord)
    old = None
    if period is not None:
        key = document_key(period.invoice)
        old = await change.found(key, InvoiceRecord, no_such_document(period.invoice))
        if old.state != DRAFT:
            return old
    taken, carried = take_carried(lines, await list_carried(change.kv, tenant))
    all_lines = [*lines, *taken]
    all_lines += carry_forward(all_lines, customer.language)
    if not all_lines:
        if old is not None:
            _remove_draft(change, old)
        return None
    made = _make(seller, customer, all_lines, rules, month, fx)
    stored = pack_lines(made.lines)
    document = ulid(now_us, randomness) if old is None else old.id
    if old is None and await change.value(document_key(document)) is not None:
        raise BadArgument(f"there is a document {document}", name="document", value=document)
    record = msgspec.structs.replace(
        made.record,
        id=document,
        pages=len(stored),
        carried=carried,
        made_us=now_us if old is None else old.made_us,
        revision=1 if old is None else old.revision,
    )
    if old is not None:
        same = old == record and await _same_pages(change.kv, old, stored)
        if same and not _is_too_early(old, now_us):
            return old
        record = msgspec.structs.replace(record, made_us=now_us, revision=old.revision + 1)
    _put_draft(change, record, stored, old)
    return record


def _is_too_early(old: InvoiceRecord, now_us: int) -> bool:
    """Made while its month ran, which is over now: it is made again, and says so, though nothing came."""
    return old.made_us < old.period_end_us <= now_us


async def _same_pages(kv: Kv, old: InvoiceRecord, stored: Sequence[bytes]) -> bool:
    values = await kv.get_many([lines_key(old.id, page) for page in range(old.pages)])
    return values == list(stored)


def _put_draft(
    change: Change, record: InvoiceRecord, stored: Sequence[bytes], old: InvoiceRecord | None
) -> None:
    change.put(document_key(record.id), record)
    for page, value in enumerate(stored):
        change.put_value(lines_key(record.id, page), value)
    if old is not None:
        for page in range(len(stored), old.pages):
            change.delete(lines_key(record.id, page))
        return
    change.put_value(draft_key(record.id), b"")
    change.put_value(tenant_document_key(record.tenant, record.id), b"")
    change.put(period_key(record.tenant, record.period_begin_us), PeriodRecord(invoice=record.id))


def _remove_draft(change: Change, old: InvoiceRecord) -> None:
    for page in range(old.pages):
        change.delete(lines_key(old.id, page))
    for key in (
        document_key(old.id),
        draft_key(old.id),
        tenant_document_key(old.tenant, old.id),
        period_key(old.tenant, old.period_begin_us),
    ):
        change.delete(key)


@dataclass(frozen=True, slots=True)
class Made:
    record: InvoiceRecord  # Without id, pages and revision.
    lines: list[Line]  # Each with the tax line that it counts in.


def _make(
    seller: SellerRecord,
    customer: CustomerRecord,
    lines: Sequence[Line],
    rules: Sequence[TaxRule],
    month: Month,
    fx: ExchangeRate | None,
) -> Made:
    """What the lines come to. Pure. Raises: BadArgument."""
    case = Case(
        country=seller.country,
        customer_kind=customer.kind,
        profile=customer.tax_profile,
        day=datetime.fromtimestamp(month.end_s - 1, UTC).date(),
    )
    taxes = tax_lines(lines, rules, case)
    places = {(tax.rate, tax.label, tax.legal_basis): number for number, tax in enumerate(taxes, 1)}
    of_product: dict[str, int] = {}
    for product in {line.product for line in lines}:
        rule = rule_for(rules, case, product)
        of_product[product] = places[f"{rule.rate:f}", rule.label, rule.legal_basis]
    sums = totals(lines, taxes, customer.currency)
    record = InvoiceRecord(
        id="",
        type=INVOICE,
        tenant=customer.tenant,
        seller=seller.id,
        state=DRAFT,
        period_begin_us=month.begin_s * SECOND_US,
        period_end_us=month.end_s * SECOND_US,
        currency=customer.currency,
        customer_snapshot=customer_snapshot(customer),
        seller_snapshot=seller_snapshot(seller),
        taxes=taxes,
        total_net=sums.net.minor,
        total_tax=sums.tax.minor,
        total=sums.total.minor,
        words=in_words(sums.total, customer.language),
        purchase_order=customer.purchase_order,
        fx="" if fx is None else str(ExchangeRate.parse(str(fx))),
    )
    return Made(record, [msgspec.structs.replace(line, tax=of_product[line.product]) for line in lines])
