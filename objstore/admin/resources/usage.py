"""Usage: what sealed hours say, exactly."""

from datetime import datetime
from typing import Any, Final

import msgspec

from objstore.admin.callers import OPERATORS, Rule
from objstore.admin.pages import page
from objstore.admin.problems import Problem
from objstore.admin.routes import Call, Nothing, Page, Route, in_path, of_store
from objstore.admin.views import List, microseconds, moment
from objstore.clock import SECOND_US
from objstore.rental import meters
from objstore.rental.months import Month
from objstore.rental.usage import (
    UsageOf,
    accept_hour,
    list_usage,
    sealed_until,
    total_usage,
    verify_step,
    verify_usage,
)
from objstore.rental.usage import UsageRow as UsageRecordRow

HOURS_MAX: Final = 24 * 400
HOUR_US: Final = meters.HOUR_S * SECOND_US
NAMES: Final = {
    meters.STORED: "stored_byte_seconds",
    meters.EARLY: "early_delete_byte_seconds",
    meters.REQUESTS_A: "requests_a",
    meters.REQUESTS_B: "requests_b",
    meters.SENT_INTERNET: "sent_internet_bytes",
    meters.SENT_INTERNAL: "sent_internal_bytes",
    meters.SENT_REPLICATION: "sent_replication_bytes",
}


