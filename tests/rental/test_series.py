"""Numbers of documents: without a gap, chained, and whoever touches one is found out."""

from collections.abc import Awaitable, Callable

import msgspec
import pytest

from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.meta.kv import DictKv, Transaction
from objstore.meta.schema import decode, encode
from objstore.rental.credit_notes import issue_credit_note
from objstore.rental.customers import change_customer
from objstore.rental.invoices import find_document, read_lines
from objstore.rental.lines import pack_lines
from objstore.rental.months import Month
from objstore.rental.records import (
    InvoiceRecord,
    SeriesRecord,
    document_key,
    lines_key,
    number_key,
    series_key,
)
from objstore.rental.sellers import create_seller
from objstore.rental.series import digest_of, document_of, verify_series
from tests.rental.parties import (
    DAY_US,
    ISSUED_US,
    MARCH,
    SELLER,
    a_customer,
    a_market,
    an_id,
    an_invoice,
    line,
    pay,
)

TENANTS = ["ann", "bob", "cyr", "dan", "eve"]
NEW_YEAR = Month(2027, 1)


async def issued() -> tuple[DictKv, list[InvoiceRecord]]:
    """Five invoices, in order of number."""
    kv = await a_market(*TENANTS)
    return kv, [await an_invoice(kv, tenant, [line(100), line(200)]) for tenant in TENANTS]


async def findings(kv: DictKv) -> list[str]:
    return (await verify_series(kv, "oran", 2026, "invoice")).findings


async def test_a_series_that_nobody_touched_is_whole_and_shows_its_last_digest() -> None:
    kv, records = await issued()
    report = await verify_series(kv, "oran", 2026, "invoice")
    assert (report.first, report.last, report.count) == ("FA-2026-000001", "FA-2026-000005", 5)
    assert report.findings == []
    assert report.digest == records[-1].digest
    assert [one.previous for one in records[1:]] == [one.digest for one in records[:-1]]


async def edit_total(kv: DictKv, record: InvoiceRecord) -> None:
    changed = msgspec.structs.replace(record, total=1)
    await kv.commit(Transaction(put={document_key(record.id): encode(changed)}))


async def edit_customer(kv: DictKv, record: InvoiceRecord) -> None:
    changed = msgspec.structs.replace(record, customer_snapshot=b"")
    await kv.commit(Transaction(put={document_key(record.id): encode(changed)}))


async def edit_a_line(kv: DictKv, record: InvoiceRecord) -> None:
    (page,) = pack_lines([line(99), line(201)])
    await kv.commit(Transaction(put={lines_key(record.id, 0): page}))


async def edit_and_seal_again(kv: DictKv, record: InvoiceRecord) -> None:
    (page,) = pack_lines([line(99), line(201)])
    changed = msgspec.structs.replace(record, digest=digest_of(record, [page]))
    await kv.commit(
        Transaction(put={lines_key(record.id, 0): page, document_key(record.id): encode(changed)})
    )


async def remove_document(kv: DictKv, record: InvoiceRecord) -> None:
    await kv.commit(Transaction(delete=[document_key(record.id)]))


async def remove_lines(kv: DictKv, record: InvoiceRecord) -> None:
    await kv.commit(Transaction(delete=[lines_key(record.id, 0)]))


def number_of(record: InvoiceRecord) -> bytes:
    return number_key("oran", 2026, b"i", int(record.number[-6:]))


async def remove_number(kv: DictKv, record: InvoiceRecord) -> None:
    await kv.commit(Transaction(delete=[number_of(record)]))


async def remove_all_of_it(kv: DictKv, record: InvoiceRecord) -> None:
    await kv.commit(Transaction(delete=[number_of(record), document_key(record.id), lines_key(record.id, 0)]))


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    "touch",
    [
        edit_total,
        edit_customer,
        edit_a_line,
        edit_and_seal_again,
        remove_document,
        remove_lines,
        remove_number,
        remove_all_of_it,
    ],
)
async def test_whoever_alters_or_removes_any_document_is_found_out(
    touch: Callable[[DictKv, InvoiceRecord], Awaitable[None]], number: int
) -> None:
    kv, records = await issued()
    await touch(kv, records[number])
    assert await findings(kv)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 3), (3, 4)])
async def test_documents_that_exchange_their_places_are_found_out(first: int, second: int) -> None:
    kv, records = await issued()
    one, other = records[first], records[second]
    # The places only, and then the numbers on the documents too.
    swapped = {number_of(one): other.id.encode(), number_of(other): one.id.encode()}
    await kv.commit(Transaction(put=swapped))
    assert await findings(kv)
    for record, number in ((one, other.number), (other, one.number)):
        changed = msgspec.structs.replace(record, number=number)
        lines = pack_lines(await read_lines(kv, record))
        changed = msgspec.structs.replace(changed, digest=digest_of(changed, lines))
        await kv.commit(Transaction(put={document_key(record.id): encode(changed)}))
    assert await findings(kv)


