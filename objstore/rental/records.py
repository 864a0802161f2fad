"""The records of renting that its parts share, and where all of its records lie.

    Y l <seller>                              SellerRecord: a legal entity that sells
    Y c <tenant>                              CustomerRecord: a tenant as a customer
    Y p <plan> 00 <version 4>                 PlanRecord: a version of a rate card
    Y t <rule>                                TaxRuleRecord
    Y L <lease id>                            LeaseRecord
    Y o <offer>                               OfferRecord: a lease that tenants may order
    Y S <sla>                                 ServiceLevelRecord
    Y e <event id>                            CapacityEventRecord
    Y i <document id>                         InvoiceRecord: an invoice or a credit note, draft or final
    Y n <seller> 00 <year 4> <type>           SeriesRecord: the last number given, and the last hash
    Y N <number>                              the id of the document that has this number
    Y I <tenant> 00 <document id>             empty: the documents of a tenant, in order of making
    Y P <payment id>                          PaymentRecord
    Y W <tenant>                              WalletRecord: what was paid in advance
    y <bucket id 8> <class> 00                HeldRecord: what a bucket held when the open hours began
    h <tenant> 00 <hour 4> <bucket id 8> <class> 00 <meter 1>   UsageRecord: sealed
    f <slot 4> <tenant>                       counters of five minutes: requests, failures (service levels)
    T <sequence 8>                            AuditRecord: an administrative act, hash-chained

Records are MessagePack arrays, their format first, fields only added at the end. Ids are ULIDs (26 letters)
unless they are names that people chose. Moments are microseconds since 1970, UTC. Amounts are integers of the
currency's smallest unit; prices are decimal text; quantities are "numerator/denominator" text.
"""

from typing import Final

from objstore.meta.schema import Record

KINDS: Final = (
    "auto_entrepreneur", "tpe_pme", "grande_entreprise", "administration", "wholesale", "internal",
)  # fmt: skip
LANGUAGES: Final = ("fr", "ar", "en")


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
    trial_ends_us: int = 0
    next_plan: str = ""  # From the next month on.
    next_plan_version: int = 0


class UsageRecord(Record, frozen=True, array_like=True, kw_only=True):
    """A meter of a bucket and class in one hour, sealed. What came too late is in further revisions."""

    quantity: int  # Byte-seconds, requests or bytes.
    project: str = ""
    bucket: str = ""  # Name.
    revision: int = 1
    sealed_us: int = 0
    previous: bytes = b""  # SHA-256 of the tenant's record sealed before this one,
    digest: bytes = b""  # and of this one: over its key, the fields above and `previous`.
    unsettled: int = 0  # Of `quantity`: what came after the hour was sealed first.


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
    digest: bytes = b""  # and of this one: over all fields above `prepaid` and all lines.
    pdf_digest: bytes = b""
