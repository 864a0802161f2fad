"""`objstore quota`, `plan`, `lease`, `offer`, `usage`, `invoice`, `payment`, `capacity` and `report`: what is
rented out, and what it costs."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from objstore.cli.output import DEGRADED, OK, check_writable, fail, write_file
from objstore.cli.progress import Steps
from objstore.cli.store import Store, YesOption, asks, changes, quoted
from objstore.config import ConfigError

quota_app = typer.Typer(help="Quotas and rates, with what is in use.", no_args_is_help=True)
plan_app = typer.Typer(help="Rate cards, tax rules, service levels.", no_args_is_help=True)
lease_app = typer.Typer(help="Leases: capacity for a term.", no_args_is_help=True)
offer_app = typer.Typer(help="Offers that tenants order from.", no_args_is_help=True)
usage_app = typer.Typer(help="What was used, exactly.", no_args_is_help=True)
invoice_app = typer.Typer(help="Invoices and credit notes.", no_args_is_help=True)
payment_app = typer.Typer(help="Payments and wallets.", no_args_is_help=True)
capacity_app = typer.Typer(help="What there is to sell, and what is sold.", no_args_is_help=True)
report_app = typer.Typer(help="Reports for operators.", no_args_is_help=True)

TenantName = Annotated[str, typer.Argument(help="The tenant's name.")]
OfTenant = Annotated[str, typer.Option("--tenant", help="The tenant's name.", show_default=False)]
LeaseId = Annotated[str, typer.Argument(help="The lease's id.")]
InvoiceId = Annotated[str, typer.Argument(help="The id of an invoice or credit note.")]
Moment = Annotated[str | None, typer.Option(help="As 2027-01-31T00:00:00Z.", show_default=False)]
OverageMax = Annotated[
    str | None,
    typer.Option(help="Bytes that may be stored above it, as 10TB.  [no limit]", show_default=False),
]
File = Annotated[Path, typer.Argument(help="A file in TOML or JSON.")]

UNITS: Final = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for base, suffix in ((1000, "b"), (1024, "ib"))
    for power, letter in enumerate("kmgtpe", 1)
}
_SIZE: Final = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))? ?([A-Za-z]*)", re.ASCII)


def size(text: str) -> int:
    """Bytes, exactly: 10TB, 1.5TiB, 1000. Raises: ConfigError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[3].lower() not in UNITS:
        raise ConfigError(f"{text!r} is no size: it is like 10TB, 1.5TiB or 1000")
    parts = match[2] or ""
    found, rest = divmod(int(match[1] + parts) * int(UNITS[match[3].lower()]), int("1" + "0" * len(parts)))
    if rest:
        raise ConfigError(f"{text!r} is no whole number of bytes")
    return found


def count(text: str) -> int:
    """Of objects, buckets, requests: 1000. Raises: ConfigError."""
    if not re.fullmatch(r"[0-9]{1,18}", text.strip(), re.ASCII):
        raise ConfigError(f"{text!r} is no number: it is like 1000, or none")
    return int(text)


def amount(minor: int, currency: str) -> str:
    """An amount of smallest units for people: 93242.45 DZD."""
    from objstore.rental.money import Money  # Fractions and decimals: not for every command.

    return f"{Money(minor, currency)} {currency}"


def _priced(rows: list[dict[str, Any]], *fields: str) -> list[dict[str, Any]]:
    """The same, with amounts for people."""
    return [
        {**row, **{field: amount(row[field], row["currency"]) for field in fields if field in row}}
        for row in rows
    ]


def percent(share: str) -> str:
    """A share for people, rounded half up to a hundredth of a percent: 1/3 is 33.33 %."""
    return f"{ratio(share, hundred=True)} %"


def ratio(exact: str, *, hundred: bool = False) -> str:
    """A fraction (times a hundred) to two places, rounded half up: 3/2 is 1.50."""
    from fractions import Fraction  # Like money: not for every command.

    from objstore.rental.money import round_half_up

    hundredths = round_half_up(Fraction(exact) * (10_000 if hundred else 100))
    whole, part = divmod(abs(hundredths), 100)
    return f"{'-' if hundredths < 0 else ''}{whole}.{part:02d}"


def _capacity_for_people(pool: dict[str, Any]) -> dict[str, Any]:
    """A pool's report with shares in percent; JSON has them exactly."""
    growth = pool["growth"]
    return {
        **pool,
        "sold_share": percent(pool["sold_share"]),
        "fill": percent(pool["fill"]),
        "overhead": ratio(pool["overhead"]),
        "growth": None if growth is None else f"{ratio(growth)} bytes a day",
    }


def _file(place: Path) -> dict[str, str]:
    """A file as the API takes it. Raises: ConfigError."""
    try:
        return {"text": place.read_text(), "form": "json" if place.suffix == ".json" else "toml"}
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"{place}: {failure}") from None


# --- quotas ---------------------------------------------------------------------------------------


def _scope(tenant: str, project: str, bucket: str, key: str) -> str:
    """Raises: ConfigError."""
    if bool(tenant) + bool(bucket) + bool(key) != 1 or (project and not tenant):
        raise ConfigError("name one of: --tenant, --tenant with --project, --bucket, --key")
    if project:
        return f"/api/v1/tenants/{quoted(tenant)}/projects/{quoted(project)}/quota"
    kind, name = ("tenants", tenant) if tenant else ("buckets", bucket) if bucket else ("keys", key)
    return f"/api/v1/{kind}/{quoted(name)}/quota"


