"""Projects of tenants: names, tags, cost centres, limits."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from objstore.admin.callers import Rule
from objstore.admin.pages import page
from objstore.admin.routes import Call, Page, Route, in_path
from objstore.admin.views import LimitsView, List, moment, shown
from objstore.meta.schema import AccountRecord, account_key, decode
from objstore.rental.projects import change_project, create_project, find_project, list_projects
from objstore.rental.records import ProjectRecord, project_key
from objstore.rental.terms import UNLIMITED


class Project(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    created: str | None
    tags: dict[str, str]
    cost_centre: str
    limits: LimitsView


class NewProject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    tags: dict[str, str] = {}
    cost_centre: str = ""
    limits: LimitsView = LimitsView()


class ProjectFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is null or left out stays as it is."""

    tags: dict[str, str] | None = None
    cost_centre: str | None = None
    limits: LimitsView | None = None


def records(call: Call) -> Sequence[bytes]:
    tenant = call.params["tenant"]
    return [project_key(tenant, call.params["project"]), account_key(tenant)]


async def _shown(call: Call, *found: ProjectRecord) -> list[dict[str, Any]]:
    value = await call.kv.get(account_key(call.params["tenant"]))
    limits = {} if value is None else decode(value, AccountRecord).projects
    return [
        {
            "name": record.name,
            "created": moment(record.created_us),
            "tags": record.tags,
            "cost_centre": record.cost_centre,
            "limits": shown(limits.get(record.name, UNLIMITED)),
        }
        for record in found
    ]


async def list_all(call: Call) -> List[Any]:
    async def read(after: str, limit: int) -> list[ProjectRecord]:
        return await list_projects(call.kv, call.params["tenant"], after=after, limit=limit)

    found = await page(call.query, read, lambda record: record.name, lambda record: record)
    return List(await _shown(call, *found.items), found.next)


async def create(call: Call) -> Any:
    body: NewProject = call.body
    record = await create_project(
        call.kv,
        call.params["tenant"],
        body.name,
        now_us=call.now_us,
        tags=body.tags,
        cost_centre=body.cost_centre,
        limits=body.limits.limits(),
    )
    return (await _shown(call, record))[0]


async def show(call: Call) -> Any:
    return (await _shown(call, await find_project(call.kv, call.params["tenant"], call.params["project"])))[0]


async def change(call: Call) -> Any:
    body: ProjectFields = call.body
    record = await change_project(
        call.kv,
        call.params["tenant"],
        call.params["project"],
        tags=body.tags,
        cost_centre=body.cost_centre,
        limits=None if body.limits is None else body.limits.limits(),
    )
    return (await _shown(call, record))[0]


_ALL: Final = "/api/v1/tenants/{tenant}/projects"
_READ, _WRITE = Rule(action="projects:Read"), Rule(action="projects:Write")
ROUTES: Final = (
    Route(
        method="GET", path=_ALL, name="list_projects", summary="A tenant's projects.",
        rule=_READ, owner=in_path, query=Page, handler=list_all, answer=List[Project],
    ),
    Route(
        method="POST", path=_ALL, name="create_project", summary="Make a project.",
        rule=_WRITE, owner=in_path, body=NewProject, handler=create, answer=Project, status=201,
    ),
    Route(
        method="GET", path=_ALL + "/{project}", name="show_project", summary="A project.",
        rule=_READ, owner=in_path, handler=show, answer=Project, tags=records,
    ),
    Route(
        method="PATCH", path=_ALL + "/{project}", name="change_project",
        summary="Change a project's tags, cost centre or limits.",
        rule=_WRITE, owner=in_path, body=ProjectFields, handler=change, answer=Project, tags=records,
    ),
)  # fmt: skip
