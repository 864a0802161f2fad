"""The records of renting that its parts share, and where all of its records lie.

    Y l <seller>                              SellerRecord: a legal entity that sells
    Y c <tenant>                              CustomerRecord: a tenant as a customer
    Y p <plan> 00 <version 4>                 PlanRecord: a version of a rate card
    Y g <tenant> 00 <month 2>                 PlanSinceRecord: the plan from that month on
    Y t <rule>                                TaxRuleRecord
    Y L <lease id>                            LeaseRecord
    Y o <offer>                               OfferRecord: a lease that tenants may order
    Y S <sla>                                 ServiceLevelRecord
    Y M <event id>                            ServiceEventRecord: maintenance, or an outage that was told of
    Y s <tenant> 00 <period begin 8>          ServiceMonthRecord: a month held against its service levels
    Y e <event id>                            CapacityEventRecord
    Y V                                       SalesRecord: changes whenever something is sold or given back
    Y x <tenant> 00 <lease id>                empty: the leases of a tenant, in order of making
    Y u <pool> 00 <day 4>                     CapacityDayRecord: what a pool held on a day (days since 1970)
    Y j <tenant> 00 <project>                 ProjectRecord
    Y k <parent> 00 <tenant>                  empty: the customers of a reseller
    Y i <document id>                         InvoiceRecord: an invoice or a credit note, draft or final
    Y i <document id> 00 <page 2>             LinesPage: its lines
    Y d <document id>                         empty: it is a draft
    Y D <tenant> 00 <period begin 8>          PeriodRecord: the invoice of this period
    Y D <tenant> 00 <period begin 8> 00 <page 2>   LinesPage: its lines as they were corrected last
    Y A <tenant> 00 <name>                    CarriedRecord: a line that waits for the tenant's next invoice
    Y a <tenant> 00 <name>                    CarriedRecord: one that final invoices have taken whole
    Y n <seller> 00 <year 4> <type 1>         SeriesRecord: the last number given, and the last hash
    Y N <seller> 00 <year 4> <type 1> <number 8>   the id of the document that has this number
    Y I <tenant> 00 <document id>             empty: the documents of a tenant, in order of making
    Y C <document id> 00 <credit note id>     empty: the credit notes of an invoice
    Y O <tenant> 00 <due 8> <document id>     empty: a final invoice that is not paid in full
    Y P <payment id>                          PaymentRecord
    Y q <tenant> 00 <payment id>              empty: the payments of a tenant, in order of making
    Y r <tenant> 00 <digest 16>               ids of a tenant's payments by this method with this reference
    Y W <tenant>                              WalletRecord: what was paid in advance
    Y w <tenant> 00 <sequence 8>              WalletEntryRecord: a change of it
    Y E <tenant> 00 <export id>               ExportRecord: a tenant's data handed back, or under way
    Y z <tenant>                              PurgeRecord: the end of a tenant's data, and its proof
    y <bucket id 8> <class> 00                HeldRecord: what a bucket held when the open hours began
    h <tenant> 00 <hour 4> <bucket id 8> <class> 00 <meter 1>   UsageRecord: sealed
    h <tenant> 01 <hour 4> <bucket id 8> <class> 00 <meter 1> <revision 4>
                                              UsageRecord: as it was before it was corrected
    H <tenant>                                ChainRecord: where the chain of a tenant's UsageRecords ends
    H <tenant> 00 <page 4>                    RetiredRecord: what is left of UsageRecords that were removed
    f, F                                      five minutes for service levels (rental/availability.py)
    T <sequence 8>                            AuditRecord: an administrative act, hash-chained

Records are MessagePack arrays, their format first, fields only added at the end. Ids are ULIDs (26 letters)
unless they are names that people chose. Moments are microseconds since 1970, UTC. Amounts are integers of the
currency's smallest unit; prices are decimal text; quantities are "numerator/denominator" text.
"""

import hashlib
from typing import Final

from objstore.meta.schema import Record
from objstore.meta.schema import project_key as project_key

KINDS: Final = (
    "auto_entrepreneur", "tpe_pme", "grande_entreprise", "administration", "wholesale", "internal",
)  # fmt: skip
LANGUAGES: Final = ("fr", "ar", "en")
WIDE_BITS: Final = 62  # MessagePack's integers end at 64.