OfProject = Annotated[str, typer.Option("--project", help="A project of it.", show_default=False)]
OfBucket = Annotated[str, typer.Option("--bucket", help="A bucket's name.", show_default=False)]
OfKey = Annotated[str, typer.Option("--key", help="An access key's id.", show_default=False)]


@quota_app.command("show")
@asks
def quota_show(
    store: Store, tenant: OfTenant = "", project: OfProject = "", bucket: OfBucket = "", key: OfKey = ""
) -> None:
    """Limits and use of a tenant, project, bucket or access key."""
    store.show_facts(store.get(_scope(tenant, project, bucket, key)))


_Limit = Annotated[str | None, typer.Option(help="A number; none: no limit.", show_default=False)]


@quota_app.command("set")
@changes
def quota_set(
    store: Store,
    tenant: OfTenant = "",
    project: OfProject = "",
    bucket: OfBucket = "",
    key: OfKey = "",
    bytes_: Annotated[
        str | None, typer.Option("--bytes", help="Hard: 10TB; none: no limit.", show_default=False)
    ] = None,
    bytes_soft: Annotated[
        str | None, typer.Option("--bytes-soft", help="Passing it is only reported.", show_default=False)
    ] = None,
    objects: _Limit = None,
    buckets: _Limit = None,
    requests: Annotated[str | None, typer.Option(help="Requests a second.", show_default=False)] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Bytes a second: 100MB.", show_default=False)] = None,
) -> None:
    """Change limits, from the next request on. What is not given stays; "none" takes a limit away."""
    given = {
        "bytes_max": (bytes_, size),
        "bytes_soft": (bytes_soft, size),
        "objects_max": (objects, count),
        "buckets_max": (buckets, count),
        "requests_per_s": (requests, count),
        "bytes_per_s": (bandwidth, size),
    }
    body = {
        name: None if text == "none" else parse(text)
        for name, (text, parse) in given.items()
        if text is not None
    }
    store.show_facts(store.change("PATCH", _scope(tenant, project, bucket, key), body))


# --- plans ----------------------------------------------------------------------------------------


@plan_app.command("list")
@asks
def plan_list(store: Store) -> None:
    """Every version of every rate card."""
    rows = [
        {"code": one["plan"]["code"], "version": one["plan"]["version"], **one, **one["plan"]}
        for one in store.listed("/api/v1/plans")
    ]
    store.show(rows, "code", "version", "currency", "title", "valid_from", "valid_to", "made")


@plan_app.command("show")
@asks
def plan_show(
    store: Store, code: str, version: Annotated[int, typer.Option(help="0: the newest.")] = 0
) -> None:
    """A rate card."""
    store.show_facts(store.get(f"/api/v1/plans/{quoted(code)}?version={version}")["plan"])


@plan_app.command("publish")
@changes
def plan_publish(store: Store, file: File) -> None:
    """Publish a version of a rate card: it never changes. config/plans has samples."""
    found = store.change("POST", "/api/v1/plans", _file(file))
    plan = found["plan"]
    store.tell(f"plan {plan['code']} version {plan['version']} is published", found)


@plan_app.command("give")
@changes
def plan_give(
    store: Store,
    tenant: TenantName,
    code: str,
    version: Annotated[int, typer.Option(help="0: the newest.")] = 0,
) -> None:
    """Give a tenant a plan: its first at once, another from the next month on."""
    path = f"/api/v1/tenants/{quoted(tenant)}/plan"
    store.show_facts(store.change("PUT", path, {"plan": code, "version": version}))


@plan_app.command("taxes")
@changes
def plan_taxes(
    store: Store, file: Annotated[Path | None, typer.Argument(help="Rules to keep.")] = None
) -> None:
    """Tax rules; with a file keep those in it. Of a rule that is there only the end may change."""
    if file is not None:
        found = store.change("POST", "/api/v1/tax-rules", _file(file))["items"]
    else:
        found = store.get("/api/v1/tax-rules")["items"]
    store.show(found, "id", "country", "rate", "label", "product", "profile", "valid_from", "valid_to")


@plan_app.command("sla")
@changes
def plan_levels(
    store: Store, file: Annotated[Path | None, typer.Argument(help="One to keep.")] = None
) -> None:
    """Service levels; with a file keep the one in it."""
    if file is not None:
        found = [store.change("POST", "/api/v1/service-levels", _file(file))]
    else:
        found = store.listed("/api/v1/service-levels")
    store.show(found, "id", "storage_class", "tiers")


EVENT_COLUMNS: Final = ("id", "kind", "begin", "end", "tenant", "reason")


@plan_app.command("events")
@asks
def plan_events(store: Store) -> None:
    """Maintenance and outages by which service levels are judged."""
    store.show(store.get("/api/v1/service-events")["items"], *EVENT_COLUMNS)


@plan_app.command("event")
@changes
def plan_event(
    store: Store,
    kind: Annotated[
        str, typer.Argument(help="maintenance, announced; or outage, that gateways did not see.")
    ],
    begin: Annotated[str, typer.Argument(help="As 2027-01-31T00:00:00Z.")],
    end: Annotated[str, typer.Argument(help="The first moment behind it.")],
    reason: Annotated[str, typer.Argument(help="In words; it stands in the proof.")],
    tenant: Annotated[str, typer.Option(help="Whose alone it is.  [everybody's]", show_default=False)] = "",
) -> None:
    """Announce maintenance: its time does not count. Or tell of an outage: its minutes count as failed."""
    body = {"kind": kind, "begin": begin, "end": end, "reason": reason, "tenant": tenant}
    store.show([store.change("POST", "/api/v1/service-events", body)], *EVENT_COLUMNS)


