"""Reports by tenant: revenue, what is owed and for how long, usage.

The operator sees all customers, a reseller itself and those under it, a tenant itself. Each row says who
stands above its tenant, so that whoever reads them can sum what a reseller's customers come to.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from objstore.admin.callers import Rule
from objstore.admin.pages import page
from objstore.admin.problems import Problem
from objstore.admin.routes import Call, Page, Route, of_anybody
from objstore.admin.views import List, moment
from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.meta.kv import Kv
from objstore.rental import reports
from objstore.rental.customers import LEVELS_MAX, find_customer, list_customers, tenants_under
from objstore.rental.months import Month
from objstore.rental.records import CustomerRecord

MONTHS_MAX: Final = 24  # Of one report.
USED_AT_ONCE: Final = 20  # Customers on a page of usage: a month of one is thousands of records.
READ: Final = Rule(action="reports:Read")


class Months(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    month: str = ""  # 2026-10; empty: the one that runs.
    until: str = ""  # The last month; empty: it is the only one.


class OneMonth(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    month: str = ""


class RevenueRow(msgspec.Struct, frozen=True, kw_only=True):
    """Smallest units, credit notes taken off."""

    tenant: str
    resellers: list[str]  # Above it, from the caller's own customer down.
    month: str
    invoice: str
    currency: str
    net: int
    tax: int
    total: int
    credited: int
    received: int
    open: int


class AgingRow(msgspec.Struct, frozen=True, kw_only=True):
    """Smallest units that are open, by how many days they are due."""

    tenant: str
    resellers: list[str]
    currency: str
    not_due: int
    due_30: int
    due_60: int
    due_90: int
    due_longer: int
    open: int
    oldest_due: str | None
    invoices: int


class UsedRow(msgspec.Struct, frozen=True, kw_only=True):
    tenant: str
    resellers: list[str]
    month: str
    stored_byte_seconds: int
    early_delete_byte_seconds: int
    requests_a: int
    requests_b: int
    sent_internet_bytes: int
    sent_internal_bytes: int
    sent_replication_bytes: int


Rows = Callable[[CustomerRecord], Awaitable[list[dict[str, Any]]]]


async def by_customer(call: Call, query: Page, rows: Rows) -> List[Any]:
    """A report of rows of each customer that the caller sees.

    A page is a page of customers: it may hold fewer rows, and more.
    """
    own = call.caller.tenant
    below = await tenants_under(call.kv, own) if own else []

    async def read(after: str, limit: int) -> list[CustomerRecord]:
        if not own:
            return await list_customers(call.kv, after=after, limit=limit)
        names = [name for name in below if name > after][:limit]
        return [customer for name in names if (customer := await _customer(call.kv, name)) is not None]

    customers = await page(query, read, lambda one: one.tenant, lambda one: one)
    found: list[dict[str, Any]] = []
    for customer in customers.items:
        above = await _above(call.kv, customer, own)
        common = {"tenant": customer.tenant, "resellers": above}
        found += [{**common, **row} for row in await rows(customer)]
        await asyncio.sleep(0)  # Others' requests are served in between.
    return List(found, customers.next)


async def _customer(kv: Kv, tenant: str) -> CustomerRecord | None:
    """None: the caller's own tenant is no customer."""
    try:
        return await find_customer(kv, tenant)
    except BadArgument:
        return None


async def _above(kv: Kv, customer: CustomerRecord, caller: str) -> list[str]:
    """Who stands above a customer, below the caller, the highest first."""
    found: list[str] = []
    above = "" if customer.tenant == caller else customer.parent
    for _ in range(LEVELS_MAX):
        if above in ("", caller):
            break
        found.insert(0, above)
        above = (await find_customer(kv, above)).parent
    return found


def _months(call: Call) -> list[Month]:
    """Raises: Problem 400, BadArgument."""
    first = _month(call)
    last = Month.parse(call.query.until) if call.query.until else first
    months = [first]
    while months[-1] < last and len(months) <= MONTHS_MAX:
        months.append(months[-1].following())
    if last < first or len(months) > MONTHS_MAX:
        raise Problem(
            400, f"the address's query: until is the month, or one of the {MONTHS_MAX - 1} behind it"
        )
    return months


def _month(call: Call) -> Month:
    return Month.parse(call.query.month) if call.query.month else Month.containing(call.now_us // SECOND_US)


async def revenue(call: Call) -> List[Any]:
    months = _months(call)

    async def rows(customer: CustomerRecord) -> list[dict[str, Any]]:
        found = [(month, await reports.revenue_of(call.kv, customer.tenant, month)) for month in months]
        return [
            {
                "month": str(month),
                "invoice": one.invoice,
                "currency": one.currency,
                "net": one.net,
                "tax": one.tax,
                "total": one.total,
                "credited": one.credited,
                "received": one.received,
                "open": one.open,
            }
            for month, one in found
            if one is not None
        ]

    return await by_customer(call, call.query, rows)


async def aging(call: Call) -> List[Any]:
    now_us = call.now_us

    async def rows(customer: CustomerRecord) -> list[dict[str, Any]]:
        return [
            {
                "currency": one.currency,
                "not_due": one.not_due,
                "due_30": one.due_30,
                "due_60": one.due_60,
                "due_90": one.due_90,
                "due_longer": one.due_longer,
                "open": one.open,
                "oldest_due": moment(one.oldest_due_us),
                "invoices": one.invoices,
            }
            for one in await reports.aging_of(call.kv, customer.tenant, now_us=now_us)
        ]

    return await by_customer(call, call.query, rows)


async def usage(call: Call) -> List[Any]:
    month = _month(call)
    query = msgspec.structs.replace(call.query, limit=min(call.query.limit, USED_AT_ONCE))

    async def rows(customer: CustomerRecord) -> list[dict[str, Any]]:
        used = await reports.usage_of(call.kv, customer.tenant, month)
        row = {
            "month": str(month),
            "stored_byte_seconds": used.stored,
            "early_delete_byte_seconds": used.early,
            "requests_a": used.requests_a,
            "requests_b": used.requests_b,
            "sent_internet_bytes": used.internet,
            "sent_internal_bytes": used.internal,
            "sent_replication_bytes": used.replication,
        }
        return [row]

    return await by_customer(call, query, rows)


ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/reports/revenue", name="report_revenue",
        summary="Months that were invoiced, tenant by tenant: net, tax, total, received, open.",
        rule=READ, owner=of_anybody, query=Months, handler=revenue, answer=List[RevenueRow],
    ),
    Route(
        method="GET", path="/api/v1/reports/aging", name="report_aging",
        summary="What is owed just now, tenant by tenant, by how long it is due.",
        rule=READ, owner=of_anybody, query=Page, handler=aging, answer=List[AgingRow],
    ),
    Route(
        method="GET", path="/api/v1/reports/usage", name="report_usage",
        summary="What tenants used in a month, as far as it is sealed.",
        rule=READ, owner=of_anybody, query=OneMonth, handler=usage, answer=List[UsedRow],
    ),
)  # fmt: skip