class SellerRecord(Record, frozen=True, array_like=True, kw_only=True):
    """The legal entity whose name stands on invoices."""

    id: str  # A short name: "oran".
    name: str
    address: list[str]
    country: str  # ISO 3166-1 alpha-2.
    tax_ids: dict[str, str] = {}  # By their names there: RC, NIF, NIS, AI; RC, IF, ICE, TP; ...
    capital: str = ""
    bank: str = ""  # Name, RIB or IBAN, as printed.
    timezone: str = "UTC"  # For display.
    logo: bytes = b""  # SVG or PNG, at most 4 KiB.
    invoice_prefix: str = "FA"
    credit_prefix: str = "AV"
    collection_hours: int = 48  # A draft stays open that long after its period: late usage comes in.
    past_due_days: int = 1  # Days behind the due date after which a customer is past due,
    read_only_days: int = 15  # may store no more,
    suspended_days: int = 45  # and is served no more.
    reversibility_days: int = 30  # How long one that leaves can take its data along.


class CustomerRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A tenant as a customer. What its requests are held to is its AccountRecord."""

    tenant: str
    kind: str
    seller: str
    parent: str = ""  # The reseller's tenant; empty: the operator's own customer.
    legal_name: str = ""
    address: list[str] = []
    country: str = ""
    tax_ids: dict[str, str] = {}
    language: str = "fr"
    currency: str = "DZD"
    tax_profile: str = "standard"  # Which tax rules hold: standard | exempt | reverse_charge | ...
    plan: str = ""  # Name, and
    plan_version: int = 0
    payment_terms_days: int = 30
    purchase_order_required: bool = False
    purchase_order: str = ""
    identity_checked_us: int = 0  # The client file is complete; 0: not yet.
    documents: list[str] = []  # Of the client file, by name.
    created_us: int = 0
    state_since_us: int = 0
    trial_ends_us: int = 0  # 0: it had none, or was active since.
    next_plan: str = ""  # From the next month on.
    next_plan_version: int = 0
    reseller: bool = False  # It may have customers of its own:
    customers: int = 0  # so many have it as their parent.
    state_reason: str = ""  # Why the account is in its state: dunning | trial | in an operator's words.
    purge_after_us: int = 0  # Of one that leaves: until then it can take its data along.
    billed_from_us: int = 0  # When its trial became an account; 0: it had none, or has it still.


class ProjectRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A part of what a tenant stores. Its limits are in the AccountRecord."""

    name: str
    created_us: int
    tags: dict[str, str] = {}
    cost_centre: str = ""


class UsageRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A meter of a bucket and class in one hour, sealed. What came too late is in further revisions."""

    quantity: int  # Byte-seconds, requests or bytes.
    project: str = ""
    bucket: str = ""  # Name.
    revision: int = 1
    sealed_us: int = 0
    previous: bytes = b""  # SHA-256 of the tenant's record sealed before this one,
    digest: bytes = b""  # and of this one: over its key and all other fields.
    unsettled: int = 0  # Of `quantity`: what came after the hour was sealed first.
    high: int = 0  # Of what 64 bits do not hold (an hour of 5 PB): times 2**62, to be added to `quantity`,
    unsettled_high: int = 0  # and to `unsettled`.

    @property
    def total(self) -> int:
        """Byte-seconds, requests or bytes, whatever their size."""
        return self.quantity + (self.high << WIDE_BITS)

    @property
    def total_unsettled(self) -> int:
        return self.unsettled + (self.unsettled_high << WIDE_BITS)


def split_wide(number: int) -> tuple[int, int]:
    """Into what a field of a record holds, and how many times 2**62 beside it; most are (number, 0)."""
    if -(1 << WIDE_BITS) <= number < 1 << WIDE_BITS:
        return number, 0
    high = number >> WIDE_BITS
    return number - (high << WIDE_BITS), high


class HeldRecord(Record, frozen=True, array_like=True, kw_only=True):
    hour: int  # The first that is not sealed.
    size: int  # Billed bytes at its beginning.


class Line(Record, frozen=True, array_like=True, kw_only=True):
    """One line of an invoice: what was rated, exactly, and what it comes to."""

    kind: str  # usage | commitment | overage | purchase | discount | credit | correction | adjustment
    description: str  # In the customer's language.
    meter: str = ""  # storage | requests_a | requests_b | egress_internet | ... | early_delete
    storage_class: str = ""
    project: str = ""
    bucket: str = ""
    begin_us: int = 0
    end_us: int = 0
    quantity: str = ""  # "num/den" in `unit`.
    unit: str = ""  # GB-Months, TB-Months, 1000 Requests, GB, ...
    unit_price: str = ""  # Decimal text.
    tier: int = 0
    net: int = 0  # Smallest units, before tax, rounded half up.
    product: str = "storage"  # For tax rules.
    plan: str = ""
    plan_version: int = 0
    lease: str = ""
    consumed: str = ""  # Byte-level quantity, exact: byte-seconds, bytes, requests.
    tax: int = 0  # Which of the document's tax lines it counts in, from 1; 0: not known yet.
    corrects: int = 0  # On a credit note: the line of the invoice that it gives back, from 1.


class TaxLine(Record, frozen=True, array_like=True, kw_only=True):
    label: str  # "TVA 19 %"
    rate: str  # Decimal text: "0.19".
    base: int  # The sum of the lines it is on,
    amount: int  # and the tax, rounded once.
    legal_basis: str = ""  # Printed where the rate is zero by law.


class InvoiceRecord(Record, frozen=True, array_like=True, kw_only=True):
    """An invoice or a credit note. Once final it never changes but in `state`, `paid` and `paid_us`."""

    id: str
    type: str  # invoice | credit_note
    tenant: str
    seller: str
    state: str  # draft | final | paid | overdue | cancelled (by a credit note)
    number: str = ""  # FA-2026-000001; empty while it is a draft.
    period_begin_us: int = 0
    period_end_us: int = 0
    currency: str = "DZD"
    customer_snapshot: bytes = b""  # CustomerRecord as it was, encoded;
    seller_snapshot: bytes = b""  # SellerRecord as it was.
    pages: int = 0  # Lines lie at Y i <id> 00 <page 2>, at most 20 each.
    taxes: list[TaxLine] = []
    total_net: int = 0
    total_tax: int = 0
    total: int = 0
    words: str = ""  # The total in words.
    made_us: int = 0
    issued_us: int = 0
    due_us: int = 0
    corrects: str = ""  # Of a credit note: the invoice's number;
    reason: str = ""  # billing_error | sla | goodwill | termination
    purchase_order: str = ""
    fx: str = ""  # "rate source date", frozen.
    prepaid: int = 0  # Taken from the wallet.
    paid: int = 0
    paid_us: int = 0
    previous: bytes = b""  # SHA-256 of the document issued before it in its series,
    digest: bytes = b""  # and of this one (rental/series.py, digest_of).
    pdf_digest: bytes = b""
    carried: list[
        tuple[str, int]
    ] = []  # Of CarriedRecords: id, and the amount of it that is on this invoice.
    credited: int = 0  # The sum of its credit notes, as a positive amount,
    returned: int = 0  # and what of that had been paid already and went to the wallet.
    revision: int = 0  # Grows with every change of a draft.


class LinesPage(Record, frozen=True, array_like=True, kw_only=True):
    lines: list[Line]


class PeriodRecord(Record, frozen=True, array_like=True, kw_only=True):
    """The invoice of a tenant's period: there is one at most."""

    invoice: str  # Document id.
    pages: int = 0  # Of the lines as they were billed last, corrections among them; 0: the invoice's own.
    corrections: int = 0  # Times that it was corrected.


class CarriedRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A line that waits for the tenant's next invoice: a correction, a credit, a fee."""

    line: Line
    left: int  # What of its `net` no final invoice has taken yet.
    source: str = ""  # Where it comes from, for people: an invoice's number, a lease.
    made_us: int = 0


class SeriesRecord(Record, frozen=True, array_like=True, kw_only=True):
    number: int  # The last that was given.
    digest: bytes  # Of that document.
    issued_us: int