@plan_app.command("remove-event")
@changes
def plan_remove_event(store: Store, event: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Take an event back; months that were held against their levels stay as they are."""
    found = store.change("DELETE", f"/api/v1/service-events/{quoted(event)}")
    store.tell(f"event {event} is gone", found)


# --- leases ---------------------------------------------------------------------------------------

LEASE_COLUMNS: Final = (
    "id", "tenant", "kind", "state", "capacity", "begin", "end", "unit_price", "unit", "currency",
)  # fmt: skip


@lease_app.command("list")
@asks
def lease_list(
    store: Store,
    tenant: OfTenant = "",
    state: Annotated[
        str,
        typer.Option(
            help="quote, draft, signed, active, ended, terminated or withdrawn.", show_default=False
        ),
    ] = "",
) -> None:
    """Leases, in order of making."""
    store.show(store.listed("/api/v1/leases", tenant=tenant, state=state), *LEASE_COLUMNS)


@lease_app.command("show")
@asks
def lease_show(store: Store, lease: LeaseId) -> None:
    """A lease with all its terms."""
    store.show_facts(store.get(f"/api/v1/leases/{quoted(lease)}"))


Renews = Annotated[
    bool | None, typer.Option("--renews/--no-renews", help="For the same term again.", show_default=False)
]
RampSteps = Annotated[
    list[str] | None,
    typer.Option("--ramp", help="MOMENT=BYTES, from its beginning on; once for each.", show_default=False),
]
Billing = Annotated[str | None, typer.Option(help="arrears or advance.", show_default=False)]
NoticeDays = Annotated[
    int | None, typer.Option(help="Before its end: until then it can be given notice.", show_default=False)
]
FeeShare = Annotated[
    str | None, typer.Option(help="Of what remains, for an early end: 0.5.  [all]", show_default=False)
]
FeeMonths = Annotated[
    int | None,
    typer.Option(help="So many months at most, for an early end.  [0: no such bound]", show_default=False),
]
Level = Annotated[
    str | None, typer.Option("--sla", help="A service level: plan sla has them.", show_default=False)
]
InClass = Annotated[str | None, typer.Option(help="[STANDARD]", show_default=False)]
Product = Annotated[str | None, typer.Option(help="As tax rules name it.  [storage]", show_default=False)]
Order = Annotated[str | None, typer.Option(help="The customer's.", show_default=False)]


def _given(**terms: object) -> dict[str, Any]:
    """What was given of a lease's terms, as the API takes them; the rest is as usual."""
    return {name: value for name, value in terms.items() if value is not None}


def _steps(ramp: list[str] | None) -> list[dict[str, Any]] | None:
    """Raises: ConfigError."""
    if ramp is None:
        return None
    found = []
    for one in ramp:
        at, is_given, capacity = one.partition("=")
        if not is_given:
            raise ConfigError(f"--ramp {one}: it is MOMENT=BYTES, as 2027-01-31T00:00:00Z=10TB")
        found.append({"at": at, "capacity": size(capacity)})
    return found


@lease_app.command("quote")
@changes
def lease_quote(
    store: Store,
    tenant: TenantName,
    capacity: Annotated[str, typer.Argument(help="As 100TB.")],
    months: Annotated[int, typer.Option(help="The term.")],
    price: Annotated[str, typer.Option(help="A unit and month.")],
    currency: str = "DZD",
    unit: str = "TB",
    begin: Moment = None,
    kind: Annotated[str, typer.Option(help="guaranteed, best_effort or dedicated.")] = "guaranteed",
    node: Annotated[list[str] | None, typer.Option(help="Of a dedicated one: ids; once for each.")] = None,
    pool: str = "",
    overage: Annotated[str, typer.Option(help="average, instantaneous or peak_daily.")] = "",
    overage_price: str = "0",
    overage_max: OverageMax = None,
    valid_until: Moment = None,
    renews: Renews = None,
    ramp: RampSteps = None,
    billing: Billing = None,
    notice_days: NoticeDays = None,
    fee_share: FeeShare = None,
    fee_months: FeeMonths = None,
    sla: Level = None,
    storage_class: InClass = None,
    product: Product = None,
    purchase_order: Order = None,
    draft: Annotated[bool, typer.Option("--draft", help="To be signed at once: no quote.")] = False,
) -> None:
    """Make a quote. It binds nobody; says whether there is capacity for it just now."""
    body = {
        "tenant": tenant,
        "kind": kind,
        "state": "draft" if draft else "quote",
        "capacity": size(capacity),
        "term_months": months,
        "begin": begin or _tomorrow(),
        "unit_price": price,
        "currency": currency,
        "unit": unit,
        "pool": pool,
        "nodes": node or [],
        "overage_mode": overage,
        "overage_price": overage_price,
        "overage_max": None if overage_max is None else size(overage_max),
        "valid_until": valid_until,
    } | _given(
        renews=renews, ramp=_steps(ramp), billing=billing, notice_days=notice_days, fee_share=fee_share,
        fee_months=fee_months, sla=sla, storage_class=storage_class, product=product,
        purchase_order=purchase_order,
    )  # fmt: skip
    made = store.change("POST", "/api/v1/leases", body)
    store.show([made], *LEASE_COLUMNS)
    judged = store.get(f"/api/v1/leases/{quoted(made['id'])}/admission")
    if not judged["admitted"]:
        print(f"not admitted just now: {judged['why']}", file=sys.stderr)
        raise SystemExit(DEGRADED)


@lease_app.command("set")
@changes
def lease_set(
    store: Store,
    lease: LeaseId,
    capacity: Annotated[str | None, typer.Option(help="As 100TB.", show_default=False)] = None,
    months: Annotated[int | None, typer.Option(help="The term.", show_default=False)] = None,
    price: Annotated[str | None, typer.Option(help="A unit and month.", show_default=False)] = None,
    currency: Annotated[str | None, typer.Option(show_default=False)] = None,
    unit: Annotated[str | None, typer.Option(show_default=False)] = None,
    begin: Moment = None,
    kind: Annotated[
        str | None, typer.Option(help="guaranteed, best_effort or dedicated.", show_default=False)
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(help="Of a dedicated one: ids; once for each.", show_default=False),
    ] = None,
    pool: Annotated[str | None, typer.Option(show_default=False)] = None,
    overage: Annotated[
        str | None, typer.Option(help="average, instantaneous or peak_daily.", show_default=False)
    ] = None,
    overage_price: Annotated[str | None, typer.Option(show_default=False)] = None,
    overage_max: Annotated[
        str | None, typer.Option(help="As 10TB; none: no limit.", show_default=False)
    ] = None,
    valid_until: Moment = None,
    renews: Renews = None,
    ramp: RampSteps = None,
    billing: Billing = None,
    notice_days: NoticeDays = None,
    fee_share: FeeShare = None,
    fee_months: FeeMonths = None,
    sla: Level = None,
    storage_class: InClass = None,
    product: Product = None,
    purchase_order: Order = None,
) -> None:
    """Change the terms of a quote or draft; what is not given stays. Its ramp is given whole."""
    body = _given(
        capacity=None if capacity is None else size(capacity), term_months=months, unit_price=price,
        currency=currency, unit=unit, begin=begin, kind=kind, nodes=node, pool=pool, overage_mode=overage,
        overage_price=overage_price, valid_until=valid_until, renews=renews, ramp=_steps(ramp),
        billing=billing, notice_days=notice_days, fee_share=fee_share, fee_months=fee_months, sla=sla,
        storage_class=storage_class, product=product, purchase_order=purchase_order,
    )  # fmt: skip
    if overage_max is not None:
        body["overage_max"] = None if overage_max == "none" else size(overage_max)
    if not body:
        raise ConfigError("name what changes: --price, --sla, ...")
    store.show([store.change("PATCH", f"/api/v1/leases/{quoted(lease)}", body)], *LEASE_COLUMNS)


def _tomorrow() -> str:
    """Its first second, UTC."""
    import time

    return time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime(time.time() + 86_400))


