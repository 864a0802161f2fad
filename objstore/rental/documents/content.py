"""What stands on an invoice or a credit note: from records to plain texts that the template only lays out.

Everything is decided and formatted here. The template (document.typ) gets values of JSON and never evaluates
them: a name that looks like a program is printed. What people typed is cleaned of what could deceive a reader
(control characters, characters that turn the writing direction) and keeps the direction of its own letters.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from typing import Any, Final

from objstore.errors import BadArgument
from objstore.meta.schema import decode
from objstore.rental.documents.formats import Formats, unit_text
from objstore.rental.documents.texts import text
from objstore.rental.lines import LINES_MAX
from objstore.rental.money import Money
from objstore.rental.records import CustomerRecord, InvoiceRecord, Line, SellerRecord, TaxLine
from objstore.rental.sellers import known_zone
from objstore.rental.words import in_words

_TEXT_MAX: Final = 500  # Characters of anything that people typed; more is cut, and shown to be.
_WORD_MAX: Final = 34  # Letters of an IBAN: longer words may be broken, behind every
_PIECE: Final = 10  # letters.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})  # Cf holds what turns the direction.
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_LOGO_SIDE_MAX: Final = 2_048  # Pixels: 4 KiB of PNG can be gigabytes of them.

Typed = tuple[str, str]  # A text and its direction: ltr or rtl.
# What, and its value: apart, since digits beside a label of another direction would change places.
Fact = tuple[Typed, Typed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """An invoice or credit note with all that is printed of it."""

    invoice: InvoiceRecord
    lines: Sequence[Line]
    customer: CustomerRecord
    seller: SellerRecord
    language: str

    @classmethod
    def of(cls, invoice: InvoiceRecord, lines: Sequence[Line], language: str = "") -> "Document":
        """From the record and its lines; customer and seller as they were when it was made.

        Args:
            language: fr, ar or en; empty: the customer's.

        Raises: BadArgument for too many lines.
        """
        if len(lines) > LINES_MAX:
            raise BadArgument(f"a document has at most {LINES_MAX} lines, not {len(lines)}", name="lines")
        customer = decode(invoice.customer_snapshot, CustomerRecord)
        seller = decode(invoice.seller_snapshot, SellerRecord)
        return cls(
            invoice=invoice,
            lines=lines,
            customer=customer,
            seller=seller,
            language=language or customer.language,
        )


def content(document: Document) -> dict[str, Any]:
    """All texts of a document, as document.typ reads them.

    Raises: BadArgument for a language that is none, or a logo that is neither PNG nor SVG.
    """
    return _Content(document).all()


def clean(typed: str) -> str:
    """What people typed, on one line, without characters that cannot be seen; long words may be broken."""
    spaced = "".join(" " if character in "\t\n\r\u2028\u2029" else character for character in typed)
    seen = "".join(character for character in spaced if unicodedata.category(character) not in _UNSEEN)
    cut = " ".join(seen.split())
    if len(cut) > _TEXT_MAX:
        cut = cut[: _TEXT_MAX - 1] + "…"
    return " ".join("\u200b".join(_pieces(word)) for word in cut.split(" "))  # Unseen: a line may break.


def _pieces(word: str) -> list[str]:
    if len(word) <= _WORD_MAX:
        return [word]
    return [word[start : start + _PIECE] for start in range(0, len(word), _PIECE)]


def _typed(typed: str) -> Typed:
    """With the direction of its first letter; left to right if it has none."""
    cleaned = clean(typed)
    for character in cleaned:
        kind = unicodedata.bidirectional(character)
        if kind in ("R", "AL"):
            return cleaned, "rtl"
        if kind == "L":
            break
    return cleaned, "ltr"


class _Content:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._invoice = document.invoice
        self._formats = Formats.of(document.language, document.seller.country, _zone(document.seller))

    def all(self) -> dict[str, Any]:
        invoice, seller = self._invoice, self._document.seller
        return {
            "language": self._document.language,
            "title": self._text(invoice.type),
            "draft": self._text("draft") if invoice.state == "draft" else "",
            "number": _typed(invoice.number or self._text("no_number")),
            "seller": self._seller(),
            "customer": self._customer(),
            "facts": self._facts(),
            "amounts": self._text("amounts").format(invoice.currency),
            "columns": [
                self._text(name) for name in ("description", "quantity", "unit", "unit_price", "tier", "net")
            ],
            "groups": self._groups(),
            "tax_columns": [
                self._text(name) for name in ("tax", "rate", "base", "tax_amount", "legal_basis")
            ],
            "taxes": [self._tax(tax) for tax in invoice.taxes],
            "totals": self._totals(),
            "words_label": self._text(f"{invoice.type}_words"),
            "words": self._words(),
            "payment_title": self._text("payment"),
            "payment": self._payment(),
            "rounded": self._text("rounded"),
            "footer": _typed(seller.name),
            "page": self._text("page"),
        }

    def _text(self, what: str) -> str:
        return text(what, self._document.language)

    def _amount(self, minor: int) -> str:
        return self._formats.amount(minor, self._invoice.currency)

    def _seller(self) -> dict[str, Any]:
        seller = self._document.seller
        details = self._tax_ids(seller.tax_ids)
        if seller.capital:
            details.append((_typed(self._text("capital")), _typed(seller.capital)))
        return {
            "title": self._text("seller"),
            "name": _typed(seller.name),
            "address": [_typed(line) for line in seller.address],
            "details": details,
            "logo": list(seller.logo),
            "logo_format": _picture_format(seller.logo),
        }

    def _customer(self) -> dict[str, Any]:
        customer = self._document.customer
        return {
            "title": self._text("customer"),
            "name": _typed(customer.legal_name or customer.tenant),
            "address": [_typed(line) for line in customer.address],
            "details": self._tax_ids(customer.tax_ids),
        }

    def _tax_ids(self, ids: dict[str, str]) -> list[Fact]:
        return [(_typed(name), _typed(value)) for name, value in ids.items()]

    def _facts(self) -> list[Fact]:
        invoice, customer = self._invoice, self._document.customer
        facts = [("account", customer.tenant)]
        if invoice.issued_us:
            facts.append(("issued", self._formats.moment(invoice.issued_us)))
        if invoice.due_us and invoice.type == "invoice":
            facts.append(("due", self._formats.moment(invoice.due_us)))
        if invoice.period_end_us > invoice.period_begin_us:
            days = self._formats.period(invoice.period_begin_us, invoice.period_end_us)
            facts.append(("period", self._text("from_to").format(*days)))
        if invoice.purchase_order:
            facts.append(("purchase_order", invoice.purchase_order))
        if invoice.corrects:
            facts.append(("corrects", invoice.corrects))
        if invoice.reason:
            facts.append(("reason", self._text(invoice.reason)))
        return self._labelled(facts)

    def _labelled(self, facts: list[tuple[str, str]]) -> list[Fact]:
        return [(_typed(self._text(name)), _typed(value)) for name, value in facts]

    def _groups(self) -> list[dict[str, Any]]:
        """Lines by project, in the order of the projects' names, those without one last."""
        by_project = sorted(self._document.lines, key=lambda line: (not line.project, line.project))
        groups = []
        for project, members in groupby(by_project, key=lambda line: line.project):
            lines = list(members)
            groups.append(
                {
                    "label": self._text("project" if project else "no_project"),
                    "name": _typed(project),
                    "rows": [self._row(line) for line in lines],
                    "subtotal_label": self._text("subtotal"),
                    "subtotal": self._amount(sum(line.net for line in lines)),
                }
            )
        return groups

    def _row(self, line: Line) -> dict[str, Any]:
        return {
            "description": _typed(line.description),
            "bucket": _typed(line.bucket),
            "quantity": self._formats.quantity(Fraction(line.quantity)) if line.quantity else "",
            "unit": _typed(unit_text(line.unit, self._document.language)),
            "price": self._formats.price(Decimal(line.unit_price)) if line.unit_price else "",
            "tier": str(line.tier) if line.tier else "",
            "net": self._amount(line.net),
        }

    def _tax(self, tax: TaxLine) -> dict[str, Any]:
        return {
            "label": _typed(tax.label),
            "rate": self._formats.percent(Decimal(tax.rate)),
            "base": self._amount(tax.base),
            "amount": self._amount(tax.amount),
            "basis": _typed(tax.legal_basis),
        }

    def _totals(self) -> list[tuple[str, str]]:
        invoice = self._invoice
        totals = [
            ("total_net", invoice.total_net),
            ("total_tax", invoice.total_tax),
            ("total", invoice.total),
        ]
        if invoice.prepaid:
            totals += [("prepaid", -invoice.prepaid), ("to_pay", invoice.total - invoice.prepaid)]
        return [(self._text(name), self._amount(minor)) for name, minor in totals]

    def _words(self) -> Typed:
        """As they were frozen with the document; made anew for another language."""
        invoice = self._invoice
        if invoice.words and self._document.language == self._document.customer.language:
            return _typed(invoice.words)
        return _typed(in_words(Money(invoice.total, invoice.currency), self._document.language))

    def _payment(self) -> list[Fact]:
        invoice, seller = self._invoice, self._document.seller
        facts: list[tuple[str, str]] = []
        if invoice.type == "invoice":
            days = self._document.customer.payment_terms_days
            facts.append(("terms", self._text("days").format(days)))
            if invoice.due_us:
                facts.append(("due", self._formats.moment(invoice.due_us)))
            if seller.bank:
                facts.append(("bank", seller.bank))
        if invoice.fx:
            facts.append(("fx", invoice.fx))
        return self._labelled(facts)


def _zone(seller: SellerRecord) -> tzinfo:
    """The seller's own; a name that is no longer known must not keep a document from being read."""
    return known_zone(seller.timezone) or UTC


def _picture_format(logo: bytes) -> str:
    """Raises: BadArgument."""
    if logo.startswith(_PNG):
        sides = logo[16:20], logo[20:24]  # Of its first chunk, which PNG wants to be the header.
        if any(int.from_bytes(side, "big") > _LOGO_SIDE_MAX for side in sides):
            raise BadArgument(f"a logo has at most {_LOGO_SIDE_MAX} pixels a side", name="logo")
        return "png"
    if not logo:
        return ""
    if logo.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<svg")):
        return "svg"
    raise BadArgument("a logo is a PNG or an SVG", name="logo")
