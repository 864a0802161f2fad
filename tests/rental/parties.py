"""A seller, its customers, their months: what the tests of invoices and payments have in common."""

import hashlib
import random
from collections.abc import Sequence
from decimal import Decimal

from objstore.clock import SECOND_US
from objstore.ids import Randomness, ulid
from objstore.meta.kv import DictKv, Kv
from objstore.rental import payments
from objstore.rental.customers import create_customer, new_customer
from objstore.rental.drafts import draft_invoice
from objstore.rental.invoices import finalise
from objstore.rental.money import Money
from objstore.rental.months import Month
from objstore.rental.records import CustomerRecord, InvoiceRecord, Line, PaymentRecord, SellerRecord
from objstore.rental.sellers import create_seller
from objstore.rental.taxes import TaxRule

MARCH = Month(2026, 3)
DAY_US = 86_400 * SECOND_US
ISSUED_US = MARCH.end_s * SECOND_US + 3 * DAY_US  # The collection window is over.
SELLER = SellerRecord(
    id="oran",
    name="Oran Stockage SpA",
    address=["1, rue du Port", "31000 Oran"],
    country="DZ",
    tax_ids={"NIF": "000131012345678", "RC": "31/00-0123456 B 26"},
    timezone="Africa/Algiers",
)
RULES = (
    TaxRule(id="dz", country="DZ", rate=Decimal("0.19"), label="TVA 19 %"),
    TaxRule(id="dz-low", country="DZ", rate=Decimal("0.09"), label="TVA 9 %", product="reduced"),
    TaxRule(
        id="dz-exempt",
        country="DZ",
        rate=Decimal(0),
        label="Exonéré",
        profile="exempt",
        legal_basis="Art. 42",
    ),
    TaxRule(id="ma", country="MA", rate=Decimal("0.20"), label="TVA 20 %"),
    TaxRule(id="tn", country="TN", rate=Decimal("0.19"), label="TVA 19 %"),
    TaxRule(id="sn", country="SN", rate=Decimal("0.18"), label="TVA 18 %"),
)


def randomness(seed: int = 1) -> Randomness:
    return random.Random(seed).randbytes


def an_id(number: int) -> str:
    """A ULID of its own for each number."""
    return ulid(ISSUED_US + number * 1_000, lambda size: number.to_bytes(size, "big"))


def line(net: int, *, product: str = "storage", kind: str = "usage", description: str = "Stockage") -> Line:
    return Line(kind=kind, description=description, meter="storage", net=net, product=product)


async def a_customer(kv: Kv, tenant: str, kind: str = "tpe_pme", **given: object) -> CustomerRecord:
    record = new_customer(
        kind,
        tenant,
        "oran",
        **{
            "legal_name": tenant.title(),
            "address": ["2, rue Larbi Ben M'hidi"],
            "country": "DZ",
            "identity_checked_us": 1,
            "currency": "DZD",
            **given,
        },
    )
    return await create_customer(kv, record, now_us=MARCH.begin_s * SECOND_US, trial_days=0)


async def a_market(*tenants: str, seller: SellerRecord = SELLER) -> DictKv:
    kv = DictKv()
    await create_seller(kv, seller)
    for tenant in tenants or ("acme",):
        await a_customer(kv, tenant)
    return kv


async def a_draft(
    kv: Kv, tenant: str, lines: Sequence[Line], *, month: Month = MARCH, now_us: int = ISSUED_US
) -> InvoiceRecord:
    own = hashlib.sha256(f"{tenant} {month}".encode()).digest()
    record = await draft_invoice(
        kv,
        tenant,
        month,
        lines,
        rules=RULES,
        now_us=now_us,
        randomness=lambda size: own[:size],
    )
    assert record is not None
    return record


async def an_invoice(
    kv: Kv, tenant: str, lines: Sequence[Line], *, month: Month = MARCH, now_us: int | None = None
) -> InvoiceRecord:
    at_us = month.end_s * SECOND_US + 3 * DAY_US if now_us is None else now_us
    draft = await a_draft(kv, tenant, lines, month=month, now_us=at_us)
    return (await finalise(kv, [draft.id], now_us=at_us))[0]


async def pay(
    kv: Kv,
    number: int,
    tenant: str,
    amount: int,
    invoices: Sequence[tuple[str, int]] | None = None,
    *,
    method: str = "cheque",
    now_us: int = ISSUED_US,
) -> PaymentRecord:
    payment = payments.new_payment(
        an_id(number),
        tenant,
        method,
        Money(amount, "DZD"),
        received_us=now_us,
        reference=f"no. {number}",
    )
    return await payments.receive_payment(kv, payment, invoices, now_us=now_us)