def _lease_act(store: Store, lease: str, verb: str, body: object = None) -> None:
    found = store.change("POST", f"/api/v1/leases/{quoted(lease)}/{verb}", body)
    store.tell(f"lease {lease} is {found['state']}", found)


@lease_app.command("accept")
@changes
def lease_accept(store: Store, lease: LeaseId) -> None:
    """Accept a quote: it becomes a draft to be signed."""
    _lease_act(store, lease, "accept")


@lease_app.command("sign")
@changes
def lease_sign(store: Store, lease: LeaseId) -> None:
    """Sign it, if it is admitted: the capacity is sold from now on. Ends with 4 if there is not enough."""
    _lease_act(store, lease, "sign")


@lease_app.command("withdraw")
@changes
def lease_withdraw(store: Store, lease: LeaseId) -> None:
    """Withdraw a quote or a draft."""
    _lease_act(store, lease, "withdraw")


@lease_app.command("notice")
@changes
def lease_notice(store: Store, lease: LeaseId) -> None:
    """Give notice: it will not renew itself."""
    _lease_act(store, lease, "notice")


@lease_app.command("ramp")
@changes
def lease_ramp(store: Store, lease: LeaseId, at: str, capacity: str) -> None:
    """Another capacity from a moment to come on; more of it is admitted like a new lease.

    Of a lease that is signed; a quote or a draft gets its ramp by `lease set`."""
    _lease_act(store, lease, "ramp", {"at": at, "capacity": size(capacity)})


@lease_app.command("terminate")
@changes
def lease_terminate(
    store: Store, lease: LeaseId, at: Moment = None, reason: str = "", yes: YesOption = False
) -> None:
    """End it early; the fee waits for the next invoice."""
    path = f"/api/v1/leases/{quoted(lease)}"
    asked = f"?at={quoted(at)}" if at else ""
    found = store.get(f"{path}/termination{asked}")
    fee = amount(found["fee"], found["currency"])
    store.confirm(lease, f"Ending lease {lease} costs its tenant {fee}.", yes=yes)
    done = store.change("POST", f"{path}/terminate", {"at": at, "reason": reason})
    store.tell(
        f"lease {lease} ends on {done['lease']['end']}; fee {amount(done['fee'], done['currency'])}", done
    )


@lease_app.command("release")
@changes
def lease_release(store: Store, lease: LeaseId, yes: YesOption = False) -> None:
    """Give the nodes of a dedicated lease that is over back to their pool: others' bytes may come to them."""
    path = f"/api/v1/leases/{quoted(lease)}"
    tenant = store.get(path)["tenant"]
    store.confirm(lease, f"The nodes of lease {lease} are no longer only for {tenant}.", yes=yes)
    buckets, finished = 0, False
    with Steps("placing", "buckets") as progress:
        while not finished:
            step = store.change("POST", f"{path}/release")
            buckets, finished = buckets + step["buckets"], step["finished"]
            progress.reached(buckets)
    nodes = len(step["nodes"])
    words = f"{nodes} nodes of lease {lease} are their pool's again; {buckets} buckets of {tenant} moved on"
    store.tell(words, {**step, "buckets": buckets})


