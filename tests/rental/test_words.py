"""Amounts in words. The tables were written by hand from grammars, not from what the code says."""

import random

import pytest

from objstore.errors import BadArgument
from objstore.rental.money import MINOR_UNITS, Money
from objstore.rental.words import UNITS_MAX, in_words
from tests.seed import SEED

FRENCH = {
    "0.00 DZD": "zéro dinar algérien",
    "0.01 DZD": "zéro dinar algérien et un centime",
    "1.00 DZD": "un dinar algérien",
    "1.50 DZD": "un dinar algérien et cinquante centimes",
    "2.00 DZD": "deux dinars algériens",
    "21.00 DZD": "vingt et un dinars algériens",
    "71.00 MAD": "soixante et onze dirhams marocains",
    "80.00 EUR": "quatre-vingts euros",
    "80.80 EUR": "quatre-vingts euros et quatre-vingts centimes",
    "81.00 EUR": "quatre-vingt-un euros",
    "91.00 EUR": "quatre-vingt-onze euros",
    "99.99 USD": "quatre-vingt-dix-neuf dollars américains et quatre-vingt-dix-neuf cents",
    "100.00 CHF": "cent francs suisses",
    "101.00 CAD": "cent un dollars canadiens",
    "200.00 DZD": "deux cents dinars algériens",
    "203.00 DZD": "deux cent trois dinars algériens",
    "280.00 DZD": "deux cent quatre-vingts dinars algériens",
    "1000.00 DZD": "mille dinars algériens",
    "1001.00 DZD": "mille un dinars algériens",
    "2000.00 DZD": "deux mille dinars algériens",
    "80000.00 DZD": "quatre-vingt mille dinars algériens",
    "200000.00 DZD": "deux cent mille dinars algériens",
    "93242.45 DZD": (
        "quatre-vingt-treize mille deux cent quarante-deux dinars algériens et quarante-cinq centimes"
    ),
    "1000000.00 DZD": "un million de dinars algériens",
    "1000001.00 DZD": "un million un dinars algériens",
    "1200000.00 DZD": "un million deux cent mille dinars algériens",
    "2000000.00 EUR": "deux millions d'euros",
    "80000000.00 DZD": "quatre-vingts millions de dinars algériens",
    "1000000000.00 MRU": "un milliard d'ouguiyas",
    "3000000.10 GBP": "trois millions de livres sterling et dix pence",
    "1.01 GBP": "une livre sterling et un penny",
    "21.00 GBP": "vingt et une livres sterling",
    "81.21 EGP": "quatre-vingt-une livres égyptiennes et vingt et une piastres",
    "1001.01 EGP": "mille une livres égyptiennes et une piastre",
    "71.00 EGP": "soixante et onze livres égyptiennes",
    "93242.450 TND": (
        "quatre-vingt-treize mille deux cent quarante-deux dinars tunisiens et quatre cent cinquante millimes"
    ),
    "5.001 LYD": "cinq dinars libyens et un dirham",
    "5.200 JOD": "cinq dinars jordaniens et deux cents fils",
    "1.005 KWD": "un dinar koweïtien et cinq fils",
    "1.080 BHD": "un dinar bahreïnien et quatre-vingts fils",
    "2.100 OMR": "deux rials omanais et cent baïzas",
    "1.02 SAR": "un riyal saoudien et deux halalas",
    "1.02 AED": "un dirham des Émirats arabes unis et deux fils",
    "92459 XOF": "quatre-vingt-douze mille quatre cent cinquante-neuf francs CFA",
    "1000000 XAF": "un million de francs CFA",
    "1 JPY": "un yen",
    "-93242.45 MAD": (
        "moins quatre-vingt-treize mille deux cent quarante-deux dirhams marocains et quarante-cinq centimes"
    ),
    "-0.01 EUR": "moins zéro euro et un centime",
}

ENGLISH = {
    "0.00 DZD": "zero Algerian dinars",
    "1.01 DZD": "one Algerian dinar and one centime",
    "21.00 USD": "twenty-one US dollars",
    "93242.45 DZD": "ninety-three thousand two hundred and forty-two Algerian dinars and forty-five centimes",
    "1001.00 EUR": "one thousand and one euros",
    "2000000.00 GBP": "two million pounds sterling",
    "1.01 GBP": "one pound sterling and one penny",
    "2.02 GBP": "two pounds sterling and two pence",
    "1.234 TND": "one Tunisian dinar and two hundred and thirty-four millimes",
    "1234567 JPY": "one million two hundred and thirty-four thousand five hundred and sixty-seven yen",
    "-1.00 CHF": "minus one Swiss franc",
}

