"""Rate cards: as operators write them, as metadata keeps them, and what is refused."""

import contextlib
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objstore.errors import BadArgument
from objstore.meta.schema import ClassTerms, decode, encode
from objstore.rental.months import Month
from objstore.rental.plans import (
    METERS,
    Discount,
    Plan,
    PlanRecord,
    Tier,
    check_plan,
    class_terms,
    parse_plan,
    plan_json,
    plan_key,
    units_of,
)
from objstore.rental.records import KINDS
from tests.rental.cards import EXAMPLES, plan, rate, tiers

CARDS = Path(__file__).resolve().parents[2] / "config" / "plans"

CARD = """
code = "small"
version = 3
currency = "DZD"
valid_from = 2026-01-01
valid_to = 2027-01-01

[[items]]
meter = "storage"
storage_class = "STANDARD"
model = "graduated"
unit = "GB"
tiers = [{ up_to = 1024, unit_price = 0.140 }, { unit_price = "0.125" }]

[[discounts]]
description = "Fidélité"
rate = "0.05"
"""


def test_there_is_a_sample_card_for_each_kind_of_customer() -> None:
    assert sorted(path.stem for path in CARDS.glob("*.toml")) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_sample_cards_are_valid_and_come_back_from_metadata_and_json_as_they_were(kind: str) -> None:
    card = parse_plan((CARDS / f"{kind}.toml").read_text())
    assert card.code == kind.replace("_", "-")
    assert card.rate_for("storage", "") is not None
    assert decode(encode(PlanRecord(plan=card, made_us=1)), PlanRecord).plan == card
    assert parse_plan(plan_json(card), "json") == card
    class_terms(card)


def test_prices_are_the_decimals_that_were_written() -> None:
    card = parse_plan(CARD)
    assert [tier.unit_price for tier in card.items[0].tiers] == [Decimal("0.140"), Decimal("0.125")]
    assert f"{card.items[0].tiers[0].unit_price:f}" == "0.140"
    written = json.dumps(msgspec.to_builtins(card)).replace('"0.140"', "0.100000000001")
    assert parse_plan(written, "json").items[0].tiers[0].unit_price == Decimal("0.100000000001")


def test_a_card_is_offered_from_its_first_day_to_the_day_before_its_end() -> None:
    card = parse_plan(CARD)
    days = [date(2025, 12, 31), date(2026, 1, 1), date(2026, 12, 31), date(2027, 1, 1)]
    assert [card.offered(day) for day in days] == [False, True, True, False]


def test_what_a_later_release_kept_beside_is_left_alone() -> None:
    card = plan(rate())
    later = msgspec.to_builtins(card) | {"colour": "green"}
    assert decode(msgspec.msgpack.encode([1, later, 5, "who", "more"]), PlanRecord) == PlanRecord(
        plan=card, made_us=5, made_by="who"
    )
    with pytest.raises(BadArgument, match="unknown field colour"):
        parse_plan(json.dumps(later), "json")


