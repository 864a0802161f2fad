"""Amounts in words, as invoices close with them: French, Arabic and English.

    1280.45 DZD  ->  mille deux cent quatre-vingts dinars algériens et quarante-cinq centimes

French and English integers are num2words'; its Arabic is not used: it keeps the number in hand in one object
for all threads, sets "and" apart from its word, and leaves the counted noun alone. Ours follows the grammar
of counted nouns: one and two are the noun itself, 3 to 10 take its plural and the opposite gender, 11 to 99
its accusative, hundreds and thousands its genitive; what ends in 01 or 02 names the noun again
("ألف دينار ودينار واحد").

Whole units always name the currency, also when they are zero. Parts are named when there are any.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from objstore.errors import BadArgument
from objstore.rental.money import Money, minor_units

UNITS_MAX: Final = 10**15  # What all three languages have plain words for, below it.


@dataclass(frozen=True, slots=True)
class Noun:
    """In French and English."""

    one: str
    many: str
    feminine: bool = False


@dataclass(frozen=True, slots=True)
class Counted:
    """An Arabic noun in the forms that numbers ask for."""

    one: str  # Also the genitive after hundreds and thousands.
    two: str
    few: str  # After 3 to 10.
    many: str  # After 11 to 99.
    feminine: bool = False


def in_words(amount: Money, language: str) -> str:
    """An amount with its currency, in words. A negative one begins with the language's word for minus.

    Args:
        language: fr, ar or en.

    Raises: BadArgument for another language, or an amount of a quadrillion units and more.
    """
    speak = _LANGUAGES.get(language)
    if speak is None:
        raise BadArgument(
            f"amounts are written in {', '.join(_LANGUAGES)}, not {language!r}",
            name="language",
            value=language,
        )
    whole, part = divmod(abs(amount.minor), 10 ** minor_units(amount.currency))
    if whole >= UNITS_MAX:
        raise BadArgument("an amount in words is below a quadrillion", name="amount", value=str(amount))
    return speak(whole, part, amount.currency, amount.minor < 0)


# --- French ---------------------------------------------------------------------------------------

_CENTIME: Final = Noun("centime", "centimes")
_CENT: Final = Noun("cent", "cents")
_FILS: Final = Noun("fils", "fils")
_FRENCH: Final[Mapping[str, tuple[Noun, Noun | None]]] = {
    "DZD": (Noun("dinar algérien", "dinars algériens"), _CENTIME),
    "MAD": (Noun("dirham marocain", "dirhams marocains"), _CENTIME),
    "EUR": (Noun("euro", "euros"), _CENTIME),
    "USD": (Noun("dollar américain", "dollars américains"), _CENT),
    "GBP": (Noun("livre sterling", "livres sterling", feminine=True), Noun("penny", "pence")),
    "CHF": (Noun("franc suisse", "francs suisses"), _CENTIME),
    "CAD": (Noun("dollar canadien", "dollars canadiens"), _CENT),
    "EGP": (
        Noun("livre égyptienne", "livres égyptiennes", feminine=True),
        Noun("piastre", "piastres", feminine=True),
    ),
    # A khoum is a fifth of an ouguiya: hundredths have no name of their own.
    "MRU": (Noun("ouguiya", "ouguiyas"), Noun("centième", "centièmes")),
    "SAR": (Noun("riyal saoudien", "riyals saoudiens"), Noun("halala", "halalas")),
    "AED": (Noun("dirham des Émirats arabes unis", "dirhams des Émirats arabes unis"), _FILS),
    "TND": (Noun("dinar tunisien", "dinars tunisiens"), Noun("millime", "millimes")),
    "LYD": (Noun("dinar libyen", "dinars libyens"), Noun("dirham", "dirhams")),
    "JOD": (Noun("dinar jordanien", "dinars jordaniens"), _FILS),
    "KWD": (Noun("dinar koweïtien", "dinars koweïtiens"), _FILS),
    "BHD": (Noun("dinar bahreïnien", "dinars bahreïniens"), _FILS),
    "OMR": (Noun("rial omanais", "rials omanais"), Noun("baïza", "baïzas")),
    "XOF": (Noun("franc CFA", "francs CFA"), None),
    "XAF": (Noun("franc CFA", "francs CFA"), None),
    "JPY": (Noun("yen", "yens"), None),
}


def _french(whole: int, part: int, currency: str, negative: bool) -> str:
    unit, fraction = _FRENCH[currency]
    text = _french_count(whole, unit)
    if part:
        assert fraction is not None
        text += f" et {_french_count(part, fraction)}"
    return f"moins {text}" if negative else text


def _french_count(number: int, noun: Noun) -> str:
    words = _integer(number, "fr")
    if noun.feminine and (words == "un" or words.endswith((" un", "-un"))):
        words += "e"
    name = noun.many if number >= 2 else noun.one
    if number and number % 1_000_000 == 0:  # "Million" is a noun: un million de dinars.
        return f"{words} d'{name}" if name[0] in "aeiou" else f"{words} de {name}"
    return f"{words} {name}"


# --- English --------------------------------------------------------------------------------------

_ENGLISH_CENTIME: Final = Noun("centime", "centimes")
_ENGLISH: Final[Mapping[str, tuple[Noun, Noun | None]]] = {
    "DZD": (Noun("Algerian dinar", "Algerian dinars"), _ENGLISH_CENTIME),
    "MAD": (Noun("Moroccan dirham", "Moroccan dirhams"), _ENGLISH_CENTIME),
    "EUR": (Noun("euro", "euros"), _CENT),
    "USD": (Noun("US dollar", "US dollars"), _CENT),
    "GBP": (Noun("pound sterling", "pounds sterling"), Noun("penny", "pence")),
    "CHF": (Noun("Swiss franc", "Swiss francs"), _ENGLISH_CENTIME),
    "CAD": (Noun("Canadian dollar", "Canadian dollars"), _CENT),
    "EGP": (Noun("Egyptian pound", "Egyptian pounds"), Noun("piastre", "piastres")),
    "MRU": (Noun("ouguiya", "ouguiyas"), Noun("hundredth", "hundredths")),
    "SAR": (Noun("Saudi riyal", "Saudi riyals"), Noun("halala", "halalas")),
    "AED": (Noun("UAE dirham", "UAE dirhams"), _FILS),
    "TND": (Noun("Tunisian dinar", "Tunisian dinars"), Noun("millime", "millimes")),
    "LYD": (Noun("Libyan dinar", "Libyan dinars"), Noun("dirham", "dirhams")),
    "JOD": (Noun("Jordanian dinar", "Jordanian dinars"), _FILS),
    "KWD": (Noun("Kuwaiti dinar", "Kuwaiti dinars"), _FILS),
    "BHD": (Noun("Bahraini dinar", "Bahraini dinars"), _FILS),
    "OMR": (Noun("Omani rial", "Omani rials"), Noun("baisa", "baisas")),
    "XOF": (Noun("CFA franc", "CFA francs"), None),
    "XAF": (Noun("CFA franc", "CFA francs"), None),
    "JPY": (Noun("yen", "yen"), None),
}


def _english(whole: int, part: int, currency: str, negative: bool) -> str:
    unit, fraction = _ENGLISH[currency]
    text = _english_count(whole, unit)
    if part:
        assert fraction is not None
        text += f" and {_english_count(part, fraction)}"
    return f"minus {text}" if negative else text


def _english_count(number: int, noun: Noun) -> str:
    name = noun.one if number == 1 else noun.many
    return f"{_integer(number, 'en').replace(',', '')} {name}"


def _integer(number: int, language: str) -> str:
    import num2words  # 20 ms and a package for each of fifty languages: only where invoices are made.

    return str(num2words.num2words(number, lang=language))


# --- Arabic ---------------------------------------------------------------------------------------

_AND: Final = " و"  # Joined to the word that follows.
# Numerals beside a masculine noun, and beside a feminine one: 3 to 10 are of the opposite gender.
_ONES: Final = (
    ("", "واحد", "اثنان", "ثلاثة", "أربعة", "خمسة", "ستة", "سبعة", "ثمانية", "تسعة", "عشرة"),
    ("", "إحدى", "اثنتان", "ثلاث", "أربع", "خمس", "ست", "سبع", "ثماني", "تسع", "عشر"),
)
_TEENS: Final = (
    (
        "أحد عشر", "اثنا عشر", "ثلاثة عشر", "أربعة عشر", "خمسة عشر", "ستة عشر", "سبعة عشر", "ثمانية عشر",
        "تسعة عشر",
    ),
    (
        "إحدى عشرة", "اثنتا عشرة", "ثلاث عشرة", "أربع عشرة", "خمس عشرة", "ست عشرة", "سبع عشرة", "ثماني عشرة",
        "تسع عشرة",
    ),
)  # fmt: skip
_TENS: Final = ("", "", "عشرون", "ثلاثون", "أربعون", "خمسون", "ستون", "سبعون", "ثمانون", "تسعون")
_HUNDREDS: Final = (
    "", "مائة", "مائتان", "ثلاثمائة", "أربعمائة", "خمسمائة", "ستمائة", "سبعمائة", "ثمانمائة", "تسعمائة",
)  # fmt: skip
_SCALES: Final = (  # Nouns that are counted themselves, the largest first.
    (10**12, Counted("تريليون", "تريليونان", "تريليونات", "تريليوناً")),
    (10**9, Counted("مليار", "ملياران", "مليارات", "ملياراً")),
    (10**6, Counted("مليون", "مليونان", "ملايين", "مليوناً")),
    (10**3, Counted("ألف", "ألفان", "آلاف", "ألفاً")),
)


def _dinar(adjective: str) -> Counted:
    return _with_adjective("دينار", "ديناران", "دنانير", "ديناراً", adjective)


def _with_adjective(one: str, two: str, few: str, many: str, adjective: str) -> Counted:
    """A masculine noun and its adjective, given in the masculine singular: it follows in number and case, and
    is feminine singular beside a plural of things."""
    return Counted(
        f"{one} {adjective}", f"{two} {adjective}ان", f"{few} {adjective}ة", f"{many} {adjective}اً"
    )


_AR_CENTIME: Final = Counted("سنتيم", "سنتيمان", "سنتيمات", "سنتيماً")
_AR_CENT: Final = Counted("سنت", "سنتان", "سنتات", "سنتاً")
_AR_FILS: Final = Counted("فلس", "فلسان", "فلوس", "فلساً")
_AR_DIRHAM: Final = ("درهم", "درهمان", "دراهم", "درهماً")
_AR_DOLLAR: Final = ("دولار", "دولاران", "دولارات", "دولاراً")
_AR_POUND: Final = ("جنيه", "جنيهان", "جنيهات", "جنيهاً")
_AR_RIYAL: Final = ("ريال", "ريالان", "ريالات", "ريالاً")
_AR_FRANC_CFA: Final = Counted("فرنك سيفا", "فرنكا سيفا", "فرنكات سيفا", "فرنك سيفا")
_ARABIC: Final[Mapping[str, tuple[Counted, Counted | None]]] = {
    "DZD": (_dinar("جزائري"), _AR_CENTIME),
    "MAD": (_with_adjective(*_AR_DIRHAM, "مغربي"), _AR_CENTIME),
    "EUR": (Counted("يورو", "يوروان", "يورو", "يورو"), _AR_CENT),
    "USD": (_with_adjective(*_AR_DOLLAR, "أمريكي"), _AR_CENT),
    "GBP": (_with_adjective(*_AR_POUND, "إسترليني"), Counted("بنس", "بنسان", "بنسات", "بنساً")),
    "CHF": (_with_adjective("فرنك", "فرنكان", "فرنكات", "فرنكاً", "سويسري"), _AR_CENTIME),
    "CAD": (_with_adjective(*_AR_DOLLAR, "كندي"), _AR_CENT),
    "EGP": (_with_adjective(*_AR_POUND, "مصري"), Counted("قرش", "قرشان", "قروش", "قرشاً")),
    "MRU": (
        Counted(
            "أوقية موريتانية", "أوقيتان موريتانيتان", "أوقيات موريتانية", "أوقيةً موريتانيةً", feminine=True
        ),
        Counted("جزء من المائة", "جزءان من المائة", "أجزاء من المائة", "جزءاً من المائة"),
    ),
    "SAR": (
        _with_adjective(*_AR_RIYAL, "سعودي"),
        Counted("هللة", "هللتان", "هللات", "هللةً", feminine=True),
    ),
    "AED": (_with_adjective(*_AR_DIRHAM, "إماراتي"), _AR_FILS),
    "TND": (_dinar("تونسي"), Counted("مليم", "مليمان", "مليمات", "مليماً")),
    "LYD": (_dinar("ليبي"), Counted(*_AR_DIRHAM)),
    "JOD": (_dinar("أردني"), _AR_FILS),
    "KWD": (_dinar("كويتي"), _AR_FILS),
    "BHD": (_dinar("بحريني"), _AR_FILS),
    "OMR": (_with_adjective(*_AR_RIYAL, "عماني"), Counted("بيسة", "بيستان", "بيسات", "بيسةً", feminine=True)),
    "XOF": (_AR_FRANC_CFA, None),
    "XAF": (_AR_FRANC_CFA, None),
    "JPY": (_with_adjective("ين", "ينان", "ينات", "يناً", "ياباني"), None),
}


def _arabic(whole: int, part: int, currency: str, negative: bool) -> str:
    unit, fraction = _ARABIC[currency]
    text = _arabic_count(whole, unit)
    if part:
        assert fraction is not None
        text += _AND + _arabic_count(part, fraction)
    return f"ناقص {text}" if negative else text


def _arabic_count(number: int, noun: Counted) -> str:
    """A number of things."""
    if number == 0:
        return f"صفر {noun.one}"
    if number == 1:
        return f"{noun.one} {'واحدة' if noun.feminine else 'واحد'}"
    if number == 2:
        return noun.two
    last = number % 100
    if last in (1, 2):
        return _arabic_count(number - last, noun) + _AND + _arabic_count(last, noun)
    if last == 0:
        return f"{_construct(_arabic_number(number, noun.feminine))} {noun.one}"
    return f"{_arabic_number(number, noun.feminine)} {noun.few if last <= 10 else noun.many}"


def _arabic_number(number: int, feminine: bool) -> str:
    """The number itself, before a noun of that gender; it is 3 or more."""
    parts = []
    for size, scale in _SCALES:
        count, number = divmod(number, size)
        if count:
            parts.append(_scaled(count, scale))
    hundreds, rest = divmod(number, 100)
    if hundreds:
        parts.append(_HUNDREDS[hundreds])
    if rest:
        parts.append(_below_hundred(rest, feminine))
    return _AND.join(parts)


def _scaled(count: int, scale: Counted) -> str:
    """So many thousands, millions, ...: like things, but that one of them is not called one."""
    if count == 1:
        return scale.one
    last = count % 100
    if count > 2 and last in (1, 2):
        return _scaled(count - last, scale) + _AND + _scaled(last, scale)
    return _arabic_count(count, scale)


def _below_hundred(number: int, feminine: bool) -> str:
    ones = _ONES[feminine]
    if number <= 10:
        return ones[number]
    if number < 20:
        return _TEENS[feminine][number - 11]
    tens, one = divmod(number, 10)
    if not one:
        return _TENS[tens]
    # Not before its noun, eight keeps the ending that it loses there.
    return ("ثمانٍ" if feminine and one == 8 else ones[one]) + _AND + _TENS[tens]


def _construct(words: str) -> str:
    """A number directly before the noun in the genitive: duals lose their n, accusatives their ending."""
    if words.endswith("ان"):
        return words.removesuffix("ن")
    return words.removesuffix("اً")


_LANGUAGES: Final[Mapping[str, Callable[[int, int, str, bool], str]]] = {
    "fr": _french,
    "ar": _arabic,
    "en": _english,
}