@offer_app.command("list")
@asks
def offer_list(store: Store) -> None:
    """Offers; with a user's token those that its tenant may order."""
    found = store.get("/api/v1/offers")["items"]
    store.show(
        found, "name", "kind", "least", "most", "terms_months", "unit_price", "unit", "currency", "open"
    )


@offer_app.command("put")
@changes
def offer_put(
    store: Store,
    name: str,
    least: Annotated[str, typer.Option(help="Of one order: 1TB.")],
    most: Annotated[str, typer.Option(help="Of one order: 100TB.")],
    months: Annotated[list[int], typer.Option(help="A term; once for each.")],
    price: Annotated[str, typer.Option(help="A unit and month.")],
    step: Annotated[str, typer.Option(help="An order is a multiple of it.")] = "1",
    kind: Annotated[str, typer.Option(help="guaranteed or best_effort.")] = "guaranteed",
    currency: str = "DZD",
    unit: str = "TB",
    title: str = "",
    for_: Annotated[
        list[str] | None, typer.Option("--for", help="A kind of customer; once for each.")
    ] = None,
    pool: str = "",
    overage: Annotated[
        str,
        typer.Option(help="average, instantaneous or peak_daily.  [nothing above it]", show_default=False),
    ] = "",
    overage_price: str = "0",
    overage_max: OverageMax = None,
    renews: Renews = None,
    billing: Billing = None,
    notice_days: NoticeDays = None,
    fee_share: FeeShare = None,
    fee_months: FeeMonths = None,
    sla: Level = None,
    storage_class: InClass = None,
    product: Product = None,
    begin_days: Annotated[
        int | None, typer.Option(help="An order begins within so many.", show_default=False)
    ] = None,
    closed: Annotated[bool, typer.Option("--closed", help="Takes no orders.")] = False,
) -> None:
    """Make an offer, or change what later orders get."""
    body = {
        "kind": kind,
        "title": title,
        "open": not closed,
        "customer_kinds": for_ or [],
        "least": size(least),
        "most": size(most),
        "step": size(step),
        "terms_months": months,
        "unit_price": price,
        "unit": unit,
        "currency": currency,
        "pool": pool,
        "overage_mode": overage,
        "overage_price": overage_price,
        "overage_max": None if overage_max is None else size(overage_max),
    } | _given(
        renews=renews, billing=billing, notice_days=notice_days, fee_share=fee_share, fee_months=fee_months,
        sla=sla, storage_class=storage_class, product=product, begin_days_max=begin_days,
    )  # fmt: skip
    store.show_facts(store.change("PUT", f"/api/v1/offers/{quoted(name)}", body))


@offer_app.command("order")
@changes
def offer_order(
    store: Store,
    name: str,
    capacity: Annotated[str, typer.Argument(help="As 10TB.")],
    months: Annotated[int, typer.Option(help="The term.")],
    tenant: OfTenant = "",
    begin: Moment = None,
) -> None:
    """Order from an offer: a lease, signed."""
    body = {"tenant": tenant, "capacity": size(capacity), "term_months": months, "begin": begin}
    store.show([store.change("POST", f"/api/v1/offers/{quoted(name)}/orders", body)], *LEASE_COLUMNS)


# --- usage ----------------------------------------------------------------------------------------

VERIFIED_AGAIN_MAX: Final = 10  # Times; hours are sealed within minutes, once an hour.


@usage_app.command("show")
@asks
def usage_show(
    store: Store,
    tenant: TenantName,
    month: Annotated[str, typer.Option(help="As 2026-10.  [the one that runs]", show_default=False)] = "",
    begin: Moment = None,
    end: Moment = None,
) -> None:
    """Sums of sealed hours by project, bucket, class and meter: byte-seconds, requests, bytes."""
    path = f"/api/v1/tenants/{quoted(tenant)}/usage"
    rows = store.listed(path, month=month, begin=begin, end=end)
    store.show(rows, "project", "bucket", "storage_class", "meter", "quantity")
    until = store.get(f"{path}?limit=1")["sealed_until"]
    sealed = f"hours until {until} are sealed" if until else "no hour is sealed"
    print(f"{sealed}; later ones are not in it", file=sys.stderr)


@usage_app.command("service")
@asks
def usage_service(
    store: Store,
    tenant: TenantName,
    month: Annotated[str, typer.Option(help="As 2026-10.  [the one that runs]", show_default=False)] = "",
) -> None:
    """Uptime of a month, what is given back for it, and the five minutes that failed."""
    path = f"/api/v1/tenants/{quoted(tenant)}/service"
    asked = f"?month={quoted(month)}&limit=1" if month else "?limit=1"
    facts = {**store.get(path + asked), "items": store.listed(path, month=month)}
    if not store.show_whole({**facts, "next": None}):
        rows = facts.pop("items")
        facts.pop("next")
        columns = ("begin", "requests", "failures", "minutes_unserved", "error_rate", "excluded")
        store.show_with(facts, "items", rows, *columns)


@usage_app.command("verify")
@asks
def usage_verify(store: Store, tenant: TenantName) -> None:
    """Whether a tenant's usage records are those that were sealed. Ends with 3 if not."""
    found = _verified(store, tenant)
    store.show([found], "records", "retired", "wrong")
    raise SystemExit(DEGRADED if found["wrong"] else OK)


