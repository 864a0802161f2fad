"""Credits of who has left: what its service levels give back when no next invoice comes that would.

A credit waits for the tenant's next invoice (rental/carried.py). Once a tenant is purged and its last month
is invoiced there is none: what waits then becomes a credit note on the invoice whose charges it gives back.
The note and the end of its waiting are one commit, so it is credited once, here or on an invoice.
"""

from collections.abc import Mapping, Sequence

from objstore.clock import SECOND_US
from objstore.ids import Randomness, ulid
from objstore.meta.kv import Kv
from objstore.rental.carried import list_carried, settle_carried
from objstore.rental.changes import Change, commit_change
from objstore.rental.credit_notes import Credit, credited_before, put_credit_note
from objstore.rental.invoices import final_invoice, list_documents, read_lines
from objstore.rental.months import Month
from objstore.rental.records import CarriedRecord, InvoiceRecord, Line, carried_key
from objstore.rental.service_credits import CREDIT_PREFIX
from objstore.rental.service_levels import CHARGES
from objstore.rental.settlement import DRAFT


def share_out(
    amount: int, credit: Line, lines: Sequence[Line], before: Mapping[int, int], *, period_begin_us: int
) -> list[Credit]:
    """Of which charges of an invoice a credit gives back: of those of its product, class and month, in order.

    Args:
        amount: of it, in smallest units, above zero.
        credit: the line that waits.
        lines: the invoice's.
        before: what was given back of them, by line from 1.
        period_begin_us: of the invoice: where a line does not say when it begins.

    Returns:
        Less than the amount where less is left of these charges, or of the product behind its discounts.
    """
    month = Month.containing(credit.begin_us // SECOND_US)
    of_product = [
        (number, line, line.net - before.get(number, 0))
        for number, line in enumerate(lines, 1)
        if line.product == credit.product
    ]
    rest = min(amount, sum(left for _, _, left in of_product))
    given: list[Credit] = []
    for number, line, left in of_product:
        begin_s = (line.begin_us or period_begin_us) // SECOND_US
        is_affected = (
            line.kind in CHARGES
            and credit.storage_class in ("", line.storage_class)
            and month.begin_s <= begin_s < month.end_s
        )
        if is_affected and min(left, rest) > 0:
            given.append(Credit(number, min(left, rest), credit.description))
            rest -= given[-1].amount
    return given


async def credit_who_left(kv: Kv, tenant: str, *, now_us: int, randomness: Randomness) -> int:
    """Give back by credit notes what service levels owe a tenant that gets no more invoices.

    What is more than is left of the charges goes on waiting, and is seen there.

    Returns: how many credit notes were issued.

    Raises: BadArgument, Corrupt, Overloaded, MetaUnavailable.
    """
    waiting = [(name, one) for name, one in await list_carried(kv, tenant) if name.startswith(CREDIT_PREFIX)]
    if not waiting or any(one.state == DRAFT for one in await list_documents(kv, tenant)):
        return 0  # A draft may have taken them over.
    issued = 0
    for name, record in waiting:
        month = Month.containing(record.line.begin_us // SECOND_US)
        # A charge in advance stands on the invoice of the month before.
        for charged in (month, Month.containing(month.begin_s - 1)):
            invoice = await final_invoice(kv, tenant, charged)
            if invoice is not None:
                document = ulid(now_us, randomness)
                issued += await _credit(kv, name, invoice, document, now_us=now_us)
    return issued


async def _credit(kv: Kv, name: str, invoice: InvoiceRecord, document: str, *, now_us: int) -> bool:
    """What one invoice gives back of one credit; whether it gave anything."""
    lines = await read_lines(kv, invoice)

    async def decide(change: Change) -> bool:
        record = await change.record(carried_key(invoice.tenant, name), CarriedRecord)
        if record is None or record.left >= 0:
            return False
        before = await credited_before(change.kv, invoice.id)
        given = share_out(-record.left, record.line, lines, before, period_begin_us=invoice.period_begin_us)
        if not given:
            return False
        await put_credit_note(change, document, invoice.id, given, reason="sla", now_us=now_us)
        await settle_carried(change, invoice.tenant, [(name, -sum(one.amount for one in given))])
        return True

    return await commit_change(kv, decide, what=f"the credit {name} of {invoice.tenant!r}")
