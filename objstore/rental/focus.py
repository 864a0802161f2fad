"""Invoices and credit notes as FOCUS 1.2 (FinOps Open Cost and Usage Specification), in CSV and Parquet.

One version is pinned. Its columns are all there, in alphabetical order, but five that would say nothing:
AvailabilityZone, and the four of the pricing currency, since all is priced in the currency that it is billed
in. What 1.3 calls ServiceProviderName is a custom column, with the prefix that 1.2 asks of those.

    line                        row
    usage, overage              Usage; PricingQuantity x ContractedUnitPrice = ContractedCost
    purchase                    Purchase, with the same rule
    commitment of a lease       Purchase; where it is known what was used of it also two rows of Usage, Used
                                and Unused, that are billed nothing and bear its EffectiveCost
    correction                  Usage of class Correction: it is about a month that was billed already
    discount, credit            Credit
    adjustment                  Adjustment
    tax line                    Tax

BilledCost is rounded as on the document, so that the rows of an InvoiceId add up to its total; ContractedCost
and ListCost are the exact product. Quantities are rounded to 12 places. Rows of a credit note are below zero;
those of a wrong bill or an ended contract are Corrections, those that are granted are Credits.

A lease is a capacity reservation and a commitment discount: a quantity for a term, at a price agreed for it.
What is charged in advance has its EffectiveCost in the month that it is for.

Tags are those of the project, as they are when the file is made; its cost centre is ours to name, and so has
the prefix `objstore/`, which no tag of a project's own may begin with.

Source: FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec, tag v1.2.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, Protocol, TextIO

import msgspec

from objstore.clock import SECOND_US
from objstore.errors import BadArgument, Corrupt
from objstore.meta.schema import decode
from objstore.rental.commitments import CommitmentUse
from objstore.rental.documents.formats import unit_name
from objstore.rental.money import Money, round_half_up
from objstore.rental.months import Month
from objstore.rental.names import as_cell
from objstore.rental.plans import EGRESS, REQUESTS, STORED
from objstore.rental.records import CustomerRecord, InvoiceRecord, Line, SellerRecord, TaxLine

if TYPE_CHECKING:
    import pyarrow as pa

VERSION: Final = "1.2"
FORMS: Final = ("csv", "parquet")
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
    before: Sequence[Line] = (),
) -> Iterator[Row]:
    """A document as rows of COLUMNS.

    Args:
        lines: all of the document's.
        region: where the capacity stands; empty: not said.
        tags: of projects, by name.
        uses: by lease, what of its capacity was used in the month that this document bills.
        before: lines of the invoice before, on which a charge in advance for this month may stand.

    Raises:
        Corrupt: the rows would not add up to the document's total.
        BadArgument: a number that has more than DIGITS_MAX digits in its column.
    """
    if sum(line.net for line in lines) + sum(tax.amount for tax in invoice.taxes) != invoice.total:
        raise Corrupt(f"the lines of {invoice.number or invoice.id} do not add up to its total")
    return _Rows(invoice, lines, region, tags, uses, before).all()


class _Rows:
    def __init__(
        self,
        invoice: InvoiceRecord,
        lines: Sequence[Line],
        region: str,
        tags: Mapping[str, Mapping[str, str]],
        uses: Mapping[str, CommitmentUse],
        before: Sequence[Line],
    ) -> None:
        self._invoice = invoice
        self._lines = lines
        self._tags = tags
        self._corrects = invoice.type == "credit_note" and invoice.reason not in _GRANTED
        self._grants = invoice.type == "credit_note" and invoice.reason in _GRANTED
        self._begin_us, self._end_us = _period(invoice)
        self._common = self._document_values(region)
        self._covered = self._known([*before, *lines], uses) if invoice.type == "invoice" else {}

    def all(self) -> Iterator[Row]:
        for line in self._lines:
            yield _checked(self._of_line(line))
        for use, charged in self._covered.values():
            for row in self._used(use, charged):
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

    def _known(
        self, lines: Sequence[Line], uses: Mapping[str, CommitmentUse]
    ) -> dict[str, tuple[CommitmentUse, list[Line]]]:
        """Leases of which it is known what was used of all that was charged for this month."""
        found: dict[str, list[Line]] = {}
        for line in lines:
            if line.lease in uses and line.quantity and line.consumed and self._is_of_month(line):
                found.setdefault(line.lease, []).append(line)
        return {
            lease: (uses[lease], charged)
            for lease, charged in found.items()
            if sum(Fraction(line.consumed) for line in charged) == uses[lease].committed > 0
        }

    def _is_of_month(self, line: Line) -> bool:
        begin_us = line.begin_us or self._begin_us
        return line.kind == "commitment" and self._begin_us <= begin_us < self._end_us

    def _used(self, use: CommitmentUse, charged: Sequence[Line]) -> Iterator[Row]:
        """What was used of a lease's charge, and what lay idle: together they cost what was charged."""
        net = sum(line.net for line in charged)
        quantity = sum((Fraction(line.quantity) for line in charged), Fraction(0))
        share = Fraction(use.used, use.committed)
        used_net = round_half_up(net * share)
        first = msgspec.structs.replace(
            charged[0],
            begin_us=min(line.begin_us for line in charged),
            end_us=max(line.end_us for line in charged),
        )
        for status, part, cost in (
            ("Used", quantity * share, used_net),
            ("Unused", quantity * (1 - share), net - used_net),
        ):
            if not part:
                continue
            row = self._base(first, "Usage", 0)
            self._price(row, first, part)
            row.update(
                CapacityReservationStatus=status,
                ChargeFrequency="Recurring",
                CommitmentDiscountQuantity=row["PricingQuantity"],
                CommitmentDiscountStatus=status,
                CommitmentDiscountUnit=row["PricingUnit"],
                EffectiveCost=_cost(cost, self._invoice),
                PricingCategory="Committed",
            )
            if status == "Used":
                row.update(ConsumedQuantity=Decimal(use.used), ConsumedUnit="B-Seconds")
            yield row

    def _of_line(self, line: Line) -> Row:
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
        if category == "Purchase" and line.kind == "commitment" and row["ChargeClass"] is None:
            row.update(
                CommitmentDiscountQuantity=row["PricingQuantity"], CommitmentDiscountUnit=row["PricingUnit"]
            )
            if line.lease in self._covered or line.begin_us >= self._end_us:
                row["EffectiveCost"] = _cost(0, self._invoice)
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
            row.update(
                CapacityReservationId=line.lease,
                CommitmentDiscountCategory="Usage",
                CommitmentDiscountId=line.lease,
                CommitmentDiscountType="Lease",
            )
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


