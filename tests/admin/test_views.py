"""Records as the API shows them."""

from objstore.admin.views import shown, view
from objstore.rental.records import InvoiceRecord


def test_an_invoice_shows_what_was_paid_and_when() -> None:
    record = InvoiceRecord(
        id="01JD5Z0000000000000000000A",
        type="invoice",
        tenant="acme",
        seller="dz",
        state="paid",
        period_begin_us=1,
        period_end_us=2,
        currency="DZD",
        customer_snapshot=b"",
        seller_snapshot=b"",
        paid=119,
        paid_us=1_800_000_000_000_000,
    )
    found = shown(record)
    assert (found["paid"], found["paid_at"]) == (119, "2027-01-15T08:00:00Z")
    assert set(found) == set(view(InvoiceRecord).__struct_fields__)