class Allocation(Record, frozen=True, array_like=True, kw_only=True):
    invoice: str  # Document id.
    amount: int


class PaymentRecord(Record, frozen=True, array_like=True, kw_only=True):
    id: str
    tenant: str
    method: str  # rental/payments.py, METHODS.
    currency: str
    amount: int
    reference: str = ""  # A cheque's number, a transfer's, a receipt's.
    received_us: int = 0  # When the money came,
    made_us: int = 0  # and when that was written down.
    allocations: list[Allocation] = []
    to_wallet: int = 0  # What no invoice took.
    state: str = "received"  # received | reversed (a cheque that bounced, cash that never came)
    reversed_us: int = 0
    reason: str = ""  # Why it was reversed.
    fx: str = ""  # "rate source date", frozen, if it came in another currency:
    foreign: str = ""  # "amount currency" as it came.


class WalletRecord(Record, frozen=True, array_like=True, kw_only=True):
    currency: str
    balance: int  # Below zero: what was spent and then bounced.
    entries: int = 0  # The sequence of the newest one;
    digest: bytes = b""  # its SHA-256.


class WalletEntryRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A change of a wallet: never altered, never removed."""

    amount: int
    balance: int  # Behind it.
    kind: str  # payment | credit_note | invoice | reversal
    document: str  # The id of the payment, credit note or invoice.
    at_us: int
    digest: bytes = b""  # SHA-256 over the digest before it and the fields above.


def seller_key(seller: str) -> bytes:
    return b"Yl" + seller.encode()


def customer_key(tenant: str) -> bytes:
    return b"Yc" + tenant.encode()


def reseller_customer_key(parent: str, tenant: str) -> bytes:
    return b"Yk" + parent.encode() + b"\0" + tenant.encode()


def document_key(document: str) -> bytes:
    """Of an invoice or a credit note. Its key stands in front of its pages' keys."""
    return b"Yi" + document.encode()


def lines_key(document: str, page: int) -> bytes:
    return document_key(document) + b"\0" + page.to_bytes(2, "big")


def draft_key(document: str) -> bytes:
    return b"Yd" + document.encode()


def period_key(tenant: str, begin_us: int) -> bytes:
    return b"YD" + tenant.encode() + b"\0" + begin_us.to_bytes(8, "big")


def period_lines_key(tenant: str, begin_us: int, page: int) -> bytes:
    return period_key(tenant, begin_us) + b"\0" + page.to_bytes(2, "big")


def carried_key(tenant: str, name: str) -> bytes:
    return b"YA" + tenant.encode() + b"\0" + name.encode()


def taken_key(tenant: str, name: str) -> bytes:
    return b"Ya" + tenant.encode() + b"\0" + name.encode()


def series_key(seller: str, year: int, letter: bytes) -> bytes:
    """letter: i for invoices, c for credit notes."""
    return b"Yn" + seller.encode() + b"\0" + year.to_bytes(4, "big") + letter


def number_key(seller: str, year: int, letter: bytes, number: int) -> bytes:
    return b"YN" + series_key(seller, year, letter)[2:] + number.to_bytes(8, "big")


def tenant_document_key(tenant: str, document: str) -> bytes:
    return b"YI" + tenant.encode() + b"\0" + document.encode()


def credit_key(invoice: str, credit_note: str) -> bytes:
    return b"YC" + invoice.encode() + b"\0" + credit_note.encode()


def open_key(tenant: str, due_us: int, document: str) -> bytes:
    return b"YO" + tenant.encode() + b"\0" + due_us.to_bytes(8, "big") + document.encode()


def payment_key(payment: str) -> bytes:
    return b"YP" + payment.encode()


def tenant_payment_key(tenant: str, payment: str) -> bytes:
    return b"Yq" + tenant.encode() + b"\0" + payment.encode()


def payment_reference_key(tenant: str, method: str, reference: str) -> bytes:
    """Of references that people would read as the same: capitals and spaces make no difference."""
    plain = " ".join(reference.casefold().split())
    return b"Yr" + tenant.encode() + b"\0" + hashlib.sha256(f"{method}\0{plain}".encode()).digest()[:16]