def _verified(store: Store, tenant: str) -> dict[str, Any]:
    """What was found, step by step; anew where records changed meanwhile and something seems wrong."""
    from objstore.rental.usage import Joined, Step  # Metadata's records: not for every command.

    path = f"/api/v1/tenants/{quoted(tenant)}/usage/verify/steps"

    def step(after: bytes = b"") -> Step:
        found = store.get(f"{path}?cursor={after.hex()}" if after else path)
        return Step(
            records=found["records"],
            retired=found["retired"],
            wrong=tuple(found["wrong"]),
            runs=tuple((bytes.fromhex(one), bytes.fromhex(other)) for one, other in found["pieces"]),
            sealed=found["sealed"],
            newest=bytes.fromhex(found["newest"]),
            state=bytes.fromhex(found["state"]),
            after=None if found["next"] is None else bytes.fromhex(found["next"]),
        )

    first = step()
    for _ in range(VERIFIED_AGAIN_MAX):
        joined = Joined(first)
        with Steps("verifying", "records", logged=False) as progress:
            progress.reached(joined.records, joined.there)
            while joined.after is not None:
                joined.add(step(joined.after))
                progress.reached(joined.records, joined.there)
        verdict = joined.verdict()
        if not verdict.wrong or (first := step()).state == joined.state:
            break
    else:
        fail(f"usage of {tenant} kept changing while it was verified: ask again later")
    return {"records": verdict.records, "retired": verdict.retired, "wrong": list(verdict.wrong)}


@usage_app.command("resume")
@changes
def usage_resume(store: Store, yes: YesOption = False) -> None:
    """Seal hours again after the store was off for more than a month: an alarm asks for it."""
    words = "Hours up to what the store's clock says now will be sealed: is that clock right?"
    store.confirm("resume", words, yes=yes)
    found = store.change("POST", "/api/v1/usage/resume")
    store.tell(f"hours until {found['accepted']} will be sealed", found)


# --- invoices -------------------------------------------------------------------------------------

INVOICE_COLUMNS: Final = ("id", "number", "type", "tenant", "state", "period_begin", "total", "due", "paid")
INVOICE_AMOUNTS: Final = ("total_net", "total_tax", "total", "prepaid", "paid", "credited", "returned")


@invoice_app.command("list")
@asks
def invoice_list(
    store: Store,
    tenant: OfTenant = "",
    state: Annotated[
        str, typer.Option(help="draft, final, paid, overdue or cancelled.", show_default=False)
    ] = "",
    type_: Annotated[str, typer.Option("--type", help="invoice or credit_note.", show_default=False)] = "",
) -> None:
    """Invoices and credit notes of a tenant; without one all drafts."""
    found = store.listed("/api/v1/invoices", tenant=tenant, state=state, type=type_)
    store.show(_priced(found, "total", "paid"), *INVOICE_COLUMNS)


@invoice_app.command("show")
@asks
def invoice_show(store: Store, invoice: InvoiceId) -> None:
    """An invoice with its lines."""
    found = store.get(f"/api/v1/invoices/{quoted(invoice)}")
    lines = store.get(f"/api/v1/invoices/{quoted(invoice)}/lines")["items"]
    if not store.show_whole({**found, "lines": lines}):
        (facts,) = _priced([found], *INVOICE_AMOUNTS)
        rows = _priced([{**line, "currency": found["currency"]} for line in lines], "net")
        store.show_with(
            facts, "lines", rows, "project", "description", "quantity", "unit", "unit_price", "net"
        )


@invoice_app.command("draft")
@changes
def invoice_draft(store: Store, month: Annotated[str, typer.Argument(help="As 2026-10.")]) -> None:
    """Draft every customer's invoice of a month. The same again makes the same drafts."""
    sums: dict[str, Any] = dict.fromkeys(("tenants", "drafts", "nothing", "final", "corrections"), 0)
    told: list[dict[str, str]] = []
    after, finished = "", False
    with Steps("drafting", "customers") as progress:
        while not finished:
            step = store.change("POST", "/api/v1/invoices/drafts", {"month": month, "after": after})
            total = sums["tenants"] + step["customers"]
            sums = {name: sums[name] + step[name] for name in sums}
            told += step["problems"]
            told += [{**one, "why": f"no price for {one['why']}"} for one in step["unpriced"]]
            after, finished = step["after"], step["finished"]
            progress.reached(sums["tenants"], total)
    _ended(store, sums, told)


@invoice_app.command("finalise")
@changes
def invoice_finalise(
    store: Store,
    invoice: Annotated[str, typer.Argument(help="One; none: all whose time has come.")] = "",
    early: Annotated[bool, typer.Option("--early", help="Do not wait for late usage.")] = False,
    yes: YesOption = False,
) -> None:
    """Make drafts final: they get their numbers and never change again."""
    if invoice:
        store.confirm(invoice, "A final invoice never changes: only a credit note corrects it.", yes=yes)
        path = f"/api/v1/invoices/{quoted(invoice)}/finalise"
        made = store.change("POST", path, {"early": early})
        store.show(_priced([made], "total", "paid"), *INVOICE_COLUMNS)
        return
    if early:
        raise ConfigError("--early: name the invoice")
    store.confirm("finalise", "Final invoices never change: only credit notes correct them.", yes=yes)
    sums: dict[str, Any] = {"issued": 0, "waiting": 0}
    refused: list[dict[str, str]] = []
    finished = False
    with Steps("making final", "drafts") as progress:
        while not finished:
            step = store.change("POST", "/api/v1/invoices/finalise")
            total = sums["issued"] + step["drafts"]
            sums = {"issued": sums["issued"] + step["issued"], "waiting": step["waiting"]}
            refused, finished = step["refused"], step["finished"]
            if not finished and not step["issued"]:
                break  # All that is left is refused.
            progress.reached(sums["issued"], total)
    _ended(store, sums, refused)


