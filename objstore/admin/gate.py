"""The one way into the versioned admin API: who asks, whether they may, what they send, what they get.

    1. token              401, whatever the path
    2. route              404, 405; 429 for more than a tenant's share (shares.py)
    3. query              400, 413, 415; a body is read from known callers only
    4. rule, body         403, 404 of what is another tenant's; 400
    5. Idempotency-Key    422, 409, or the answer of the first time
    6. If-Match           412; what was seen is expected by the act's own commit
    7. handler            through a `Kv` that records every commit in the audit log

What is refused to a known caller is in the audit log as well, within a bound.

Concurrency: one event loop; nothing is kept between requests but the count of refusals noted.
"""

import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from objstore.admin import openapi, repeats
from objstore.admin.bodies import parse_body, parse_query, read_body
from objstore.admin.callers import Caller, caller_of, check_may
from objstore.admin.guard import noted
from objstore.admin.problems import FieldError, Problem
from objstore.admin.routes import PREFIX, Call, File, Match, Nothing, Page, Route, Services, Stream, Table
from objstore.admin.shares import Shares
from objstore.audit.log import Deed, RecordedKv, note
from objstore.clock import Clock
from objstore.errors import BadArgument, ConditionFailed, Rejected, StateForbids, StoreError, Unavailable
from objstore.meta.kv import Kv

log = logging.getLogger(__name__)

NOTED_MAX: Final = 60  # Refusals of one caller that are recorded in an hour: more are in the log only.
NOTED_CALLERS_MAX: Final = 1_000
HOUR_US: Final = 3_600 * 1_000_000
OPENAPI_PATH: Final = f"{PREFIX}openapi.json"


class Gate:
    def __init__(
        self,
        table: Table,
        kv: Kv,
        services: Services,
        *,
        token: str,
        clock: Clock,
        used: Callable[[str], None] = lambda _: None,
    ) -> None:
        """used: told the id of every user's token that is good."""
        self._table = table
        self._kv = kv
        self._services = services
        self._token = token
        self._clock = clock
        self._noted: dict[tuple[str, int], int] = {}  # Caller and hour -> refusals recorded.
        self._description: bytes | None = None
        self._shares = Shares(clock)
        self._used = used

    async def answer(self, request: web.BaseRequest) -> web.Response | None:
        """None: no such path is here."""
        path = request.rel_url.raw_path
        method = "GET" if request.method == "HEAD" else request.method
        match, methods = self._table.find(method, path)
        if not methods and path != OPENAPI_PATH:
            return None
        caller = await caller_of(request, self._kv, self._token, now_us=self._clock.now_us())
        if caller is None:
            raise Problem(401, "a token is needed: Authorization: Bearer TOKEN (an admin token or a user's)")
        if caller.token:
            self._used(caller.token)
        if path == OPENAPI_PATH and method == "GET":
            if self._description is None:
                self._description = openapi.text(self._table).encode()
            return _json(self._description)
        if match is None:
            raise Problem(405, f"{path} takes {', '.join(sorted(set(methods)))}")
        if caller.is_operator:
            return await self._serve(request, caller, match)
        with self._shares.taken(caller.tenant, changes=match.route.changes):
            return await self._serve(request, caller, match)

    async def _serve(self, request: web.BaseRequest, caller: Caller, match: Match) -> web.Response:
        route = match.route
        if len(request.query) != len(set(request.query)):
            raise Problem(400, "the address's query: a field is given twice")
        content = await read_body(request) if route.changes else b""
        deed = Deed(
            who=caller.name,
            action=route.name,
            target=request.rel_url.raw_path.removeprefix(PREFIX),
            tenant=caller.tenant,
            token=caller.token,
            source=request.remote or "",
            request=self._services.randomness(8).hex(),
        )
        act = RecordedKv(self._kv, deed, self._clock)
        try:
            query: Any = parse_query(request.query, route.query)
            if isinstance(query, Page) and not 1 <= query.limit <= 1_000:
                raise Problem(400, "the address's query: limit is 1 to 1000")
            body, wrong = _body(route, content)
            call = Call(
                caller=caller,
                kv=act if route.changes else self._kv,
                clock=self._clock,
                services=self._services,
                params=match.params,
                query=query,
                body=body,
            )
            await check_may(self._kv, caller, route.rule, await _owner(call, match))
            if wrong is not None:
                raise wrong
            return await self._repeatable(request, call, match, act, content)
        except repeats.Refused:
            raise
        except Problem as problem:
            await self._note(deed, route.changes, problem)
            raise
        except StoreError as failure:
            answer = problem_of(failure, match.params, route.body)
            await self._note(deed, route.changes, answer)
            if answer.status == 500:
                log.error("admin request failed", extra={"path": request.path, "failure": repr(failure)})
            raise answer from failure

    async def _repeatable(
        self, request: web.BaseRequest, call: Call, match: Match, act: RecordedKv, content: bytes
    ) -> web.Response:
        text = request.headers.get("Idempotency-Key")
        if text is None or match.route.method != "POST":
            return await self._tagged(request, call, match, act)
        same = b"\0".join((match.route.name.encode(), request.rel_url.raw_path_qs.encode(), content))
        now_us = self._clock.now_us()
        claimed = await repeats.claim(
            self._kv, call.caller, text, same, now_us=now_us, randomness=self._services.randomness
        )
        if isinstance(claimed, repeats.Repeated):
            return _json(claimed.answer, claimed.status, {"Idempotency-Replayed": "true"})
        act.guards = {claimed.key: (claimed.begun, "Idempotency-Key")}
        act.first = {claimed.key: claimed.committed}
        try:
            answer = await self._tagged(request, call, match, act)
        except BaseException:
            await repeats.released(self._kv, claimed)
            raise
        kept = _without(answer.body, match.route.once)
        await repeats.answered(self._kv, claimed, answer.status, kept)
        return answer

    async def _tagged(
        self, request: web.BaseRequest, call: Call, match: Match, act: RecordedKv
    ) -> web.Response:
        route = match.route
        keys = [] if route.tags is None else list(route.tags(call))
        values = await self._kv.get_many(keys) if keys else []
        tag = _tag(values) if keys else ""
        wanted = request.headers.get("If-Match")
        if route.changes and wanted is not None and wanted.strip() != "*":
            if tag not in [one.strip() for one in wanted.split(",")] or not tag:
                raise ConditionFailed("If-Match")
            seen = {key: (value, "If-Match") for key, value in zip(keys, values, strict=True)}
            act.guards = {**act.guards, **seen}
        if not route.changes and tag and request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"ETag": tag, "Cache-Control": "no-store"})
        content = await route.handler(call)
        if keys and route.changes:
            # As this act left them: whoever was quicker than our answer is seen by the next If-Match.
            tag = _tag([act.written.get(key, value) for key, value in zip(keys, values, strict=True)])
        headers = {"ETag": tag} if tag else {}
        if isinstance(content, File):
            return _file(content.content, content.kind, content.name)
        if isinstance(content, Stream):
            return _file(noted(request, content.pieces), content.kind, content.name)
        return _json(msgspec.json.encode(content), route.status, headers)

    async def _note(self, deed: Deed, changes: bool, problem: Problem) -> None:
        """What was refused or failed; not what was only mistyped, nor what is not there."""
        if not changes or problem.status in (400, 404, 405, 412, 413, 415, 422):
            return
        hour = self._clock.now_us() // HOUR_US
        key = (deed.token or deed.who, hour)
        if len(self._noted) >= NOTED_CALLERS_MAX:
            self._noted = {one: count for one, count in self._noted.items() if one[1] == hour}
        count = self._noted.get(key, 0)
        extra = {"who": deed.who, "action": deed.action, "target": deed.target, "status": problem.status}
        if count >= NOTED_MAX or len(self._noted) >= NOTED_CALLERS_MAX:
            log.warning("admin request refused", extra=extra)
            return
        self._noted[key] = count + 1
        word = "refused" if problem.status in (401, 403) else "failed"
        try:
            await note(self._kv, deed, self._clock, f"{word}: {problem.detail}")
        except StoreError as failure:
            log.warning("admin request refused, not recorded", extra={**extra, "failure": repr(failure)})