async def test_a_series_that_was_cut_off_at_its_end_is_found_out_by_the_record_of_its_end() -> None:
    kv, records = await issued()
    for record in records[3:]:
        await remove_all_of_it(kv, record)
    assert await findings(kv) == ["FA-2026-000004 is missing", "FA-2026-000005 is missing"]


async def test_an_end_that_was_set_back_is_found_out() -> None:
    kv, records = await issued()
    key = series_key("oran", 2026, b"i")
    end = SeriesRecord(number=3, digest=records[2].digest, issued_us=records[2].issued_us)
    await kv.commit(Transaction(put={key: encode(end)}))
    assert await findings(kv) == ["there is a FA-2026-000005, and the series says that it ends before"]


async def test_each_seller_year_and_type_has_its_own_numbers() -> None:
    kv = await a_market("ann", "bob")
    await create_seller(kv, msgspec.structs.replace(SELLER, id="alger", invoice_prefix="FC"))
    await a_customer(kv, "cyr")
    await change_customer(kv, "cyr", seller="alger")
    first = await an_invoice(kv, "ann", [line(100)])
    second = await an_invoice(kv, "bob", [line(100)])
    other = await an_invoice(kv, "cyr", [line(100)])
    note = await issue_credit_note(kv, an_id(1), first.id, None, reason="goodwill", now_us=ISSUED_US)
    later = await an_invoice(kv, "ann", [line(100)], month=NEW_YEAR)
    numbers = [one.number for one in (first, second, other, note, later)]
    assert numbers == [
        "FA-2026-000001",
        "FA-2026-000002",
        "FC-2026-000001",
        "AV-2026-000001",
        "FA-2027-000001",
    ]
    assert await document_of(kv, "oran", "FA-2026-000002") == second.id
    assert await document_of(kv, "oran", "AV-2026-000001") == note.id
    for absent in ("FA-2026-000003", "FA-2026-2", "XX-2026-000001", "FA", "FA-٢٠٢٦-000001"):
        with pytest.raises(BadArgument, match="has issued no"):
            await document_of(kv, "oran", absent)


async def test_the_year_of_a_number_is_that_of_the_sellers_calendar() -> None:
    kv = await a_market("ann")
    # 31 December 2026, 23:30 in UTC, is 0:30 of the new year in Algiers.
    at_us = NEW_YEAR.begin_s * SECOND_US - DAY_US // 48
    record = await an_invoice(kv, "ann", [line(1)], now_us=at_us)
    assert record.number == "FA-2027-000001"


async def test_numbers_stand_in_order_of_issue_though_the_clock_steps_back() -> None:
    kv = await a_market("ann", "bob", "cyr")
    first = await an_invoice(kv, "ann", [line(1)])
    second = await an_invoice(kv, "bob", [line(1)], now_us=ISSUED_US - DAY_US // 2)
    assert second.number == "FA-2026-000002"
    assert second.issued_us == first.issued_us
    await an_invoice(kv, "cyr", [line(1)], month=Month(2026, 11), now_us=NEW_YEAR.end_s * SECOND_US)
    with pytest.raises(BadArgument, match="has issued documents of 2027"):
        await an_invoice(kv, "bob", [line(1)], month=Month(2026, 11))


async def test_a_payment_or_a_credit_changes_no_digest() -> None:
    kv, records = await issued()
    await pay(kv, 1, "ann", 100)
    await issue_credit_note(kv, an_id(2), records[1].id, None, reason="billing_error", now_us=ISSUED_US)
    assert await findings(kv) == []
    assert (await find_document(kv, records[0].id)).paid == 100


def test_the_digest_of_a_document_is_the_same_in_every_release() -> None:
    record = InvoiceRecord(
        id="01KN", type="invoice", tenant="acme", seller="oran", state="final", number="FA-2026-000001",
        period_begin_us=MARCH.begin_s * SECOND_US, period_end_us=MARCH.end_s * SECOND_US,
        customer_snapshot=b"c", seller_snapshot=b"s", pages=1, total_net=1, total=1, words="un",
        made_us=2, issued_us=3, due_us=4, fx="x", previous=b"p",
    )  # fmt: skip
    expected = "2bc184c56da4c4e670d1c0c107d57e8c83e189403644a2e773df1f80d31fc79a"
    assert digest_of(record, [b"lines"]).hex() == expected
    # What is written on its payment, and what is not on it, changes nothing.
    paid = msgspec.structs.replace(record, state="paid", paid=9, prepaid=9, pdf_digest=b"x", credited=9)
    assert digest_of(paid, [b"lines"]).hex() == expected
    assert decode(encode(record), InvoiceRecord) == record
