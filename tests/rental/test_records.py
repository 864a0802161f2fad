"""docs/formats.md, held to the code: what documents and money write, byte by byte.

A test that fails here means that a store of an earlier release may no longer be read: the bytes stay.
"""

import msgspec
import pytest

from objstore.meta.schema import decode, encode
from objstore.rental import records
from objstore.rental.records import (
    Allocation,
    CarriedRecord,
    CustomerRecord,
    ExportRecord,
    InvoiceRecord,
    Line,
    LinesPage,
    PaymentRecord,
    PeriodRecord,
    ProjectRecord,
    PurgeRecord,
    SellerRecord,
    SeriesRecord,
    TaxLine,
    WalletEntryRecord,
    WalletRecord,
)

LINE = Line(
    kind="usage", description="d", meter="m", storage_class="c", project="p", bucket="b", begin_us=2,
    end_us=3, quantity="1/2", unit="GB", unit_price="0.1", tier=4, net=5, product="s", plan="x",
    plan_version=6, lease="l", consumed="7", tax=1, corrects=2,
)  # fmt: skip
KEYS = [
    (records.seller_key("oran"), b"Yloran"),
    (records.customer_key("acme"), b"Ycacme"),
    (records.reseller_customer_key("top", "acme"), b"Yktop\0acme"),
    (records.project_key("acme", "web"), b"Yjacme\0web"),
    (records.document_key("01K"), b"Yi01K"),
    (records.lines_key("01K", 258), b"Yi01K\0\1\2"),
    (records.draft_key("01K"), b"Yd01K"),
    (records.period_key("acme", 258), b"YDacme\0\0\0\0\0\0\0\1\2"),
    (records.period_lines_key("acme", 258, 3), b"YDacme\0\0\0\0\0\0\0\1\2\0\0\3"),
    (records.carried_key("acme", "sla/1"), b"YAacme\0sla/1"),
    (records.taken_key("acme", "sla/1"), b"Yaacme\0sla/1"),
    (records.series_key("oran", 2026, b"i"), b"Ynoran\0\0\0\x07\xeai"),
    (records.number_key("oran", 2026, b"c", 3), b"YNoran\0\0\0\x07\xeac\0\0\0\0\0\0\0\3"),
    (records.tenant_document_key("acme", "01K"), b"YIacme\x0001K"),
    (records.credit_key("01K", "02K"), b"YC01K\x0002K"),
    (records.open_key("acme", 258, "01K"), b"YOacme\0\0\0\0\0\0\0\1\x0201K"),
    (records.payment_key("01K"), b"YP01K"),
    (records.tenant_payment_key("acme", "01K"), b"Yqacme\x0001K"),
    (
        records.payment_reference_key("acme", "cheque", " BNA  12 "),
        b"Yracme\0" + bytes.fromhex("36463b7e727537d5243f9cc0ddb97159"),
    ),
    (records.wallet_key("acme"), b"YWacme"),
    (records.wallet_entry_key("acme", 3), b"Ywacme\0\0\0\0\0\0\0\0\3"),
    (records.export_key("acme", "01K"), b"YEacme\x0001K"),
    (records.purge_key("acme"), b"Yzacme"),
]
RECORDS: list[tuple[msgspec.Struct, str]] = [
    (
        SellerRecord(
            id="o", name="n", address=["a"], country="DZ", tax_ids={"k": "v"}, capital="c", bank="b",
            timezone="UTC", logo=b"\1",
        ),
        "dc001101a16fa16e91a161a2445a81a16ba176a163a162a3555443c40101a24641a2415630010f2d1e",
    ),
    (
        CustomerRecord(
            tenant="t", kind="k", seller="o", parent="p", legal_name="n", address=["a"], country="DZ",
            tax_ids={"k": "v"}, plan="x", plan_version=2, documents=["d"], created_us=3, state_since_us=4,
            trial_ends_us=5, reseller=True, customers=6, state_reason="r", purge_after_us=7,
            billed_from_us=8,
        ),
        "dc001d01a174a16ba16fa170a16e91a161a2445a81a16ba176a26672a3445a44a87374616e64617264a178021ec2a000"
        "91a164030405a000c306a1720708",
    ),
    (ProjectRecord(name="p", created_us=2, tags={"k": "v"}, cost_centre="c"), "9501a1700281a16ba176a163"),
    (LINE, "dc001501a57573616765a164a16da163a170a1620203a3312f32a24742a3302e310405a173a17806a16ca1370102"),
    (TaxLine(label="l", rate="0.19", base=2, amount=3, legal_basis="b"), "9601a16ca4302e31390203a162"),
    (
        LinesPage(lines=[LINE]),
        "920191dc001501a57573616765a164a16da163a170a1620203a3312f32a24742a3302e310405a173a17806a16ca13701"
        "02",
    ),
    (
        InvoiceRecord(
            id="i", type="invoice", tenant="t", seller="o", state="final", number="n", period_begin_us=2,
            period_end_us=3, customer_snapshot=b"\1", seller_snapshot=b"\2", pages=1,
            taxes=[TaxLine(label="l", rate="0.19", base=2, amount=3)], total_net=4, total_tax=5, total=6,
            words="w", made_us=7, issued_us=8, due_us=9, corrects="c", reason="r", purchase_order="p", fx="x",
            prepaid=10, paid=11, paid_us=12, previous=b"\3", digest=b"\4", pdf_digest=b"\5",
            carried=[("a", -13)], credited=14, returned=15, revision=16,
        ),
        "dc002301a169a7696e766f696365a174a16fa566696e616ca16e0203a3445a44c40101c4010201919601a16ca4302e31"
        "390203a0040506a177070809a163a172a170a1780a0b0cc40103c40104c401059192a161f30e0f10",
    ),
    (PeriodRecord(invoice="i", pages=2, corrections=3), "9401a1690203"),
    (
        CarriedRecord(line=Line(kind="credit", description="d"), left=-2, source="s", made_us=3),
        "9501dc001501a6637265646974a164a0a0a0a00000a0a0a00000a773746f72616765a000a0a00000fea17303",
    ),
    (SeriesRecord(number=2, digest=b"\1", issued_us=3), "940102c4010103"),
    (
        PaymentRecord(
            id="p", tenant="t", method="cheque", currency="DZD", amount=2, reference="r", received_us=3,
            made_us=4, allocations=[Allocation(invoice="i", amount=5)], to_wallet=6, state="reversed",
            reversed_us=7, reason="s", fx="x", foreign="f",
        ),
        "dc001001a170a174a6636865717565a3445a4402a1720304919301a1690506a8726576657273656407a173a178a166",
    ),
    (WalletRecord(currency="DZD", balance=-2, entries=3, digest=b"\1"), "9501a3445a44fe03c40101"),
    (
        WalletEntryRecord(amount=-2, balance=3, kind="invoice", document="i", at_us=4, digest=b"\1"),
        "9701fe03a7696e766f696365a16904c40101",
    ),
    (
        ExportRecord(
            id="i", tenant="t", by="b", begun_us=2, open_until_us=3, resumed=4, finished_us=5, objects=6,
            size=7, missing=8, manifest=b"\1",
        ),
        "9c01a169a174a16202030405060708c40101",
    ),
    (
        PurgeRecord(
            tenant="t", by="b", begun_us=2, state="proven", buckets=3, objects=4, size=5, deleted_us=6,
            settled_us=7, newest_volume=8, logs=["j"], looked_us=9, waiting="w", proven_us=10, proof=b"\1",
            volumes=11, until_us=12,
        ),
        "dc001201a174a16202a670726f76656e03040506070891a16a09a1770ac401010b0c",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("key", "stored"), KEYS)
def test_a_key_has_the_bytes_that_the_page_shows(key: bytes, stored: bytes) -> None:
    assert key == stored


@pytest.mark.parametrize(("record", "hexadecimal"), RECORDS, ids=lambda value: type(value).__name__)
def test_a_record_has_the_bytes_of_its_first_release_and_is_read_from_them(
    record: msgspec.Struct, hexadecimal: str
) -> None:
    stored = bytes.fromhex(hexadecimal)
    assert encode(record).hex() == stored.hex()
    assert decode(stored, type(record)) == record


@pytest.mark.parametrize(("record", "hexadecimal"), RECORDS, ids=lambda value: type(value).__name__)
def test_a_record_of_a_later_release_is_read_without_its_new_fields(
    record: msgspec.Struct, hexadecimal: str
) -> None:
    fields = msgspec.msgpack.decode(bytes.fromhex(hexadecimal))
    assert decode(msgspec.msgpack.encode([*fields, "later"]), type(record)) == record
