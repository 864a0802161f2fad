"""Invoices: drafts become final, for good; and reading them, drafts and credit notes among them.

    finalise           number, chain, due date, what the wallet pays: one commit for a few documents
    finalise_due       all drafts whose time has come, batch by batch; it goes on where it ended

Nothing of a final invoice changes but what is written on its payment (rental/settlement.py).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from objstore.clock import SECOND_US
from objstore.errors import BadArgument, Rejected, StateForbids
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import decode
from objstore.rental import wallets
from objstore.rental.carried import put_forward, settle_carried
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import DAY_US, no_such_customer
from objstore.rental.drafts import customer_snapshot, seller_snapshot
from objstore.rental.lines import read_document_pages, unpack_lines
from objstore.rental.money import Money
from objstore.rental.months import Month
from objstore.rental.records import (
    CustomerRecord,
    InvoiceRecord,
    Line,
    PeriodRecord,
    SellerRecord,
    customer_key,
    document_key,
    draft_key,
    period_key,
    tenant_document_key,
)
from objstore.rental.sellers import find_seller, read_seller
from objstore.rental.series import issue
from objstore.rental.settlement import DRAFT, no_such_document, put_settled

HOUR_US: Final = 3_600 * SECOND_US
BATCH: Final = 16  # Documents made final in one commit: some 100 keys, and 200 KB at the most usual sizes.
DRAFTS_AT_ONCE: Final = 200  # Read in one look.
REFUSALS_MAX: Final = 1_000  # Told of one run.


async def finalise(
    kv: Kv, documents: Sequence[str], *, now_us: int, early: bool = False
) -> list[InvoiceRecord]:
    """Make drafts final, all of them or none, in one commit; those that are final stay as they are.

    Args:
        documents: ids, at most BATCH.
        early: do not wait until late usage has come in.

    Raises: BadArgument (no such document, it is not time yet, or it has to be drafted again), Overloaded,
        MetaUnavailable (the outcome is unknown: asking again tells).
    """
    assert len(documents) <= BATCH

    async def decide(change: Change) -> list[InvoiceRecord]:
        return [await _finalise(change, document, now_us, early) for document in documents]

    return await commit_change(kv, decide, what=f"{len(documents)} drafts")


async def _finalise(change: Change, document: str, now_us: int, early: bool) -> InvoiceRecord:
    record = await change.found(document_key(document), InvoiceRecord, no_such_document(document))
    if record.state != DRAFT:
        return record
    seller = await read_seller(change, record.seller)
    customer = await change.found(
        customer_key(record.tenant), CustomerRecord, no_such_customer(record.tenant)
    )
    _check_final(record, seller, customer, now_us, early)
    # The pages are those of this record: a draft's pages change with it, and it is expected.
    stored = await read_document_pages(change.kv, record.id, record.pages)
    terms_us = customer.payment_terms_days * DAY_US
    record = await issue(change, seller, record, stored, now_us=now_us, terms_us=terms_us)
    await settle_carried(change, record.tenant, record.carried)
    await put_forward(
        change,
        record.tenant,
        unpack_lines(stored),
        month=str(Month.containing(record.period_begin_us // SECOND_US)),
        number=record.number,
        language=customer.language,
        now_us=now_us,
    )
    change.delete(draft_key(record.id))
    return put_settled(change, record, now_us=now_us, prepaid=await _prepay(change, record))


async def _prepay(change: Change, record: InvoiceRecord) -> int:
    """Take from the wallet what it has; how much."""
    wallet = await wallets.wallet_of(change, record.tenant, record.currency)
    amount = max(0, min(wallet.balance, record.total))
    await wallets.move(
        change,
        record.tenant,
        Money(-amount, record.currency),
        kind=wallets.INVOICED,
        document=record.id,
        at_us=record.issued_us,
    )
    return amount


def _check_final(
    record: InvoiceRecord, seller: SellerRecord, customer: CustomerRecord, now_us: int, early: bool
) -> None:
    """Raises: BadArgument."""
    due_us = final_from(record, seller)
    if now_us < record.period_end_us or (now_us < due_us and not early):
        hours = -(-(max(record.period_end_us, 0 if early else due_us) - now_us) // HOUR_US)
        raise StateForbids(f"draft {record.id} stays open for {hours} hours", name="draft", value=record.id)
    if record.made_us < record.period_end_us:
        raise StateForbids(
            f"draft {record.id} was made while its month ran: draft again", name="draft", value=record.id
        )
    if record.customer_snapshot != customer_snapshot(customer):
        raise StateForbids(f"{record.tenant!r} changed: draft again", name="draft", value=record.id)
    if record.seller_snapshot != seller_snapshot(seller):
        raise StateForbids(f"{record.seller!r} changed: draft again", name="draft", value=record.id)
    if customer.purchase_order_required and not record.purchase_order:
        raise StateForbids(f"{record.tenant!r} wants a purchase order", name="purchase order")
    assert record.total >= 0, "what is below zero is carried to the next invoice"


def final_from(record: InvoiceRecord, seller: SellerRecord) -> int:
    """When a draft may become final, in microseconds."""
    return record.period_end_us + seller.collection_hours * HOUR_US


@dataclass(slots=True)
class FinalRun:
    """What a run over all drafts came to."""

    issued: int = 0
    waiting: int = 0  # Drafts whose time has not come.
    refused: list[tuple[str, str]] = field(default_factory=list)  # Draft, why; at most REFUSALS_MAX.


async def finalise_due(
    kv: Kv, *, now_us: int, progress: Callable[[FinalRun], None] = lambda run: None
) -> FinalRun:
    """Make every draft final whose time has come.

    It may end anywhere, and run beside another: what is final is no draft, and the next run finds the rest.

    Args:
        progress: told behind every batch.

    Raises: MetaUnavailable.
    """
    run = FinalRun()
    sellers: dict[str, SellerRecord] = {}
    async for records in _drafts(kv):
        ready: list[str] = []
        for record in records:
            if record.seller not in sellers:
                sellers[record.seller] = await find_seller(kv, record.seller)
            if now_us < final_from(record, sellers[record.seller]):
                run.waiting += 1
            else:
                ready.append(record.id)
        for begin in range(0, len(ready), BATCH):
            await _finalise_batch(kv, ready[begin : begin + BATCH], now_us, run)
            progress(run)
    return run


async def _drafts(kv: Kv) -> AsyncIterator[list[InvoiceRecord]]:
    prefix = draft_key("")
    async for pairs in pages(kv, prefix, prefix_end(prefix), DRAFTS_AT_ONCE):
        values = await kv.get_many([document_key(key[len(prefix) :].decode()) for key, _ in pairs])
        # One that was taken away since the scan is no draft any more.
        records = [decode(value, InvoiceRecord) for value in values if value is not None]
        yield [record for record in records if record.state == DRAFT]


async def _finalise_batch(kv: Kv, documents: Sequence[str], now_us: int, run: FinalRun) -> None:
    """All in one commit; if one of them is refused, one by one, so that it holds up no other."""
    try:
        run.issued += len(await finalise(kv, documents, now_us=now_us))
    except Rejected as refusal:
        if len(documents) > 1:
            for document in documents:
                await _finalise_batch(kv, [document], now_us, run)
        elif len(run.refused) < REFUSALS_MAX:
            run.refused.append((documents[0], str(refusal)))


# Looking at them.


async def find_document(kv: Kv, document: str) -> InvoiceRecord:
    """An invoice or a credit note. Raises: BadArgument (there is none)."""
    value = await kv.get(document_key(document))
    if value is None:
        raise no_such_document(document)
    return decode(value, InvoiceRecord)


async def final_invoice(kv: Kv, tenant: str, month: Month) -> InvoiceRecord | None:
    """The invoice of a tenant's month, once it is final."""
    value = await kv.get(period_key(tenant, month.begin_s * SECOND_US))
    if value is None:
        return None
    document = await find_document(kv, decode(value, PeriodRecord).invoice)
    return None if document.state == DRAFT else document


