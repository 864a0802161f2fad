"""Tenants as customers: their kind, seller, place in the reseller tree, and the state of their account.

    operator > reseller > tenant                a reseller may have resellers, at most LEVELS_MAX deep

    trial -> active -> past_due -> read_only -> suspended -> terminating -> purged

TRANSITIONS says what may follow what. The state itself is in the AccountRecord, which the hot path reads; a
change of state writes it in the same commit as what the CustomerRecord says of it.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from objstore.errors import BadArgument, StateForbids
from objstore.meta.kv import Kv, counter, prefix_end
from objstore.meta.schema import (
    AccountRecord,
    ClassTerms,
    Limits,
    TenantRecord,
    account_key,
    decode,
    tenant_key,
    tenant_use_key,
)
from objstore.rental.changes import Change, commit_change
from objstore.rental.first_plans import begin_plan
from objstore.rental.money import minor_units
from objstore.rental.names import check_country, check_days, check_labels, check_name, check_text, check_texts
from objstore.rental.records import (
    KINDS,
    LANGUAGES,
    CustomerRecord,
    PurgeRecord,
    WalletRecord,
    customer_key,
    purge_key,
    reseller_customer_key,
    wallet_key,
)
from objstore.rental.sellers import read_seller
from objstore.rental.terms import STORES, check_limits, check_sites_within, sites_within

CUSTOMERS_AT_ONCE: Final = 200  # Read at once.
LEVELS_MAX: Final = 4  # Customers above one another, the operator not among them.
DAY_US: Final = 86_400 * 1_000_000
DOCUMENTS_MAX: Final = 20  # Names in a client file.

TRANSITIONS: Final[Mapping[str, frozenset[str]]] = {
    "trial": frozenset({"active", "read_only", "suspended", "terminating"}),
    "active": frozenset({"past_due", "read_only", "suspended", "terminating"}),
    "past_due": frozenset({"active", "read_only", "suspended", "terminating"}),
    "read_only": frozenset({"active", "past_due", "suspended", "terminating"}),
    "suspended": frozenset({"active", "past_due", "read_only", "terminating"}),
    "terminating": frozenset({"active", "purged"}),  # Active: the customer stays after all.
    "purged": frozenset(),
}
DUNNING: Final = "dunning"  # Reasons that we give ourselves: such a state ends by itself.
TRIAL: Final = "trial"
RESELLER: Final = "reseller "  # How a reason begins that a reseller gave: what is not paid counts more.


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a new customer of a kind begins with. Sample data: an operator changes it by customer."""

    plan: str
    language: str = "fr"
    currency: str = "DZD"
    tax_profile: str = "standard"
    payment_terms_days: int = 30
    trial_days: int = 30  # 0: it begins active, once its file is complete.
    purchase_order_required: bool = False
    reseller: bool = False


PRESETS: Final[Mapping[str, Preset]] = {
    "auto_entrepreneur": Preset(plan="auto-entrepreneur", payment_terms_days=15),
    "tpe_pme": Preset(plan="tpe-pme"),
    "grande_entreprise": Preset(plan="grande-entreprise", payment_terms_days=45),
    "administration": Preset(plan="administration", payment_terms_days=60, purchase_order_required=True),
    "wholesale": Preset(
        plan="wholesale", language="en", currency="USD", payment_terms_days=30, reseller=True
    ),
    "internal": Preset(plan="internal", tax_profile="exempt", trial_days=0),
}
assert set(PRESETS) == set(KINDS)


def no_such_customer(tenant: str) -> BadArgument:
    return BadArgument(f"there is no customer {tenant!r}", name="tenant", value=tenant)


def new_customer(kind: str, tenant: str, seller: str, /, **given: object) -> CustomerRecord:
    """A customer with the preset of its kind, and what is given instead. Raises: BadArgument."""
    preset = PRESETS.get(kind)
    if preset is None:
        raise BadArgument(f"a customer's kind is one of {', '.join(KINDS)}", name="kind", value=kind)
    record = CustomerRecord(
        tenant=tenant,
        kind=kind,
        seller=seller,
        plan=preset.plan,
        language=preset.language,
        currency=preset.currency,
        tax_profile=preset.tax_profile,
        payment_terms_days=preset.payment_terms_days,
        purchase_order_required=preset.purchase_order_required,
        reseller=preset.reseller,
    )
    _check_fields(given, fixed=_SET_BY_CREATION)
    return check_customer(msgspec.structs.replace(record, **given))


_OURS: Final = frozenset(
    {
        "format", "tenant", "created_us", "state_since_us", "customers", "state_reason", "purge_after_us",
        "billed_from_us",
    }
)  # fmt: skip
_SET_BY_CREATION: Final = _OURS | {"kind", "seller", "trial_ends_us"}
# A plan is given from a month on (rental/plan_changes.py), so that months rate alike for ever.
_SET_LATER: Final = _OURS | {"plan", "plan_version", "next_plan", "next_plan_version"}