def _body(route: Route, content: bytes) -> tuple[Any, Problem | None]:
    """The body, or what is wrong with it: said to those only who may send one. Raises: Problem 400."""
    if not route.changes:
        return Nothing(), None
    try:
        return parse_body(content, route.body), None
    except Problem as problem:
        if route.owner_in_body:
            raise
        return Nothing(), problem


async def _owner(call: Call, match: Match) -> str | None:
    try:
        return await match.route.owner(call)
    except BadArgument:
        if call.caller.is_operator:
            raise  # It says what is not there.
        return None


def problem_of(failure: StoreError, params: Mapping[str, str], body: type) -> Problem:
    """How a failure of the layers below is answered."""
    words = str(failure)
    if isinstance(failure, BadArgument) and not isinstance(failure, StateForbids):
        if failure.value and failure.value in params.values() and _says_absent(words):
            return Problem(404, words)
        field = failure.name.replace(" ", "_").replace("-", "_")
        known = field in getattr(body, "__struct_fields__", ())
        return Problem(400, words, [FieldError(f"/{field}", words)] if known else ())
    if isinstance(failure, ConditionFailed):
        return Problem(412 if failure.condition == "If-Match" else 409, words)
    if isinstance(failure, Rejected):
        return Problem(409, words)
    if isinstance(failure, Unavailable):
        return Problem(503, words)
    return Problem(500, words)


def _says_absent(words: str) -> bool:
    return words.startswith("there is no ") or " has no " in words


def _tag(values: list[bytes | None]) -> str:
    """Of the records behind an answer: equal only if all of them are."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(b"-" if value is None else b"+" + len(value).to_bytes(4, "big") + value)
    return f'"{digest.hexdigest()[:32]}"'


def _without(answer: Any, once: frozenset[str]) -> bytes:
    if not once:
        return bytes(answer)
    content: dict[str, Any] = msgspec.json.decode(answer)
    return msgspec.json.encode({name: "" if name in once else one for name, one in content.items()})


def _json(content: bytes, status: int = 200, headers: Mapping[str, str] = {}) -> web.Response:
    fixed = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(status=status, body=content, headers={**fixed, **headers})


def _file(content: bytes | AsyncIterator[bytes], kind: str, name: str) -> web.Response:
    headers = {
        "Content-Type": kind,
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return web.Response(body=content, headers=headers)
