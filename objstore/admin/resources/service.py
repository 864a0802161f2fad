"""Service levels as they were kept: a tenant's month, all tenants' months, and what gateways cannot see."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import msgspec

from objstore.admin.callers import OPERATORS, Rule
from objstore.admin.pages import page
from objstore.admin.resources.reports import READ, by_customer
from objstore.admin.routes import Call, Page, Route, in_path, of_anybody, of_store
from objstore.admin.views import List, body_of, given_of, list_of, moment, shown, view
from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.iam.tenants import find_tenant
from objstore.ids import ulid
from objstore.meta.kv import Kv
from objstore.meta.schema import decode
from objstore.rental import service_credits
from objstore.rental.availability import open_interval
from objstore.rental.catalogue import find_service_level
from objstore.rental.meters import HOUR_S
from objstore.rental.months import Month
from objstore.rental.records import CustomerRecord, customer_key
from objstore.rental.service_levels import (
    S3_STANDARD,
    Assessment,
    Row,
    ServiceEventRecord,
    percent_text,
    service_event_key,
)
from objstore.rental.usage import sealed_until

Event: Final = view(ServiceEventRecord)
NewEvent: Final = body_of(ServiceEventRecord, "NewServiceEvent", omit=("id", "made_us"))


class OfMonth(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    month: str = ""  # 2026-10; empty: the one that runs.


class LevelKept(msgspec.Struct, frozen=True, kw_only=True):
    level: str
    share: str  # Of the affected charges that is given back, as it stands: "0.10".


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    level: str
    share: str
    net: int  # Smallest units, before tax: it waits for the next invoice, or stands on it.


class FiveMinutes(msgspec.Struct, frozen=True, kw_only=True):
    begin: str
    requests: int
    failures: int
    minutes_unserved: int
    error_rate: str  # Numerator/denominator.
    excluded: str  # Why it does not count; empty: it does.


class ServiceMonth(msgspec.Struct, frozen=True, kw_only=True):
    """Uptime in percent, four places, rounded down; null: nothing is sealed yet."""

    month: str
    begin: str | None
    end: str | None  # Up to where hours are sealed.
    uptime: str | None
    counted: int  # Five minutes that count.
    levels: list[LevelKept]
    open_requests: int  # Of the hours that are not sealed yet,
    open_failures: int  # and what of them failed.
    invoice: str  # The number of the month's invoice, once it was held against the levels,
    credits: list[Granted]  # and what came of it.
    items: list[FiveMinutes]  # Those with failures or minutes unserved, and those excluded.
    next: str | None


class ServiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """Of a tenant and level; of one without a level: its uptime."""

    tenant: str
    resellers: list[str]  # Above it, from the caller's own customer down.
    level: str
    uptime: str | None
    failed: int  # Five minutes with failures or minutes unserved.
    share: str
    currency: str
    credit: int | None  # Smallest units, net; null: the month was not held against the level yet.


def _month(call: Call) -> Month:
    return Month.parse(call.query.month) if call.query.month else Month.containing(call.now_us // SECOND_US)


async def _assessed(kv: Kv, customer: CustomerRecord, month: Month) -> tuple[list[str], list[Assessment]]:
    """The levels that a customer was promised, and the month held against each; without one against S3's.

    A customer without a plan, or with a level that is not there, was promised nothing: its invoices say so.
    """
    try:
        names = (await service_credits.promised_to(kv, customer, month)).all
        levels = [await find_service_level(kv, name) for name in names] or [S3_STANDARD]
    except BadArgument:
        names, levels = [], [S3_STANDARD]
    until_s = await sealed_until(kv) * HOUR_S
    return names, await service_credits.assess_month(kv, customer, month, levels, until_s=until_s)


async def _customer(kv: Kv, name: str) -> CustomerRecord:
    """To a tenant that is no customer nothing was promised. Raises: BadArgument (no such tenant)."""
    value = await kv.get(customer_key(name))
    if value is not None:
        return decode(value, CustomerRecord)
    tenant = await find_tenant(kv, name)
    return CustomerRecord(tenant=tenant.name, kind="internal", seller="", created_us=tenant.created_us)


async def show(call: Call) -> Any:
    customer = await _customer(call.kv, call.params["tenant"])
    month = _month(call)
    names, assessed = await _assessed(call.kv, customer, month)
    first = assessed[0] if assessed else None
    rows = {f"{row.begin_s:012d}": row for row in (first.rows if first is not None else ())}

    async def read(after: str, limit: int) -> Sequence[str]:
        return [name for name in sorted(rows) if name > after][:limit]

    part = await page(call.query, read, lambda name: name, lambda name: _row(rows[name]))
    next_hour = call.now_us // SECOND_US // HOUR_S + 1
    open_now = await open_interval(call.kv, customer.tenant, until_hour=next_hour)
    held = await service_credits.settled_service(call.kv, customer.tenant, month)
    return {
        "month": str(month),
        "begin": None if first is None else moment(first.begin_s * SECOND_US),
        "end": None if first is None else moment(first.end_s * SECOND_US),
        "uptime": None if first is None else first.uptime_text(),
        "counted": 0 if first is None else first.counted,
        "levels": [{"level": one.level.id, "share": f"{one.credit:f}"} for one in assessed if names],
        "open_requests": open_now.requests,
        "open_failures": open_now.failures,
        "invoice": "" if held is None else held.invoice,
        "credits": [] if held is None else [shown(one) for one in held.credits],
        "items": part.items,
        "next": part.next,
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "begin": moment(row.begin_s * SECOND_US),
        "requests": row.requests,
        "failures": row.failures,
        "minutes_unserved": row.unserved,
        "error_rate": str(row.error_rate),
        "excluded": row.excluded,
    }


async def report(call: Call) -> List[Any]:
    month = _month(call)

    async def rows(customer: CustomerRecord) -> list[dict[str, Any]]:
        return await _report_of(call.kv, customer, month)

    return await by_customer(call, call.query, rows)


async def _report_of(kv: Kv, customer: CustomerRecord, month: Month) -> list[dict[str, Any]]:
    """As it was settled, or as it stands."""
    common = {"currency": customer.currency}
    held = await service_credits.settled_service(kv, customer.tenant, month)
    if held is not None:
        uptime = percent_text(Fraction(held.uptime))
        return [
            {**common, "level": one.level, "uptime": uptime, "failed": held.failed, "share": one.share,
             "credit": one.net}
            for one in held.credits
        ]  # fmt: skip
    names, assessed = await _assessed(kv, customer, month)
    return [
        {
            **common,
            "level": one.level.id if names else "",
            "uptime": one.uptime_text(),
            "failed": one.failed,
            "share": f"{one.credit:f}" if names else "0",
            "credit": None,
        }
        for one in assessed
    ]


async def list_events(call: Call) -> List[Any]:
    return List([shown(one) for one in await service_credits.list_service_events(call.kv)], None)


async def add_event(call: Call) -> Any:
    event = ServiceEventRecord(
        id=ulid(call.now_us, call.services.randomness),
        made_us=call.now_us,
        **given_of(call.body, ServiceEventRecord),
    )
    return shown(await service_credits.put_service_event(call.kv, event, now_us=call.now_us))


async def remove_event(call: Call) -> Any:
    return shown(await service_credits.remove_service_event(call.kv, call.params["service_event"]))


def event_records(call: Call) -> Sequence[bytes]:
    return [service_event_key(call.params["service_event"])]


_EVENTS: Final = "/api/v1/service-events"
ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/tenants/{tenant}/service", name="show_service",
        summary="A tenant's month in five-minute error rates, held against what was promised.",
        rule=Rule(action="usage:Read"), owner=in_path, query=OfMonth, handler=show, answer=ServiceMonth,
    ),
    Route(
        method="GET", path="/api/v1/reports/service-levels", name="report_service_levels",
        summary="Uptime and credits of a month, tenant by tenant.",
        rule=READ, owner=of_anybody, query=OfMonth, handler=report, answer=List[ServiceRow],
    ),
    Route(
        method="GET", path=_EVENTS, name="list_service_events",
        summary="Maintenance that was announced, and outages that gateways did not see.",
        rule=OPERATORS, owner=of_store, handler=list_events, answer=list_of(Event),
    ),
    Route(
        method="POST", path=_EVENTS, name="add_service_event",
        summary="Announce maintenance, or tell of an outage.",
        rule=OPERATORS, owner=of_store, body=NewEvent, handler=add_event, answer=Event, status=201,
    ),
    Route(
        method="DELETE", path=f"{_EVENTS}/{{service_event}}", name="remove_service_event",
        summary="Take one back; months that were held against their levels stay as they are.",
        rule=OPERATORS, owner=of_store, handler=remove_event, answer=Event, tags=event_records,
    ),
)  # fmt: skip
