"""Numbers of documents: without gaps by seller, year and type, each chained to the one before it.

    FA-2026-000001, FA-2026-000002, ...         invoices
    AV-2026-000001, ...                         credit notes

A number is taken in the very commit that makes its document final: that commit expects the SeriesRecord, so
no two documents get one number, and none is lost with a commit that does not come. A document's digest covers
its fields, its lines and the digest before it; the SeriesRecord keeps the last one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from objstore.errors import BadArgument, Corrupt
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import decode, encode
from objstore.rental.changes import Change
from objstore.rental.lines import read_document_pages
from objstore.rental.records import (
    InvoiceRecord,
    SellerRecord,
    SeriesRecord,
    document_key,
    number_key,
    series_key,
)
from objstore.rental.sellers import find_seller, local_year

INVOICE: Final = "invoice"
CREDIT_NOTE: Final = "credit_note"
LETTERS: Final = {INVOICE: b"i", CREDIT_NOTE: b"c"}
FINDINGS_MAX: Final = 100  # Shown of a series that is not whole.
READ_AT_ONCE: Final = 200
_NONE: Final = SeriesRecord(number=0, digest=b"", issued_us=0)


def number_text(seller: SellerRecord, type_: str, year: int, number: int) -> str:
    prefix = seller.invoice_prefix if type_ == INVOICE else seller.credit_prefix
    return f"{prefix}-{year}-{number:06d}"


def digest_of(record: InvoiceRecord, lines: Sequence[bytes]) -> bytes:
    """SHA-256 over what never changes of a final document.

    Args:
        lines: its pages as they are stored.

    The fields are named one by one: those that later releases add are in no digest of earlier documents.
    """
    head = (
        record.id,
        record.type,
        record.tenant,
        record.seller,
        record.number,
        record.period_begin_us,
        record.period_end_us,
        record.currency,
        record.customer_snapshot,
        record.seller_snapshot,
        record.pages,
        [(tax.label, tax.rate, tax.base, tax.amount, tax.legal_basis) for tax in record.taxes],
        record.total_net,
        record.total_tax,
        record.total,
        record.words,
        record.made_us,
        record.issued_us,
        record.due_us,
        record.corrects,
        record.reason,
        record.purchase_order,
        record.fx,
        record.previous,
    )
    digest = hashlib.sha256(encode(head))
    for page in lines:
        digest.update(len(page).to_bytes(4, "big") + page)
    return digest.digest()


async def issue(
    change: Change,
    seller: SellerRecord,
    record: InvoiceRecord,
    lines: Sequence[bytes],
    *,
    now_us: int,
    terms_us: int = 0,
) -> InvoiceRecord:
    """Give a document its number and its place in the chain, as a part of the commit that makes it final.

    Args:
        lines: its pages as they are stored.
        terms_us: from the day of issue until it is due.

    Raises: BadArgument (the clock stands in a year before that of the newest document).
    """
    letter = LETTERS[record.type]
    year = local_year(seller, now_us)
    if await change.value(series_key(seller.id, year + 1, letter)) is not None:
        raise BadArgument(
            f"{seller.id!r} has issued documents of {year + 1} already, and the clock says {year}",
            name="clock",
            value=str(year),
        )
    key = series_key(seller.id, year, letter)
    last = await change.record(key, SeriesRecord) or _NONE
    number = last.number + 1
    issued_us = max(now_us, last.issued_us)  # In order of number, whatever the clock does.
    record = msgspec.structs.replace(
        record,
        state="final",
        number=number_text(seller, record.type, year, number),
        issued_us=issued_us,
        due_us=issued_us + terms_us,
        previous=last.digest,
    )
    record = msgspec.structs.replace(record, digest=digest_of(record, lines))
    change.put(key, SeriesRecord(number=number, digest=record.digest, issued_us=issued_us))
    change.put_value(number_key(seller.id, year, letter, number), record.id.encode())
    return record


async def document_of(kv: Kv, seller: str, number: str) -> str:
    """The id of the document with this number. Raises: BadArgument (there is none)."""
    record = await find_seller(kv, seller)
    prefix, _, rest = number.partition("-")
    year, _, count = rest.partition("-")
    types = {record.invoice_prefix: INVOICE, record.credit_prefix: CREDIT_NOTE}
    absent = BadArgument(f"{seller!r} has issued no {number!r}", name="number", value=number)
    digits = rest.isascii() and year.isdigit() and count.isdigit()
    if prefix not in types or not digits or len(year) != 4 or len(count) > 18:
        raise absent
    found = await kv.get(number_key(seller, int(year), LETTERS[types[prefix]], int(count)))
    if found is None or number_text(record, types[prefix], int(year), int(count)) != number:
        raise absent
    return found.decode()


@dataclass(slots=True, kw_only=True)
class SeriesReport:
    """What a look at a whole series found."""

    first: str = ""
    last: str = ""
    count: int = 0
    digest: bytes = b""  # Of the last document: kept elsewhere, it proves the series as it is now.
    findings: list[str] = field(default_factory=list)  # At most FINDINGS_MAX; none: it is whole.

    def find(self, words: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(words)


async def verify_series(kv: Kv, seller: str, year: int, type_: str) -> SeriesReport:
    """Look for documents of a series that were altered, removed, exchanged, or cut off at its end.

    Raises: BadArgument (no such seller, or type).
    """
    if type_ not in LETTERS:
        raise BadArgument(f"a type is one of {', '.join(LETTERS)}", name="type", value=type_)
    issuer = await find_seller(kv, seller)
    key = series_key(seller, year, LETTERS[type_])
    head = _series(await kv.get(key))  # Read first: what is issued from now on lies behind it.
    prefix = number_key(seller, year, LETTERS[type_], 0)[:-8]
    report = SeriesReport()
    number = issued_us = 0
    previous: bytes | None = b""  # None: the document before is not there to say.
    async for pairs in pages(kv, prefix, prefix_end(prefix), READ_AT_ONCE):
        values = await kv.get_many([document_key(value.decode()) for _, value in pairs])
        for (place, _), value in zip(pairs, values, strict=True):
            found = int.from_bytes(place[-8:], "big")
            if found > number + 1:
                _find_missing(report, issuer, type_, year, number, found - 1)
                previous = None
            number = found
            name = number_text(issuer, type_, year, number)
            report.first, report.last = report.first or name, name
            report.count += 1
            if value is None:
                report.find(f"{name}: its document is gone")
                previous = None
                continue
            record = decode(value, InvoiceRecord)
            await _verify_document(kv, record, name, seller, type_, previous, issued_us, report)
            previous, issued_us = record.digest, record.issued_us
            if number == head.number and record.digest != head.digest:
                report.find(f"{name}: it is not the document that was issued last")
    _find_missing(report, issuer, type_, year, number, head.number)
    if _series(await kv.get(key)).number < number:
        report.find(f"there is a {report.last}, and the series says that it ends before")
    report.digest = previous or b""
    return report


def _series(value: bytes | None) -> SeriesRecord:
    return _NONE if value is None else decode(value, SeriesRecord)


def _find_missing(
    report: SeriesReport, issuer: SellerRecord, type_: str, year: int, before: int, last: int
) -> None:
    """The numbers behind `before`, up to and with `last`."""
    for missing in range(before + 1, min(last, before + FINDINGS_MAX) + 1):
        report.find(f"{number_text(issuer, type_, year, missing)} is missing")


async def _verify_document(
    kv: Kv,
    record: InvoiceRecord,
    name: str,
    seller: str,
    type_: str,
    previous: bytes | None,
    issued_us: int,
    report: SeriesReport,
) -> None:
    if (record.number, record.seller, record.type) != (name, seller, type_):
        report.find(f"{name}: its place holds {record.number or 'a draft'} of {record.seller!r}")
    try:
        lines = await read_document_pages(kv, record.id, record.pages)
    except Corrupt as failure:
        report.find(f"{name}: {failure}")
    else:
        if digest_of(record, lines) != record.digest:
            report.find(f"{name}: it was altered after it was issued")
    if previous is not None and record.previous != previous:
        report.find(f"{name}: it was not issued behind the document that stands before it")
    if record.issued_us < issued_us:
        report.find(f"{name}: it was issued before the document that stands before it")
