"""Amounts of money: integers of a currency's smallest unit. All before them is exact, and rounded once.

    price (Decimal, at most 12 places) x quantity (Fraction)  ->  round half up, once a line  ->  Money

ISO 4217 minor units as babel 2.18 has them; a currency that is not listed is refused rather than guessed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from objstore.errors import BadArgument

MINOR_UNITS: Final = {
    "DZD": 2, "MAD": 2, "EUR": 2, "USD": 2, "GBP": 2, "CHF": 2, "CAD": 2, "EGP": 2, "MRU": 2, "SAR": 2,
    "AED": 2,
    "TND": 3, "LYD": 3, "JOD": 3, "KWD": 3, "BHD": 3, "OMR": 3,
    "XOF": 0, "XAF": 0, "JPY": 0,
}  # fmt: skip
PLACES_MAX: Final = 12  # Of a unit price.
MINOR_MAX: Final = 10**17  # Of an amount that somebody names: sums of many stay within a record's 64 bits.
_AMOUNT = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,12})?", re.ASCII)


def minor_units(currency: str) -> int:
    """Places behind the point. Raises: BadArgument."""
    places = MINOR_UNITS.get(currency)
    if places is None:
        raise BadArgument(
            f"currency {currency!r} is none of {', '.join(sorted(MINOR_UNITS))}",
            name="currency",
            value=currency,
        )
    return places


def round_half_up(amount: Fraction) -> int:
    """To the nearest integer, halves away from zero: a credit rounds as its invoice did."""
    if amount < 0:
        return -round_half_up(-amount)
    return (2 * amount.numerator + amount.denominator) // (2 * amount.denominator)


def parse_decimal(text: str, name: str = "amount") -> Decimal:
    """A plain decimal number: no exponent, no spaces, no Arabic digits. Raises: BadArgument."""
    if not _AMOUNT.fullmatch(text):
        raise BadArgument(
            f"{name} is a plain decimal number of at most {PLACES_MAX} places: {text!r}",
            name=name,
            value=text,
        )
    return Decimal(text)


@dataclass(frozen=True, slots=True, order=True)
class Money:
    minor: int  # In the currency's smallest unit; negative: owed to the customer.
    currency: str

    def __post_init__(self) -> None:
        minor_units(self.currency)

    @classmethod
    def of(cls, amount: Fraction | Decimal | int, currency: str) -> "Money":
        """An exact amount, rounded half up to the currency's smallest unit."""
        return cls(round_half_up(Fraction(amount) * 10 ** minor_units(currency)), currency)

    @classmethod
    def parse(cls, text: str, currency: str) -> "Money":
        """Raises: BadArgument, also for more places than the currency has, and beyond MINOR_MAX."""
        amount = Fraction(parse_decimal(text)) * 10 ** minor_units(currency)
        if amount.denominator != 1:
            raise BadArgument(
                f"{currency} has {minor_units(currency)} places: {text}", name="amount", value=text
            )
        if abs(amount) > MINOR_MAX:
            raise BadArgument(f"an amount is at most {cls(MINOR_MAX, currency)}", name="amount", value=text)
        return cls(amount.numerator, currency)

    def __add__(self, other: "Money") -> "Money":
        self._same(other)
        return Money(self.minor + other.minor, self.currency)

    def __sub__(self, other: "Money") -> "Money":
        self._same(other)
        return Money(self.minor - other.minor, self.currency)

    def __neg__(self) -> "Money":
        return Money(-self.minor, self.currency)

    def __bool__(self) -> bool:
        return self.minor != 0

    def share(self, part: Fraction) -> "Money":
        """That part of it, rounded half up."""
        return Money(round_half_up(self.minor * part), self.currency)

    @property
    def exact(self) -> Fraction:
        return Fraction(self.minor, 10 ** minor_units(self.currency))

    def __str__(self) -> str:
        """As in `Money.parse`: 93242.45, with all places of the currency."""
        places = minor_units(self.currency)
        digits = f"{abs(self.minor):0{places + 1}d}"
        sign = "-" if self.minor < 0 else ""
        return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)

    def _same(self, other: "Money") -> None:
        assert self.currency == other.currency, f"{self.currency} and {other.currency} do not add up"


def total(amounts: Iterable[Money], currency: str) -> Money:
    """Of amounts of one currency; zero of none."""
    return Money(sum(amount.minor for amount in amounts if _is(amount, currency)), currency)


def _is(amount: Money, currency: str) -> bool:
    assert amount.currency == currency, f"{amount.currency} among {currency}"
    return True
