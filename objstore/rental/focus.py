"""Invoices and credit notes as FOCUS 1.2 (FinOps Open Cost and Usage Specification), in CSV and Parquet.

One version is pinned. Its columns are all there, in alphabetical order, but five that would say nothing:
AvailabilityZone, and the four of the pricing currency, since all is priced in the currency that it is billed
in. What 1.3 calls ServiceProviderName is a custom column, with the prefix that 1.2 asks of those.

    line                        row
    usage, overage              Usage; PricingQuantity x ContractedUnitPrice = ContractedCost
    purchase                    Purchase, with the same rule
    commitment of a lease       a capacity reservation: two rows of Usage, Used and Unused, where it is known
                                what was used of it; else one Purchase
    correction                  Usage of class Correction: it is about a month that was billed already
    discount, credit            Credit
    adjustment                  Adjustment
    tax line                    Tax

BilledCost is rounded as on the document, so that the rows of an InvoiceId add up to its total; ContractedCost
and ListCost are the exact product. Quantities are rounded to 12 places. Rows of a credit note are below zero;
those of a wrong bill or an ended contract are Corrections, those that are granted are Credits.

Source: FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec, tag v1.2.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, TextIO

import msgspec

from objstore.errors import BadArgument, Corrupt
from objstore.meta.schema import decode
from objstore.rental.commitments import CommitmentUse
from objstore.rental.documents.formats import unit_name
from objstore.rental.money import Money, round_half_up
from objstore.rental.months import SECOND_US, Month
from objstore.rental.names import as_cell
from objstore.rental.plans import EGRESS, REQUESTS, STORED
from objstore.rental.records import CustomerRecord, InvoiceRecord, Line, SellerRecord, TaxLine

if TYPE_CHECKING:
    import pyarrow as pa

VERSION: Final = "1.2"
QUANTITY_PLACES: Final = 12  # Of quantities and unit prices; their product has
COST_PLACES: Final = 2 * QUANTITY_PLACES
DIGITS_MAX: Final = 38  # A decimal128, which every reader of Parquet knows.
_BATCH_ROWS: Final = 10_000  # Of a group of Parquet: some 20 MB in memory.
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NO_TAGS: Final[Mapping[str, Mapping[str, str]]] = {}
_NO_USES: Final[Mapping[str, CommitmentUse]] = {}

Value = str | Decimal | datetime | None
Row = dict[str, Value]
Kind = Literal["text", "time", "quantity", "cost", "json"]


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: Kind
    nullable: bool = False


COLUMNS: Final = (
    Column("BilledCost", "cost"),
    Column("BillingAccountId", "text"),
    Column("BillingAccountName", "text", nullable=True),
    Column("BillingAccountType", "text"),
    Column("BillingCurrency", "text"),
    Column("BillingPeriodEnd", "time"),
    Column("BillingPeriodStart", "time"),
    Column("CapacityReservationId", "text", nullable=True),
    Column("CapacityReservationStatus", "text", nullable=True),
    Column("ChargeCategory", "text"),
    Column("ChargeClass", "text", nullable=True),
    Column("ChargeDescription", "text", nullable=True),
    Column("ChargeFrequency", "text"),
    Column("ChargePeriodEnd", "time"),
    Column("ChargePeriodStart", "time"),
    # Leases reserve capacity; none lowers the price of what is used elsewhere.
    Column("CommitmentDiscountCategory", "text", nullable=True),
    Column("CommitmentDiscountId", "text", nullable=True),
    Column("CommitmentDiscountName", "text", nullable=True),
    Column("CommitmentDiscountQuantity", "quantity", nullable=True),
    Column("CommitmentDiscountStatus", "text", nullable=True),
    Column("CommitmentDiscountType", "text", nullable=True),
    Column("CommitmentDiscountUnit", "text", nullable=True),
    Column("ConsumedQuantity", "quantity", nullable=True),
    Column("ConsumedUnit", "text", nullable=True),
    Column("ContractedCost", "cost"),
    Column("ContractedUnitPrice", "quantity", nullable=True),
    Column("EffectiveCost", "cost"),
    Column("InvoiceId", "text", nullable=True),
    Column("InvoiceIssuerName", "text"),
    Column("ListCost", "cost"),
    Column("ListUnitPrice", "quantity", nullable=True),
    Column("PricingCategory", "text", nullable=True),
    Column("PricingQuantity", "quantity", nullable=True),
    Column("PricingUnit", "text", nullable=True),
    Column("ProviderName", "text"),
    Column("PublisherName", "text"),
    Column("RegionId", "text", nullable=True),
    Column("RegionName", "text", nullable=True),
    Column("ResourceId", "text", nullable=True),
    Column("ResourceName", "text", nullable=True),
    Column("ResourceType", "text", nullable=True),
    Column("ServiceCategory", "text"),
    Column("ServiceName", "text"),
    Column("ServiceSubcategory", "text"),
    Column("SkuId", "text", nullable=True),
    Column("SkuMeter", "text", nullable=True),
    Column("SkuPriceDetails", "json", nullable=True),
    Column("SkuPriceId", "text", nullable=True),
    Column("SubAccountId", "text", nullable=True),
    Column("SubAccountName", "text", nullable=True),
    Column("SubAccountType", "text", nullable=True),
    Column("Tags", "json", nullable=True),
    Column("x_ServiceProviderName", "text"),
)

_CATEGORIES: Final = {
    "usage": "Usage",
    "overage": "Usage",
    "correction": "Usage",
    "commitment": "Purchase",
    "purchase": "Purchase",
    "discount": "Credit",
    "credit": "Credit",
    "adjustment": "Adjustment",
}
_FREQUENCIES: Final = {
    "usage": "Usage-Based", "overage": "Usage-Based", "correction": "Usage-Based", "commitment": "Recurring",
}  # fmt: skip
_GRANTED: Final = frozenset({"sla", "goodwill"})  # Reasons of a credit note that give, and correct nothing.


def rows(
    invoice: InvoiceRecord,
    lines: Sequence[Line],
    *,
    region: str = "",
    tags: Mapping[str, Mapping[str, str]] = _NO_TAGS,
    uses: Mapping[str, CommitmentUse] = _NO_USES,
) -> Iterator[Row]:
    """A document as rows of COLUMNS.

    Args:
        lines: all of the document's.
        region: where the capacity stands; empty: not said.
        tags: of projects, by name.
        uses: by lease, what of its capacity was used in the month that this document bills.

    Raises:
        Corrupt: the rows would not add up to the document's total.
        BadArgument: a number that has more than DIGITS_MAX digits in its column.
    """
    if sum(line.net for line in lines) + sum(tax.amount for tax in invoice.taxes) != invoice.total:
        raise Corrupt(f"the lines of {invoice.number or invoice.id} do not add up to its total")
    return _Rows(invoice, lines, region, tags, uses).all()


class _Rows:
    def __init__(
        self,
        invoice: InvoiceRecord,
        lines: Sequence[Line],
        region: str,
        tags: Mapping[str, Mapping[str, str]],
        uses: Mapping[str, CommitmentUse],
    ) -> None:
        self._invoice = invoice
        self._lines = lines
        self._tags = tags
        self._uses = uses
        self._corrects = invoice.type == "credit_note" and invoice.reason not in _GRANTED
        self._grants = invoice.type == "credit_note" and invoice.reason in _GRANTED
        self._begin_us, self._end_us = _period(invoice)
        self._common = self._document_values(region)

    def all(self) -> Iterator[Row]:
        for line in self._lines:
            for row in self._of_line(line):
                yield _checked(row)
        for tax in self._invoice.taxes:
            yield _checked(self._of_tax(tax))

    def _document_values(self, region: str) -> Row:
        invoice = self._invoice
        customer = decode(invoice.customer_snapshot, CustomerRecord)
        seller = decode(invoice.seller_snapshot, SellerRecord)
        row: Row = dict.fromkeys(column.name for column in COLUMNS)
        row.update(
            BillingAccountId=invoice.tenant,
            BillingAccountName=customer.legal_name or None,
            BillingAccountType="Tenant",
            BillingCurrency=invoice.currency,
            BillingPeriodStart=_time(self._begin_us),
            BillingPeriodEnd=_time(self._end_us),
            InvoiceId=invoice.number or invoice.id,  # A draft's id is its provisional number.
            InvoiceIssuerName=seller.name,
            ProviderName=seller.name,
            PublisherName=seller.name,
            RegionId=region or None,
            RegionName=region or None,
            ServiceCategory="Storage",
            ServiceName="Object storage",
            ServiceSubcategory="Object Storage",
            x_ServiceProviderName=seller.name,
        )
        return row

    def _of_line(self, line: Line) -> Iterator[Row]:
        use = self._uses.get(line.lease) if line.kind == "commitment" else None
        # What is given back, or is for another month than the one whose use is known, stays whole.
        whole = self._invoice.type != "invoice" or not line.quantity or not line.consumed
        if use is None or whole or not use.committed or Fraction(line.consumed) != use.committed:
            yield self._whole(line)
            return
        share = Fraction(use.used, use.committed)
        used_net = round_half_up(line.net * share)
        quantity = Fraction(line.quantity)
        for status, part, net, consumed in (
            ("Used", quantity * share, used_net, use.used),
            ("Unused", quantity * (1 - share), line.net - used_net, 0),
        ):
            if part:
                row = self._base(line, "Usage", net)
                row.update(CapacityReservationStatus=status, ChargeFrequency="Recurring")
                self._price(row, line, part)
                row.update(ConsumedQuantity=Decimal(consumed), ConsumedUnit="B-Seconds")
                yield row

    def _whole(self, line: Line) -> Row:
        category = "Credit" if self._grants else _CATEGORIES[line.kind]
        row = self._base(line, category, line.net)
        if self._corrects or line.kind == "correction":
            row["ChargeClass"] = "Correction"
        if category in ("Usage", "Purchase"):
            if line.quantity and line.unit_price:
                self._price(row, line, Fraction(line.quantity))
            elif row["ChargeClass"] is None:  # One of it, for what it comes to.
                price = f"{abs(_cost(line.net, self._invoice)):f}"
                one = msgspec.structs.replace(line, unit="Units", unit_price=price)
                self._price(row, one, Fraction(-1 if line.net < 0 else 1))
        if category == "Usage":
            self._consume(row, line)
        return row

    def _base(self, line: Line, category: str, net: int) -> Row:
        billed = _cost(net, self._invoice)
        begin_us, end_us = line.begin_us or self._begin_us, line.end_us or self._end_us
        row = dict(self._common)
        row.update(
            BilledCost=billed,
            ContractedCost=billed,
            EffectiveCost=billed,
            ListCost=billed,
            ChargeCategory=category,
            ChargeDescription=line.description or None,
            ChargeFrequency="One-Time" if self._grants else _FREQUENCIES.get(line.kind, "One-Time"),
            ChargePeriodStart=_time(begin_us),
            ChargePeriodEnd=_time(max(end_us, begin_us + SECOND_US)),
        )
        if line.kind == "commitment":
            row["CapacityReservationId"] = line.lease
        if line.bucket:
            row.update(
                ResourceId=f"arn:aws:s3:::{line.bucket}", ResourceName=line.bucket, ResourceType="Bucket"
            )
        if line.project:
            row.update(SubAccountId=line.project, SubAccountName=line.project, SubAccountType="Project")
            tags = self._tags.get(line.project)
            row["Tags"] = _json(tags) if tags else None
        return row

    def _price(self, row: Row, line: Line, quantity: Fraction) -> None:
        """The line's price on that much of it: costs are the exact product."""
        amount, price = _rounded(quantity), Decimal(line.unit_price)
        with localcontext(prec=4 * DIGITS_MAX):
            cost = amount * price
        sku = "/".join(filter(None, (line.meter or line.kind, line.storage_class)))
        source = f"lease/{line.lease}" if line.lease else f"plan/{line.plan}/{line.plan_version}"
        row.update(
            ContractedCost=cost,
            ContractedUnitPrice=price,
            ListCost=cost,
            ListUnitPrice=price,
            PricingCategory="Standard",
            PricingQuantity=amount,
            PricingUnit=unit_name(line.unit),
            SkuId=sku,
            SkuMeter=(line.meter or line.kind).replace("_", " ").capitalize(),
            # With the price: a tier's free part, and a region's rate, have their own.
            SkuPriceId=f"{source}/{line.kind}/{sku}/{line.tier}/{price:f}",
            SkuPriceDetails=_json({"StorageClass": line.storage_class}) if line.storage_class else None,
        )

    def _consume(self, row: Row, line: Line) -> None:
        unit = _consumed_unit(line.meter)
        if line.consumed and unit:
            row.update(ConsumedQuantity=_rounded(Fraction(line.consumed)), ConsumedUnit=unit)
        else:  # What has no finer measure than its price's.
            row.update(ConsumedQuantity=row["PricingQuantity"], ConsumedUnit=row["PricingUnit"])

    def _of_tax(self, tax: TaxLine) -> Row:
        """One amount for all costs: the law taxes the lines as they were rounded."""
        billed = _cost(tax.amount, self._invoice)
        description = " - ".join(filter(None, (tax.label, tax.legal_basis)))
        row = dict(self._common)
        row.update(
            BilledCost=billed,
            ContractedCost=billed,
            EffectiveCost=billed,
            ListCost=billed,
            ChargeCategory="Tax",
            ChargeClass="Correction" if self._corrects else None,
            ChargeDescription=description or None,
            ChargeFrequency="One-Time",
            ChargePeriodStart=_time(self._begin_us),
            ChargePeriodEnd=_time(self._end_us),
        )
        return row


