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
    progress: bool = False  # Each piece of the file behind a line of JSON: Head.


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How far the file is, before a piece of it."""

    customers: int  # Whose documents are asked for,
    done: int  # and how many of them the file has gone through.
    bytes: int  # Of the piece that follows; it may have none.
    finished: bool  # This is the last one. Without it the file is cut off.


class _Running:
    """The files that are made just now, in this process."""

    def __init__(self) -> None:
        self.count = 0
        # Whose users asked for one: whoever reads slowly keeps out nobody else.
        self.tenants: set[str] = set()


_running: Final = _Running()


async def export(call: Call) -> Any:
    query: MonthFile = call.query
    month = Month.parse(query.month)
    total = len([True async for _ in _customers(call)]) if query.progress else 0
    if _running.count >= FILES_MAX or call.caller.tenant in _running.tenants:
        raise Problem(503, f"{FILES_MAX} such files, or one of yours, are made just now: ask again later")
    pieces = pieces_of(query.format)
    customers = _Passed(_customers(call))
    found = all_rows(call.kv, customers.each(), month, seller=query.seller, region=call.services.region)
    file = _file(found, pieces, call.caller.tenant)
    if not query.progress:
        file = (piece async for piece in file if piece)
    # Nothing was waited for since it was seen that there is a place; this takes it.
    first = await anext(file)  # What is wrong from the beginning is answered, not cut off.
    sent = _all(first, file)
    if not query.progress:
        return Stream(sent, KINDS[query.format], f"focus-{month}.{query.format}")
    return Stream(_headed(sent, customers, total), "application/octet-stream", f"focus-{month}")


async def _all(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    try:
        async for piece in others:
            yield piece
    except StoreError as failure:
        log.error("a file of a month was cut off", extra={"failure": repr(failure)})
        raise


class _Passed:
    """Customers one after the other, and how many of them are done."""

    def __init__(self, customers: AsyncIterator[CustomerRecord]) -> None:
        self._customers = customers
        self.count = 0

    async def each(self) -> AsyncIterator[CustomerRecord]:
        async for customer in self._customers:
            yield customer
            self.count += 1


async def _headed(pieces: AsyncIterator[bytes], passed: _Passed, total: int) -> AsyncIterator[bytes]:
    """Each piece behind its Head, and one more Head at the end."""

    def head(size: int, *, finished: bool) -> bytes:
        customers = max(total, passed.count)  # Some may be new.
        one = Head(customers=customers, done=passed.count, bytes=size, finished=finished)
        return msgspec.json.encode(one) + b"\n"

    async for piece in pieces:
        yield head(len(piece), finished=False) + piece
    yield head(0, finished=True)


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


async def _file(found: AsyncGenerator[list[Row], None], pieces: Pieces, caller: str) -> AsyncIterator[bytes]:
    """The file in pieces; an empty one for each tenant that brings none, since its rows wait for others.

    Args:
        caller: the tenant whose user asked; empty: an operator, who may have as many as there are.
    """
    _running.count += 1
    _running.tenants |= {caller} - {""}
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
            yield b""
        yield await asyncio.to_thread(pieces.add, waiting)
        yield await asyncio.to_thread(pieces.end)
    finally:
        _running.count -= 1
        _running.tenants.discard(caller)


ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/reports/focus", name="export_month",
        summary="A month's final invoices and credit notes as FOCUS, in CSV or Parquet.",
        rule=Rule(action="invoices:Read"), owner=in_query, query=MonthFile, handler=export, answer=File,
    ),
)  # fmt: skip
