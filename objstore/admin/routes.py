"""Routes of the admin API as values: path, who may, what comes in, what goes out, who answers.

A table is checked when it is made: a route without a rule, or two of one place, do not start.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from objstore.admin.callers import Caller, Rule
from objstore.clock import Clock
from objstore.iam.directory import Directory
from objstore.iam.tenants import find_tenant
from objstore.ids import Randomness
from objstore.meta.kv import Kv
from objstore.meta.schema import AccountRecord
from objstore.objects.dedication import Released
from objstore.objects.exports import Exports
from objstore.rental.capacity import Capacity
from objstore.rental.sales import Survey

if TYPE_CHECKING:
    from objstore.rental.documents.content import Document  # Loads calendars and words of languages.

PREFIX: Final = "/api/v1/"
_PART: Final = re.compile(r"[A-Za-z0-9._@+=,-]{1,128}", re.ASCII)  # Whatever iam/names.py lets through.
_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}", re.ASCII)
_PATH_SIZE_MAX: Final = 1_024


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body, or a query, without fields."""


class Page(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a list."""

    limit: int = 100
    cursor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What handlers ask beside metadata; made by `processes`."""

    directory: Callable[[Kv], Directory]  # Over a `Kv` of the request's own.
    endpoint: str
    region: str
    randomness: Randomness
    survey: Survey | None = None  # What nodes have just now; None: this process cannot say.
    capacity: Callable[[], Awaitable[Sequence[Capacity]]] | None = None  # The report, pool by pool.
    # What sites there are, and a tenant bound to some of them (objects/residence.py).
    sites: Callable[[], Awaitable[frozenset[str]]] | None = None
    bind: Callable[[Kv, str, Sequence[str]], Awaitable[AccountRecord]] | None = None
    release: Callable[[Kv, str], Awaitable[Released]] | None = None  # Nodes of a lease that is over.
    render: "Callable[[Document], Awaitable[bytes]] | None" = None  # Documents as PDF.
    exports: Exports | None = None  # What tenants have stored, as it is handed back.


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request that may, as its handler is given it."""

    caller: Caller
    kv: Kv  # What is committed through it is recorded in the audit log.
    clock: Clock
    services: Services
    params: Mapping[str, str]  # Of the path, decoded.
    query: Any  # Of the route's type,
    body: Any  # and the same.

    @property
    def directory(self) -> Directory:
        return self.services.directory(self.kv)

    @property
    def now_us(self) -> int:
        return self.clock.now_us()


@dataclass(frozen=True, slots=True)
class File:
    """An answer that is no JSON."""

    content: bytes
    kind: str  # Its media type.
    name: str


@dataclass(frozen=True, slots=True)
class Stream:
    """A File in pieces: cut off, with its connection, where making it fails."""

    pieces: AsyncIterator[bytes]
    kind: str  # Its media type.
    name: str


Handler = Callable[[Call], Awaitable[Any]]
Owner = Callable[[Call], Awaitable[str | None]]


async def in_path(call: Call) -> str | None:
    """The tenant that the path names. Raises: BadArgument (there is none)."""
    return await _there(call, call.params["tenant"])


async def of_store(call: Call) -> str | None:
    """What belongs to no tenant."""
    return ""


async def of_anybody(call: Call) -> str | None:
    """What all tenants may see: it counts as the caller's own."""
    return call.caller.tenant


async def in_query(call: Call) -> str | None:
    """The tenant that the query names; of a user its own unless it names one. Raises: BadArgument."""
    return await _there(call, call.query.tenant) if call.query.tenant else call.caller.tenant


async def _there(call: Call, tenant: str) -> str:
    """Of a tenant that is not there nothing is told: its empty lists would say that all is well."""
    await find_tenant(call.kv, tenant)
    return tenant


async def in_body(call: Call) -> str | None:
    """The tenant that the body names; of a user its own unless it names one."""
    return call.body.tenant or call.caller.tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    method: str
    path: str  # /api/v1/tenants/{tenant}
    name: str  # create_tenant: the operation's id, and the action in the audit log.
    summary: str
    rule: Rule
    owner: Owner
    handler: Handler
    answer: Any  # Its type; File for what is no JSON, in one piece or in many.
    body: type = Nothing
    query: type = Nothing
    status: int = 200
    owner_in_body: bool = False  # Whose it is can be said only once the body is read.
    once: frozenset[str] = frozenset()  # Fields of the answer that are shown once: repeats lack them.
    tags: Callable[[Call], Sequence[bytes]] | None = None  # The records behind its ETag.

    @property
    def changes(self) -> bool:
        return self.method != "GET"

    @property
    def parameters(self) -> list[str]:
        return _PARAMETER.findall(self.path)


@dataclass(frozen=True, slots=True)
class Match:
    route: Route
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """All routes. Raises: AssertionError, for a table that must not serve."""

    routes: Sequence[Route]
    _parts: list[list[str]] = field(init=False)

    def __post_init__(self) -> None:
        for route in self.routes:
            assert isinstance(route.rule, Rule), f"{route.name} has no rule"
            assert route.path.startswith(PREFIX), route.path
            assert route.method in ("GET", "POST", "PUT", "PATCH", "DELETE"), route.method
        places = [(route.method, _PARAMETER.sub("{}", route.path)) for route in self.routes]
        names = [route.name for route in self.routes]
        assert len(set(places)) == len(places), "two routes of one place"
        assert len(set(names)) == len(names), "two routes of one name"
        object.__setattr__(self, "_parts", [route.path.split("/") for route in self.routes])

    def find(self, method: str, raw_path: str) -> tuple[Match | None, list[str]]:
        """The route of a path as it was sent, and which methods there are for it.

        A part is decoded once, behind the slashes' cut: an escaped slash is part of no name, and neither are
        `.` and `..`.
        """
        if len(raw_path) > _PATH_SIZE_MAX:
            return None, []
        given = raw_path.split("/")
        matches: list[Match] = []
        for route, parts in zip(self.routes, self._parts, strict=True):
            params = _matched(parts, given)
            if params is not None:
                matches.append(Match(route, params))
        # A word of the path wins over a parameter in its place.
        fewest = min((len(match.params) for match in matches), default=0)
        matches = [match for match in matches if len(match.params) == fewest]
        found = next((match for match in matches if match.route.method == method), None)
        return found, [match.route.method for match in matches]


def _matched(parts: Sequence[str], given: Sequence[str]) -> dict[str, str] | None:
    if len(parts) != len(given):
        return None
    params: dict[str, str] = {}
    for part, piece in zip(parts, given, strict=True):
        if not part.startswith("{"):
            if part != piece:
                return None
            continue
        text = unquote(piece, errors="replace")
        if not _PART.fullmatch(text) or not text.strip("."):
            return None
        params[part[1:-1]] = text
    return params
