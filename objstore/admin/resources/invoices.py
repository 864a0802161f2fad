"""Invoices and credit notes: drafted, made final, printed, exported."""

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from objstore.admin.callers import OPERATORS, Rule
from objstore.admin.pages import page
from objstore.admin.problems import Problem
from objstore.admin.routes import Call, File, Page, Route, in_query, of_store
from objstore.admin.views import List, list_of, shown, view
from objstore.ids import ulid
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.rental import billing, catalogue, focus, invoices
from objstore.rental.credit_notes import Credit, credit_notes, issue_credit_note
from objstore.rental.focus_months import document_rows
from objstore.rental.months import Month
from objstore.rental.records import InvoiceRecord, Line, customer_key, document_key, draft_key
from objstore.rental.settlement import DRAFT

READ: Final = Rule(action="invoices:Read")
COUNTED_AT_ONCE: Final = 1_000
STEP_SECONDS: Final = 2.0  # Of one request that drafts or finalises many: it says where to go on.
# Until the first one is issued: drafts that are refused are tried again by every step.
LONG_STEP_SECONDS: Final = 20.0
Document: Final = view(InvoiceRecord, "Document")


class Documents(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a tenant; the operator's without a tenant: all drafts."""

    tenant: str = ""
    state: Literal["", "draft", "final", "paid", "overdue", "cancelled"] = ""
    type: Literal["", "invoice", "credit_note"] = ""


class Language(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    language: Literal["", "fr", "ar", "en"] = ""  # Empty: the customer's.


class NewDrafts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    month: str  # 2026-10
    after: str = ""  # Where the step before came to.


class Told(msgspec.Struct, frozen=True, kw_only=True):
    what: str  # A tenant, or a document.
    why: str


class Drafted(msgspec.Struct, frozen=True, kw_only=True):
    """What one step came to."""

    customers: int  # Behind `after`, as the step found them: how much there is to do.
    tenants: int  # Looked at.
    drafts: int
    nothing: int
    final: int
    corrections: int
    after: str
    finished: bool  # False: ask again with this `after`.
    problems: list[Told]
    unpriced: list[Told]


class Finalise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    early: bool = False  # Do not wait until late usage has come in.


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """What one step came to."""

    drafts: int  # As the step found them, waiting ones among them.
    issued: int
    waiting: int  # Drafts whose time has not come.
    finished: bool  # False: ask again.
    refused: list[Told]


class GivenBack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    line: int  # Of the invoice, from 1.
    amount: int  # Net, smallest units.
    description: str = ""


class NewCreditNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: Literal["billing_error", "sla", "goodwill", "termination"]
    credits: list[GivenBack] | None = None  # Null: all that is left of the invoice.


def records(call: Call) -> Sequence[bytes]:
    return [document_key(call.params["invoice"])]


async def of_document(call: Call) -> str | None:
    return (await invoices.find_document(call.kv, call.params["invoice"])).tenant


async def list_all(call: Call) -> List[Any]:
    query = call.query
    tenant = query.tenant or call.caller.tenant

    async def read(after: str, limit: int) -> list[InvoiceRecord]:
        found: list[InvoiceRecord] = []
        while len(found) < limit:
            records = await (
                invoices.list_documents(call.kv, tenant, after=after, limit=limit)
                if tenant
                else invoices.list_drafts(call.kv, after=after, limit=limit)
            )
            found += [
                one for one in records if query.state in ("", one.state) and query.type in ("", one.type)
            ]
            if len(records) < limit:
                break
            after = records[-1].id
        return found[:limit]

    return await page(call.query, read, lambda record: record.id, shown)


async def show(call: Call) -> Any:
    return shown(await invoices.find_document(call.kv, call.params["invoice"]))


async def lines(call: Call) -> List[Any]:
    record = await invoices.find_document(call.kv, call.params["invoice"])
    return List([shown(line) for line in await invoices.read_lines(call.kv, record)], None)


class _TimeIsUp(Exception):
    """Of this request: the next one goes on."""


async def draft(call: Call) -> Any:
    month = Month.parse(call.body.month)
    after = call.body.after
    behind = customer_key(after) + b"\0" if after else customer_key("")
    customers = await _count(call.kv, customer_key(""), behind)
    limit = call.clock.monotonic() + STEP_SECONDS
    last = billing.MonthRun(after=after)

    def progress(run: billing.MonthRun) -> None:
        nonlocal last
        last = run
        if call.clock.monotonic() >= limit:
            raise _TimeIsUp

    try:
        last = await billing.draft_month(
            call.kv,
            month,
            rules=await catalogue.tax_rules(call.kv),
            now_us=call.now_us,
            randomness=call.services.randomness,
            after=after,
            progress=progress,
        )
        finished = True
    except _TimeIsUp:
        finished = False
    return {
        "customers": customers,
        "tenants": last.tenants,
        "drafts": last.drafts,
        "nothing": last.nothing,
        "final": last.final,
        "corrections": last.corrections,
        "after": last.after,
        "finished": finished,
        "problems": _told(last.problems),
        "unpriced": _told(last.unpriced),
    }


async def _count(kv: Kv, prefix: bytes, start: bytes) -> int:
    """Keys of a prefix from one on."""
    return sum([len(found) async for found in pages(kv, start, prefix_end(prefix), COUNTED_AT_ONCE)])


def _told(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"what": what, "why": why} for what, why in pairs]


async def finalise_one(call: Call) -> Any:
    document, early = call.params["invoice"], call.body.early
    (record,) = await invoices.finalise(call.kv, [document], now_us=call.now_us, early=early)
    return shown(record)


async def finalise_due(call: Call) -> Any:
    drafts = await _count(call.kv, draft_key(""), draft_key(""))
    limit = call.clock.monotonic() + LONG_STEP_SECONDS
    issues = False
    last = invoices.FinalRun()

    def progress(run: invoices.FinalRun) -> None:
        nonlocal last, issues, limit
        last = run
        now = call.clock.monotonic()
        if run.issued and not issues:
            issues, limit = True, now + STEP_SECONDS
        if now >= limit:
            raise _TimeIsUp

    try:
        last = await invoices.finalise_due(call.kv, now_us=call.now_us, progress=progress)
        finished = True
    except _TimeIsUp:
        finished = False
    refused = _told(last.refused)
    return {
        "drafts": drafts,
        "issued": last.issued,
        "waiting": last.waiting,
        "finished": finished,
        "refused": refused,
    }


async def notes(call: Call) -> List[Any]:
    return List([shown(note) async for note in credit_notes(call.kv, call.params["invoice"])], None)


async def credit(call: Call) -> Any:
    given = call.body.credits
    note = await issue_credit_note(
        call.kv,
        ulid(call.now_us, call.services.randomness),
        call.params["invoice"],
        None if given is None else [Credit(one.line, one.amount, one.description) for one in given],
        reason=call.body.reason,
        now_us=call.now_us,
    )
    return shown(note)


async def pdf(call: Call) -> Any:
    if call.services.render is None:
        raise Problem(503, "this process does not print documents")
    from objstore.rental.documents.content import Document as Printed  # Loads calendars and words.

    record = await invoices.find_document(call.kv, call.params["invoice"])
    found = Printed.of(record, await invoices.read_lines(call.kv, record), call.query.language)
    return File(await call.services.render(found), "application/pdf", f"{_name(record)}.pdf")


async def focus_csv(call: Call) -> Any:
    record = await invoices.find_document(call.kv, call.params["invoice"])
    if record.state == DRAFT:
        raise Problem(409, "a draft is not exported: its figures may still change")
    pieces = focus.CsvPieces()
    content = pieces.add(await document_rows(call.kv, record, region=call.services.region)) + pieces.end()
    return File(content, "text/csv; charset=utf-8", f"{_name(record)}.focus.csv")


def _name(record: InvoiceRecord) -> str:
    return record.number or f"draft-{record.id}"


_ALL, _ONE = "/api/v1/invoices", "/api/v1/invoices/{invoice}"
ROUTES: Final = (
    Route(
        method="GET", path=_ALL, name="list_invoices",
        summary="Invoices and credit notes of a tenant; of the operator without a tenant all drafts.",
        rule=READ, owner=in_query, query=Documents, handler=list_all, answer=list_of(Document),
    ),
    Route(
        method="POST", path=f"{_ALL}/drafts", name="draft_invoices",
        summary="Draft a month's invoices: a step of some seconds, that says where to go on.",
        rule=OPERATORS, owner=of_store, body=NewDrafts, handler=draft, answer=Drafted,
    ),
    Route(
        method="POST", path=f"{_ALL}/finalise", name="finalise_invoices",
        summary="Make final whatever draft's time has come: a step of some seconds.",
        rule=OPERATORS, owner=of_store, handler=finalise_due, answer=Issued,
    ),
    Route(
        method="GET", path=_ONE, name="show_invoice", summary="An invoice or a credit note.",
        rule=READ, owner=of_document, handler=show, answer=Document, tags=records,
    ),
    Route(
        method="GET", path=f"{_ONE}/lines", name="list_lines", summary="Its lines.",
        rule=READ, owner=of_document, handler=lines, answer=list_of(view(Line)),
    ),
    Route(
        method="POST", path=f"{_ONE}/finalise", name="finalise_invoice",
        summary="Make a draft final: it gets its number and never changes again.",
        rule=OPERATORS, owner=of_document, body=Finalise, handler=finalise_one, answer=Document,
        tags=records,
    ),
    Route(
        method="GET", path=f"{_ONE}/credit-notes", name="list_credit_notes", summary="Its credit notes.",
        rule=READ, owner=of_document, handler=notes, answer=list_of(Document),
    ),
    Route(
        method="POST", path=f"{_ONE}/credit-notes", name="issue_credit_note",
        summary="Give back a part of it, or all that is left.",
        rule=OPERATORS, owner=of_document, body=NewCreditNote, handler=credit, answer=Document, status=201,
        tags=records,
    ),
    Route(
        method="GET", path=f"{_ONE}/pdf", name="print_invoice", summary="As PDF.",
        rule=READ, owner=of_document, query=Language, handler=pdf, answer=File,
    ),
    Route(
        method="GET", path=f"{_ONE}/focus", name="export_invoice", summary="As FOCUS, in CSV.",
        rule=READ, owner=of_document, handler=focus_csv, answer=File,
    ),
)  # fmt: skip
