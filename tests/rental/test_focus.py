"""FOCUS files against the rules of the specification's own text."""

import csv
import io
import random
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from objstore.errors import BadArgument, Corrupt
from objstore.rental.commitments import Commitment, CommitmentUse, Overage, Step
from objstore.rental.focus import COLUMNS, VERSION, rows, write_csv, write_parquet
from objstore.rental.money import MINOR_UNITS, Money
from objstore.rental.names import as_cell
from objstore.rental.plans import EGRESS, REQUESTS, STORED, parse_plan
from objstore.rental.rating import rate_month
from objstore.rental.records import KINDS, InvoiceRecord, Line
from objstore.rental.tally import Usage, UsageKey
from tests.rental import focus_rules
from tests.rental.cards import MARCH, TB, plan, rate, stored_hours
from tests.rental.papers import BEGIN_US, CUSTOMER, END_US, SELLER, V10, paper, priced
from tests.seed import SEED

CARDS = Path(__file__).resolve().parents[2] / "config" / "plans"
TB_MONTH = 10**12 * 744 * 3_600  # Byte-seconds of March.
LEASE = Line(
    kind="commitment",
    description="Capacité réservée STANDARD",
    meter="storage",
    storage_class="STANDARD",
    begin_us=BEGIN_US,
    end_us=END_US,
    quantity="100/1",
    unit="TB-Months",
    unit_price="5.90",
    net=59_000,
    plan="objets",
    plan_version=3,
    lease="01JLEASE",
    consumed=str(100 * TB_MONTH),
)


replaced = msgspec.structs.replace


def exported(*papers: tuple[InvoiceRecord, list[Line]], **options: Any) -> str:
    file = io.StringIO(newline="")
    write_csv((row for invoice, lines in papers for row in rows(invoice, lines, **options)), file)
    return file.getvalue()


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def totals(*invoices: InvoiceRecord) -> dict[str, Decimal]:
    return {one.number: Decimal(str(Money(one.total, one.currency))) for one in invoices}


@pytest.mark.parametrize(
    ("currency", "rate", "total"),
    [
        ("DZD", "0.19", "93242.45"),
        ("MAD", "0.20", "94026.00"),
        ("TND", "0.19", "93242.450"),
        ("XOF", "0.18", "92459"),
    ],
)
def test_an_invoice_keeps_every_rule_and_its_rows_add_up_to_its_total(
    currency: str, rate: str, total: str
) -> None:
    lines = [priced(line, currency) for line in V10]
    invoice = paper(lines, rate=rate, currency=currency)
    text = exported((invoice, lines), region="dz-oran", tags={"web": {"centre": "42"}})
    assert focus_rules.broken_rules(text, {"FA-2026-000001": Decimal(total)}) == []


def test_what_stands_in_a_row_is_what_stands_on_the_invoice() -> None:
    storage, requests, tax = parsed(exported((paper(), list(V10)), tags={"web": {"centre": "42"}}))
    assert (storage["BilledCost"], storage["ContractedCost"], storage["EffectiveCost"]) == (
        "69000",
        "69000",
        "69000",
    )
    assert (storage["PricingQuantity"], storage["PricingUnit"], storage["ListUnitPrice"]) == (
        "100",
        "TB-Months",
        "690",
    )
    assert (storage["ConsumedQuantity"], storage["ConsumedUnit"]) == ("267840000000000000000", "B-Seconds")
    assert storage["ResourceId"] == "arn:aws:s3:::photos-2026"
    assert storage["SkuPriceId"] == "plan/objets/3/usage/storage/STANDARD/1/690.00"
    assert (requests["SubAccountId"], requests["Tags"]) == ("web", '{"centre": "42"}')
    assert (requests["ConsumedQuantity"], requests["ConsumedUnit"]) == ("10000", "Requests")
    assert (tax["ChargeCategory"], tax["BilledCost"], tax["PricingQuantity"]) == ("Tax", "14887.45", "")
    assert tax["ChargeDescription"] == "TVA 19 %"
    assert (tax["BillingPeriodStart"], tax["BillingPeriodEnd"]) == (
        "2026-03-01T00:00:00Z",
        "2026-04-01T00:00:00Z",
    )
    assert {row["BillingAccountId"] for row in (storage, requests, tax)} == {"amira"}
    assert storage["InvoiceIssuerName"] == SELLER.name


