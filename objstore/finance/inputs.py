# ruff: noqa: RUF009  (Calls in defaults: they only make fields.)
"""What the planner is told: what is bought, what it costs to run, what is sold. Values only, exact.

Amounts are of one currency, in its main unit, and kept as fractions: what is shown is rounded to hundredths.
A TB is 10^12 bytes, a month 730 hours of power. Every input is an assumption, and has one here.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from objstore.errors import BadArgument

CURVES: Final = ("linear", "logistic", "step")
MONTHS_MAX: Final = 600
COUNT_MAX: Final = 10**9
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,12})?", re.ASCII)
_SHARE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,10})?) ?%", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_-]{1,20}", re.ASCII)


def _input(default: Any, kind: str, doc: str) -> Any:
    return field(default=default, metadata={"kind": kind, "doc": doc})


def amount(default: str | int, doc: str) -> Fraction:
    value: Fraction = _input(Fraction(default), "amount", doc)
    return value


def share(default: str, doc: str) -> Fraction:
    value: Fraction = _input(Fraction(default), "share", doc)
    return value


def count(default: int, doc: str) -> int:
    value: int = _input(default, "count", doc)
    return value


def word(default: str, doc: str) -> str:
    value: str = _input(default, "word", doc)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that is assumed. The defaults are a datacentre of 20 million."""

    currency: str = word("USD", "Of all amounts: a word for people.")

    facility: Fraction = amount(8_000_000, "Building, power, cooling.")
    network: Fraction = amount(1_000_000, "Switches, fibre, routers.")
    integration: Fraction = amount(1_000_000, "Installation, software, training.")
    hardware: Fraction = amount(
        10_000_000, "Budget for nodes: as many whole ones as it buys. 0: by --usable-tb."
    )
    usable_tb: Fraction = amount(
        0, "Usable TB wanted, with --hardware 0: the nodes that it takes are bought."
    )

    disk_tb: Fraction = amount(24, "TB of a disk.")
    disk_price: Fraction = amount(528, "Of a disk.")
    disk_watts: Fraction = amount("8.5", "Of a disk.")
    bays: int = count(60, "Disks of a node.")
    node_price: Fraction = amount(15_000, "Of a node without disks.")
    node_watts: Fraction = amount(350, "Of a node without disks.")
    k: int = count(8, "Data fragments.")
    m: int = count(4, "Parity fragments.")
    spare_nodes: int = count(2, "Kept free, to rebuild in.")
    fill_max: Fraction = share("0.85", "Of disks' bytes that are filled.")

    pue: Fraction = amount("1.6", "Power of the building for each watt of machines.")
    kwh_price: Fraction = amount("0.08", "Of a kWh.")
    staff: Fraction = amount(62_500, "A month.")
    connectivity: Fraction = amount(60_000, "A month.")
    other: Fraction = amount(25_000, "A month.")
    maintenance: Fraction = share("0.05", "A year, of the hardware's price.")
    afr: Fraction = share("0.015", "Disks that fail within a year, and are bought again.")

    price: Fraction = amount("5.99", "Of a TB and month.")
    fill: Fraction = share("0.80", "Of what is usable and not committed that is sold in the end.")
    curve: str = word("linear", "How it is sold: linear, logistic, step.")
    ramp: int = count(12, "Months until it is sold; of a logistic curve: until half of it is.")
    steepness: Fraction = amount("0.5", "Of a logistic curve: its a in 1/(1+e^(-a(t-t0))).")
    committed: Fraction = share(
        "0", "Of what is usable that is paid for from the first month on (take or pay)."
    )
    committed_price: Fraction = amount(0, "Of a TB and month of that.")
    bad_debt: Fraction = share("0", "Of the revenue that is never paid.")

    months: int = count(120, "How far the plan goes.")
    target_months: int = count(36, "Within which all is to be repaid.")
    discount: Fraction = share("0.10", "A year.")
    loan: Fraction = amount(0, "Borrowed. 0: all of what is invested.")
    loan_rate: Fraction = share("0.06", "A year.")
    loan_months: int = count(36, "In which it is repaid in equal instalments.")

    def __post_init__(self) -> None:
        for name in ("k", "m", "bays", "ramp", "months", "target_months", "loan_months"):
            _require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("months", "target_months", "loan_months", "ramp"):
            _require(getattr(self, name) <= MONTHS_MAX, name, f"at most {MONTHS_MAX}")
        for name in ("disk_tb", "fill_max", "pue"):
            _require(getattr(self, name) > 0, name, "above 0")
        for name in ("fill_max", "fill", "committed", "bad_debt"):
            _require(getattr(self, name) <= 1, name, "at most 100%")
        _require(self.target_months <= self.months, "target_months", "within --months")
        _require(self.steepness <= 100, "steepness", "at most 100")
        _require(self.curve in CURVES, "curve", f"one of {', '.join(CURVES)}")
        _require(bool(self.hardware) != bool(self.usable_tb), "hardware", "a budget, or 0 with --usable-tb")