class Pieces(Protocol):
    """A file in the making, in pieces: whoever sends them in order has sent it."""

    def add(self, found: Sequence[Row]) -> bytes:
        """Blocks the CPU: a millisecond for a hundred rows."""
        ...

    def end(self) -> bytes: ...


class CsvPieces:
    """A header and a line for each row; a value that is none is an empty field.

    Names that a spreadsheet would take for a formula begin with an apostrophe; Parquet has them as they are.
    """

    def __init__(self) -> None:
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text, lineterminator="\r\n")
        self._writer.writerow(column.name for column in COLUMNS)

    def add(self, found: Sequence[Row]) -> bytes:
        self._writer.writerows([_text(row[column.name]) for column in COLUMNS] for row in found)
        return self._taken()

    def end(self) -> bytes:
        return self._taken()

    def _taken(self) -> bytes:
        text = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        return text.encode()


class ParquetPieces:
    """The same with types: decimals of 38 digits, UTC timestamps. A group of rows for each `add`."""

    def __init__(self) -> None:
        """Raises: BadArgument where pyarrow is not installed."""
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as failure:
            raise BadArgument(
                "Parquet needs pyarrow, which is not installed: objstore[parquet]",
                name="format",
                value="parquet",
            ) from failure
        self._pa, self._schema = pa, _schema(pa)
        self._sink = _Sink()
        self._writer = parquet.ParquetWriter(pa.PythonFile(self._sink, "w"), self._schema, compression="zstd")

    def add(self, found: Sequence[Row]) -> bytes:
        if found:
            self._writer.write_batch(self._pa.RecordBatch.from_pylist(list(found), schema=self._schema))
        return self._sink.taken()

    def end(self) -> bytes:
        self._writer.close()
        return self._sink.taken()


class _Sink(io.RawIOBase):
    """What pyarrow writes, until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written += data
        return len(data)

    def taken(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken


def pieces_of(form: str) -> Pieces:
    """form: csv or parquet. Raises: BadArgument."""
    if form not in FORMS:
        raise BadArgument(f"a format is one of {', '.join(FORMS)}", name="format", value=form)
    return ParquetPieces() if form == "parquet" else CsvPieces()


def write_csv(found: Iterable[Row], file: TextIO) -> int:
    """How many rows. As CsvPieces."""
    return _write(found, CsvPieces(), lambda piece: file.write(piece.decode()))


def write_parquet(found: Iterable[Row], file: BinaryIO) -> int:
    """How many rows. Raises: BadArgument where pyarrow is not installed."""
    return _write(found, ParquetPieces(), file.write)


def _write(found: Iterable[Row], pieces: Pieces, write: Callable[[bytes], object]) -> int:
    count = 0
    iterator = iter(found)
    while batch := list(islice(iterator, _BATCH_ROWS)):
        write(pieces.add(batch))
        count += len(batch)
    write(pieces.end())
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