def test_a_quantity_without_an_end_is_cut_and_its_cost_is_the_product_of_what_is_written() -> None:
    line = priced(msgspec.structs.replace(V10[0], quantity="102400/31", unit_price="0.023"), "USD")
    customer = msgspec.structs.replace(CUSTOMER, currency="USD")
    invoice = paper([line], customer=customer)
    row = parsed(exported((invoice, [line])))[0]
    assert row["PricingQuantity"] == "3303.225806451613"
    assert row["ContractedCost"] == "75.974193548387099"
    assert row["BilledCost"] == "75.97"
    assert focus_rules.broken_rules(exported((invoice, [line])), totals(invoice)) == []


def test_the_idle_part_of_a_lease_is_an_unused_reservation() -> None:
    invoice = paper([LEASE])
    use = CommitmentUse(
        lease="01JLEASE", storage_class="STANDARD", committed=100 * TB_MONTH, used=80 * TB_MONTH
    )
    text = exported((invoice, [LEASE]), uses={"01JLEASE": use})
    bought, used, unused, _ = parsed(text)
    assert focus_rules.broken_rules(text, totals(invoice)) == []
    assert (bought["ChargeCategory"], bought["BilledCost"], bought["EffectiveCost"]) == (
        "Purchase",
        "590",
        "0",
    )
    assert (bought["CommitmentDiscountQuantity"], bought["CommitmentDiscountUnit"]) == ("100", "TB-Months")
    for row, status, cost, quantity, consumed in (
        (used, "Used", "472", "80", str(80 * TB_MONTH)),
        (unused, "Unused", "118", "20", ""),
    ):
        assert row["CapacityReservationId"] == row["CommitmentDiscountId"] == "01JLEASE"
        assert row["CapacityReservationStatus"] == row["CommitmentDiscountStatus"] == status
        assert (row["BilledCost"], row["EffectiveCost"]) == ("0", cost)
        assert (row["PricingQuantity"], row["ConsumedQuantity"]) == (quantity, consumed)
        assert (row["PricingCategory"], row["CommitmentDiscountQuantity"]) == ("Committed", quantity)


def test_what_was_charged_in_advance_costs_in_the_month_that_it_is_for() -> None:
    april = replaced(LEASE, begin_us=END_US, end_us=END_US + 30 * 86_400 * 10**6)
    invoice = paper([april])
    text = exported((invoice, [april]))
    assert parsed(text)[0]["EffectiveCost"] == "0"
    assert focus_rules.broken_rules(text, totals(invoice)) == []
    # Of March's charge, which stands on February's invoice, a quarter was given back: the lease ended.
    back = replaced(LEASE, quantity="-25/1", net=-14_750, consumed=str(-25 * TB_MONTH))
    use = CommitmentUse(
        lease="01JLEASE", storage_class="STANDARD", committed=75 * TB_MONTH, used=50 * TB_MONTH
    )
    usage = replaced(LEASE, kind="usage", lease="", net=590_00)
    march = paper([usage, back])
    text = exported((march, [usage, back]), uses={"01JLEASE": use}, before=[LEASE])
    _, returned, used, unused, _ = parsed(text)
    assert (returned["BilledCost"], returned["EffectiveCost"]) == ("-147.5", "0")
    assert (used["EffectiveCost"], unused["EffectiveCost"]) == ("295", "147.5")  # 5.90 x 50, 5.90 x 25.


def test_the_parts_of_a_lease_add_up_to_its_charge_whatever_was_used_of_it() -> None:
    chance = random.Random(SEED)
    for _ in range(50):
        committed = chance.randrange(1, 10**18)
        used = chance.choice([0, committed, chance.randrange(committed + 1)])
        line = msgspec.structs.replace(LEASE, net=chance.randrange(10**9), consumed=str(committed))
        use = CommitmentUse(lease="01JLEASE", storage_class="STANDARD", committed=committed, used=used)
        invoice = paper([line])
        found = focus_rules.broken_rules(exported((invoice, [line]), uses={"01JLEASE": use}), totals(invoice))
        assert found == [], f"{used} of {committed} (seed {SEED})"


def test_a_lease_whose_use_is_not_known_is_a_recurring_purchase() -> None:
    invoice = paper([LEASE])
    other = CommitmentUse(lease="01JLEASE", storage_class="STANDARD", committed=90 * TB_MONTH, used=0)
    for uses in ({}, {"01JLEASE": other}):
        text = exported((invoice, [LEASE]), uses=uses)
        row = parsed(text)[0]
        assert (row["ChargeCategory"], row["ChargeFrequency"]) == ("Purchase", "Recurring")
        assert (row["CapacityReservationId"], row["CapacityReservationStatus"]) == ("01JLEASE", "")
        assert focus_rules.broken_rules(text, totals(invoice)) == []