def _require(fits: bool, name: str, rule: str) -> None:
    if not fits:
        raise BadArgument(f"--{name.replace('_', '-')} must be {rule}", name=name)


KINDS: Final[Mapping[str, str]] = {one.name: one.metadata["kind"] for one in fields(Inputs)}
DOCS: Final[Mapping[str, str]] = {one.name: one.metadata["doc"] for one in fields(Inputs)}


def parse(name: str, text: str) -> Fraction | int | str:
    """One input as an operator writes it. Raises: BadArgument."""
    kind = KINDS.get(name)
    option = f"--{name.replace('_', '-')}"
    if kind is None:
        raise BadArgument(f"there is no input {name}", name=name, value=text)
    text = text.strip()
    if kind == "share":
        if match := _SHARE.fullmatch(text):
            return Fraction(Decimal(match[1])) / 100
        raise BadArgument(f"{option}: {text!r} is no percentage like 1.5%", name=name, value=text)
    if kind == "word":
        if _WORD.fullmatch(text):
            return text
        raise BadArgument(f"{option}: {text!r} is no word", name=name, value=text)
    if not _NUMBER.fullmatch(text):
        raise BadArgument(f"{option}: {text!r} is no number like 1500 or 0.08", name=name, value=text)
    if kind == "amount":
        return Fraction(Decimal(text))
    if not text.isdigit() or int(text) > COUNT_MAX:
        raise BadArgument(f"{option}: {text!r} is no whole number up to {COUNT_MAX}", name=name, value=text)
    return int(text)


def read_toml(text: str) -> dict[str, str]:
    """Inputs by name, as text: percentages are strings ("85%"). Raises: BadArgument."""
    try:
        given = tomllib.loads(text, parse_float=str)
    except tomllib.TOMLDecodeError as failure:
        raise BadArgument(f"the file of inputs: {failure}", name="file") from None
    for name, value in given.items():
        if name not in KINDS:
            raise BadArgument(f"the file of inputs: there is no input {name}", name=name)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise BadArgument(f"the file of inputs: {name} is a number or a text", name=name)
    return {name: str(value) for name, value in given.items()}


def inputs(given: Mapping[str, str]) -> Inputs:
    """The defaults with what is given. Raises: BadArgument."""
    values: dict[str, Any] = {name: parse(name, text) for name, text in given.items()}
    if "usable_tb" in values and "hardware" not in values:
        values["hardware"] = Fraction(0)
    return replace(Inputs(), **values)


def written(name: str, value: Fraction | int | str) -> str:
    """An input as `parse` reads it, exact."""
    if isinstance(value, str):
        return value
    if KINDS[name] == "share":
        return f"{_plain(Fraction(value) * 100)}%"
    return _plain(Fraction(value))


def _plain(value: Fraction) -> str:
    """A decimal number of at most 12 places, without zeros at its end."""
    text = f"{Decimal(value.numerator) / Decimal(value.denominator):.12f}"
    return text.rstrip("0").rstrip(".")
