"""What is still to be paid of a final invoice, and the state that follows from it.

    open = total - taken from the wallet - paid - credited, as far as a credit was not given back

    final -> overdue (dunning) -> paid, or cancelled when credit notes gave back all of it; a payment that
    bounces opens it again

Nothing else of a final document ever changes: `put_settled` is how it changes.
"""

from typing import Final

import msgspec

from objstore.errors import BadArgument
from objstore.rental.changes import Change
from objstore.rental.records import InvoiceRecord, document_key, open_key
from objstore.rental.series import INVOICE

DRAFT: Final = "draft"
CHANGING: Final = frozenset({"state", "prepaid", "paid", "paid_us", "credited", "returned", "pdf_digest"})


def no_such_document(document: str) -> BadArgument:
    return BadArgument(f"there is no document {document!r}", name="document", value=document)


def open_amount(record: InvoiceRecord) -> int:
    """Smallest units; 0 of a draft, and of a credit note."""
    if record.type != INVOICE or record.state == DRAFT:
        return 0
    return record.total - record.prepaid - record.paid - (record.credited - record.returned)


async def find_final(change: Change, document: str) -> InvoiceRecord:
    """An invoice that has been issued. Raises: BadArgument."""
    record = await change.found(document_key(document), InvoiceRecord, no_such_document(document))
    if record.type != INVOICE or record.state == DRAFT:
        words = "is a draft" if record.state == DRAFT else f"{record.number} is no invoice"
        raise BadArgument(f"{document} {words}", name="invoice", value=document)
    return record


def put_settled(change: Change, record: InvoiceRecord, *, now_us: int, **changes: object) -> InvoiceRecord:
    """Change what a final invoice's payment comes to; its state and its place among the open ones follow."""
    assert changes.keys() <= CHANGING, changes
    record = msgspec.structs.replace(record, **changes)
    left = open_amount(record)
    assert left >= 0, f"{record.number} would be paid beyond its total"
    if record.credited == record.total and record.total:
        state = "cancelled"
    elif left == 0:
        state = "paid"
    else:
        state = record.state if record.state in ("final", "overdue") else "final"
    paid_us = 0 if left else record.paid_us or now_us
    record = msgspec.structs.replace(record, state=state, paid_us=paid_us)
    change.put(document_key(record.id), record)
    key = open_key(record.tenant, record.due_us, record.id)
    if left:
        change.put_value(key, b"")
    else:
        change.delete(key)
    return record