def _check_fields(given: Mapping[str, object], *, fixed: frozenset[str]) -> None:
    for name in given:
        if name not in CustomerRecord.__struct_fields__:
            raise BadArgument(f"a customer has no {name}", name=name)
        if name in fixed:
            raise BadArgument(
                f"{name.replace('_', ' ')} is not set with a customer's other fields", name=name
            )


def check_customer(record: CustomerRecord) -> CustomerRecord:
    """Raises: BadArgument for what could not stand on an invoice."""
    check_name(record.tenant, "tenant")
    if record.kind not in KINDS:
        raise BadArgument(f"a customer's kind is one of {', '.join(KINDS)}", name="kind", value=record.kind)
    if record.language not in LANGUAGES:
        raise BadArgument(
            f"a language is one of {', '.join(LANGUAGES)}", name="language", value=record.language
        )
    minor_units(record.currency)
    check_text(record.legal_name, "legal name")
    check_texts(record.address, "address")
    if record.country:
        check_country(record.country)
    check_labels(record.tax_ids, "tax ids")
    check_name(record.tax_profile.replace("_", "-"), "tax profile")
    check_text(record.purchase_order, "purchase order", size_max=64)
    check_days(record.payment_terms_days, "payment terms", most=366)
    if len(record.documents) > DOCUMENTS_MAX:
        raise BadArgument(f"a client file has at most {DOCUMENTS_MAX} documents", name="documents")
    for document in record.documents:
        check_text(document, "document")
    return record


async def create_customer(
    kv: Kv,
    record: CustomerRecord,
    *,
    now_us: int,
    limits: Limits | None = None,
    classes: Mapping[str, ClassTerms] | None = None,
    sites: Sequence[str] = (),
    trial_days: int | None = None,
    adopt: bool = False,
) -> CustomerRecord:
    """Make tenant, customer and account in one commit; on trial, or active if there is no trial. The plan
    that it names holds at once, if a version of it is offered (rental/first_plans.py).

    Args:
        record: as `new_customer` makes it.
        limits, classes: of the new account.
        sites: where its bytes may lie; none: wherever its reseller's may.
        trial_days: None: as the preset of its kind says.
        adopt: the tenant is there already, and becomes a customer; its account stays as it is.

    Raises: BadArgument (something is wrong with it, the tenant exists, or its file is not complete and there
        is no trial), Overloaded.
    """
    days = PRESETS[record.kind].trial_days if trial_days is None else check_days(trial_days, "trial days")
    record = msgspec.structs.replace(
        check_customer(record),
        created_us=now_us,
        state_since_us=now_us,
        trial_ends_us=now_us + days * DAY_US if days and not adopt else 0,
    )
    account = AccountRecord(
        state="trial" if days else "active",
        limits=check_limits(limits or Limits()),
        classes=dict(classes or {}),
    )
    if not days and not adopt:
        check_complete(record)

    async def decide(change: Change) -> CustomerRecord:
        tenant = record.tenant
        await read_seller(change, record.seller)
        if await change.value(customer_key(tenant)) is not None:
            raise BadArgument(f"customer {tenant!r} exists", name="tenant", value=tenant)
        if (await change.value(tenant_key(tenant)) is not None) != adopt:
            words = f"there is no tenant {tenant!r}" if adopt else f"tenant {tenant!r} exists"
            raise BadArgument(words, name="tenant", value=tenant)
        if not adopt:
            change.put(tenant_key(tenant), TenantRecord(name=tenant, created_us=now_us))
            within = sites_within(sites, await _sites_of(change, record.parent), record.parent)
            change.put(account_key(tenant), msgspec.structs.replace(account, sites=within))
        elif await change.value(account_key(tenant)) is None:
            change.put(account_key(tenant), AccountRecord())
        if adopt:
            await _check_sites(change, record)
        change.put(customer_key(tenant), record)
        await _join(change, record)
        return await begin_plan(change, record, now_us)

    return await commit_change(kv, decide, what=f"tenant {record.tenant!r}")


async def _join(change: Change, record: CustomerRecord) -> None:
    """Under its parent, which counts it. Raises: BadArgument."""
    if not record.parent:
        return
    parent = await change.found(customer_key(record.parent), CustomerRecord, no_such_customer(record.parent))
    if not parent.reseller:
        raise BadArgument(f"{record.parent!r} is no reseller", name="parent", value=record.parent)
    await _check_above(change, record)
    change.put(customer_key(parent.tenant), msgspec.structs.replace(parent, customers=parent.customers + 1))
    change.put_value(reseller_customer_key(parent.tenant, record.tenant), b"")


