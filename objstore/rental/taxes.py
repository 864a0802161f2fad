"""Taxes: which rule holds for a line, and what is due on all lines that it holds for.

A rule is found by country, product, kind of customer, tax profile and day; the one that names most of them
wins. None at all is an error, never a zero. Tax is taken once on the sum of the rounded lines of a rate,
rounded half up once; each rate has a line of its own, and one of zero says by what law.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

from objstore.errors import BadArgument
from objstore.meta.schema import Record
from objstore.rental.money import Money, round_half_up
from objstore.rental.names import check_text
from objstore.rental.plans import ANY, Value, parse_value
from objstore.rental.records import KINDS, Line, TaxLine

RULES_MAX: Final = 1_000
PLACES_MAX: Final = 6  # Of a rate.
LEGAL_BASIS_MAX: Final = 500  # Bytes.
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
_NAME = re.compile(r"\*|[a-z0-9][a-z0-9_-]{0,47}", re.ASCII)
_COUNTRY = re.compile(r"[A-Z]{2}", re.ASCII)


class TaxRule(Value, frozen=True, kw_only=True):
    id: str
    country: str  # Whose law it is: ISO 3166-1 alpha-2.
    rate: Decimal  # "0.19"
    label: str  # As printed: "TVA 19 %".
    product: str = ANY  # Of a line; * for all.
    customer_kinds: tuple[str, ...] = ()  # rental/records.py, KINDS; none: all.
    profile: str = ANY  # Of the customer: standard, exempt, reverse_charge, ...; * for all.
    valid_from: date | None = None
    valid_to: date | None = None  # The first day on which it no longer holds.
    legal_basis: str = ""  # Printed; a rate of zero has one.
    reverse_charge: bool = False  # The customer owes it: the rate here is zero.

    def holds(self, case: "Case", product: str) -> bool:
        return (
            self.country == case.country
            and self.product in (ANY, product)
            and (not self.customer_kinds or case.customer_kind in self.customer_kinds)
            and self.profile in (ANY, case.profile)
            and (self.valid_from is None or self.valid_from <= case.day)
            and (self.valid_to is None or case.day < self.valid_to)
        )

    @property
    def weight(self) -> tuple[bool, bool, bool]:
        """The more a rule names, the more it is meant; a profile above a kind, and that above a product."""
        return self.profile != ANY, bool(self.customer_kinds), self.product != ANY


class TaxRuleRecord(Record, frozen=True, array_like=True, kw_only=True):
    """At Y t <rule>."""

    rule: TaxRule
    made_us: int = 0


class _File(Value, frozen=True, kw_only=True):
    rules: tuple[TaxRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Who is taxed, where and when."""

    country: str
    customer_kind: str
    profile: str
    day: date  # Of the supply, or of the document, as the country's law has it.


@dataclass(frozen=True, slots=True)
class Totals:
    net: Money
    tax: Money
    total: Money


def tax_rule_key(rule: str) -> bytes:
    """Raises: BadArgument, for what no rule is called."""
    if not _ID.fullmatch(rule):
        raise BadArgument("a tax rule's id is 1 to 64 of a-z, 0-9, _ and -", name="id", value=rule)
    return b"Yt" + rule.encode()


def parse_rules(text: str, form: Literal["toml", "json"] = "toml") -> tuple[TaxRule, ...]:
    """A table of rules as an operator writes it (`config/taxes.toml`). Raises: BadArgument."""
    rules = parse_value(text, form, _File, "table of taxes").rules
    if len(rules) > RULES_MAX:
        raise BadArgument(f"a table of taxes has at most {RULES_MAX} rules", name="rules")
    for rule in rules:
        check_rule(rule)
    names = [rule.id for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise BadArgument(f"two tax rules are called {name}", name="id", value=name)
    return rules


def check_rule(rule: TaxRule) -> TaxRule:
    """Raises: BadArgument."""
    tax_rule_key(rule.id)
    _require(bool(_COUNTRY.fullmatch(rule.country)), rule, "country", "two capitals: DZ", rule.country)
    _require(bool(check_text(rule.label, "label")), rule, "label", "given", "")
    check_text(rule.legal_basis, "legal basis", size_max=LEGAL_BASIS_MAX)
    exponent = rule.rate.as_tuple().exponent
    fits = isinstance(exponent, int) and exponent >= -PLACES_MAX and 0 <= rule.rate < 1
    _require(fits, rule, "rate", f"0 or more, below 1, of at most {PLACES_MAX} places", rule.rate)
    for field, text in (("product", rule.product), ("profile", rule.profile)):
        _require(bool(_NAME.fullmatch(text)), rule, field, "a name in small letters, or * for all", text)
    for kind in rule.customer_kinds:
        _require(kind in KINDS, rule, "customer_kinds", f"of {', '.join(KINDS)}", kind)
    if rule.valid_from is not None and rule.valid_to is not None:
        _require(rule.valid_from < rule.valid_to, rule, "valid_to", "after valid_from", rule.valid_to)
    if rule.reverse_charge:
        _require(not rule.rate, rule, "rate", "0 where the customer owes the tax", rule.rate)
    if not rule.rate:
        _require(bool(rule.legal_basis), rule, "legal_basis", "given where the rate is 0", "")
    return rule


def rule_for(rules: Iterable[TaxRule], case: Case, product: str) -> TaxRule:
    """Raises: BadArgument if no rule holds, or several that name as much as each other."""
    fitting = [rule for rule in rules if rule.holds(case, product)]
    where = (
        f"{product} to {case.customer_kind} ({case.profile}) under the law of {case.country or 'no country'}"
        f" on {case.day}"
    )
    if not fitting:
        raise BadArgument(f"no tax rule holds for {where}", name="tax_rule", value=product)
    best = max(rule.weight for rule in fitting)
    found = [rule for rule in fitting if rule.weight == best]
    if len(found) > 1:
        names = ", ".join(sorted(rule.id for rule in found))
        raise BadArgument(f"the tax rules {names} hold alike for {where}", name="tax_rule", value=names)
    return found[0]


def tax_lines(lines: Sequence[Line], rules: Sequence[TaxRule], case: Case) -> list[TaxLine]:
    """One for each rate, label and legal basis, the highest rate first.

    Raises: BadArgument (see `rule_for`).
    """
    bases: dict[tuple[Decimal, str, str], int] = {}
    found = {product: rule_for(rules, case, product) for product in {line.product for line in lines}}
    for line in lines:
        rule = found[line.product]
        place = (rule.rate, rule.label, rule.legal_basis)
        bases[place] = bases.get(place, 0) + line.net
    return [
        TaxLine(
            label=label,
            rate=f"{rate:f}",
            base=base,
            amount=round_half_up(base * Fraction(rate)),
            legal_basis=legal_basis,
        )
        for (rate, label, legal_basis), base in sorted(
            bases.items(), key=lambda one: (-one[0][0], one[0][1:])
        )
    ]


def totals(lines: Iterable[Line], taxes: Iterable[TaxLine], currency: str) -> Totals:
    """Net, tax and what is to be paid."""
    net = Money(sum(line.net for line in lines), currency)
    tax = Money(sum(line.amount for line in taxes), currency)
    return Totals(net, tax, net + tax)


def _require(fits: bool, rule: TaxRule, name: str, wanted: str, value: object) -> None:
    if not fits:
        text = str(value)[:100]
        raise BadArgument(
            f"tax rule {rule.id[:64]!r}: {name} must be {wanted}: {text!r}", name=name, value=text
        )
