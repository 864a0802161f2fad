"""A month's documents as FOCUS, in one file, sent as it is made."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final, Literal

import msgspec

from objstore.admin.callers import Rule
from objstore.admin.problems import Problem
from objstore.admin.routes import Call, File, Route, Stream, in_query
from objstore.errors import StoreError
from objstore.meta.kv import Kv
from objstore.rental.customers import all_customers, find_customer, tenants_under
from objstore.rental.focus import Pieces, Row, pieces_of
from objstore.rental.focus_months import all_rows
from objstore.rental.months import Month
from objstore.rental.records import CustomerRecord

log = logging.getLogger(__name__)

FILES_MAX: Final = 2  # Made at a time: each rates its tenants' months again.
ROWS_AT_ONCE: Final = 1_000  # Encoded in one step, on a thread.
TENANTS_AT_ONCE: Final = 50  # Then there is a piece in any case: whoever reads knows that it goes on.
KINDS: Final = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


class MonthFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one tenant; without one of all that the caller sees: a reseller itself and its customers."""

    month: str  # 2026-10
    tenant: str = ""
    seller: str = ""  # Of this seller's documents only.
    format: Literal["csv", "parquet"] = "csv"


class _Running:
    """How many files are made just now, in this process."""

    count = 0


_running: Final = _Running()


async def export(call: Call) -> Any:
    query: MonthFile = call.query
    month = Month.parse(query.month)
    if _running.count >= FILES_MAX:
        raise Problem(503, f"{FILES_MAX} such files are made just now: ask again later")
    pieces = pieces_of(query.format)
    customers = _customers(call)
    found = all_rows(call.kv, customers, month, seller=query.seller, region=call.services.region)
    file = _file(found, pieces)
    first = await anext(file)  # What is wrong from the beginning is answered, not cut off.
    return Stream(_all(first, file), KINDS[query.format], f"focus-{month}.{query.format}")


async def _all(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    try:
        async for piece in others:
            yield piece
    except StoreError as failure:
        log.error("a file of a month was cut off", extra={"failure": repr(failure)})
        raise


async def _customers(call: Call) -> AsyncIterator[CustomerRecord]:
    """Whose documents the caller asks for, and may see."""
    if call.query.tenant:
        yield await find_customer(call.kv, call.query.tenant)
    elif call.caller.is_operator:
        async for customer in all_customers(call.kv):
            yield customer
    else:
        async for customer in _under(call.kv, call.caller.tenant):
            yield customer


async def _under(kv: Kv, tenant: str) -> AsyncIterator[CustomerRecord]:
    for name in await tenants_under(kv, tenant):
        yield await find_customer(kv, name)


async def _file(found: AsyncGenerator[list[Row], None], pieces: Pieces) -> AsyncIterator[bytes]:
    _running.count += 1
    try:
        waiting: list[Row] = []
        tenants = 0
        async for rows in found:
            waiting += rows
            tenants += 1
            while len(waiting) >= ROWS_AT_ONCE or tenants >= TENANTS_AT_ONCE:
                some, waiting = waiting[:ROWS_AT_ONCE], waiting[ROWS_AT_ONCE:]
                tenants = 0
                yield await asyncio.to_thread(pieces.add, some)
        yield await asyncio.to_thread(pieces.add, waiting)
        yield await asyncio.to_thread(pieces.end)
    finally:
        _running.count -= 1


ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/reports/focus", name="export_month",
        summary="A month's final invoices and credit notes as FOCUS, in CSV or Parquet.",
        rule=Rule(action="invoices:Read"), owner=in_query, query=MonthFile, handler=export, answer=File,
    ),
)  # fmt: skip
