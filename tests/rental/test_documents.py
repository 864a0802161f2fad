"""Invoices and credit notes as PDF, read back by poppler: what stands there, and what must not happen."""

import asyncio
import hashlib
import re
import shutil
import subprocess
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest

from objstore.errors import BadArgument, Overloaded
from objstore.rental.documents.content import Document, clean, content
from objstore.rental.documents.formats import Formats, unit_name, unit_text
from objstore.rental.documents.pdf import WAITING_MAX, Printer, Typesetter
from objstore.rental.documents.texts import text
from objstore.rental.money import MINOR_UNITS
from objstore.rental.plans import BYTES, COUNTS
from objstore.rental.records import LANGUAGES, InvoiceRecord, Line, SellerRecord, TaxLine
from tests.rental.papers import BEGIN_US, CUSTOMER, END_US, SELLER, V10, paper
from tests.waiting import until

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><rect width="20" height="10"/></svg>'


@pytest.fixture(scope="module")
def typesetter() -> Typesetter:
    return Typesetter()


def document(invoice: InvoiceRecord | None = None, lines: Any = V10, language: str = "") -> Document:
    return Document.of(paper(lines) if invoice is None else invoice, lines, language)


def read(pdf: bytes, option: str = "-raw") -> str:
    """Its text as poppler finds it, in the order in which it was set; narrow spaces as plain ones."""
    program = shutil.which("pdftotext")
    assert program is not None, "pdftotext is missing: poppler-utils"
    done = subprocess.run(
        [program, option, "-", "-"], input=pdf, capture_output=True, timeout=240, check=True
    )
    return done.stdout.decode().replace("\u202f", " ").replace("\xa0", " ").replace("\u200b", "")


def words(pdf: bytes) -> str:
    return " ".join(read(pdf).split())


def test_a_french_invoice_says_all_that_an_invoice_has_to_say(typesetter: Typesetter) -> None:
    invoice = paper(purchase_order="BC-77/2026", fx="1.0 BA 2026-03-31")
    page = words(typesetter.render(document(invoice)))
    for expected in (
        "Facture FA-2026-000001",
        "Centre de données d'Oran SPA",
        "31/00-0123456 B 20",
        "002031012345678",
        "250 000 000,00 DA",
        "Atelier Amira SARL",
        "5, rue Larbi Ben M'hidi",
        "001616098765432",
        "2 avril 2026",
        "2 mai 2026",
        "du 1 mars 2026 au 31 mars 2026 (UTC)",
        "BC-77/2026",
        "Montants en DZD",
        "Projet archives",
        "photos-2026",
        "To-mois",
        "690,00",
        "69 000,00",
        "1000 requêtes",
        "935,50",
        "9 355,00",
        "19 %",
        "78 355,00",
        "14 887,45",
        "Total TTC",
        "93 242,45",
        "quatre-vingt-treize mille deux cent quarante-deux dinars algériens et quarante-cinq centimes",
        "30 jours",
        "RIB 002 00031 0312345678 90",
        "1.0 BA 2026-03-31",
        "Page 1 / 1",
    ):
        assert expected in page
    assert "BROUILLON" not in page


def test_a_document_is_issued_at_any_microsecond(typesetter: Typesetter) -> None:
    whole = typesetter.render(document(paper(issued_us=END_US)))
    assert typesetter.render(document(paper(issued_us=END_US + 999_999))) == whole


def test_an_english_invoice_is_in_english(typesetter: Typesetter) -> None:
    page = words(typesetter.render(document(language="en")))
    for expected in (
        "Invoice",
        "April 2, 2026",
        "March 1, 2026 to March 31, 2026",
        "69,000.00",
        "93,242.45",
        "TB-Months",
    ):
        assert expected in page
    assert "ninety-three thousand two hundred and forty-two Algerian dinars and forty-five centimes" in page


def test_an_arabic_invoice_runs_from_right_to_left_with_western_digits(typesetter: Typesetter) -> None:
    pdf = typesetter.render(document(language="ar"))
    page = words(pdf)
    for expected in ("93.242,45", "14.887,45", "FA-2026-000001", "690,00", "تيرابايت", "شهر", "طلب"):
        assert expected in page
    assert not re.search("[٠-٩۰-۹]", page)
    # The first column begins at the right edge and the last at the left one.
    boxes = {
        word: float(left)
        for left, word in re.findall(r'<word xMin="([0-9.]+)"[^>]*>([^<]+)</word>', read(pdf, "-bbox"))
    }
    assert boxes["photos-2026"] > boxes["100"] > boxes["690,00"] > boxes["69.000,00"]


