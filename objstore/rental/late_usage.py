"""Usage that came when its month was final already: the difference goes to the next invoice.

What a month was corrected to is kept beside its invoice, so that the same usage is corrected once.
"""

from collections.abc import Sequence

import msgspec

from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.meta.kv import Kv
from objstore.rental.carried import CARRIED_KINDS, CARRIED_MAX, put_carried
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import no_such_customer
from objstore.rental.lines import check_lines, pack_lines, read_document_pages, read_pages, unpack_lines
from objstore.rental.months import Month
from objstore.rental.rating import corrections
from objstore.rental.records import (
    CustomerRecord,
    InvoiceRecord,
    Line,
    PeriodRecord,
    customer_key,
    document_key,
    period_key,
    period_lines_key,
)
from objstore.rental.settlement import DRAFT, no_such_document


async def correct_month(
    kv: Kv, tenant: str, month: Month, lines: Sequence[Line], *, now_us: int
) -> list[Line]:
    """Carry what a final month comes to by now, less what was billed of it, to the next invoice.

    What it was corrected to is kept, so the same lines again are no correction.

    Args:
        lines: the whole month as it is rated now.

    Raises: BadArgument (it was not invoiced, it is a draft still, or there is too much to correct), Corrupt.
    """
    check_lines(lines)

    async def decide(change: Change) -> list[Line]:
        return await _correct(change, tenant, month, lines, now_us)

    return await commit_change(kv, decide, what=f"{month} of {tenant!r}")


async def _correct(
    change: Change, tenant: str, month: Month, lines: Sequence[Line], now_us: int
) -> list[Line]:
    begin_us = month.begin_s * SECOND_US
    key = period_key(tenant, begin_us)
    period = await change.found(
        key,
        PeriodRecord,
        BadArgument(f"{month} of {tenant!r} was not invoiced", name="month", value=str(month)),
    )
    invoice = await change.found(
        document_key(period.invoice), InvoiceRecord, no_such_document(period.invoice)
    )
    if invoice.state == DRAFT:
        raise BadArgument(f"{month} of {tenant!r} is a draft: draft it again", name="month", value=str(month))
    customer = await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))

    def place(page: int) -> bytes:
        return period_lines_key(tenant, begin_us, page)

    if period.corrections:
        billed = unpack_lines(await read_pages(change.kv, period.pages, place, f"{month} of {tenant!r}"))
    else:
        stored = await read_document_pages(change.kv, invoice.id, invoice.pages)
        billed = [line for line in unpack_lines(stored) if line.kind not in CARRIED_KINDS]
    found = corrections(billed, lines, customer.language)
    if not found:
        return []
    if len(found) > CARRIED_MAX:
        raise BadArgument(f"{len(found)} corrections of {month}, at most {CARRIED_MAX} at once", name="lines")
    for number, line in enumerate(found, 1):
        name = f"correction/{month}/{period.corrections + 1:04d}/{number:04d}"
        await put_carried(change, tenant, name, line, invoice.number, now_us)
    packed = pack_lines(lines)
    for page, value in enumerate(packed):
        change.put_value(place(page), value)
    for page in range(len(packed), period.pages):
        change.delete(place(page))
    change.put(key, msgspec.structs.replace(period, pages=len(packed), corrections=period.corrections + 1))
    return found
