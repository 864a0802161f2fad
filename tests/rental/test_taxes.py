"""Taxes: vector V10, which rule holds, and what is refused. And that the sample table is one."""

from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objstore.errors import BadArgument
from objstore.meta.schema import decode, encode
from objstore.rental.money import Money, round_half_up
from objstore.rental.records import Line
from objstore.rental.taxes import (
    Case,
    TaxRule,
    TaxRuleRecord,
    check_rule,
    parse_rules,
    rule_for,
    tax_lines,
    totals,
)
from tests.rental.cards import EXAMPLES

RULES = parse_rules((Path(__file__).resolve().parents[2] / "config" / "taxes.toml").read_text())
DAY = date(2026, 11, 30)


def case(country: str = "DZ", profile: str = "standard", kind: str = "tpe_pme", day: date = DAY) -> Case:
    return Case(country=country, customer_kind=kind, profile=profile, day=day)


def line(net: int, product: str = "storage") -> Line:
    return Line(kind="usage", description="", net=net, product=product)


def rule(**given: Any) -> TaxRule:
    fields = {"id": "one", "country": "DZ", "rate": Decimal("0.19"), "label": "TVA 19 %", **given}
    return check_rule(TaxRule(**fields))


@pytest.mark.parametrize(
    ("country", "currency", "tax", "total"),
    [
        ("DZ", "DZD", "14887.45", "93242.45"),
        ("MA", "MAD", "15671.00", "94026.00"),
        ("TN", "TND", "14887.450", "93242.450"),
        ("SN", "XOF", "14104", "92459"),
    ],
)
def test_v10_tax_on_two_lines(country: str, currency: str, tax: str, total: str) -> None:
    lines = [
        line(Money.of(count * Decimal(price), currency).minor)
        for count, price in ((100, "690.00"), (10, "935.50"))
    ]
    taxes = tax_lines(lines, RULES, case(country))
    due = totals(lines, taxes, currency)
    assert due.net == Money.of(78_355, currency)
    assert (str(due.tax), str(due.total)) == (tax, total)


def test_each_rate_has_a_line_of_its_own_the_highest_first() -> None:
    taxes = tax_lines([line(1_05), line(2_00, "reduced"), line(3_00)], RULES, case())
    assert [(tax.label, tax.rate, tax.base, tax.amount) for tax in taxes] == [
        ("TVA 19 %", "0.19", 4_05, 77),
        ("TVA 9 %", "0.09", 2_00, 18),
    ]


def test_tax_is_rounded_once_on_the_sum_of_a_rate() -> None:
    lines = [line(13) for _ in range(10)]  # 2.47 each; 24.7 on all.
    [tax] = tax_lines(lines, RULES, case())
    assert tax.amount == 25


def test_no_lines_bear_no_tax() -> None:
    assert tax_lines([], RULES, case()) == []


def test_the_exempt_and_those_who_owe_it_themselves_get_a_line_of_zero_with_the_law() -> None:
    for who in (case(profile="exempt"), case("FR", "reverse_charge")):
        [tax] = tax_lines([line(100)], RULES, who)
        assert (tax.rate, tax.base, tax.amount) == ("0", 100, 0)
        assert tax.legal_basis
    assert rule_for(RULES, case("FR", "reverse_charge"), "storage").reverse_charge


def test_being_self_employed_does_not_remove_the_tax() -> None:
    [tax] = tax_lines([line(100)], RULES, case(kind="auto_entrepreneur"))
    assert tax.amount == 19


def test_a_rate_that_changes_holds_from_its_first_day() -> None:
    rules = [
        rule(id="old", valid_to=date(2027, 1, 1)),
        rule(id="new", rate=Decimal("0.20"), label="TVA 20 %", valid_from=date(2027, 1, 1)),
    ]
    found = [rule_for(rules, case(day=day), "storage").id for day in (date(2026, 12, 31), date(2027, 1, 1))]
    assert found == ["old", "new"]


def test_the_rule_that_names_most_wins_a_profile_before_a_kind_before_a_product() -> None:
    rules = [
        rule(id="any"),
        rule(id="product", product="storage"),
        rule(id="kind", customer_kinds=("administration",)),
        rule(id="profile", profile="exempt", rate=Decimal(0), legal_basis="law"),
    ]
    wanted = {
        "any": (case(), "transfer"),
        "product": (case(), "storage"),
        "kind": (case(kind="administration"), "storage"),
        "profile": (case(kind="administration", profile="exempt"), "storage"),
    }
    assert {name: rule_for(rules, who, product).id for name, (who, product) in wanted.items()} == {
        name: name for name in wanted
    }


def test_without_a_rule_nothing_is_taxed_at_zero_by_silence() -> None:
    with pytest.raises(
        BadArgument, match=r"no tax rule holds for storage to tpe_pme .* law of LY on 2026-11-30"
    ):
        tax_lines([line(1)], RULES, case("LY"))


def test_two_rules_that_hold_alike_are_an_error_that_names_both() -> None:
    with pytest.raises(BadArgument, match="the tax rules a, b hold alike"):
        rule_for([rule(id="a"), rule(id="b")], case(), "storage")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"id": "No"}, "id is"),
        ({"country": "dz"}, "country must be"),
        ({"label": ""}, "label must be"),
        ({"label": "TVA\n19 %"}, "label is one line"),
        ({"label": "\ud800"}, "label has at most"),
        ({"legal_basis": "a" * 501}, "legal basis has at most"),
        ({"product": "A B"}, "product must be"),
        ({"profile": ""}, "profile must be"),
        ({"rate": Decimal("1")}, "rate must be"),
        ({"rate": Decimal("-0.1")}, "rate must be"),
        ({"rate": Decimal("NaN")}, "rate must be"),
        ({"rate": Decimal("0.1234567")}, "rate must be"),
        ({"rate": Decimal(0)}, "legal_basis must be"),
        ({"reverse_charge": True}, "rate must be '?0|rate must be 0 where"),
        ({"customer_kinds": ("friend",)}, "customer_kinds must be"),
        ({"valid_from": DAY, "valid_to": DAY}, "valid_to must be"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadArgument, match=said):
        rule(**given)


def test_a_table_with_two_rules_of_one_name_is_refused() -> None:
    one = '[[rules]]\nid = "a"\ncountry = "DZ"\nrate = "0.19"\nlabel = "TVA"\n'
    assert parse_rules(one)[0].rate == Decimal("0.19")
    with pytest.raises(BadArgument, match="two tax rules are called a"):
        parse_rules(one + one)


def test_rules_come_back_from_metadata_as_they_were() -> None:
    for one in RULES:
        assert decode(encode(TaxRuleRecord(rule=one)), TaxRuleRecord).rule == one


@settings(max_examples=EXAMPLES)
@given(nets=st.lists(st.tuples(st.integers(-(10**12), 10**12), st.sampled_from(["storage", "reduced"]))))
def test_every_line_is_taxed_once_at_its_own_rate(nets: list[tuple[int, str]]) -> None:
    lines = [line(net, product) for net, product in nets]
    taxes = tax_lines(lines, RULES, case())
    assert sum(tax.base for tax in taxes) == sum(net for net, _ in nets)
    for tax in taxes:
        product = {"0.19": "storage", "0.09": "reduced"}[tax.rate]
        base = sum(net for net, its in nets if its == product)
        assert (tax.base, tax.amount) == (base, round_half_up(base * Fraction(tax.rate)))
