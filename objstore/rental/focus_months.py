"""A month's documents as FOCUS rows: of one tenant, a reseller's customers, or everybody; tenant by tenant.

What is in it: the final invoices of the month, and the credit notes that correct them so far. A line of use
is cut into the buckets that share it, where the month rates as it did when its invoice was made; where usage
came late it stays whole. What was used of leases is known in the same way.

Memory: one tenant's lines at a time.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field

from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.meta.kv import Kv
from objstore.rental import focus
from objstore.rental.billing import rate_customer
from objstore.rental.commitments import CommitmentUse
from objstore.rental.credit_notes import credit_notes
from objstore.rental.customers import find_customer
from objstore.rental.focus import Row
from objstore.rental.invoices import final_invoice, read_lines
from objstore.rental.months import Month
from objstore.rental.projects import OUR_TAGS, list_projects
from objstore.rental.rating import Rated, split
from objstore.rental.records import CustomerRecord, InvoiceRecord, Line
from objstore.rental.series import INVOICE


async def month_rows(
    kv: Kv, customer: CustomerRecord, month: Month, *, seller: str = "", region: str = ""
) -> list[Row]:
    """Of one tenant's documents of a month.

    Args:
        seller: of documents of this one only; empty: of whichever.

    Raises: Corrupt, MetaUnavailable.
    """
    found: list[Row] = []
    invoice = await final_invoice(kv, customer.tenant, month)
    if invoice is None:
        return found
    documents = (invoice, *[note async for note in credit_notes(kv, invoice.id)])
    wanted = [document for document in documents if seller in ("", document.seller)]
    if not wanted:
        return found  # Rating a month for nothing takes as long as for something.
    about = await _about(kv, customer, month)
    for document in wanted:
        found += await _rows(kv, document, month, about, region)
    return found


async def document_rows(kv: Kv, document: InvoiceRecord, *, region: str = "") -> list[Row]:
    """Of one final document. Raises: BadArgument (its customer is not there), Corrupt, MetaUnavailable."""
    customer = await find_customer(kv, document.tenant)
    month = Month.containing(document.period_begin_us // SECOND_US)
    return await _rows(kv, document, month, await _about(kv, customer, month), region)


async def _rows(kv: Kv, document: InvoiceRecord, month: Month, about: "_About", region: str) -> list[Row]:
    lines = await read_lines(kv, document)
    if document.type != INVOICE:
        return list(focus.rows(document, lines, region=region, tags=about.tags))
    before = await final_invoice(kv, document.tenant, Month.containing(month.begin_s - 1))
    return list(
        focus.rows(
            document,
            by_bucket(lines, about.rated),
            region=region,
            tags=about.tags,
            uses=about.uses,
            before=[] if before is None else await read_lines(kv, before),
        )
    )


async def all_rows(
    kv: Kv, customers: AsyncIterator[CustomerRecord], month: Month, *, seller: str = "", region: str = ""
) -> AsyncGenerator[list[Row], None]:
    """The same of many, tenant by tenant; tenants without a document are left out."""
    async for customer in customers:
        await asyncio.sleep(0)  # Rating a month is work of some milliseconds, and others wait.
        if found := await month_rows(kv, customer, month, seller=seller, region=region):
            yield found


@dataclass(frozen=True, slots=True)
class _About:
    """What a tenant's documents do not say by themselves."""

    rated: Rated | None  # None: the month cannot be rated again.
    uses: dict[str, CommitmentUse] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)  # Of projects.


async def _about(kv: Kv, customer: CustomerRecord, month: Month) -> _About:
    tags = {}
    for project in await list_projects(kv, customer.tenant):
        ours = {f"{OUR_TAGS}cost_centre": project.cost_centre} if project.cost_centre else {}
        tags[project.name] = {**project.tags, **ours}
    try:
        rated = await rate_customer(kv, customer, month)
    except BadArgument:  # It has no plan any more, say: then its documents have to do.
        return _About(None, {}, tags)
    return _About(rated, {use.lease: use for use in rated.uses}, tags)


def by_bucket(lines: Sequence[Line], rated: Rated | None) -> list[Line]:
    """An invoice's lines, each cut by the buckets that share it; their amounts sum to the line's."""
    if rated is None:
        return list(lines)
    members = {_place(line): of for line, of in zip(rated.lines, rated.members, strict=True)}
    found: list[Line] = []
    for line in lines:
        share = members.get(_place(line), ())
        # What a moment of two clocks left below nothing bears no share.
        sharable = line.kind in ("usage", "overage") and all(member.quantity >= 0 for member in share)
        found += split(line, share, "bucket") if sharable else [line]
    return found


def _place(line: Line) -> tuple[object, ...]:
    """What makes a line the one that was rated: all that does not depend on its document."""
    return (
        line.kind, line.meter, line.storage_class, line.tier, line.unit_price, line.quantity, line.net,
        line.consumed, line.lease, line.begin_us, line.product,
    )  # fmt: skip