ARABIC = {
    "0.00 DZD": "صفر دينار جزائري",
    "1.00 DZD": "دينار جزائري واحد",
    "2.00 DZD": "ديناران جزائريان",
    "3.00 DZD": "ثلاثة دنانير جزائرية",
    "8.00 DZD": "ثمانية دنانير جزائرية",
    "10.00 DZD": "عشرة دنانير جزائرية",
    "11.00 DZD": "أحد عشر ديناراً جزائرياً",
    "12.00 DZD": "اثنا عشر ديناراً جزائرياً",
    "21.00 DZD": "واحد وعشرون ديناراً جزائرياً",
    "71.00 MAD": "واحد وسبعون درهماً مغربياً",
    "80.00 MAD": "ثمانون درهماً مغربياً",
    "99.00 MAD": "تسعة وتسعون درهماً مغربياً",
    "100.00 DZD": "مائة دينار جزائري",
    "101.00 DZD": "مائة دينار جزائري ودينار جزائري واحد",
    "102.00 DZD": "مائة دينار جزائري وديناران جزائريان",
    "103.00 DZD": "مائة وثلاثة دنانير جزائرية",
    "111.00 DZD": "مائة وأحد عشر ديناراً جزائرياً",
    "200.00 DZD": "مائتا دينار جزائري",
    "211.00 DZD": "مائتان وأحد عشر ديناراً جزائرياً",
    "1000.00 DZD": "ألف دينار جزائري",
    "1001.00 DZD": "ألف دينار جزائري ودينار جزائري واحد",
    "1100.00 DZD": "ألف ومائة دينار جزائري",
    "2000.00 DZD": "ألفا دينار جزائري",
    "2003.00 DZD": "ألفان وثلاثة دنانير جزائرية",
    "3000.00 DZD": "ثلاثة آلاف دينار جزائري",
    "11000.00 DZD": "أحد عشر ألف دينار جزائري",
    "11011.00 DZD": "أحد عشر ألفاً وأحد عشر ديناراً جزائرياً",
    "101000.00 DZD": "مائة ألف وألف دينار جزائري",
    "200000.00 DZD": "مائتا ألف دينار جزائري",
    "93242.45 DZD": "ثلاثة وتسعون ألفاً ومائتان واثنان وأربعون ديناراً جزائرياً وخمسة وأربعون سنتيماً",
    "1000000.00 DZD": "مليون دينار جزائري",
    "2000000.00 USD": "مليونا دولار أمريكي",
    "5000000.00 USD": "خمسة ملايين دولار أمريكي",
    "2000000000.00 EUR": "مليارا يورو",
    "1.00 MRU": "أوقية موريتانية واحدة",
    "2.00 MRU": "أوقيتان موريتانيتان",
    "3.00 MRU": "ثلاث أوقيات موريتانية",
    "8.00 MRU": "ثماني أوقيات موريتانية",
    "11.00 MRU": "إحدى عشرة أوقيةً موريتانيةً",
    "28.00 MRU": "ثمانٍ وعشرون أوقيةً موريتانيةً",
    "1.21 SAR": "ريال سعودي واحد وإحدى وعشرون هللةً",
    "1.05 SAR": "ريال سعودي واحد وخمس هللات",
    "4.002 OMR": "أربعة ريالات عمانية وبيستان",
    "93242.450 TND": ("ثلاثة وتسعون ألفاً ومائتان واثنان وأربعون ديناراً تونسياً وأربعمائة وخمسون مليماً"),
    "6.100 KWD": "ستة دنانير كويتية ومائة فلس",
    "3.03 GBP": "ثلاثة جنيهات إسترلينية وثلاثة بنسات",
    "3.10 EGP": "ثلاثة جنيهات مصرية وعشرة قروش",
    "92459 XOF": "اثنان وتسعون ألفاً وأربعمائة وتسعة وخمسون فرنك سيفا",
    "2 JPY": "ينان يابانيان",
    "-93242.45 MAD": "ناقص ثلاثة وتسعون ألفاً ومائتان واثنان وأربعون درهماً مغربياً وخمسة وأربعون سنتيماً",
}


def spoken(amount: str, language: str) -> str:
    number, currency = amount.split()
    return in_words(Money.parse(number, currency), language)


@pytest.mark.parametrize(("amount", "words"), FRENCH.items())
def test_french_has_its_plurals_genders_and_the_noun_million(amount: str, words: str) -> None:
    assert spoken(amount, "fr") == words


@pytest.mark.parametrize(("amount", "words"), ENGLISH.items())
def test_english_names_unit_and_part(amount: str, words: str) -> None:
    assert spoken(amount, "en") == words