def test_arabic_can_be_copied_out_as_it_was_typed(typesetter: Typesetter) -> None:
    page = read(typesetter.render(document(language="ar")))
    for word in ("فاتورة", "الزبون", "الكمية", "وتسعون", "جزائري", "سنتيم"):
        assert word in page
    assert "\ufffd" not in page


def test_a_draft_has_no_number_and_says_on_every_page_that_it_is_one(typesetter: Typesetter) -> None:
    lines = [msgspec.structs.replace(V10[0], description=f"Ligne {number}") for number in range(90)]
    draft = paper(lines, state="draft", number="", issued_us=0, due_us=0)
    pages = read(typesetter.render(document(draft, lines))).split("\f")[:-1]
    assert len(pages) > 1
    assert all("BROUILLON" in page for page in pages)
    assert "aucun (brouillon)" in pages[0]
    assert f"Page {len(pages)} / {len(pages)}" in " ".join(pages[-1].split())


def test_a_credit_note_names_its_invoice_and_its_reason_and_is_below_zero(typesetter: Typesetter) -> None:
    lines = [msgspec.structs.replace(line, net=-line.net, quantity=f"-{line.quantity}") for line in V10]
    note = paper(lines, type="credit_note", number="AV-2026-000001", corrects="FA-2026-000001", reason="sla")
    page = words(typesetter.render(document(note, lines)))
    for expected in (
        "Facture d'avoir AV-2026-000001",
        "Avoir sur la facture FA-2026-000001",
        "niveau de service non atteint",
        "-93 242,45",
        "moins quatre-vingt-treize mille",
    ):
        assert expected in page
    assert "Échéance" not in page
    assert "RIB" not in page


def test_each_tax_has_its_line_and_what_is_free_of_tax_says_by_what_law(typesetter: Typesetter) -> None:
    taxes = [
        TaxLine(label="TVA 19 %", rate="0.19", base=6_900_000, amount=1_311_000),
        TaxLine(label="TVA 5,5 %", rate="0.055", base=0, amount=0),
        TaxLine(
            label="Exonéré", rate="0", base=935_500, amount=0, legal_basis="Article 42 du code des taxes"
        ),
    ]
    invoice = paper(taxes=taxes, total_tax=1_311_000, total=9_146_500, words="", prepaid=1_000_000)
    page = words(typesetter.render(document(invoice)))
    for expected in (
        "13 110,00", "5,5 %", "0 %", "9 355,00", "Article 42 du code des taxes", "91 465,00",
        "quatre-vingt-onze mille quatre cent soixante-cinq dinars algériens", "-10 000,00", "Net à payer",
        "81 465,00",
    ):  # fmt: skip
        assert expected in page


def test_the_same_document_is_the_same_bytes_and_another_is_not(typesetter: Typesetter) -> None:
    for language in LANGUAGES:
        digests = {
            hashlib.sha256(one.render(document(language=language))).digest()
            for one in (typesetter, typesetter, Typesetter())
        }
        assert len(digests) == 1
    first = typesetter.render(document())
    assert first != typesetter.render(document(paper(issued_us=END_US)))
    assert first.startswith(b"%PDF-1.7")
    assert b"/CreationDate(D:20260402000000Z)" in first


def test_what_is_paid_later_changes_nothing_of_a_document(typesetter: Typesetter) -> None:
    paid = paper(state="paid", paid=9_324_245, paid_us=END_US, credited=5, returned=5, pdf_digest=b"x" * 32)
    assert typesetter.render(document(paid)) == typesetter.render(document())