def test_versions_of_a_card_lie_side_by_side_in_order() -> None:
    assert plan_key("small", 258) == b"Ypsmall\0\0\0\1\2"
    assert plan_key("small", 2) < plan_key("small", 10) < plan_key("small-2", 1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"small"', '"Small"', "code must be"),
        ("version = 3", "version = 0", "version must be"),
        ('"DZD"', '"XYZ"', "currency 'XYZ' is none of"),
        ("2027-01-01", "2026-01-01", "valid_to must be"),
        ('meter = "storage"', 'meter = "weather"', r"items\[0\].meter must be one of storage"),
        ('unit = "GB"', 'unit = "Requests"', r"items\[0\].unit must be one of GB"),
        ('model = "graduated"', 'model = "per_unit"', r"items\[0\].tiers must be one: '2'"),
        ('model = "graduated"', 'model = "magic"', "Invalid enum value 'magic'"),
        ("up_to = 1024, ", "", r"tiers\[0\].up_to must be in every tier but the last"),
        ('{ unit_price = "0.125" }', '{ up_to = 9, unit_price = "0.125" }', r"tiers\[1\].up_to"),
        ("0.140", "0.1234567890123", "of at most 12 places"),
        ("0.140", "-1", r"unit_price must be 0 or more"),
        ("0.140", "nan", "unit_price must be"),
        ("0.140", "inf", "unit_price must be"),
        ("0.140", "1e15", "unit_price must be"),
        ("0.140", "true", "Expected"),
        ("unit_price", "unit_prize", r"unknown field items\[0\].tiers\[0\].unit_prize"),
        ('rate = "0.05"', 'rate = "1.05"', r"discounts\[0\].rate must be above 0"),
        ('rate = "0.05"', 'rate = "0.05"\nmeters = ["x"]', r"discounts\[0\].meters must be one of"),
        ("version = 3", "version = ", "not a plan"),
        ("version = 3", 'version = 3\ntitle = "a\\nb"', "title is one line"),
        ("0.140", "1e-999999999999999999999", "not a plan|unit_price must be"),
        ('"Fidélité"', '""', r"discounts\[0\].description must be given"),
        ('"Fidélité"', '"a\\u2028b"', r"discounts\[0\].description is one line"),
        ('rate = "0.05"', 'rate = "0.05"\nstorage_classes = ["*"]', r"storage_classes must be names"),
        ('storage_class = "STANDARD"', 'storage_class = "a b"', "storage_class must be a name"),
        ('unit = "GB"', 'unit = "GB-Hours"\nmonth_hours = 730', "month_hours must be for byte-months"),
        ('unit = "GB"', 'unit = "GB"\nmonth_hours = 744', "month_hours|Invalid enum"),
        ('unit = "GB"', 'unit = "GB"\nfree_ratio = "1"', "free_ratio must be for egress only"),
        ('unit = "GB"', 'unit = "GB"\nfree_fixed = "1"\nmin_billable = "1"', "contradict each other"),
        ('unit = "GB"', 'unit = "GB"\nmin_duration_days = -1', "min_duration_days must be"),
        ('unit = "GB"', 'unit = "GB"\nearly = "accrual"', "early must be only beside"),
        ('unit = "GB"', 'unit = "GB"\npackage = "5"', "package must be"),
        ('unit = "GB"', 'unit = "GB"\nproduct = "A B"', "product must be"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused_with_the_field_and_the_rule(
    old: str, new: str, said: str
) -> None:
    assert CARD.count(old) >= 1
    with pytest.raises(BadArgument, match=said):
        parse_plan(CARD.replace(old, new, 1))


def test_tiers_end_one_above_the_other() -> None:
    for bounds in (("5", "5"), ("5", "4"), ("0", "4")):
        ladder = tiers(*[(bound, "1") for bound in bounds], (None, "1"))
        with pytest.raises(BadArgument, match="up_to must be above that of the tier before"):
            plan(rate(model="graduated", tiers=ladder))


def test_two_prices_for_the_same_are_refused() -> None:
    with pytest.raises(BadArgument, match="one price for a meter, class and region"):
        plan(rate(), rate())


def test_minimums_are_those_of_a_named_class() -> None:
    for fields in ({"storage_class": "*"}, {"storage_class": "COLD", "region": "oran"}):
        with pytest.raises(BadArgument, match="of one storage class"):
            plan(rate(min_object_bytes=1, **fields))
    with pytest.raises(BadArgument, match="of one storage class"):
        plan(rate(meter="requests_a", unit="Requests", storage_class="COLD", min_object_bytes=1))


def test_a_card_too_large_for_a_record_is_refused() -> None:
    ladder = tiers(*[(str(bound), "0.123456789012") for bound in range(1, 16)], (None, "0.1"))
    items = [rate(model="graduated", tiers=ladder, storage_class=f"C{number}") for number in range(30)]
    with pytest.raises(BadArgument, match="bytes in all"):
        plan(*items)
    with pytest.raises(BadArgument, match="at most 65536 letters"):
        parse_plan("#" * 70_000)


def test_what_a_class_is_billed_for_at_least_goes_into_the_account() -> None:
    card = plan(
        rate(storage_class="STANDARD", min_object_bytes=4096),
        rate(storage_class="COLD", min_object_bytes=131_072, min_duration_days=30),
    )
    assert class_terms(card) == {"": ClassTerms(4096, 0), "COLD": ClassTerms(131_072, 30 * 86_400)}


def test_a_card_that_accrues_early_deletes_is_not_given_to_tenants_whose_meters_do_not() -> None:
    with pytest.raises(BadArgument, match="meters them once"):
        class_terms(plan(rate(storage_class="COLD", min_duration_days=30, early="accrual")))


@pytest.mark.parametrize("meter", METERS)
def test_every_meter_can_be_priced_in_each_of_its_units(meter: str) -> None:
    for unit in units_of(meter):
        card = plan(rate(meter=meter, unit=unit))
        assert card.items[0].base(Month(2026, 3)) >= 1
        assert card.items[0].label


@settings(max_examples=EXAMPLES)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["code", "version", "currency", "items", "tiers", "meter", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_is_sent_as_a_card_is_a_card_or_a_clear_error(data: Any) -> None:
    with contextlib.suppress(BadArgument):
        assert check_plan(parse_plan(json.dumps(data), "json"))


HOSTILE = [
    "[" * 50_000,
    '{"version": NaN}',
    '{"version": 1' + "0" * 5_000 + "}",
    '{"code": "\\ud800"}',
    "\ud800",
    "1e99999999999999999999",
    "null",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_a_clear_error(text: str) -> None:
    for form in ("json", "toml"):
        with pytest.raises(BadArgument):
            parse_plan(text, form)


def test_a_card_never_changes() -> None:
    card = plan(rate())
    with pytest.raises(AttributeError):
        card.version = 2  # type: ignore[misc]
    assert hash(card) == hash(check_plan(card))


def test_bounds_of_a_card_hold_however_it_was_made() -> None:
    with pytest.raises(BadArgument, match="items must be"):
        check_plan(Plan(code="a", version=1, currency="EUR", items=()))
    with pytest.raises(BadArgument, match="discounts must be"):
        plan(rate(), discounts=tuple(Discount(description="d", rate=Decimal("0.1")) for _ in range(17)))
    with pytest.raises(BadArgument, match="tiers"):
        plan(rate(model="flat", tiers=(Tier(unit_price=Decimal(1)),)), currency="EUR")