def wallet_key(tenant: str) -> bytes:
    return b"YW" + tenant.encode()


def wallet_entry_key(tenant: str, sequence: int) -> bytes:
    return b"Yw" + tenant.encode() + b"\0" + sequence.to_bytes(8, "big")


class ChainRecord(Record, frozen=True, array_like=True, kw_only=True):
    """The end of the chain of a tenant's usage records."""

    count: int  # Records that were ever sealed, corrections among them.
    digest: bytes  # Of the newest one.
    pages: int = 0  # RetiredRecords.


class RetiredRecord(Record, frozen=True, array_like=True, kw_only=True):
    """Usage records that were kept long enough and removed: the chain goes on through here."""

    first_hour: int
    last_hour: int
    count: int
    runs: list[
        tuple[bytes, bytes]
    ]  # Unbroken pieces of the chain: `previous` of the first, digest of the last.
    digest: bytes  # SHA-256 over the digest so far and every removed record's, in the order of their keys.


class SealedRecord(Record, frozen=True, array_like=True, kw_only=True):
    """At S metering: how far hours are sealed."""

    hour: int  # The first that is not.
    accepted: int = 0  # An operator said that it is as late as this hour, though the store was off for long.


class LeaseRecord(Record, frozen=True, array_like=True, kw_only=True):
    """Capacity for a term. Signed, it is among what is sold of its pool (rental/leases.py)."""

    id: str
    tenant: str
    kind: str  # guaranteed | best_effort | dedicated
    state: str  # quote | draft | signed | active | ended | terminated | withdrawn
    capacity: int  # Bytes; along a ramp: the most.
    begin_us: int  # In whole seconds.
    end_us: int  # The first moment that is no longer in it.
    term_months: int
    ramp: list[tuple[int, int]] = []  # (From when, bytes); none: all of it from the beginning.
    pool: str = ""  # From which it is sold; of dedicated nodes: where they were before.
    nodes: list[str] = []  # Of a dedicated lease: member ids in hex.
    storage_class: str = ""  # Empty: STANDARD.
    product: str = "storage"  # For tax rules.
    currency: str = "DZD"
    unit: str = "TB"
    unit_price: str = "0"  # Decimal text: a unit and month.
    billing: str = "arrears"  # arrears | advance
    billed_until_us: int = 0  # Its charge stands on invoices up to here; 0: on none.
    overage_mode: str = ""  # average | instantaneous | peak_daily; empty: nothing may be stored above it.
    overage_price: str = "0"  # Decimal text: a unit and month.
    overage_max: int | None = None  # Bytes that may be stored above it; None: as the account's limits say.
    renews: bool = False  # For the same term again, unless notice was given.
    notice_days: int = 30
    notice_us: int = 0  # When notice was given; 0: it was not.
    fee_share: str = "1"  # An early end costs that share (decimal text) of the charges that remain,
    fee_months: int = 0  # of so many months at the most; 0: of all.
    sla: str = ""
    offer: str = ""  # Of which it is an order.
    purchase_order: str = ""
    valid_until_us: int = 0  # A quote's; 0: until it is withdrawn.
    made_us: int = 0
    signed_us: int = 0
    active_us: int = 0
    ended_us: int = 0
    renewals: int = 0
    reason: str = ""  # Of its end, or why it was not renewed.


class OfferRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A lease that tenants may order by themselves. Orders keep the terms that were in force."""

    name: str
    kind: str = "guaranteed"  # guaranteed | best_effort: nodes of one's own are not ordered unseen.
    title: str = ""
    open: bool = True
    customer_kinds: list[str] = []  # Who may order; none: everybody.
    least: int = 0  # Bytes of one order,
    most: int = 0
    step: int = 1  # of which it is a multiple.
    terms_months: list[int] = []  # Among which a tenant chooses.
    begin_days_max: int = 90  # An order begins within so many days.
    pool: str = ""
    storage_class: str = ""
    product: str = "storage"
    currency: str = "DZD"
    unit: str = "TB"
    unit_price: str = "0"
    billing: str = "arrears"
    overage_mode: str = ""
    overage_price: str = "0"
    overage_max: int | None = None
    renews: bool = False
    notice_days: int = 30
    fee_share: str = "1"
    fee_months: int = 0
    sla: str = ""
    made_us: int = 0


class CapacityEventRecord(Record, frozen=True, array_like=True, kw_only=True):
    """Raw bytes that come or go."""

    id: str
    at_us: int
    raw: int  # Bytes; negative: they leave.
    state: str = "planned"  # planned | delivered (it is certain) | done (the disks say it) | cancelled
    pool: str = ""
    words: str = ""
    made_us: int = 0


class SalesRecord(Record, frozen=True, array_like=True, kw_only=True):
    """By what rules capacity is sold. Every sale changes it: so no two oversell together."""

    version: int = 0
    fill_max: str = "0.85"  # Decimal text: of the disks' bytes.
    spare_domains: int = 1  # The largest failure domains are kept free, to rebuild in.
    oversubscription: str = "1.5"  # Of best effort capacity.
    alert: str = "0.85"  # The share of usable bytes in use by which more should have come.
    lead_days: int = 365  # From an order of disks to their use.
    include_planned: bool = False  # Count events that are only planned, too.


class CapacityDayRecord(Record, frozen=True, array_like=True, kw_only=True):
    usable: int  # Bytes.
    used: int  # Bytes of objects.
    sold: int  # Guaranteed.


class ExportRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A tenant's data handed back: what its reader may fetch while it is open (rental/departures.py)."""

    id: str
    tenant: str
    by: str  # Who asked for it.
    begun_us: int
    open_until_us: int  # From then on it is asked for anew.
    resumed: int = 0  # Times that it was.
    finished_us: int = 0  # 0: not yet.
    objects: int = 0  # As whoever fetched them says:
    size: int = 0  # bytes of bodies;
    missing: int = 0  # objects that could not be read;
    manifest: bytes = b""  # SHA-256 of the manifest.


class PurgeRecord(Record, frozen=True, array_like=True, kw_only=True):
    """The end of a tenant's data (upkeep/purging.py)."""

    tenant: str
    by: str  # Who asked for it.
    begun_us: int
    state: str = "deleting"  # deleting | clearing | proven
    buckets: int = 0  # What it held then,
    objects: int = 0
    size: int = 0  # in billed bytes.
    deleted_us: int = 0  # When metadata held nothing of it any more.
    settled_us: int = 0  # When nothing that was under way then could store any more,
    newest_volume: int = 0  # and the newest volume at that moment: what is made later holds nothing of it.
    logs: list[str] = []  # The newest journal and snapshot files at that moment: as old as these may name it.
    looked_us: int = 0  # Disks were last looked at,
    waiting: str = ""  # and why nothing is proven yet.
    proven_us: int = 0
    proof: bytes = b""  # JSON.
    volumes: int = 0  # Whose bytes are waited for,
    until_us: int = 0  # and when that ends, as far as is known; 0: nobody knows.


SALES_KEY: Final = b"YV"
POOL_PREFIX: Final = "lease-"  # Of pools that are nodes of a dedicated lease.


def lease_key(lease: str) -> bytes:
    return b"YL" + lease.encode()


def pool_of_lease(lease: str) -> str:
    """The name of the pool, and of the placement policy, of a dedicated lease's nodes."""
    return POOL_PREFIX + lease.lower()


def lease_of_pool(pool: str) -> str:
    """The lease whose nodes a pool is; empty: nobody's own."""
    return pool.removeprefix(POOL_PREFIX).upper() if pool.startswith(POOL_PREFIX) else ""


def tenant_lease_key(tenant: str, lease: str) -> bytes:
    return b"Yx" + tenant.encode() + b"\0" + lease.encode()


def offer_key(offer: str) -> bytes:
    return b"Yo" + offer.encode()


def capacity_event_key(event: str) -> bytes:
    return b"Ye" + event.encode()


def capacity_day_key(pool: str, day: int) -> bytes:
    return b"Yu" + pool.encode() + b"\0" + day.to_bytes(4, "big")


def export_key(tenant: str, export: str) -> bytes:
    return b"YE" + tenant.encode() + b"\0" + export.encode()


def purge_key(tenant: str) -> bytes:
    return b"Yz" + tenant.encode()
