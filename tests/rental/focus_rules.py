"""What FOCUS 1.2 asks of a Cost and Usage file, read from its published column definitions (tag v1.2).

Written against the specification's text and the file's own text, and knows nothing of what writes it. Each
rule has a name; a file that breaks it is told by that name and the row.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from decimal import Decimal, localcontext

# Column, feature level (Mandatory, Conditional, Recommended), may be null, type.
PUBLISHED = """
AvailabilityZone R null String
BilledCost M full Decimal
BillingAccountId M full String
BillingAccountName M null String
BillingAccountType C full String
BillingCurrency M full String
BillingPeriodEnd M full Time
BillingPeriodStart M full Time
CapacityReservationId C null String
CapacityReservationStatus C null String
ChargeCategory M full String
ChargeClass M null String
ChargeDescription M null String
ChargeFrequency R full String
ChargePeriodEnd M full Time
ChargePeriodStart M full Time
CommitmentDiscountCategory C null String
CommitmentDiscountId C null String
CommitmentDiscountName C null String
CommitmentDiscountQuantity C null Decimal
CommitmentDiscountStatus C null String
CommitmentDiscountType C null String
CommitmentDiscountUnit C null String
ConsumedQuantity C null Decimal
ConsumedUnit C null String
ContractedCost M full Decimal
ContractedUnitPrice C null Decimal
EffectiveCost M full Decimal
InvoiceId R null String
InvoiceIssuerName M full String
ListCost M full Decimal
ListUnitPrice C null Decimal
PricingCategory C null String
PricingCurrency C null String
PricingCurrencyContractedUnitPrice C null Decimal
PricingCurrencyEffectiveCost C null Decimal
PricingCurrencyListUnitPrice C null Decimal
PricingQuantity M null Decimal
PricingUnit M null String
ProviderName M full String
PublisherName M full String
RegionId C null String
RegionName C null String
ResourceId C null String
ResourceName C null String
ResourceType C null String
ServiceCategory M full String
ServiceName M full String
ServiceSubcategory R full String
SkuId C null String
SkuMeter C null String
SkuPriceDetails C null JSON
SkuPriceId C null String
SubAccountId C null String
SubAccountName C null String
SubAccountType C null String
Tags C null JSON
"""
COLUMNS = {
    name: (level, nulls, kind) for name, level, nulls, kind in map(str.split, PUBLISHED.split("\n")[1:-1])
}
# Conditional columns whose condition does not hold here: one zone, and billed in the currency of the prices.
NOT_APPLICABLE = {name for name in COLUMNS if name.startswith("PricingCurrency")}
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"", "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"", "Standard", "Dynamic", "Committed", "Other"},
    "CapacityReservationStatus": {"", "Used", "Unused"},
    "CommitmentDiscountCategory": {"", "Spend", "Usage"},
    "CommitmentDiscountStatus": {"", "Used", "Unused"},
}
STORAGE = {
    "Backup Storage", "Block Storage", "File Storage", "Object Storage", "Storage Platforms",
    "Other (Storage)",
}  # fmt: skip
# One is null exactly when the other is.
TOGETHER = [
    ("ConsumedQuantity", "ConsumedUnit"),
    ("PricingQuantity", "PricingUnit"),
    ("ResourceId", "ResourceType"),
    ("SubAccountId", "SubAccountType"),
    ("CommitmentDiscountId", "CommitmentDiscountCategory"),
    ("CommitmentDiscountId", "CommitmentDiscountType"),
    ("CommitmentDiscountQuantity", "CommitmentDiscountUnit"),
]
# The second may be there only when the first is.
ONLY_WITH = [
    ("CapacityReservationId", "CapacityReservationStatus"),
    ("CommitmentDiscountId", "CommitmentDiscountName"),
    ("CommitmentDiscountId", "CommitmentDiscountStatus"),
    ("ResourceId", "ResourceName"),
    ("SkuId", "SkuMeter"),
    ("SkuPriceId", "SkuPriceDetails"),
    ("SubAccountId", "SubAccountName"),
]
PRICED = ("ContractedUnitPrice", "ListUnitPrice", "PricingCategory", "PricingQuantity", "SkuId", "SkuPriceId")
PROPERTIES = {
    "CoreCount", "DiskMaxIops", "DiskSpace", "DiskType", "GpuCount", "InstanceType", "InstanceSeries",
    "MemorySize", "NetworkMaxIops", "NetworkMaxThroughput", "OperatingSystem", "Redundancy", "StorageClass",
}  # fmt: skip
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:E-?[0-9]+)?", re.ASCII)
TIME = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z", re.ASCII)
_SIZE = r"(?:[KMGTPE]i?)?[Bb]"
_COUNT = r"[A-Z][a-z]+s"
_SPAN = r"(?:Year|Month|Day|Hour|Minute|Second)s"
UNIT = re.compile(rf"(?:[1-9][0-9]* )?(?:{_SIZE}|{_COUNT})(?:-{_SPAN}|/{_SPAN[:-1]})?", re.ASCII)


def broken_rules(text: str, totals: dict[str, Decimal]) -> list[str]:
    """The rules that a CSV file breaks, each with the row that does.

    Args:
        totals: what each invoice of the file asks for, by its number.
    """
    table = list(csv.reader(io.StringIO(text, newline="")))
    header, records = table[0], table[1:]
    found = list(_broken_by_header(header))
    if found:
        return found
    rows = [dict(zip(header, record, strict=True)) for record in records]
    for number, row in enumerate(rows, start=1):
        found += [f"{rule} (row {number})" for rule in _broken_by_row(row)]
    return found or list(_broken_by_file(rows, totals))


def _broken_by_header(header: list[str]) -> Iterator[str]:
    known = [name for name in header if name in COLUMNS]
    if known != header[: len(known)]:
        yield "custom columns come last"
    for name in set(header) - set(COLUMNS):
        if not name.startswith("x_"):
            yield f"custom columns begin with x_: {name}"
    for name, (level, _, _) in COLUMNS.items():
        if name not in header and level != "R" and name not in NOT_APPLICABLE:
            yield f"{name} must be present"
    if len(set(header)) != len(header):
        yield "a column is there twice"


def _broken_by_row(row: dict[str, str]) -> Iterator[str]:
    for name, (_, nulls, kind) in COLUMNS.items():
        value = row.get(name, "")
        if not value:
            if nulls == "full" and name in row:
                yield f"{name} is null"
            continue
        if kind == "Decimal" and not NUMBER.fullmatch(value):
            yield f"{name} is no number"
        if kind == "Time" and not TIME.fullmatch(value):
            yield f"{name} is no time"
        if kind == "JSON" and not _is_flat(value):
            yield f"{name} is no flat object"
    for name, allowed in ALLOWED.items():
        if row[name] not in allowed:
            yield f"{name} has a value that is not allowed"
    for one, other in TOGETHER:
        if bool(row[one]) != bool(row[other]):
            yield f"{other} and {one} are null together"
    for one, other in ONLY_WITH:
        if row[other] and not row[one]:
            yield f"{other} is there without {one}"
    if row["ServiceCategory"] == "Storage" and row["ServiceSubcategory"] not in STORAGE:
        yield "ServiceSubcategory is none of its category"
    if not re.fullmatch("[A-Z]{3}", row["BillingCurrency"], re.ASCII):
        yield "BillingCurrency is no ISO 4217 code"
    for name in ("ConsumedUnit", "PricingUnit", "CommitmentDiscountUnit"):
        if row[name] and not UNIT.fullmatch(row[name]):
            yield f"{name} is no unit"
    for name in ("BillingPeriod", "ChargePeriod"):
        if row[f"{name}Start"] >= row[f"{name}End"]:
            yield f"{name} ends before it began"
    if row["SkuPriceDetails"] and _is_flat(row["SkuPriceDetails"]):
        for key in json.loads(row["SkuPriceDetails"]):
            if key not in PROPERTIES and not key.startswith("x_"):
                yield "SkuPriceDetails has a property of no one"
    if row["ResourceId"] and row["ResourceName"] == row["ResourceId"]:
        yield "ResourceName repeats ResourceId"
    yield from _broken_by_category(row)
    yield from _broken_by_price(row)


def _broken_by_category(row: dict[str, str]) -> Iterator[str]:
    category, correction = row["ChargeCategory"], row["ChargeClass"] == "Correction"
    if category == "Tax":
        for name in PRICED:
            if row[name]:
                yield f"{name} of a tax is not null"
    if category in ("Usage", "Purchase") and not correction:
        for name in PRICED:
            if not row[name]:
                yield f"{name} of usage or a purchase is null"
    if category == "Purchase" and row["ChargeFrequency"] == "Usage-Based":
        yield "a purchase is not usage-based"
    if category != "Usage" and row["ConsumedQuantity"]:
        yield "ConsumedQuantity without usage"
    unused = row["CommitmentDiscountStatus"] == "Unused"
    if category == "Usage" and not correction and bool(row["ConsumedQuantity"]) == unused:
        yield "ConsumedQuantity of usage"
    if category == "Usage" and row["CapacityReservationId"] and not row["CapacityReservationStatus"]:
        yield "CapacityReservationStatus of usage is null"
    if category in ("Credit", "Adjustment") and row["EffectiveCost"] != row["BilledCost"]:
        yield "EffectiveCost of a charge of its own is its BilledCost"
    yield from _broken_by_commitment(row, category, correction)


def _broken_by_commitment(row: dict[str, str], category: str, correction: bool) -> Iterator[str]:
    committed = bool(row["CommitmentDiscountId"])
    counts = committed and category in ("Usage", "Purchase")
    if committed and category == "Usage" and not row["CommitmentDiscountStatus"]:
        yield "CommitmentDiscountStatus of usage is null"
    if counts and not correction and not row["CommitmentDiscountQuantity"]:
        yield "CommitmentDiscountQuantity is null"
    if not counts and row["CommitmentDiscountQuantity"]:
        yield "CommitmentDiscountQuantity of neither usage nor a purchase"
    covered = committed and category == "Usage"
    priced = category in ("Usage", "Purchase") and not correction
    if priced and covered != (row["PricingCategory"] == "Committed"):
        yield "PricingCategory is Committed where a commitment covers usage, and nowhere else"
    future = row["ChargePeriodStart"] >= row["BillingPeriodEnd"]
    if committed and category == "Purchase" and not correction and future and row["EffectiveCost"] != "0":
        yield "EffectiveCost of a purchase for later is zero"


def _broken_by_price(row: dict[str, str]) -> Iterator[str]:
    for kind in ("Contracted", "List"):
        price, cost = row[f"{kind}UnitPrice"], row[f"{kind}Cost"]
        if price and Decimal(price) < 0:
            yield f"{kind}UnitPrice is negative"
        if not price:
            if row["ChargeCategory"] != "Tax" and cost != row["BilledCost"]:
                yield f"{kind}Cost without a price is the BilledCost"
        elif row["PricingQuantity"] and row["ChargeClass"] != "Correction":
            with localcontext(prec=100):
                product = Decimal(price) * Decimal(row["PricingQuantity"])
            if product != Decimal(cost):
                yield f"PricingQuantity x {kind}UnitPrice is not {kind}Cost"


def _broken_by_file(rows: list[dict[str, str]], totals: dict[str, Decimal]) -> Iterator[str]:
    sums: dict[str, Decimal] = {}
    parents: dict[str, str] = {}
    for row in rows:
        sums[row["InvoiceId"]] = sums.get(row["InvoiceId"], Decimal(0)) + Decimal(row["BilledCost"])
        if row["SkuPriceId"] and parents.setdefault(row["SkuPriceId"], row["SkuId"]) != row["SkuId"]:
            yield f"SkuPriceId {row['SkuPriceId']} has two parents"
    yield from _broken_by_coverage(rows)
    if sums != totals:
        yield f"BilledCost adds up to {sums}, the invoices to {totals}"


def _broken_by_coverage(rows: list[dict[str, str]]) -> Iterator[str]:
    """What usage under a commitment costs is what was billed for it, where the file has both."""
    bought: dict[str, Decimal] = {}
    used: dict[str, Decimal] = {}
    for row in rows:
        name, within = row["CommitmentDiscountId"], row["ChargePeriodStart"] < row["BillingPeriodEnd"]
        if not name or not within or row["ChargeClass"] == "Correction":
            continue
        if row["ChargeCategory"] == "Purchase":
            left = Decimal(row["BilledCost"]) - Decimal(row["EffectiveCost"])
            bought[name] = bought.get(name, Decimal(0)) + left
        elif row["ChargeCategory"] == "Usage":
            used[name] = used.get(name, Decimal(0)) + Decimal(row["EffectiveCost"])
    for name in used.keys() & bought.keys():
        if used[name] != bought[name]:
            yield f"EffectiveCost under {name} is {used[name]}, and {bought[name]} was billed"


def _is_flat(text: str) -> bool:
    keys: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys.extend(key for key, _ in pairs)
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=note)
    except ValueError:
        return False
    if not isinstance(value, dict) or len(set(keys)) != len(keys):
        return False
    return all(part is None or isinstance(part, (str, int, float)) for part in value.values())
