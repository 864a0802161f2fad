"""Tenants: whoever rents, as an account and as a customer."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from objstore.admin.callers import OPERATORS, Rule
from objstore.admin.pages import page
from objstore.admin.problems import Problem
from objstore.admin.resources.quotas import check_within_own
from objstore.admin.routes import Call, Page, Route, in_path, of_anybody
from objstore.admin.views import LimitsView, List, microseconds, moment, shown, view
from objstore.errors import BadArgument
from objstore.iam.tenants import create_tenant, find_tenant, list_tenants, set_tenant_disabled
from objstore.meta.kv import counter
from objstore.meta.schema import (
    AccountRecord,
    TenantRecord,
    account_key,
    decode,
    tenant_key,
    tenant_use_key,
)
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import (
    PRESETS,
    RESELLER,
    account_state,
    change_customer,
    create_customer,
    find_customer,
    list_customers_of,
    move_to,
    new_customer,
    no_such_customer,
)
from objstore.rental.first_plans import why_no_plan
from objstore.rental.names import check_days
from objstore.rental.records import CustomerRecord, customer_key
from objstore.rental.sellers import list_sellers
from objstore.rental.terms import STORES

READ: Final = Rule(action="tenant:Read")
ABOVE: Final = Rule(action="tenant:Write", tenants=False)  # Who is above it, not the tenant itself.


# What a reseller says of its customers; all else binds the operator.
RESELLERS: Final = frozenset(
    {
        "legal_name", "address", "country", "tax_ids", "language", "purchase_order",
        "identity_checked_us", "documents",
    }
)  # fmt: skip


TRIALS_MAX: Final = 10  # Customers of one reseller on trial at a time.
CUSTOMERS_AT_ONCE: Final = 500


class TenantRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    disabled: bool
    created: str | None


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored now, reservations of uploads under way among it."""

    bytes: int
    objects: int
    buckets: int


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    disabled: bool
    created: str | None
    state: str
    limits: LimitsView
    sites: list[str]  # Where its bytes may lie; none: anywhere.
    leased: int | None  # Bytes that its leases let it store, beside its limits; null: none bounds it.
    use: Use
    customer: view(CustomerRecord) | None  # type: ignore[valid-type]  # None: it is no customer.
    without_plan: str  # Why a customer has no version of a plan: it is not invoiced; empty: it has one.


class CustomerFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be said of a customer; what is left out is as the preset of its kind, or stays as it is."""

    seller: str | msgspec.UnsetType = msgspec.UNSET
    parent: str | msgspec.UnsetType = msgspec.UNSET
    legal_name: str | msgspec.UnsetType = msgspec.UNSET
    address: list[str] | msgspec.UnsetType = msgspec.UNSET
    country: str | msgspec.UnsetType = msgspec.UNSET
    tax_ids: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    language: str | msgspec.UnsetType = msgspec.UNSET
    currency: str | msgspec.UnsetType = msgspec.UNSET
    tax_profile: str | msgspec.UnsetType = msgspec.UNSET
    payment_terms_days: int | msgspec.UnsetType = msgspec.UNSET
    purchase_order_required: bool | msgspec.UnsetType = msgspec.UNSET
    purchase_order: str | msgspec.UnsetType = msgspec.UNSET
    # Of the client file; null: not yet.
    identity_checked: datetime | msgspec.UnsetType | None = msgspec.UNSET
    documents: list[str] | msgspec.UnsetType = msgspec.UNSET
    reseller: bool | msgspec.UnsetType = msgspec.UNSET

    def given(self) -> dict[str, Any]:
        """By the record's names."""
        found = {}
        for name in (*CustomerFields.__struct_fields__, "plan", "plan_version"):
            value = getattr(self, name, msgspec.UNSET)
            if value is msgspec.UNSET:
                continue
            if name == "identity_checked":
                found["identity_checked_us"] = microseconds(value)
            else:
                found[name] = value
        return found