@pytest.mark.parametrize(("amount", "words"), ARABIC.items())
def test_arabic_counts_nouns_in_the_form_and_gender_that_the_number_asks_for(amount: str, words: str) -> None:
    assert spoken(amount, "ar") == words


@pytest.mark.parametrize("language", ["fr", "ar", "en"])
@pytest.mark.parametrize("currency", MINOR_UNITS)
def test_every_currency_has_names_in_every_language(currency: str, language: str) -> None:
    part = 10 ** MINOR_UNITS[currency] // 3  # 33, 333, or none at all.
    one = in_words(Money(10 ** MINOR_UNITS[currency], currency), language)
    more = in_words(Money(5 * 10 ** MINOR_UNITS[currency] + part, currency), language)
    assert one != more
    assert (" و" in more or " et " in more or " and " in more) == (part > 0)


# What each word of an Arabic number is worth, whatever its gender and case.
WORTH = {
    "صفر": 0, "واحد": 1, "إحدى": 1, "أحد": 1, "اثنان": 2, "اثنا": 2, "ثلاثة": 3, "أربعة": 4, "خمسة": 5,
    "ستة": 6, "سبعة": 7, "ثمانية": 8, "تسعة": 9, "عشرة": 10, "عشر": 10, "عشرون": 20, "ثلاثون": 30,
    "أربعون": 40, "خمسون": 50, "ستون": 60, "سبعون": 70, "ثمانون": 80, "تسعون": 90, "مائة": 100, "مائتان": 200,
    "مائتا": 200, "ثلاثمائة": 300, "أربعمائة": 400, "خمسمائة": 500, "ستمائة": 600, "سبعمائة": 700,
    "ثمانمائة": 800, "تسعمائة": 900,
}  # fmt: skip
SCALES = {
    "ألف": (10**3, 1), "ألفان": (10**3, 2), "ألفا": (10**3, 2), "آلاف": (10**3, 1), "ألفاً": (10**3, 1),
    "مليون": (10**6, 1), "مليونان": (10**6, 2), "مليونا": (10**6, 2), "ملايين": (10**6, 1),
    "مليوناً": (10**6, 1),
    "مليار": (10**9, 1), "ملياران": (10**9, 2), "مليارا": (10**9, 2), "مليارات": (10**9, 1),
    "ملياراً": (10**9, 1),
    "تريليون": (10**12, 1), "تريليونان": (10**12, 2), "تريليونا": (10**12, 2), "تريليونات": (10**12, 1),
    "تريليوناً": (10**12, 1),
}  # fmt: skip
YEN = {"ين": 1, "ينان": 2}  # The noun alone is one or two of it.


def understood(words: str) -> int:
    """The number that an Arabic reader hears, word by word."""
    total = pending = 0
    counted = False  # The number in hand was followed by what it counts.
    for word in words.replace("ياباني", "").replace("ان ان", "ان").split():
        if word == "واحد" and counted:
            continue  # An adjective: "and one yen" is one already.
        bare = word if word in WORTH or word in SCALES else word.removeprefix("و")
        if bare in WORTH:
            pending += WORTH[bare]
            counted = False
        elif bare in SCALES:
            size, of_it = SCALES[bare]
            total += size * (pending or of_it)
            pending, counted = 0, False
        elif bare in YEN:
            if not pending and (word.startswith("و") or not total):
                total += YEN[bare]
            total += pending
            pending, counted = 0, True
    return total + pending


def test_an_arabic_reader_hears_the_number_that_was_written() -> None:
    chance = random.Random(SEED)
    numbers = [*range(3, 2_300), *(chance.randrange(3, 10 ** chance.randint(1, 15)) for _ in range(3_000))]
    numbers += [
        scale * n for scale in (10**3, 10**6, 10**9, 10**12) for n in (1, 2, 3, 11, 101, 102, 103, 200)
    ]
    for number in numbers:
        words = in_words(Money(number, "JPY"), "ar")
        assert understood(words) == number, f"{number}: {words} (seed {SEED})"


def test_an_amount_that_has_no_plain_words_is_refused() -> None:
    assert in_words(Money(UNITS_MAX - 1, "JPY"), "fr").startswith("neuf cent quatre-vingt-dix-neuf billions")
    for language in ("fr", "ar", "en"):
        with pytest.raises(BadArgument, match="quadrillion"):
            in_words(Money(UNITS_MAX, "JPY"), language)


def test_a_language_that_is_not_spoken_is_refused() -> None:
    with pytest.raises(BadArgument, match="not 'de'"):
        in_words(Money(1, "EUR"), "de")
