"""What renting comes to, in figures: leases, invoices that are open, what was not served, purges.

Invoices are found by the indexes of what is open, so that a look costs what is open and what was drafted, not
all that was ever billed: settled are those that were given a number less those that are open.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Final

from objstore.clock import SECOND_US
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import decode
from objstore.rental.availability import unserved_minutes
from objstore.rental.commitments import commitment_of
from objstore.rental.customers import DAY_US
from objstore.rental.invoices import final_from
from objstore.rental.meters import HOUR_S
from objstore.rental.money import Money
from objstore.rental.months import Month
from objstore.rental.plans import BYTES
from objstore.rental.records import (
    CustomerRecord,
    InvoiceRecord,
    LeaseRecord,
    PeriodRecord,
    PurgeRecord,
    SellerRecord,
    SeriesRecord,
    WalletRecord,
    customer_key,
    document_key,
    draft_key,
    period_key,
    purge_key,
    seller_key,
    wallet_key,
)
from objstore.rental.sales import SOLD
from objstore.rental.series import CREDIT_NOTE, INVOICE, LETTERS
from objstore.rental.service_levels import ServiceMonthRecord, service_month_key
from objstore.rental.settlement import DRAFT, open_amount
from objstore.rental.usage import sealed_until

PAGE: Final = 500
OPEN_PREFIX: Final = b"YO"
SERIES_PREFIX: Final = b"Yn"
ENDING_DAYS: Final = (30, 60, 90)
OPEN_STATES: Final = (DRAFT, "final", "overdue")
PURGE_STATES: Final = ("deleting", "clearing", "proven")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFigures:
    """Leases at one moment."""

    count: dict[tuple[str, str], int]  # By kind and state.
    ending: dict[int, int]  # How many end within so many days, and are not renewed.
    monthly: dict[str, int]  # Currency -> smallest units: what those that are active charge a month.
    committed: dict[str, int]  # Tenant -> bytes that are its own now: guaranteed and dedicated.


def lease_figures(leases: Iterable[LeaseRecord], now_us: int) -> LeaseFigures:
    """Pure."""
    count: Counter[tuple[str, str]] = Counter()
    ending = dict.fromkeys(ENDING_DAYS, 0)
    exact: dict[str, Fraction] = {}
    committed: Counter[str] = Counter()
    for lease in leases:
        count[lease.kind, lease.state] += 1
        if lease.state not in SOLD:
            continue
        if lease.notice_us or not lease.renews:
            for days in ENDING_DAYS:
                ending[days] += now_us <= lease.end_us < now_us + days * DAY_US
        size = _size_at(lease, now_us)
        if lease.kind != "best_effort" and size:
            committed[lease.tenant] += size
        charge = Fraction(size, BYTES[lease.unit]) * Fraction(Decimal(lease.unit_price))
        exact[lease.currency] = exact.get(lease.currency, Fraction(0)) + charge
    return LeaseFigures(
        count=dict(count),
        ending=ending,
        monthly={currency: Money.of(amount, currency).minor for currency, amount in exact.items()},
        committed=dict(committed),
    )


def _size_at(lease: LeaseRecord, now_us: int) -> int:
    now_s = now_us // SECOND_US
    return sum(size for begin_s, end_s, size in commitment_of(lease).spans() if begin_s <= now_s < end_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeFigures:
    """Tenants whose data is deleted for ever."""

    count: dict[str, int]  # By state.
    oldest_us: int  # When the oldest that is not proven was begun; 0: there is none.


async def purge_figures(kv: Kv) -> PurgeFigures:
    """As metadata has it now. Raises: MetaUnavailable."""
    count = dict.fromkeys(PURGE_STATES, 0)
    begun: list[int] = []
    start = purge_key("")
    async for pairs in pages(kv, start, prefix_end(start), PAGE):
        for _, value in pairs:
            record = decode(value, PurgeRecord)
            count[record.state] += 1
            if record.state != "proven":
                begun.append(record.begun_us)
    return PurgeFigures(count=count, oldest_us=min(begun, default=0))


async def unserved(kv: Kv, now_us: int) -> int:
    """Minutes of this month, as far as it is sealed, in which no gateway served. Raises: MetaUnavailable."""
    month = Month.containing(now_us // SECOND_US)
    until_s = min(month.end_s, await sealed_until(kv) * HOUR_S)
    return len(await unserved_minutes(kv, month.begin_s, until_s)) if until_s > month.begin_s else 0


@dataclass(slots=True, kw_only=True)
class BillingFigures:
    """Customers and their documents at one moment. Amounts: currency -> smallest units."""

    customers: dict[str, int] = field(default_factory=dict)  # By kind.
    documents: dict[str, int] = field(default_factory=lambda: {INVOICE: 0, CREDIT_NOTE: 0})  # With a number.
    invoices: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OPEN_STATES, 0))
    open: dict[str, int] = field(default_factory=dict)  # Still to be paid, overdue or not.
    overdue: dict[str, int] = field(default_factory=dict)
    drafted: dict[str, int] = field(default_factory=dict)  # On drafts, with tax.
    last_month: dict[str, int] = field(default_factory=dict)  # On its drafts and invoices, before tax.
    credited: dict[str, int] = field(default_factory=dict)  # For service levels in that month, before tax.
    wallets: dict[str, int] = field(default_factory=dict)  # What was paid in advance.
    oldest_due_us: int = 0  # Of what is overdue; 0: nothing is.
    late_drafts: int = 0  # That could be final by now,
    open_months: int = 0  # and the months that they are of.

    @property
    def settled(self) -> int:
        """Invoices that are paid, or given back whole."""
        return self.documents[INVOICE] - self.invoices["final"] - self.invoices["overdue"]


async def billing_figures(kv: Kv, now_us: int) -> BillingFigures:
    """As metadata has it now, page by page: no one moment, while others pay. Raises: MetaUnavailable."""
    found = BillingFigures()
    await _count_documents(kv, found)
    await _count_open(kv, found, now_us)
    await _count_drafts(kv, found, now_us)
    this = Month.containing(now_us // SECOND_US)
    await _count_customers(kv, found, Month.containing(this.begin_s - 1))
    return found


def _add(sums: dict[str, int], currency: str, amount: int) -> None:
    sums[currency] = sums.get(currency, 0) + amount


async def _documents(kv: Kv, ids: Sequence[str]) -> list[InvoiceRecord]:
    values = await kv.get_many([document_key(one) for one in ids])
    return [decode(value, InvoiceRecord) for value in values if value is not None]


async def _count_documents(kv: Kv, found: BillingFigures) -> None:
    types = {letter: type_ for type_, letter in LETTERS.items()}
    async for pairs in pages(kv, SERIES_PREFIX, prefix_end(SERIES_PREFIX), PAGE):
        for key, value in pairs:
            found.documents[types[key[-1:]]] += decode(value, SeriesRecord).number


async def _count_open(kv: Kv, found: BillingFigures, now_us: int) -> None:
    async for pairs in pages(kv, OPEN_PREFIX, prefix_end(OPEN_PREFIX), PAGE):
        ids = [key[key.index(b"\0") + 9 :].decode() for key, _ in pairs]
        for record in await _documents(kv, ids):
            amount = open_amount(record)
            if not amount:
                continue  # Paid since the scan.
            late = record.due_us < now_us
            found.invoices["overdue" if late else "final"] += 1
            _add(found.open, record.currency, amount)
            _add(found.overdue, record.currency, amount if late else 0)
            if late:
                found.oldest_due_us = min(found.oldest_due_us or record.due_us, record.due_us)


async def _count_drafts(kv: Kv, found: BillingFigures, now_us: int) -> None:
    start = seller_key("")
    sellers = {
        seller.id: seller
        async for pairs in pages(kv, start, prefix_end(start), PAGE)
        for seller in (decode(value, SellerRecord) for _, value in pairs)
    }
    months: set[int] = set()
    start = draft_key("")
    async for pairs in pages(kv, start, prefix_end(start), PAGE):
        for record in await _documents(kv, [key[len(start) :].decode() for key, _ in pairs]):
            if record.state != DRAFT:
                continue  # Final since the scan.
            found.invoices[DRAFT] += 1
            _add(found.drafted, record.currency, record.total)
            seller = sellers.get(record.seller)
            if seller is not None and final_from(record, seller) <= now_us:
                found.late_drafts += 1
                months.add(record.period_begin_us)
    found.open_months = len(months)


async def _count_customers(kv: Kv, found: BillingFigures, last: Month) -> None:
    """Customers, their wallets, and what the month before comes to and gives back."""
    kinds: Counter[str] = Counter()
    start = customer_key("")
    async for pairs in pages(kv, start, prefix_end(start), PAGE):
        customers = [decode(value, CustomerRecord) for _, value in pairs]
        kinds.update(customer.kind for customer in customers)
        tenants = [customer.tenant for customer in customers]
        for value in await kv.get_many([wallet_key(tenant) for tenant in tenants]):
            if value is not None:
                wallet = decode(value, WalletRecord)
                _add(found.wallets, wallet.currency, wallet.balance)
        periods = await kv.get_many([period_key(tenant, last.begin_s * SECOND_US) for tenant in tenants])
        ids = [decode(value, PeriodRecord).invoice for value in periods if value is not None]
        for record in await _documents(kv, ids):
            _add(found.last_month, record.currency, record.total_net)
            _add(found.credited, record.currency, 0)
        settled = await kv.get_many([service_month_key(tenant, last) for tenant in tenants])
        for customer, value in zip(customers, settled, strict=True):
            if value is not None:
                granted = decode(value, ServiceMonthRecord).credits
                _add(found.credited, customer.currency, sum(one.net for one in granted))
    found.customers = dict(kinds)