async def read_lines(kv: Kv, record: InvoiceRecord) -> list[Line]:
    """Its lines in order. Raises: Corrupt (a page is missing; of a draft: it was just made again)."""
    return unpack_lines(await read_document_pages(kv, record.id, record.pages))


async def list_documents(kv: Kv, tenant: str, *, after: str = "", limit: int = 1_000) -> list[InvoiceRecord]:
    """A tenant's invoices and credit notes with ids > after, in order of making."""
    prefix = tenant_document_key(tenant, "")
    start = prefix + after.encode() + b"\0" if after else prefix
    pairs = await kv.scan(start, prefix_end(prefix), limit)
    values = await kv.get_many([document_key(key[len(prefix) :].decode()) for key, _ in pairs])
    return [decode(value, InvoiceRecord) for value in values if value is not None]


async def list_drafts(kv: Kv, *, after: str = "", limit: int = 1_000) -> list[InvoiceRecord]:
    """All drafts with ids > after, in order of making."""
    start = draft_key(after) + b"\0" if after else draft_key("")
    pairs = await kv.scan(start, prefix_end(draft_key("")), limit)
    values = await kv.get_many([document_key(key[len(draft_key("")) :].decode()) for key, _ in pairs])
    return [decode(value, InvoiceRecord) for value in values if value is not None]


async def note_pdf(kv: Kv, document: str, digest: bytes) -> InvoiceRecord:
    """Keep the SHA-256 of a final document's PDF, of which there is one.

    Raises: BadArgument (it is a draft, or has another PDF).
    """

    async def decide(change: Change) -> InvoiceRecord:
        record = await change.found(document_key(document), InvoiceRecord, no_such_document(document))
        if record.state == DRAFT or record.pdf_digest not in (b"", digest):
            words = "is a draft" if record.state == DRAFT else "has another PDF"
            raise BadArgument(f"{record.number or document} {words}", name="document", value=document)
        record = msgspec.structs.replace(record, pdf_digest=digest)
        change.put(document_key(document), record)
        return record

    return await commit_change(kv, decide, what=f"document {document}")
