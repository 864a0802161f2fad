"""The audit log: who did what; and whether it is still what was written."""

from datetime import datetime
from typing import Any, Final

import msgspec

from objstore.admin.callers import OPERATORS, Rule
from objstore.admin.pages import cursor_of, name_of
from objstore.admin.problems import Problem
from objstore.admin.routes import Call, Nothing, Page, Route, in_query, of_store
from objstore.admin.views import List, microseconds, moment
from objstore.audit import log
from objstore.audit.records import BEGINNING, Anchor, AuditRecord


class Change(msgspec.Struct, frozen=True):
    what: str
    before: Any  # The fields that differ; null: there was nothing.
    after: Any


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    sequence: int
    at: str | None
    who: str
    tenant: str  # Of `who`; empty: the operator.
    token: str
    action: str
    target: str
    outcome: str
    source: str
    request: str
    changes: list[Change]


class Entries(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    since: datetime | None = None
    who: str = ""
    what: str = ""  # Somewhere in action or target.
    tenant: str = ""  # Of those who did it.


class Verify(Nothing, frozen=True, kw_only=True, forbid_unknown_fields=True):
    after: str = ""  # `upto` of the step before.
    anchor: str = ""  # Kept from an earlier verification: sequence:digest.


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    upto: str  # All is well up to here; as an anchor to keep once it is finished.
    records: int
    finished: bool  # False without a finding: ask again with `after` as this `upto`.
    finding: str


def _shown(sequence: int, record: AuditRecord) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "at": moment(record.at_us),
        "who": record.who,
        "tenant": record.tenant,
        "token": record.token,
        "action": record.action,
        "target": record.target,
        "outcome": record.outcome,
        "source": record.source,
        "request": record.request,
        "changes": [
            {"what": one.what, "before": _parsed(one.before), "after": _parsed(one.after)}
            for one in record.changes
        ],
    }


def _parsed(text: str) -> Any:
    return msgspec.json.decode(text) if text else None


async def entries(call: Call) -> List[Any]:
    text = name_of(call.query.cursor)
    if text and not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise Problem(400, "the address's query: cursor is not one of ours")
    wanted = log.Wanted(
        since_us=microseconds(call.query.since),
        who=call.query.who,
        what=call.query.what,
        tenant=call.query.tenant or call.caller.tenant,
    )
    before = int(text) if text else None
    found, following = await log.newest(call.kv, wanted, before=before, limit=call.query.limit)
    shown = [_shown(sequence, record) for sequence, record in found]
    return List(shown, None if following is None else cursor_of(str(following)))


async def verify(call: Call) -> Any:
    after = Anchor.parse(call.query.after) if call.query.after else BEGINNING
    anchor = Anchor.parse(call.query.anchor) if call.query.anchor else None
    found = await log.verify(call.kv, after=after, anchor=anchor)
    return {
        "upto": str(found.upto),
        "records": found.upto.sequence,
        "finished": found.finished,
        "finding": found.finding,
    }


ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/audit", name="list_audit",
        summary="Administrative acts, newest first; of a user those of its own tenant's users.",
        rule=Rule(action="audit:Read"), owner=in_query, query=Entries, handler=entries, answer=List[Entry],
    ),
    Route(
        method="GET", path="/api/v1/audit/verify", name="verify_audit",
        summary="Whether the log is what was written: one step of at most 20,000 records.",
        rule=OPERATORS, owner=of_store, query=Verify, handler=verify, answer=Verdict,
    ),
)  # fmt: skip