class NewTenant(CustomerFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    plan: str | msgspec.UnsetType = msgspec.UNSET
    plan_version: int | msgspec.UnsetType = msgspec.UNSET
    kind: str = ""  # Of customer, with its preset; empty: no customer, only a tenant.
    limits: LimitsView = LimitsView()
    sites: list[str] = []  # Where its bytes may lie; none: wherever its reseller's may, or anywhere.
    trial_days: int | None = None  # None: as the preset says; 0: active at once.
    adopt: bool = False  # The tenant is there, and becomes a customer.


class Sites(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sites: list[str]  # None: wherever its reseller's bytes may lie, or anywhere.


class NewState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    state: str
    reason: str = ""


def records(call: Call) -> Sequence[bytes]:
    tenant = call.params["tenant"]
    return [tenant_key(tenant), customer_key(tenant), account_key(tenant)]


async def _shown(call: Call, name: str) -> dict[str, Any]:
    use_key = tenant_use_key(name)
    values = await call.kv.get_many(
        [
            tenant_key(name),
            account_key(name),
            customer_key(name),
            use_key + b"s",
            use_key + b"o",
            use_key + b"b",
        ]
    )
    if values[0] is None:
        await find_tenant(call.kv, name)  # Says that there is none.
    assert values[0] is not None
    tenant = decode(values[0], TenantRecord)
    account = AccountRecord() if values[1] is None else decode(values[1], AccountRecord)
    customer = None if values[2] is None else decode(values[2], CustomerRecord)
    return {
        **_row(tenant),
        "state": account.state,
        "limits": shown(account.limits),
        "sites": account.sites,
        "leased": account.leased,
        "use": dict(zip(("bytes", "objects", "buckets"), map(counter, values[3:]), strict=True)),
        "customer": None if customer is None else shown(customer),
        "without_plan": "" if customer is None else await why_no_plan(call.kv, customer, call.now_us),
    }


def _row(record: TenantRecord) -> dict[str, Any]:
    return {"name": record.name, "disabled": record.disabled, "created": moment(record.created_us)}


async def list_all(call: Call) -> List[Any]:
    async def read(after: str, limit: int) -> list[TenantRecord]:
        if call.caller.is_operator:
            return await list_tenants(call.kv, after=after, limit=limit)
        own = call.caller.tenant
        names = await list_customers_of(call.kv, own, after=after, limit=limit)
        names = sorted({*names, *([own] if own > after else [])})[:limit]
        values = await call.kv.get_many([tenant_key(name) for name in names])
        return [decode(value, TenantRecord) for value in values if value is not None]

    return await page(call.query, read, lambda record: record.name, _row)


async def create(call: Call) -> Any:
    body: NewTenant = call.body
    if not body.kind:
        if not call.caller.is_operator:
            raise Problem(400, "kind is missing: a reseller makes customers")
        others = (body.given(), body.limits != LimitsView(), body.sites, body.adopt)
        if any(others) or body.trial_days is not None:
            raise Problem(400, "kind is missing: only a customer has what else is given")
        await create_tenant(call.kv, body.name, now_us=call.now_us)
        return await _shown(call, body.name)
    given = body.given()
    if not call.caller.is_operator:
        given = {**given, **await _by_reseller(call, body)}
    seller = given.pop("seller", "") or await _only_seller(call)
    await _check_known(call, body.sites)
    await create_customer(
        call.kv,
        new_customer(body.kind, body.name, seller, **given),
        now_us=call.now_us,
        limits=body.limits.limits(),
        sites=body.sites,
        trial_days=body.trial_days,
        adopt=body.adopt,
    )
    return await _shown(call, body.name)


async def _by_reseller(call: Call, body: NewTenant) -> dict[str, Any]:
    """What a reseller's customers have from it: itself as the parent, its seller, a quota within its own."""
    own = await find_customer(call.kv, call.caller.tenant)
    if (state := await account_state(call.kv, own.tenant)) not in STORES:
        raise Problem(403, f"your own account is {state}: it makes no customers")
    if body.adopt or body.kind == "internal":
        raise Problem(403, "only the operator adopts tenants and makes internal ones")
    _check_resellers(body.given(), "currency")
    await check_within_own(call, msgspec.structs.asdict(body.limits))
    if body.trial_days is not None and body.kind in PRESETS:
        check_days(body.trial_days, "trial days of a reseller's customer", most=PRESETS[body.kind].trial_days)
    if body.trial_days != 0:
        await _check_trials(call)
    return {"parent": call.caller.tenant, "seller": own.seller}


async def _check_trials(call: Call) -> None:
    """Nothing is invoiced on trial: no reseller has its customers store under one such name after the other.

    Raises: Problem 403.
    """
    trials, after = 0, ""
    while names := await list_customers_of(call.kv, call.caller.tenant, after=after, limit=CUSTOMERS_AT_ONCE):
        after = names[-1]
        values = await call.kv.get_many([customer_key(name) for name in names])
        customers = [decode(value, CustomerRecord) for value in values if value is not None]
        # Also those that were stopped meanwhile: what they stored is there, and was never billed.
        kept = [one.tenant for one in customers if one.trial_ends_us]
        accounts = await call.kv.get_many([account_key(name) for name in kept])
        trials += sum(value is None or decode(value, AccountRecord).state != "purged" for value in accounts)
        if trials >= TRIALS_MAX:
            raise Problem(403, f"{TRIALS_MAX} of your customers are on trial, or were last: use trial_days 0")


async def _only_seller(call: Call) -> str:
    """Raises: BadArgument (there are several, or none)."""
    found = await list_sellers(call.kv, limit=2)
    if len(found) != 1:
        raise BadArgument("seller is missing: there is not just one", name="seller")
    return found[0].id


def _check_resellers(given: dict[str, Any], *more: str) -> None:
    """Raises: Problem 403 for what of a customer is not its reseller's to say."""
    for name in given:
        if name not in RESELLERS and name not in more:
            raise Problem(403, f"only the operator says a customer's {name.removesuffix('_us')}")


async def show(call: Call) -> Any:
    return await _shown(call, call.params["tenant"])


async def change(call: Call) -> Any:
    given = call.body.given()
    if not call.caller.is_operator:
        _check_resellers(given)
    await change_customer(call.kv, call.params["tenant"], **given)
    return await _shown(call, call.params["tenant"])


async def move(call: Call) -> Any:
    tenant, state = call.params["tenant"], call.body.state
    reason = call.body.reason or f"by {call.caller.name}"
    ours = "" if call.caller.is_operator else f"{RESELLER}{call.caller.tenant}:"
    if ours and state == "past_due":
        raise Problem(403, "an account is past due by its invoices, not by its reseller's word")

    async def decide(change: Change) -> None:
        if ours:
            await _check_ours(change, tenant, ours, state)
        words = f"{ours} {reason}" if ours else reason
        await move_to(change, tenant, state, reason=words, now_us=call.now_us)

    await commit_change(call.kv, decide, what=f"customer {tenant!r}")
    return await _shown(call, tenant)


async def _check_ours(change: Change, tenant: str, ours: str, state: str) -> None:
    """A reseller stops its customers, and changes the state of those only that it stopped itself: whatever it
    put another's state into, it could let go again. Raises: Problem 403."""
    customer = await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
    account = await change.record(account_key(tenant), AccountRecord) or AccountRecord()
    if account.state == "terminating" and state == "active":  # It took its data along without paying for it.
        raise Problem(403, "only the operator takes back who is leaving")
    if account.state not in ("trial", "active") and not customer.state_reason.startswith(ours):
        raise Problem(403, f"its state is not yours to end: {customer.state_reason}")


async def _check_known(call: Call, sites: Sequence[str]) -> None:
    """Raises: BadArgument (there is no such site), Problem 503."""
    if not sites:
        return
    if call.services.sites is None:
        raise Problem(503, "this process cannot say what sites there are")
    if missing := set(sites) - await call.services.sites():
        raise BadArgument(f"there is no site {min(missing)}", name="sites", value=min(missing))


async def bind(call: Call) -> Any:
    if call.services.bind is None:
        raise Problem(503, "this process cannot say where buckets lie")
    tenant = call.params["tenant"]
    await find_tenant(call.kv, tenant)
    await call.services.bind(call.kv, tenant, call.body.sites)
    return await _shown(call, tenant)


async def disable(call: Call) -> Any:
    return _row(await set_tenant_disabled(call.kv, call.params["tenant"], True))


async def enable(call: Call) -> Any:
    return _row(await set_tenant_disabled(call.kv, call.params["tenant"], False))


_ONE: Final = "/api/v1/tenants/{tenant}"
ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/tenants", name="list_tenants",
        summary="All tenants; of a user its own and the customers right under it.",
        rule=READ, owner=of_anybody, query=Page, handler=list_all, answer=List[TenantRow],
    ),
    Route(
        method="POST", path="/api/v1/tenants", name="create_tenant",
        summary="Make a tenant; with a kind also a customer, on trial or active. A reseller makes its own.",
        rule=Rule(action="tenant:Write"), owner=of_anybody, body=NewTenant, handler=create, answer=Tenant,
        status=201,
    ),
    Route(
        method="GET", path=_ONE, name="show_tenant", summary="A tenant: state, limits, use, customer.",
        rule=READ, owner=in_path, handler=show, answer=Tenant, tags=records,
    ),
    Route(
        method="PATCH", path=_ONE, name="change_tenant",
        summary="Change what invoices and payments go by, from the next document on.",
        rule=ABOVE, owner=in_path, body=CustomerFields, handler=change, answer=Tenant, tags=records,
    ),
    Route(
        method="PUT", path=f"{_ONE}/state", name="set_tenant_state",
        summary="Take an account into another state.",
        rule=ABOVE, owner=in_path, body=NewState, handler=move, answer=Tenant, tags=records,
    ),
    Route(
        method="PUT", path=f"{_ONE}/sites", name="set_tenant_sites",
        summary="Say at which sites its bytes may lie: within its reseller's, with all of its buckets there.",
        rule=ABOVE, owner=in_path, body=Sites, handler=bind, answer=Tenant, tags=records,
    ),
    Route(
        method="POST", path=f"{_ONE}/disable", name="disable_tenant",
        summary="Refuse every request of its users, at once.",
        rule=OPERATORS, owner=in_path, handler=disable, answer=TenantRow, tags=records,
    ),
    Route(
        method="POST", path=f"{_ONE}/enable", name="enable_tenant", summary="Serve it again.",
        rule=OPERATORS, owner=in_path, handler=enable, answer=TenantRow, tags=records,
    ),
)  # fmt: skip