ATTACKS = [
    '#read("/etc/passwd")',
    '#import "@preview/evil:1.0.0": *',
    "$ integral x dif x $",
    "*bold* _em_ `raw` = Title",
    "// comment /* and */",
    '") #panic("out") //',
    "\\ #sys.inputs <label> @reference",
    '"],"draft":"x',
    "https://example.org/[x](y)",
    "{{ 7*7 }} %s {0} ${HOME}",
    "<script>alert(1)</script> & &lt;",
    "--- ... 'quoted' \"so\"",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_name_that_looks_like_a_program_is_printed_as_it_was_typed(
    typesetter: Typesetter, attack: str
) -> None:
    customer = msgspec.structs.replace(
        CUSTOMER, legal_name=attack, address=[attack], tax_ids={attack: attack}, tenant=attack
    )
    seller = msgspec.structs.replace(SELLER, name=attack, bank=attack, capital=attack, address=[attack])
    lines = [msgspec.structs.replace(V10[0], description=attack, project=attack, bucket=attack, unit=attack)]
    invoice = paper(
        lines, customer=customer, seller=seller, purchase_order=attack, fx=attack, words=attack, number=attack
    )
    pdf = typesetter.render(document(invoice, lines))
    printed = re.sub(r"\s", "", read(pdf))
    assert printed.count(re.sub(r"\s", "", attack)) >= 10
    assert "root:x:0" not in printed
    assert b"/URI" not in pdf  # Nothing becomes a link.


@pytest.mark.parametrize(
    ("typed", "printed"),
    [
        ("Total: 9\u202e00.1 = 1.00", "Total: 900.1 = 1.00"),
        ("a\u2066b\u2069c\u200ed\u200fe\u061cf", "abcdef"),
        ("a\x00b\x1bc\x07d\ufeff", "abcd"),
        ("one\ntwo\ttree\r\nfour", "one two tree four"),
        ("  many   spaces ", "many spaces"),
        ("", ""),
        ("\ud800", ""),
    ],
)
def test_characters_that_deceive_a_reader_are_left_out(typed: str, printed: str) -> None:
    assert clean(typed) == printed


@pytest.mark.parametrize(
    "name", ["Société 中国 🎉", "𝔘nicode", "ශ්‍රී", "a\u0301\u0302\u0332 \ufdfa", "\U0010ffff"]
)
def test_a_name_in_letters_that_the_font_lacks_is_still_billed(typesetter: Typesetter, name: str) -> None:
    invoice = paper(customer=msgspec.structs.replace(CUSTOMER, legal_name=name))
    pdf = typesetter.render(document(invoice))
    assert "93 242,45" in read(pdf)
    assert typesetter.render(document(invoice)) == pdf


def test_a_name_without_end_stays_on_its_page(typesetter: Typesetter) -> None:
    endless = "W" * 3_000
    lines = [msgspec.structs.replace(V10[0], description=endless, project=endless, bucket=endless)]
    customer = msgspec.structs.replace(CUSTOMER, legal_name=endless)
    pdf = typesetter.render(document(paper(lines, customer=customer), lines))
    page_width = 595.3
    for right in re.findall(r'<word [^>]*xMax="([0-9.]+)"', read(pdf, "-bbox")):
        assert float(right) < page_width
    assert "…" in read(pdf)


def test_a_long_invoice_repeats_its_columns_and_counts_its_pages(typesetter: Typesetter) -> None:
    lines = [
        msgspec.structs.replace(V10[1], description=f"Ligne {number}", project=f"p{number % 5}", net=number)
        for number in range(200)
    ]
    pages = read(typesetter.render(document(paper(lines), lines))).split("\f")[:-1]
    assert len(pages) >= 4
    for number, page in enumerate(pages, start=1):
        assert f"Page {number} / {len(pages)}" in " ".join(page.split())
    assert sum("Désignation" in page for page in pages) >= len(pages) - 1  # The last may hold totals only.
    found = sorted(int(number) for number in re.findall(r"Ligne (\d+)", " ".join(pages)))
    assert found == list(range(200))


@pytest.mark.parametrize("logo", [PIXEL, SVG, b'<?xml version="1.0"?>' + SVG])
def test_a_logo_is_drawn(typesetter: Typesetter, logo: bytes) -> None:
    seller = msgspec.structs.replace(SELLER, logo=logo)
    assert typesetter.render(document(paper(seller=seller))) != typesetter.render(document())


@pytest.mark.parametrize(
    "logo",
    [
        b"GIF89a",
        PIXEL[:16] + (30_000).to_bytes(4, "big") + PIXEL[20:],
        b"\x89PNG\r\n\x1a\nbroken",
        b"<svg",
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>',
    ],
)
def test_a_logo_that_cannot_be_drawn_is_refused(typesetter: Typesetter, logo: bytes) -> None:
    seller = msgspec.structs.replace(SELLER, logo=logo)
    with pytest.raises(BadArgument, match="logo"):
        typesetter.render(document(paper(seller=seller)))


def test_a_logo_reads_no_file_of_the_machine(typesetter: Typesetter, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(PIXEL)

    def logo(place: str) -> SellerRecord:
        picture = f'<image width="9" height="9" href="{place}"/>'
        return msgspec.structs.replace(
            SELLER,
            logo=f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{picture}</svg>'.encode(),
        )

    absent = tmp_path / "absent"
    outcomes = []
    for place in (secret, absent):
        try:
            pdf = typesetter.render(document(paper(seller=logo(f"file://{place}"))))
            outcomes.append(b"/Image" in pdf)
        except BadArgument:
            outcomes.append(False)
    assert outcomes == [False, False]


def test_without_fonts_it_is_said_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="fonts-dejavu-core"):
        Typesetter(tmp_path)


def test_a_language_in_which_nothing_is_written_is_refused() -> None:
    with pytest.raises(BadArgument, match="not 'de'"):
        content(document(language="de"))
    with pytest.raises(BadArgument, match="not 'de'"):
        text("invoice", "de")


def test_a_document_of_too_many_lines_is_refused() -> None:
    with pytest.raises(BadArgument, match="at most 4000 lines"):
        document(paper(), [V10[0]] * 4_001)


def test_a_document_keeps_the_words_that_were_frozen_with_it_in_its_own_language_only() -> None:
    invoice = paper(words="as it was frozen")
    assert content(document(invoice))["words"][0] == "as it was frozen"
    assert content(document(invoice, language="en"))["words"][0].startswith("ninety-three thousand")


def test_days_are_the_sellers_and_periods_are_utc() -> None:
    seller = msgspec.structs.replace(SELLER, timezone="Asia/Tokyo")
    evening = END_US - 6 * 3_600 * 1_000_000  # 18:00 UTC on 31 March is 1 April in Tokyo.
    facts = {
        label[0]: value[0]
        for label, value in content(document(paper(seller=seller, issued_us=evening)))["facts"]
    }
    assert facts["Date d'émission"] == "1 avril 2026"
    assert facts["Période"] == "du 1 mars 2026 au 31 mars 2026 (UTC)"
    unknown = msgspec.structs.replace(SELLER, timezone="Mars/Olympus")
    assert content(document(paper(seller=unknown, issued_us=evening)))["facts"][1][1][0] == "31 mars 2026"


@pytest.mark.parametrize(
    ("language", "country", "amount", "quantity", "price"),
    [
        ("fr", "DZ", "-1 234 567,90", "3 303,225806", "0,000000000123"),
        ("fr", "MA", "-1 234 567,90", "3 303,225806", "0,000000000123"),
        ("ar", "DZ", "-1.234.567,90", "3.303,225806", "0,000000000123"),
        ("ar", "EG", "-1,234,567.90", "3,303.225806", "0.000000000123"),  # Digits are Western here too.
        ("en", "DZ", "-1,234,567.90", "3,303.225806", "0.000000000123"),
        ("fr", "XX", "-1 234 567,90", "3 303,225806", "0,000000000123"),
    ],
)
def test_numbers_are_written_as_in_their_country(
    language: str, country: str, amount: str, quantity: str, price: str
) -> None:
    formats = Formats.of(language, country)
    found = (
        formats.amount(-123_456_790, "DZD"),
        formats.quantity(Fraction(102_400, 31)),
        formats.price(Decimal("0.000000000123")),
    )
    assert tuple(one.replace("\u202f", " ") for one in found) == (amount, quantity, price)


@pytest.mark.parametrize("currency", MINOR_UNITS)
def test_an_amount_has_all_places_of_its_currency_and_is_never_rounded_again(currency: str) -> None:
    formats = Formats.of("en", "US")
    for minor in (0, 5, 45, 125, 99_995, 10**30 + 5):
        written = formats.amount(minor, currency)
        assert int(re.sub("[.,]", "", written)) == minor
        assert len(written.partition(".")[2]) == MINOR_UNITS[currency]


def test_quantities_are_rounded_half_up_before_they_are_written() -> None:
    formats = Formats.of("en", "US")
    assert formats.quantity(Fraction(25, 10**7)) == "0.000003"
    assert formats.quantity(Fraction(5, 10**7)) == "0.000001"
    assert formats.quantity(Fraction(-5, 10**7)) == "-0.000001"
    assert formats.quantity(Fraction(52_900)) == "52,900"
    assert formats.period(BEGIN_US, END_US) == ("March 1, 2026", "March 31, 2026")


@pytest.mark.parametrize(
    ("unit", "written"),
    [
        ("100 1000 Requests", "100000 Requests"),
        ("1000 Requests", "1000 Requests"),
        ("5 GB-Months", "5 GB-Months"),
        ("0.5 1000 Requests", "0.5 1000 Requests"),
        ("TB-Months", "TB-Months"),
        ("", ""),
    ],
)
def test_a_unit_has_one_number_at_most(unit: str, written: str) -> None:
    assert unit_name(unit) == written
    assert unit_text(unit, "en") == written


@pytest.mark.parametrize(
    ("unit", "french", "arabic"),
    [
        ("GiB-Months", "Gio-mois", "غيبيبايت-شهر"),
        ("TB-Hours", "To-heures", "تيرابايت-ساعة"),
        ("PB", "Po", "بيتابايت"),
        ("Months", "mois", "شهر"),
        ("100 1000 Requests", "100000 requêtes", "100000 طلب"),
        ("5 GB-Months", "5 Go-mois", "5 غيغابايت-شهر"),
        ("0.5 1000 Requests", "0.5 1000 Requests", "0.5 1000 Requests"),
        ("Bananas", "Bananas", "Bananas"),
        ("GB-Bananas", "GB-Bananas", "GB-Bananas"),
        ("", "", ""),
    ],
)
def test_a_unit_is_in_the_language_of_its_document(unit: str, french: str, arabic: str) -> None:
    assert (unit_text(unit, "fr"), unit_text(unit, "ar")) == (french, arabic)


def test_every_unit_that_a_rate_card_can_have_is_known_in_every_language() -> None:
    for unit in (
        *BYTES,
        *(f"{name}-{per}" for name in BYTES for per in ("Months", "Hours")),
        *COUNTS,
        "Months",
    ):
        for language in ("fr", "ar"):
            assert unit_text(unit, language) != unit, unit


async def test_the_event_loop_goes_on_while_a_document_is_typeset() -> None:
    entered, go = threading.Event(), threading.Event()

    class Slow(Typesetter):
        def render(self, document: Document) -> bytes:
            entered.set()
            assert go.wait(240)
            return super().render(document)

    printer = Printer(Slow)
    try:
        job = asyncio.ensure_future(printer.render(document()))
        await until(entered.is_set)
        assert not job.done()  # The loop runs, the thread waits.
        go.set()
        assert (await job).startswith(b"%PDF")
    finally:
        go.set()
        printer.close()


async def test_more_documents_than_can_wait_are_refused_and_the_others_come() -> None:
    go = threading.Event()

    class Held(Typesetter):
        def render(self, document: Document) -> bytes:
            assert go.wait(240)
            return b"%PDF " + document.invoice.number.encode()

    printer = Printer(Held)
    try:
        jobs = [
            asyncio.ensure_future(printer.render(document(paper(number=f"FA-{number}"))))
            for number in range(WAITING_MAX)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="wait for being typeset"):
            await printer.render(document())
        go.set()
        assert await asyncio.gather(*jobs) == [f"%PDF FA-{number}".encode() for number in range(WAITING_MAX)]
        assert await printer.render(document()) == b"%PDF FA-2026-000001"
    finally:
        go.set()
        printer.close()


async def test_a_document_that_fails_fails_alone() -> None:
    printer = Printer()
    try:
        with pytest.raises(BadArgument, match="logo"):
            await printer.render(document(paper(seller=msgspec.structs.replace(SELLER, logo=b"GIF89a"))))
        assert (await printer.render(document())).startswith(b"%PDF")
    finally:
        printer.close()


def test_a_worker_that_prints_nothing_holds_none_of_what_printing_needs() -> None:
    program = (
        "import sys, objstore.rental.words, objstore.rental.focus, objstore.rental.documents.pdf;"
        "print(*sorted({'typst', 'babel', 'num2words', 'pyarrow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=240, check=True)
    assert done.stdout.split() == []


def test_lines_without_a_price_or_a_project_are_printed_too(typesetter: Typesetter) -> None:
    lines = [Line(kind="credit", description="Avoir de niveau de service", net=-500), *V10]
    page = words(typesetter.render(document(paper(lines), lines)))
    assert "Hors projet" in page
    assert "Avoir de niveau de service -5,00" in page