async def _sites_of(change: Change, tenant: str) -> list[str]:
    """Where a tenant's bytes may lie; none: anywhere, as those of nobody."""
    account = await change.record(account_key(tenant), AccountRecord) if tenant else None
    return [] if account is None else account.sites


async def _check_sites(change: Change, record: CustomerRecord) -> None:
    """Raises: BadArgument unless its bytes may lie only where those of its reseller may."""
    own, above = await _sites_of(change, record.tenant), await _sites_of(change, record.parent)
    check_sites_within(own, above, record.tenant, record.parent)


async def _check_above(change: Change, record: CustomerRecord) -> None:
    """No customer stands above itself, and none too deep: each above is read, and so expected."""
    above = record.parent
    for _ in range(LEVELS_MAX - 1):
        if above == record.tenant:
            raise BadArgument(f"{record.tenant!r} would be its own reseller", name="parent", value=above)
        customer = await change.found(customer_key(above), CustomerRecord, no_such_customer(above))
        above = customer.parent
        if not above:
            return
    raise BadArgument(f"at most {LEVELS_MAX} customers stand above one another", name="parent")


async def _leave(change: Change, record: CustomerRecord) -> None:
    if not record.parent:
        return
    parent = await change.found(customer_key(record.parent), CustomerRecord, no_such_customer(record.parent))
    change.put(customer_key(parent.tenant), msgspec.structs.replace(parent, customers=parent.customers - 1))
    change.delete(reseller_customer_key(parent.tenant, record.tenant))


async def change_customer(kv: Kv, tenant: str, /, **changes: object) -> CustomerRecord:
    """What invoices and payments go by: from the next document on.

    A customer moves under another parent while it has no customers of its own, which keeps the tree's depth
    known. Its currency changes while it has no plan, whose prices are in it, and nothing in its wallet.

    Raises: BadArgument, Overloaded.
    """
    _check_fields(changes, fixed=_SET_LATER)

    async def decide(change: Change) -> CustomerRecord:
        record = await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
        changed = check_customer(msgspec.structs.replace(record, **changes))
        if changed.seller != record.seller:
            await read_seller(change, changed.seller)
        if record.customers and not changed.reseller:
            raise BadArgument(f"{tenant!r} has customers: it stays a reseller", name="reseller")
        if changed.currency != record.currency:
            await _check_no_money(change, record)
        if changed.parent != record.parent:
            if record.customers:
                raise BadArgument(f"{tenant!r} has customers: they move first", name="parent")
            await _leave(change, record)
            await _join(change, changed)
            await _check_sites(change, changed)
        change.put(customer_key(tenant), changed)
        return changed

    return await commit_change(kv, decide, what=f"customer {tenant!r}")


async def _check_no_money(change: Change, record: CustomerRecord) -> None:
    """Raises: BadArgument, once amounts are kept in the customer's currency."""
    wallet = await change.record(wallet_key(record.tenant), WalletRecord)
    if record.plan_version or (wallet is not None and wallet.balance):
        what = "plan" if record.plan_version else "wallet"
        raise BadArgument(f"{record.tenant!r} has a {what} in {record.currency}", name="currency")


async def find_customer(kv: Kv, tenant: str) -> CustomerRecord:
    """Raises: BadArgument (no such customer)."""
    value = await kv.get(customer_key(tenant))
    if value is None:
        raise no_such_customer(tenant)
    return decode(value, CustomerRecord)


async def list_customers(kv: Kv, *, after: str = "", limit: int = 1_000) -> list[CustomerRecord]:
    """Tenants > after, in order."""
    start = customer_key(after) + b"\0" if after else customer_key("")
    pairs = await kv.scan(start, prefix_end(customer_key("")), limit)
    return [decode(value, CustomerRecord) for _, value in pairs]


async def list_customers_of(kv: Kv, reseller: str, *, after: str = "", limit: int = 1_000) -> list[str]:
    """The tenants right under a reseller, in order of name."""
    prefix = reseller_customer_key(reseller, "")
    start = reseller_customer_key(reseller, after) + b"\0" if after else prefix
    return [key[len(prefix) :].decode() for key, _ in await kv.scan(start, prefix_end(prefix), limit)]


async def all_customers(kv: Kv) -> AsyncIterator[CustomerRecord]:
    """In order of tenants."""
    after = ""
    while found := await list_customers(kv, after=after, limit=CUSTOMERS_AT_ONCE):
        for customer in found:
            yield customer
        after = found[-1].tenant


async def tenants_under(kv: Kv, reseller: str) -> list[str]:
    """A tenant and all customers under it, at any depth, in order of name."""
    found, waiting = [reseller], [reseller]
    while waiting:
        above, after = waiting.pop(), ""
        while names := await list_customers_of(kv, above, after=after):
            found += names
            waiting += names
            after = names[-1]
    return sorted(found)