# --- files ----------------------------------------------------------------------------------------


def write_csv(found: Iterable[Row], file: TextIO) -> int:
    """A header and a line for each row; a value that is none is an empty field. How many rows.

    Names that a spreadsheet would take for a formula begin with an apostrophe; Parquet has them as they are.
    """
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(column.name for column in COLUMNS)
    count = 0
    for row in found:
        writer.writerow(_text(row[column.name]) for column in COLUMNS)
        count += 1
    return count


def write_parquet(found: Iterable[Row], file: BinaryIO) -> int:
    """The same with types: decimals of 38 digits, UTC timestamps. How many rows.

    Raises: BadArgument where pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as failure:
        raise BadArgument(
            "Parquet needs pyarrow, which is not installed: objstore[parquet]", name="format", value="parquet"
        ) from failure
    schema = _schema(pa)
    count = 0
    iterator = iter(found)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(islice(iterator, _BATCH_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _schema(pa: Any) -> "pa.Schema":
    types = {
        "text": pa.string(),
        "json": pa.string(),
        "time": pa.timestamp("us", tz="UTC"),
        "quantity": pa.decimal128(DIGITS_MAX, QUANTITY_PLACES),
        "cost": pa.decimal128(DIGITS_MAX, COST_PLACES),
    }
    fields = [pa.field(column.name, types[column.kind], nullable=column.nullable) for column in COLUMNS]
    return pa.schema(fields, metadata={"FocusVersion": VERSION})


def _text(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return _plain(value)
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else as_cell(value)


def _plain(value: Decimal) -> str:
    """No exponent, no zeros at the end."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# --- values ---------------------------------------------------------------------------------------