@pytest.mark.parametrize(
    ("reason", "category", "charge_class"),
    [
        ("billing_error", "Usage", "Correction"),
        ("termination", "Usage", "Correction"),
        ("sla", "Credit", ""),
        ("goodwill", "Credit", ""),
    ],
)
def test_a_credit_note_takes_back_what_its_reason_says(reason: str, category: str, charge_class: str) -> None:
    lines = [
        msgspec.structs.replace(
            line, net=-line.net, quantity=f"-{line.quantity}", consumed=f"-{line.consumed}"
        )
        for line in V10
    ]
    note = paper(lines, type="credit_note", number="AV-2026-000001", corrects="FA-2026-000001", reason=reason)
    text = exported((paper(), list(V10)), (note, lines))
    assert focus_rules.broken_rules(text, totals(paper(), note)) == []
    taken = [row for row in parsed(text) if row["InvoiceId"] == "AV-2026-000001"]
    assert [row["ChargeCategory"] for row in taken] == [category, category, "Tax"]
    assert {row["ChargeClass"] for row in taken} == {charge_class}
    assert sum(Decimal(row["BilledCost"]) for row in parsed(text)) == 0


def any_line(chance: random.Random, currency: str) -> Line:
    """A line as rating, carrying and crediting make them."""
    kind = chance.choice(
        ["usage", "commitment", "overage", "purchase", "discount", "credit", "correction", "adjustment"]
    )
    line = Line(
        kind=kind,
        description=chance.choice(["Stockage", "تخزين", 'a "quoted", line\nof two', "=1+1"]),
        begin_us=chance.choice([0, BEGIN_US]),
        end_us=chance.choice([0, END_US, BEGIN_US]),
        project=chance.choice(["", "web"]),
        plan="objets",
        plan_version=1,
    )
    if kind in ("discount", "credit", "correction", "adjustment"):
        return msgspec.structs.replace(
            line, net=chance.randrange(-(10**9), 10**9), meter=chance.choice(["", "storage"])
        )
    meter, unit = chance.choice(
        [
            ("storage", "GiB-Months"),
            ("requests_b", "1000 Requests"),
            ("egress_internet", "TB"),
            ("subscription", "Months"),
        ]
    )
    if kind == "purchase" and chance.random() < 0.5:
        return msgspec.structs.replace(line, net=chance.randrange(-(10**6), 10**6))
    return priced(
        msgspec.structs.replace(
            line,
            meter=meter,
            storage_class=chance.choice(["", "STANDARD"]),
            bucket=chance.choice(["", "photos"]),
            quantity=f"{chance.randrange(10 ** chance.randint(1, 12))}/{chance.randrange(1, 10**9)}",
            unit=unit,
            unit_price=f"{Decimal(chance.randrange(10**6)).scaleb(-chance.randint(0, 12)):f}",
            tier=chance.randrange(4),
            lease=chance.choice(["", "01JLEASE"]) if kind != "commitment" else "01JLEASE",
            consumed=chance.choice(["", str(chance.randrange(10**24)), "1/3"]),
        ),
        currency,
    )


def test_whatever_is_billed_in_whatever_currency_keeps_every_rule() -> None:
    chance = random.Random(SEED)
    for number in range(60):
        currency = chance.choice(list(MINOR_UNITS))
        lines = [any_line(chance, currency) for _ in range(chance.randrange(12))]
        invoice = paper(
            lines, rate=chance.choice(["0", "0.19", "0.055"]), currency=currency, number=f"FA-{number}"
        )
        assert focus_rules.broken_rules(exported((invoice, lines)), totals(invoice)) == [], f"seed {SEED}"


def test_every_column_of_the_version_is_there_but_those_that_do_not_apply() -> None:
    assert VERSION == "1.2"
    assert len(focus_rules.COLUMNS) == 57
    names = [column.name for column in COLUMNS]
    left_out = set(focus_rules.COLUMNS) - set(names)
    assert left_out == {"AvailabilityZone", *focus_rules.NOT_APPLICABLE}
    assert [name for name in names if name not in focus_rules.COLUMNS] == ["x_ServiceProviderName"]
    kinds = {"text": "String", "time": "Time", "quantity": "Decimal", "cost": "Decimal", "json": "JSON"}
    for column in COLUMNS[:-1]:
        _, nulls, kind = focus_rules.COLUMNS[column.name]
        assert (column.nullable, kinds[column.kind]) == (nulls == "null", kind), column.name