def _ended(store: Store, sums: dict[str, Any], told: list[dict[str, str]]) -> None:
    """What a run came to; 3 if something was wrong with one of them."""
    if not store.show_whole({**sums, "problems": told}):
        store.show([sums], *sums)
        for one in told:
            print(f"{one['what']}: {one['why']}", file=sys.stderr)
    raise SystemExit(DEGRADED if told else OK)


_PART: Final = re.compile(r"([0-9]{1,9})=(-?[0-9]{1,18})", re.ASCII)


@invoice_app.command("credit")
@changes
def invoice_credit(
    store: Store,
    invoice: InvoiceId,
    reason: Annotated[str, typer.Option(help="billing_error, sla, goodwill or termination.")],
    line: Annotated[
        list[str] | None,
        typer.Option(help="NUMBER=AMOUNT in smallest units, net; once for each.  [all that is left]"),
    ] = None,
    yes: YesOption = False,
) -> None:
    """Issue a credit note: a part of an invoice is given back, or all that is left of it."""
    given = None if line is None else [_part(one) for one in line]
    what = "all that is left of it" if given is None else f"{len(given)} lines in part"
    store.confirm(invoice, f"A credit note is final: it gives back {what}.", yes=yes)
    path = f"/api/v1/invoices/{quoted(invoice)}/credit-notes"
    note = store.change("POST", path, {"reason": reason, "credits": given})
    store.show(_priced([note], "total", "paid"), *INVOICE_COLUMNS)


def _part(text: str) -> dict[str, int]:
    """Raises: ConfigError."""
    found = _PART.fullmatch(text)
    if found is None:
        raise ConfigError(f"--line {text}: it is NUMBER=AMOUNT, in smallest units")
    return {"line": int(found[1]), "amount": int(found[2])}


@invoice_app.command("pdf")
@asks
def invoice_pdf(
    store: Store,
    invoice: InvoiceId,
    to: Annotated[Path, typer.Argument(help="The file to write.")],
    language: Annotated[str, typer.Option(help="fr, ar or en.  [the customer's]", show_default=False)] = "",
) -> None:
    """Write it as PDF."""
    _save(store, f"/api/v1/invoices/{quoted(invoice)}/pdf?language={quoted(language)}", to)


@invoice_app.command("focus")
@asks
def invoice_focus(
    store: Store, invoice: InvoiceId, to: Annotated[Path, typer.Argument(help="The file to write.")]
) -> None:
    """Write it as FOCUS, in CSV. A month's documents, also as Parquet: report focus."""
    if to.suffix.lower() == ".parquet":
        raise ConfigError(f"{to}: one document is written as CSV; a month as Parquet: objstore report focus")
    _save(store, f"/api/v1/invoices/{quoted(invoice)}/focus", to)


def _save(store: Store, path: str, to: Path) -> None:
    check_writable(to)
    _, content = store.call("GET", path, whole=True)
    write_file(to, content)
    store.tell(f"{to}: {len(content)} bytes", {"file": str(to), "bytes": len(content)})


# --- payments -------------------------------------------------------------------------------------

PAYMENT_COLUMNS: Final = ("id", "tenant", "method", "amount", "reference", "received", "state", "to_wallet")


@payment_app.command("list")
@asks
def payment_list(store: Store, tenant: TenantName) -> None:
    """A tenant's payments."""
    found = store.listed("/api/v1/payments", tenant=tenant)
    store.show(_priced(found, "amount", "to_wallet"), *PAYMENT_COLUMNS)