async def account_state(kv: Kv, tenant: str) -> str:
    """Of any tenant: one without an account is active."""
    value = await kv.get(account_key(tenant))
    return AccountRecord().state if value is None else decode(value, AccountRecord).state


def check_complete(record: CustomerRecord) -> CustomerRecord:
    """Raises: BadArgument unless all is known that an active customer's invoices need."""
    if record.kind == "internal":
        return record
    for name, is_there in (
        ("legal name", record.legal_name),
        ("address", record.address),
        ("country", record.country),
        ("plan", record.plan),
        ("identity check", record.identity_checked_us),
    ):
        if not is_there:
            raise StateForbids(f"before {record.tenant!r} is active it needs its {name}", name=name)
    return record


async def set_state(kv: Kv, tenant: str, state: str, *, reason: str, now_us: int) -> CustomerRecord:
    """Take an account into another state; the same again changes nothing but its reason.

    Active demands a complete file; purged that nothing is stored, the time to take data along is over, and
    the proof of the purge is there (rental/departures.py).

    Args:
        reason: in an operator's words, which then have to end it; DUNNING: it ends when all is paid.

    Raises: BadArgument, Overloaded.
    """

    async def decide(change: Change) -> CustomerRecord:
        return await move_to(change, tenant, state, reason=reason, now_us=now_us)

    return await commit_change(kv, decide, what=f"customer {tenant!r}")


async def move_to(change: Change, tenant: str, state: str, *, reason: str, now_us: int) -> CustomerRecord:
    """`set_state` as a part of a greater change."""
    record = await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
    account = await change.record(account_key(tenant), AccountRecord) or AccountRecord()
    check_text(reason, "reason")
    if state != account.state:
        if state not in TRANSITIONS:
            raise BadArgument(f"a state is one of {', '.join(TRANSITIONS)}", name="state", value=state)
        if state not in TRANSITIONS[account.state]:
            raise StateForbids(
                f"{tenant!r} is {account.state}; what may follow is "
                f"{', '.join(sorted(TRANSITIONS[account.state])) or 'nothing'}",
                name="state",
                value=state,
            )
        record = await _check_move(change, record, account.state, state, now_us)
        record = msgspec.structs.replace(record, state_since_us=now_us)
        change.put(account_key(tenant), msgspec.structs.replace(account, state=state))
        if state == "active":
            record = await begin_plan(change, record, now_us)
    record = msgspec.structs.replace(record, state_reason=reason)
    change.put(customer_key(tenant), record)
    return record


async def _check_move(
    change: Change, record: CustomerRecord, before: str, state: str, now_us: int
) -> CustomerRecord:
    """What each state demands, and what comes with it. Raises: BadArgument."""
    purge = await change.record(purge_key(record.tenant), PurgeRecord)
    if state != "purged" and purge is not None:
        raise StateForbids(f"{record.tenant!r} is being purged: there is no way back", name="state")
    if state in STORES and record.trial_ends_us:  # What it used on trial is not billed, also later on.
        record = msgspec.structs.replace(record, billed_from_us=now_us, trial_ends_us=0)
    if state in STORES and before != "active" and record.state_reason != DUNNING:
        check_complete(record)  # Else it was active before.
    if state == "active":
        return msgspec.structs.replace(record, purge_after_us=0)
    if state == "terminating":
        if record.customers:
            raise StateForbids(f"{record.tenant!r} has customers: they leave or move first", name="state")
        seller = await read_seller(change, record.seller)
        return msgspec.structs.replace(record, purge_after_us=now_us + seller.reversibility_days * DAY_US)
    if state == "purged":
        await _check_empty(change, record, now_us)
        if purge is None or purge.state != "proven":
            raise StateForbids(
                f"{record.tenant!r} is purged with a proof: objstore tenant purge", name="state", value=state
            )
        tenant = await change.record(tenant_key(record.tenant), TenantRecord)
        if tenant is not None:
            change.put(tenant_key(record.tenant), msgspec.structs.replace(tenant, disabled=True))
    return record


async def _check_empty(change: Change, record: CustomerRecord, now_us: int) -> None:
    """Raises: BadArgument."""
    if now_us < record.purge_after_us:
        days = -(-(record.purge_after_us - now_us) // DAY_US)
        raise StateForbids(
            f"{record.tenant!r} may take its data along for {days} more days", name="state", value="purged"
        )
    for letter, unit in ((b"o", "objects"), (b"s", "bytes"), (b"b", "buckets")):
        held = counter(await change.value(tenant_use_key(record.tenant) + letter))
        if held:
            raise StateForbids(f"{record.tenant!r} still holds {held} {unit}", name="state", value="purged")