COMMITTED = {
    "CommitmentDiscountId": "x", "CommitmentDiscountCategory": "Usage", "CommitmentDiscountType": "Lease",
    "CommitmentDiscountQuantity": "1", "CommitmentDiscountUnit": "TB",
}  # fmt: skip
UNCOUNTED = {"CommitmentDiscountQuantity": "", "CommitmentDiscountUnit": ""}
LATER_PURCHASE = {
    **COMMITTED, "ChargeCategory": "Purchase", "ConsumedQuantity": "", "ConsumedUnit": "",
    "ChargePeriodStart": "2026-04-01T00:00:00Z", "ChargePeriodEnd": "2026-05-01T00:00:00Z",
}  # fmt: skip
BREAKS: list[tuple[str, Callable[[dict[str, str]], None]]] = [
    ("BilledCost is null", lambda row: row.update(BilledCost="")),
    ("BilledCost is no number", lambda row: row.update(BilledCost="+69000")),
    ("ChargePeriodEnd is no time", lambda row: row.update(ChargePeriodEnd="2026-04-01 00:00:00")),
    ("ChargePeriod ends before it began", lambda row: row.update(ChargePeriodEnd="2026-02-01T00:00:00Z")),
    ("ChargeCategory has a value", lambda row: row.update(ChargeCategory="Fee")),
    ("PricingUnit and PricingQuantity are null together", lambda row: row.update(PricingUnit="")),
    ("PricingUnit is no unit", lambda row: row.update(PricingUnit="terabytes")),
    ("ServiceSubcategory is none", lambda row: row.update(ServiceSubcategory="Caching")),
    ("PricingQuantity x ContractedUnitPrice", lambda row: row.update(ContractedCost="69000.01")),
    ("PricingQuantity x ListUnitPrice", lambda row: row.update(ListUnitPrice="690.01")),
    ("SkuId of usage or a purchase is null", lambda row: row.update(SkuId="", SkuMeter="")),
    ("PricingQuantity of a tax is not null", lambda row: row.update(ChargeCategory="Tax")),
    ("ConsumedQuantity without usage", lambda row: row.update(ChargeCategory="Credit")),
    ("ConsumedQuantity of usage", lambda row: row.update(ConsumedQuantity="", ConsumedUnit="")),
    ("CapacityReservationStatus is there without", lambda row: row.update(CapacityReservationStatus="Used")),
    ("CapacityReservationStatus of usage is null", lambda row: row.update(CapacityReservationId="x")),
    ("a purchase is not usage-based", lambda row: row.update(ChargeCategory="Purchase")),
    ("SkuPriceDetails is no flat object", lambda row: row.update(SkuPriceDetails='{"a": {}}')),
    ("SkuPriceDetails has a property", lambda row: row.update(SkuPriceDetails='{"Colour": "red"}')),
    ("CommitmentDiscountStatus of usage is null", lambda row: row.update(COMMITTED)),
    ("PricingCategory is Committed where", lambda row: row.update(COMMITTED)),
    ("CommitmentDiscountQuantity is null", lambda row: row.update(COMMITTED, **UNCOUNTED)),
    ("EffectiveCost of a purchase for later", lambda row: row.update(LATER_PURCHASE)),
    ("BilledCost adds up", lambda row: row.update(BilledCost="69000.01")),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "change"), BREAKS, ids=[rule for rule, _ in BREAKS])
def test_the_rules_notice_a_file_that_breaks_them(
    rule: str, change: Callable[[dict[str, str]], None]
) -> None:
    found = parsed(exported((paper(), list(V10))))
    change(found[0])
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(found[0]))
    writer.writeheader()
    writer.writerows(found)
    assert any(
        broken.startswith(rule) for broken in focus_rules.broken_rules(file.getvalue(), totals(paper()))
    )


def test_lines_that_do_not_add_up_to_the_total_are_not_exported() -> None:
    with pytest.raises(Corrupt, match="FA-2026-000001 do not add up"):
        rows(paper(), V10[:1])


