"""Invoices and credit notes to print and to export: sums are right, names are of no one."""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec

from objstore.meta.schema import encode
from objstore.rental.money import Money, round_half_up
from objstore.rental.records import CustomerRecord, InvoiceRecord, Line, SellerRecord, TaxLine
from objstore.rental.words import in_words

DAY_US = 86_400 * 1_000_000
BEGIN_US = 1_772_323_200_000_000  # 2026-03-01,
END_US = 1_775_001_600_000_000  # 2026-04-01.

SELLER = SellerRecord(
    id="oran",
    name="Centre de données d'Oran SPA",
    address=["12, boulevard de la Soummam", "31000 Oran", "Algérie"],
    country="DZ",
    tax_ids={"RC": "31/00-0123456 B 20", "NIF": "002031012345678", "NIS": "002031010012345", "AI": "3101012"},
    capital="250 000 000,00 DA",
    bank="Banque de l'Ouest, RIB 002 00031 0312345678 90",
    timezone="Africa/Algiers",
)
CUSTOMER = CustomerRecord(
    tenant="amira",
    kind="tpe_pme",
    seller="oran",
    legal_name="Atelier Amira SARL",
    address=["5, rue Larbi Ben M'hidi", "16000 Alger"],
    country="DZ",
    tax_ids={"NIF": "001616098765432", "RC": "16/00-0987654 B 18"},
)
# Vector V10: 100 at 690.00 and 10 at 935.50 are 78,355.00 before tax.
V10 = (
    Line(
        kind="usage",
        description="Stockage STANDARD, tranche 1",
        meter="storage",
        storage_class="STANDARD",
        project="archives",
        bucket="photos-2026",
        begin_us=BEGIN_US,
        end_us=END_US,
        quantity="100/1",
        unit="TB-Months",
        unit_price="690.00",
        tier=1,
        net=6_900_000,
        plan="objets",
        plan_version=3,
        consumed=str(100 * 10**12 * 744 * 3_600),
    ),
    Line(
        kind="usage",
        description="Requêtes PUT, COPY, POST, LIST",
        meter="requests_a",
        project="web",
        begin_us=BEGIN_US,
        end_us=END_US,
        quantity="10/1",
        unit="1000 Requests",
        unit_price="935.50",
        net=935_500,
        plan="objets",
        plan_version=3,
        consumed="10000",
    ),
)


def priced(line: Line, currency: str) -> Line:
    """With its net amount, rounded half up."""
    exact = Fraction(line.quantity) * Fraction(Decimal(line.unit_price))
    return msgspec.structs.replace(line, net=Money.of(exact, currency).minor)


def paper(
    lines: Sequence[Line] = V10,
    *,
    rate: str = "0.19",
    seller: SellerRecord = SELLER,
    customer: CustomerRecord = CUSTOMER,
    **changes: Any,
) -> InvoiceRecord:
    """A final invoice of March 2026 with one tax on all of its lines; a credit note where `type` says so."""
    currency = changes.get("currency", customer.currency)
    net = sum(line.net for line in lines)
    tax = round_half_up(net * Fraction(Decimal(rate)))
    record = InvoiceRecord(
        id="01JQ0000000000000000000000",
        type="invoice",
        tenant=customer.tenant,
        seller=seller.id,
        state="final",
        number="FA-2026-000001",
        period_begin_us=BEGIN_US,
        period_end_us=END_US,
        currency=currency,
        customer_snapshot=encode(customer),
        seller_snapshot=encode(seller),
        taxes=[
            TaxLine(label=f"TVA {(Decimal(rate) * 100).normalize():f} %", rate=rate, base=net, amount=tax)
        ],
        total_net=net,
        total_tax=tax,
        total=net + tax,
        words=in_words(Money(net + tax, currency), customer.language),
        made_us=END_US,
        issued_us=END_US + DAY_US,
        due_us=END_US + 31 * DAY_US,
    )
    return msgspec.structs.replace(record, **changes)