def _period(invoice: InvoiceRecord) -> tuple[int, int]:
    """The document's own; one without is of the month in which it was made."""
    if invoice.period_end_us > invoice.period_begin_us:
        return invoice.period_begin_us, invoice.period_end_us
    month = Month.containing((invoice.issued_us or invoice.made_us) // SECOND_US)
    return month.begin_s * SECOND_US, month.end_s * SECOND_US


def _consumed_unit(meter: str) -> str:
    if meter in STORED:
        return "B-Seconds"
    if meter in REQUESTS:
        return "Requests"
    return "B" if meter in EGRESS else ""


def _cost(minor: int, invoice: InvoiceRecord) -> Decimal:
    return Decimal(str(Money(minor, invoice.currency)))


def _rounded(quantity: Fraction) -> Decimal:
    return Decimal(f"{round_half_up(quantity * 10**QUANTITY_PLACES)}e-{QUANTITY_PLACES}")


def _time(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def _json(values: Mapping[str, str]) -> str:
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def _checked(row: Row) -> Row:
    """Raises: BadArgument for a number that its column cannot hold."""
    for column in COLUMNS:
        value = row[column.name]
        if isinstance(value, Decimal):
            places = COST_PLACES if column.kind == "cost" else QUANTITY_PLACES
            if abs(value) >= 10 ** (DIGITS_MAX - places):
                raise BadArgument(
                    f"{column.name} has more than {DIGITS_MAX - places} digits: {value}", name=column.name
                )
        assert value is not None or column.nullable, f"{column.name} is empty"
    return row
