"""What renting brings, what is owed, what was used: a tenant's figures in reports.

Amounts are smallest units of a currency, and currencies are never added together. A month's amounts are those
of its final invoice less what credit notes gave back of it, whenever they were issued.
"""

from dataclasses import dataclass
from typing import Final

from objstore.clock import SECOND_US
from objstore.meta.kv import Kv
from objstore.rental import meters
from objstore.rental.credit_notes import credit_notes
from objstore.rental.invoices import final_invoice, find_document
from objstore.rental.months import Month
from objstore.rental.payments import list_open
from objstore.rental.settlement import open_amount
from objstore.rental.usage import total_usage

DAY_US: Final = 86_400 * SECOND_US
AGES: Final = (30, 60, 90)  # Days past due at which a debt becomes an older one.


@dataclass(frozen=True, slots=True, kw_only=True)
class Revenue:
    """A tenant's month."""

    invoice: str  # Its number.
    currency: str
    net: int
    tax: int
    total: int
    credited: int  # Of what was invoiced, with its tax; the amounts above are without it.
    received: int  # From payments and the wallet, less what went back there.
    open: int


async def revenue_of(kv: Kv, tenant: str, month: Month) -> Revenue | None:
    """None: its month has no final invoice. Raises: MetaUnavailable."""
    invoice = await final_invoice(kv, tenant, month)
    if invoice is None:
        return None
    documents = [invoice, *[note async for note in credit_notes(kv, invoice.id)]]
    return Revenue(
        invoice=invoice.number,
        currency=invoice.currency,
        net=sum(one.total_net for one in documents),
        tax=sum(one.total_tax for one in documents),
        total=sum(one.total for one in documents),
        credited=invoice.credited,
        received=invoice.paid + invoice.prepaid - invoice.returned,
        open=open_amount(invoice),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Aging:
    """What a tenant owes in one currency, by how long it is due."""

    currency: str
    not_due: int
    due_30: int  # For up to 30 days,
    due_60: int  # up to 60,
    due_90: int  # up to 90,
    due_longer: int  # and for longer.
    oldest_due_us: int
    invoices: int

    @property
    def open(self) -> int:
        return self.not_due + self.due_30 + self.due_60 + self.due_90 + self.due_longer


def age_of(due_us: int, now_us: int) -> int:
    """0: not due yet; then 1 to 4, by AGES. A debt is a day old from the moment that it is due."""
    if now_us < due_us:
        return 0
    days = (now_us - due_us) // DAY_US + 1
    return 1 + sum(days > age for age in AGES)


async def aging_of(kv: Kv, tenant: str, *, now_us: int) -> list[Aging]:
    """By currency. Raises: MetaUnavailable."""
    sums: dict[str, list[int]] = {}
    oldest: dict[str, int] = {}
    counts: dict[str, int] = {}
    for document in await list_open(kv, tenant):
        record = await find_document(kv, document)
        currency = record.currency
        ages = sums.setdefault(currency, [0] * (len(AGES) + 2))
        ages[age_of(record.due_us, now_us)] += open_amount(record)
        oldest[currency] = min(oldest.get(currency, record.due_us), record.due_us)
        counts[currency] = counts.get(currency, 0) + 1
    return [
        Aging(
            currency=currency,
            not_due=ages[0],
            due_30=ages[1],
            due_60=ages[2],
            due_90=ages[3],
            due_longer=ages[4],
            oldest_due_us=oldest[currency],
            invoices=counts[currency],
        )
        for currency, ages in sorted(sums.items())
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a tenant used in a month, as far as it is sealed: byte-seconds, requests, bytes."""

    stored: int
    early: int
    requests_a: int
    requests_b: int
    internet: int
    internal: int
    replication: int


async def usage_of(kv: Kv, tenant: str, month: Month) -> Used:
    """Cost: a read of each sealed record of the month. Raises: MetaUnavailable."""
    sums: dict[bytes, int] = {}
    end_hour = month.first_hour + month.hours
    for of, quantity in (await total_usage(kv, tenant, month.first_hour, end_hour)).items():
        sums[of.meter] = sums.get(of.meter, 0) + quantity
    return Used(
        stored=sums.get(meters.STORED, 0),
        early=sums.get(meters.EARLY, 0),
        requests_a=sums.get(meters.REQUESTS_A, 0),
        requests_b=sums.get(meters.REQUESTS_B, 0),
        internet=sums.get(meters.SENT_INTERNET, 0),
        internal=sums.get(meters.SENT_INTERNAL, 0),
        replication=sums.get(meters.SENT_REPLICATION, 0),
    )