class Usage(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whole hours; without begin and end the month that is named, else the one that runs."""

    month: str = ""
    begin: datetime | None = None
    end: datetime | None = None


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    bucket: str
    storage_class: str
    meter: str
    quantity: int


class UsageRows(msgspec.Struct, frozen=True, kw_only=True):
    begin: str | None
    end: str | None
    sealed_until: str | None  # Later hours are not in it yet.
    items: list[UsageRow]
    next: str | None


class UsageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed record, as it stands."""

    hour: str | None  # Its beginning.
    bucket_id: int
    bucket: str
    project: str
    storage_class: str
    meter: str
    quantity: int
    revision: int  # 1, and one more for each correction.
    sealed: str | None
    digest: str  # SHA-256; docs/formats.md says over what,
    previous: str  # and of the tenant's record sealed before.


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    records: int
    retired: int
    wrong: list[str]  # None: the chain holds.


class Behind(Nothing, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cursor: str = ""  # `next` of the step before.


class ChainStep(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the records, each held against its digest. Whoever joins the pieces of all steps verifies the
    chain: from no digest to `newest` in one piece, of as many records as were sealed."""

    records: int
    retired: int
    wrong: list[str]
    pieces: list[tuple[str, str]]  # `previous` of a piece's first record, `digest` of its last.
    sealed: int  # Records that were ever sealed,
    newest: str  # and the digest of the last of them.
    state: str  # Another one once records were sealed, corrected or removed: then findings need another look.
    next: str | None


def _hours(call: Call) -> tuple[int, int]:
    """[begin, end) in hours since 1970. Raises: Problem 400, BadArgument."""
    query = call.query
    if query.begin is None and query.end is None:
        month = Month.parse(query.month) if query.month else Month.containing(call.now_us // SECOND_US)
        return month.first_hour, month.first_hour + month.hours
    begin_us, end_us = microseconds(query.begin), microseconds(query.end) or call.now_us
    if query.month or query.begin is None or begin_us < 0 or begin_us % HOUR_US:
        raise Problem(400, "the address's query: begin and end are whole hours, or there is a month")
    begin, end = begin_us // HOUR_US, -(-end_us // HOUR_US)
    if not 0 < end - begin <= HOURS_MAX:
        raise Problem(400, f"the address's query: 1 to {HOURS_MAX} hours at once")
    return begin, end


async def show(call: Call) -> Any:
    begin, end = _hours(call)
    found = await total_usage(call.kv, call.params["tenant"], begin, end)
    rows = {_name(of): (of, quantity) for of, quantity in found.items()}
    names = sorted(rows)

    async def read(after: str, limit: int) -> list[str]:
        return [name for name in names if name > after][:limit]

    def row(name: str) -> dict[str, Any]:
        of, quantity = rows[name]
        return {
            "project": of.project,
            "bucket": of.bucket,
            "storage_class": of.storage_class or "STANDARD",
            "meter": NAMES[of.meter],
            "quantity": quantity,
        }

    part = await page(call.query, read, lambda name: name, row)
    return {
        "begin": moment(begin * HOUR_US),
        "end": moment(end * HOUR_US),
        "sealed_until": moment(await sealed_until(call.kv) * HOUR_US),
        "items": part.items,
        "next": part.next,
    }


def _name(of: UsageOf) -> str:
    return "/".join((of.project, of.bucket, of.storage_class, NAMES[of.meter]))


async def entries(call: Call) -> List[Any]:
    async def read(after: str, limit: int) -> list[tuple[bytes, UsageRecordRow]]:
        try:
            place = bytes.fromhex(after)
        except ValueError:
            raise Problem(400, "the address's query: cursor is not one of ours") from None
        return await list_usage(call.kv, call.params["tenant"], after=place, limit=limit)

    return await page(call.query, read, lambda found: found[0].hex(), lambda found: _entry(found[1]))


def _entry(row: UsageRecordRow) -> dict[str, Any]:
    record = row.record
    return {
        "hour": moment(row.hour * HOUR_US),
        "bucket_id": row.bucket,
        "bucket": record.bucket,
        "project": record.project,
        "storage_class": row.storage_class or "STANDARD",
        "meter": NAMES[row.meter],
        "quantity": record.total,
        "revision": record.revision,
        "sealed": moment(record.sealed_us),
        "digest": record.digest.hex(),
        "previous": record.previous.hex(),
    }


async def verify(call: Call) -> Any:
    found = await verify_usage(call.kv, call.params["tenant"])
    return {"records": found.records, "retired": found.retired, "wrong": list(found.wrong)}


async def verify_some(call: Call) -> Any:
    try:
        after = bytes.fromhex(call.query.cursor)
    except ValueError:
        raise Problem(400, "the address's query: cursor is not one of ours") from None
    step = await verify_step(call.kv, call.params["tenant"], after)
    return {
        "records": step.records,
        "retired": step.retired,
        "wrong": list(step.wrong),
        "pieces": [(previous.hex(), digest.hex()) for previous, digest in step.runs],
        "sealed": step.sealed,
        "newest": step.newest.hex(),
        "state": step.state.hex(),
        "next": None if step.after is None else step.after.hex(),
    }


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    sealed_until: str | None
    accepted: str | None  # An operator said that it is as late as this.


async def resume(call: Call) -> Mark:
    mark = await accept_hour(call.kv, call.now_us // HOUR_US)
    return Mark(sealed_until=moment(mark.hour * HOUR_US), accepted=moment(mark.accepted * HOUR_US))


_READ: Final = Rule(action="usage:Read")
ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/tenants/{tenant}/usage", name="show_usage",
        summary="Sums of sealed hours by project, bucket, class and meter.",
        rule=_READ, owner=in_path, query=Usage, handler=show, answer=UsageRows,
    ),
    Route(
        method="GET", path="/api/v1/tenants/{tenant}/usage/records", name="list_usage_records",
        summary="Its sealed hourly records, as they stand.",
        rule=_READ, owner=in_path, query=Page, handler=entries, answer=List[UsageEntry],
    ),
    Route(
        method="GET", path="/api/v1/tenants/{tenant}/usage/verify", name="verify_usage",
        summary="Whether a tenant's usage records are those that were sealed.",
        rule=_READ, owner=in_path, handler=verify, answer=Chain,
    ),
    Route(
        method="GET", path="/api/v1/tenants/{tenant}/usage/verify/steps", name="verify_usage_step",
        summary="The same in steps of some 20,000 records, whose pieces the caller joins.",
        rule=_READ, owner=in_path, query=Behind, handler=verify_some, answer=ChainStep,
    ),
    Route(
        method="POST", path="/api/v1/usage/resume", name="resume_sealing",
        summary="Say that the clock is right, though the last hour was sealed long ago: the store was off.",
        rule=OPERATORS, owner=of_store, handler=resume, answer=Mark,
    ),
)  # fmt: skip
