"""Numbers and dates as a language and a country write them: rounded first, by us, and only then formatted.

Babel rounds half to even; nothing that it is given here has places left to round. Digits are Western in
Arabic too, as in Algeria and Morocco.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from objstore.errors import BadArgument
from objstore.rental.money import minor_units, round_half_up
from objstore.rental.records import LANGUAGES

if TYPE_CHECKING:
    from babel import Locale

QUANTITY_PLACES: Final = 6  # As printed; amounts come from exact quantities.
DIGITS_MAX: Final = 100  # Of a number; byte-seconds of an exabyte over a century have 28.
_PACKAGE: Final = re.compile(r"([0-9]{1,18}) ([0-9]{1,18}) (\D.*)", re.ASCII)
_UNIT: Final = re.compile(r"(?:([0-9.]{1,40}) )?([A-Za-z]{1,20})(?:-([A-Za-z]{1,20}))?", re.ASCII)
# Units as they are written on lines and in exports -> French, Arabic. English has them as they are.
_UNITS: Final = {
    "GB": ("Go", "غيغابايت"),
    "GiB": ("Gio", "غيبيبايت"),
    "TB": ("To", "تيرابايت"),
    "TiB": ("Tio", "تيبيبايت"),
    "PB": ("Po", "بيتابايت"),
    "PiB": ("Pio", "بيبيبايت"),
    "Months": ("mois", "شهر"),
    "Hours": ("heures", "ساعة"),
    "Requests": ("requêtes", "طلب"),
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Formats:
    locale: "Locale"
    zone: tzinfo  # Of dates; periods are UTC months.

    @classmethod
    def of(cls, language: str, country: str, zone: tzinfo = UTC) -> "Formats":
        """Of a language as it is written in a country; where that pair is unknown, of the language.

        Raises: BadArgument.
        """
        from babel import Locale, localedata  # 45 ms: only where documents are made.

        if language not in LANGUAGES:
            raise BadArgument(
                f"documents are written in {', '.join(LANGUAGES)}, not {language!r}",
                name="language",
                value=language,
            )
        pair = f"{language}_{country}"
        return cls(Locale.parse(pair if localedata.exists(pair) else language), zone)

    def amount(self, minor: int, currency: str) -> str:
        """minor: in the currency's smallest unit; all its places are written."""
        places = minor_units(currency)
        return self._decimal(_shifted(minor, places), "#,##0" + ("." + "0" * places if places else ""))

    def quantity(self, exact: Fraction) -> str:
        """Rounded half up to QUANTITY_PLACES; no zeros at the end."""
        rounded = round_half_up(exact * 10**QUANTITY_PLACES)
        return self._decimal(_shifted(rounded, QUANTITY_PLACES), f"#,##0.{'#' * QUANTITY_PLACES}")

    def price(self, exact: Decimal) -> str:
        """With all its places, and at least two."""
        return self._decimal(exact, f"#,##0.00{'#' * 10}")

    def percent(self, rate: Decimal) -> str:
        """rate: 0.19 is '19 %'."""
        return f"{self._decimal(rate * 100, '#,##0.######')}\u00a0%"

    def moment(self, at_us: int) -> str:
        """The day of a moment, where the seller is. at_us: microseconds since 1970."""
        return self.day((_EPOCH + timedelta(microseconds=at_us)).astimezone(self.zone).date())

    def period(self, begin_us: int, end_us: int) -> tuple[str, str]:
        """First and last day, in UTC. end_us: the first microsecond that is no longer in it."""
        first, last = (_EPOCH + timedelta(microseconds=at_us) for at_us in (begin_us, end_us - 1))
        return self.day(first.date()), self.day(last.date())

    def day(self, day: date) -> str:
        from babel.dates import format_date

        return str(format_date(day, "long", locale=self.locale))

    def _decimal(self, value: Decimal, pattern: str) -> str:
        from babel.numbers import format_decimal

        with localcontext(prec=DIGITS_MAX):
            return str(format_decimal(value, format=pattern, locale=self.locale, numbering_system="latn"))


def unit_name(unit: str) -> str:
    """A line's unit with one number: a package of '100 1000 Requests' is '100000 Requests'."""
    package = _PACKAGE.fullmatch(unit)
    return f"{int(package[1]) * int(package[2])} {package[3]}" if package else unit


def unit_text(unit: str, language: str) -> str:
    """A line's unit in a document's language: TB-Months are To-mois. One that nobody knows stays as it is.

    Source: IEC 80000-13, which has `o` for octet beside `B`.
    """
    name = unit_name(unit)
    found = _UNIT.fullmatch(name)
    if language == "en" or found is None:
        return name
    number, *parts = found.groups()
    known = [_UNITS[part] for part in parts if part in _UNITS]
    if len(known) < sum(part is not None for part in parts):
        return name
    text = "-".join(words[language == "ar"] for words in known)
    return f"{number} {text}" if number else text


def _shifted(number: int, places: int) -> Decimal:
    """number / 10**places, exactly, whatever the decimal context."""
    return Decimal(f"{number}e-{places}")