@payment_app.command("receive")
@changes
def payment_receive(
    store: Store,
    tenant: TenantName,
    value: Annotated[str, typer.Argument(help="In the customer's currency, as 93242.45.")],
    method: Annotated[
        str,
        typer.Option(help="virement, cheque, cib_edahabia, carte, especes, mandat_administratif or prepaid."),
    ],
    reference: Annotated[str, typer.Option(help="A cheque's or transfer's number.", show_default=False)] = "",
    received: Moment = None,
    invoice: Annotated[
        list[str] | None,
        typer.Option(help="ID=AMOUNT; once for each.  [those that are due first]", show_default=False),
    ] = None,
    wallet: Annotated[bool, typer.Option("--wallet", help="All of it to the wallet.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="The reference is there already, and this is another payment.")
    ] = False,
) -> None:
    """Write a payment down and count it on invoices; the rest goes to the wallet."""
    parts = [_paid(one) for one in invoice or ()]
    body = {
        "tenant": tenant,
        "method": method,
        "amount": value,
        "reference": reference,
        "received": received,
        "invoices": [] if wallet else parts or None,
        "again": again,
    }
    made = store.change("POST", "/api/v1/payments", body)
    store.show(_priced([made], "amount", "to_wallet"), *PAYMENT_COLUMNS)


def _paid(text: str) -> dict[str, str]:
    """Raises: ConfigError."""
    document, _, value = text.partition("=")
    if not document or not value:
        raise ConfigError(f"--invoice {text}: it is ID=AMOUNT, as 01K...=93242.45")
    return {"invoice": document, "amount": value}


@payment_app.command("reverse")
@changes
def payment_reverse(
    store: Store,
    payment: Annotated[str, typer.Argument(help="The payment's id.")],
    reason: str,
    entry_error: Annotated[
        bool, typer.Option("--entry-error", help="It was written down by mistake: cash needs this.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """It bounced, was called back, or written down by mistake: its invoices are open again."""
    store.confirm(payment, "The invoices that it paid will be open again.", yes=yes)
    body = {"reason": reason, "entry_error": entry_error}
    made = store.change("POST", f"/api/v1/payments/{quoted(payment)}/reverse", body)
    store.show(_priced([made], "amount", "to_wallet"), *PAYMENT_COLUMNS)


@payment_app.command("wallet")
@asks
def payment_wallet(store: Store, tenant: TenantName) -> None:
    """What was paid in advance, and each change of it."""
    path = f"/api/v1/tenants/{quoted(tenant)}/wallet"
    found = store.get(path)
    rows = [{**row, "currency": found["currency"]} for row in store.listed(path)]
    store.show(_priced(rows, "amount", "balance"), "sequence", "at", "kind", "document", "amount", "balance")


# --- capacity -------------------------------------------------------------------------------------


@capacity_app.command("show")
@asks
def capacity_show(store: Store) -> None:
    """Pool by pool: what there is, what is sold and used, for how long it will do.

    Ends with 3 if more is sold than there is, or it is time to order disks."""
    found = store.get("/api/v1/capacity")["items"]
    store.show_each(found, [_capacity_for_people(pool) for pool in found], "pool")
    raise SystemExit(DEGRADED if any(one["oversold"] or one["order_now"] for one in found) else OK)


@capacity_app.command("rules")
@changes
def capacity_rules(
    store: Store,
    fill_max: Annotated[str | None, typer.Option(help="As 0.85.", show_default=False)] = None,
    spare_domains: Annotated[int | None, typer.Option(show_default=False)] = None,
    oversubscription: Annotated[str | None, typer.Option(help="Of best effort.", show_default=False)] = None,
    alert: Annotated[str | None, typer.Option(help="As 0.85.", show_default=False)] = None,
    lead_days: Annotated[int | None, typer.Option(show_default=False)] = None,
    include_planned: Annotated[bool | None, typer.Option(show_default=False)] = None,
) -> None:
    """By what rules capacity is sold; what is given changes."""
    given = {
        "fill_max": fill_max,
        "spare_domains": spare_domains,
        "oversubscription": oversubscription,
        "alert": alert,
        "lead_days": lead_days,
        "include_planned": include_planned,
    }
    body = {name: value for name, value in given.items() if value is not None}
    path = "/api/v1/capacity/rules"
    store.show_facts(store.change("PATCH", path, body) if body else store.get(path))


@capacity_app.command("events")
@asks
def capacity_events(store: Store) -> None:
    """Deliveries and removals, planned and done."""
    found = store.get("/api/v1/capacity/events")["items"]
    store.show(found, "id", "at", "raw", "state", "pool", "words")


@capacity_app.command("event")
@changes
def capacity_event(
    store: Store,
    at: Annotated[str, typer.Argument(help="As 2027-01-31T00:00:00Z.")],
    raw: Annotated[str, typer.Argument(help="Bytes of disks that come, as 480TB.")],
    leaves: Annotated[bool, typer.Option("--leaves", help="They leave.")] = False,
    state: Annotated[str, typer.Option(help="planned, delivered, done or cancelled.")] = "planned",
    event: Annotated[str, typer.Option("--id", help="Of one that changes.", show_default=False)] = "",
    pool: str = "",
    words: str = "",
) -> None:
    """Make a delivery or removal of disks known, or change one."""
    body = {
        "at": at, "raw": -size(raw) if leaves else size(raw), "state": state, "pool": pool, "words": words,
    }  # fmt: skip
    path = "/api/v1/capacity/events"
    if event:
        found = store.change("PUT", f"{path}/{quoted(event)}", body)
    else:
        found = store.change("POST", path, body)
    store.show([found], "id", "at", "raw", "state", "pool", "words")


# --- reports --------------------------------------------------------------------------------------


@report_app.command("capacity")
@asks
def report_capacity(store: Store) -> None:
    """As a table: what is sold and used of each pool."""
    columns = ("pool", "usable", "sold_guaranteed", "sold_share", "sold_best_effort", "used_logical", "fill")
    found = store.get("/api/v1/capacity")["items"]
    rows = found if store.nests else [_capacity_for_people(pool) for pool in found]
    store.show(rows, *columns, "sellable", "runway_days", "lead_days", "oversold")


@report_app.command("service")
@asks
def report_service(
    store: Store,
    month: Annotated[str, typer.Option(help="As 2026-10.  [the one that runs]", show_default=False)] = "",
) -> None:
    """Uptime of all tenants in a month, and what their service levels give back."""
    found = store.listed("/api/v1/reports/service-levels", month=month)
    rows = [
        {**row, "credit": None if row["credit"] is None else amount(row["credit"], row["currency"])}
        for row in found
    ]
    store.show(rows, "tenant", "level", "uptime", "failed", "share", "credit")


@report_app.command("open-invoices")
@asks
def report_open(store: Store) -> None:
    """All invoices that are not paid in full."""
    found = store.listed("/api/v1/reports/open-invoices")
    store.show(_priced(found, "open"), "tenant", "number", "invoice", "due", "open")