def test_a_draft_has_its_id_as_its_provisional_number() -> None:
    draft = paper(state="draft", number="", issued_us=0)
    assert {row["InvoiceId"] for row in parsed(exported((draft, list(V10))))} == {draft.id}


def test_a_number_that_no_column_holds_is_refused() -> None:
    line = msgspec.structs.replace(V10[0], net=10**16)
    invoice = paper([line])
    with pytest.raises(BadArgument, match="BilledCost has more than 14 digits"):
        exported((invoice, [line]))


def test_a_customer_whose_name_is_a_formula_is_a_text_in_a_spreadsheet() -> None:
    customer = msgspec.structs.replace(CUSTOMER, legal_name="=1+1")
    found = parsed(exported((paper(customer=customer), list(V10))))
    assert {row["BillingAccountName"] for row in found} == {"'=1+1"}


def test_parquet_holds_what_the_csv_file_says() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    chance = random.Random(SEED)
    lines = [*V10, LEASE, *(any_line(chance, "DZD") for _ in range(40))]
    invoice = paper(lines)
    file = io.BytesIO()
    assert write_parquet(rows(invoice, lines), file) == len(lines) + 1
    table = parquet.read_table(io.BytesIO(file.getvalue()))
    assert table.schema.metadata[b"FocusVersion"] == b"1.2"
    assert table.column_names == [column.name for column in COLUMNS]
    assert str(table.schema.field("BilledCost").type) == "decimal128(38, 24)"
    assert str(table.schema.field("ChargePeriodStart").type) == "timestamp[us, tz=UTC]"
    texts = parsed(exported((invoice, lines)))
    for row, text in zip(table.to_pylist(), texts, strict=True):
        for name, value in row.items():
            if value is None:
                assert text[name] == "", name
            elif isinstance(value, Decimal):
                assert value == Decimal(text[name]), name
            elif isinstance(value, str):
                assert as_cell(value) == text[name].replace("\r\n", "\n"), name
            else:
                assert value.strftime("%Y-%m-%dT%H:%M:%SZ") == text[name], name


def test_without_pyarrow_parquet_is_refused_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadArgument, match=r"objstore\[parquet\]"):
        write_parquet(rows(paper(), V10), io.BytesIO())


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_sample_card_makes_of_a_month_keeps_every_rule(kind: str) -> None:
    chance = random.Random(SEED)
    card = parse_plan((CARDS / f"{kind}.toml").read_text())
    totals_of = {
        UsageKey(
            chance.choice(["", "web"]), chance.choice(["photos", "archives"]), "", meter
        ): chance.randrange(10 ** (21 if meter in STORED else 13 if meter in EGRESS else 9))
        for meter in (*STORED, *REQUESTS, *EGRESS)
    }
    rated = rate_month(card, Usage(totals_of), MARCH)
    customer = msgspec.structs.replace(CUSTOMER, kind=kind, currency=card.currency)
    invoice = paper(rated.lines, customer=customer)
    text = exported((invoice, list(rated.lines)))
    assert focus_rules.broken_rules(text, totals(invoice)) == [], f"seed {SEED}"


def test_a_rated_lease_is_used_unused_and_above() -> None:
    lease = Commitment(
        lease="01JLEASE",
        steps=(Step(MARCH.begin_s, 100 * TB),),
        begin_s=MARCH.begin_s,
        end_s=MARCH.following().end_s,
        unit_price=Decimal("5.90"),
        overage=Overage(mode="instantaneous", unit_price=Decimal("7.99")),
    )
    # Half of the month 80 TB, half of it 120.
    usage = stored_hours([80 * TB] * 372 + [120 * TB] * 372)
    rated = rate_month(plan(rate("10", unit="TB")), usage, MARCH, commitments=[lease])
    invoice = paper(rated.lines, currency="USD")
    text = exported((invoice, list(rated.lines)), uses={use.lease: use for use in rated.uses})
    assert focus_rules.broken_rules(text, totals(invoice)) == []
    found = [
        (row["ChargeCategory"], row["CommitmentDiscountStatus"], row["PricingQuantity"], row["EffectiveCost"])
        for row in parsed(text)
    ]
    assert found == [
        ("Purchase", "", "100", "0"),
        ("Usage", "", "10", "79.9"),
        ("Usage", "Used", "90", "531"),
        ("Usage", "Unused", "10", "59"),
        ("Tax", "", "", "127.28"),  # 19 % of 669.90, rounded half up.
    ]
