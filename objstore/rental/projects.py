"""Projects: parts of what a tenant stores, with a cost centre, tags and limits of their own."""

from collections.abc import Mapping
from typing import Final

import msgspec

from objstore.errors import BadArgument
from objstore.meta.kv import Kv, prefix_end
from objstore.meta.schema import AccountRecord, Limits, account_key, decode, encode
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import no_such_customer
from objstore.rental.names import check_labels, check_name, check_text
from objstore.rental.records import CustomerRecord, ProjectRecord, customer_key, project_key
from objstore.rental.terms import UNLIMITED, check_limits

OUR_TAGS: Final = "objstore/"  # What reports add to a project's own tags begins with it.
ACCOUNT_SIZE_MAX: Final = (
    6_144  # Bytes of an AccountRecord: some 70 projects with limits, and room for the rest.
)


def no_such_project(tenant: str, name: str) -> BadArgument:
    return BadArgument(f"{tenant!r} has no project {name!r}", name="project", value=name)


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """A project's own. Raises: BadArgument."""
    for name in tags:
        if name.startswith(OUR_TAGS):
            raise BadArgument(f"tags that begin with {OUR_TAGS} are the store's", name="tags", value=name)
    return check_labels(tags, "tags")


async def create_project(
    kv: Kv,
    tenant: str,
    name: str,
    *,
    now_us: int,
    tags: Mapping[str, str] | None = None,
    cost_centre: str = "",
    limits: Limits | None = None,
) -> ProjectRecord:
    """The project and its limits in one commit. Raises: BadArgument, also if it exists."""
    record = ProjectRecord(
        name=check_name(name, "project"),
        created_us=now_us,
        tags=check_tags(tags or {}),
        cost_centre=check_text(cost_centre, "cost centre", size_max=64),
    )

    async def decide(change: Change) -> ProjectRecord:
        await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
        if await change.value(project_key(tenant, name)) is not None:
            raise BadArgument(f"{tenant!r} has a project {name!r}", name="project", value=name)
        change.put(project_key(tenant, name), record)
        await limit_project(change, tenant, name, check_limits(limits or UNLIMITED))
        return record

    return await commit_change(kv, decide, what=f"project {name!r} of {tenant!r}")


async def change_project(
    kv: Kv,
    tenant: str,
    name: str,
    *,
    tags: Mapping[str, str] | None = None,
    cost_centre: str | None = None,
    limits: Limits | None = None,
) -> ProjectRecord:
    """What is None stays. Raises: BadArgument."""

    async def decide(change: Change) -> ProjectRecord:
        record = await change.found(project_key(tenant, name), ProjectRecord, no_such_project(tenant, name))
        if tags is not None:
            record = msgspec.structs.replace(record, tags=check_tags(tags))
        if cost_centre is not None:
            text = check_text(cost_centre, "cost centre", size_max=64)
            record = msgspec.structs.replace(record, cost_centre=text)
        change.put(project_key(tenant, name), record)
        if limits is not None:
            await limit_project(change, tenant, name, check_limits(limits))
        return record

    return await commit_change(kv, decide, what=f"project {name!r} of {tenant!r}")


async def limit_project(change: Change, tenant: str, name: str, limits: Limits) -> None:
    """Raises: BadArgument (too many projects have limits)."""
    account = await change.record(account_key(tenant), AccountRecord) or AccountRecord()
    projects = {project: its for project, its in account.projects.items() if project != name}
    if limits != UNLIMITED:
        projects[name] = limits
    if projects == account.projects:
        return
    account = msgspec.structs.replace(account, projects=projects)
    if len(encode(account)) > ACCOUNT_SIZE_MAX:
        raise BadArgument(f"too many projects of {tenant!r} have limits of their own", name="limits")
    change.put(account_key(tenant), account)


async def find_project(kv: Kv, tenant: str, name: str) -> ProjectRecord:
    """Raises: BadArgument (no such project)."""
    value = await kv.get(project_key(tenant, name))
    if value is None:
        raise no_such_project(tenant, name)
    return decode(value, ProjectRecord)


async def list_projects(kv: Kv, tenant: str, *, after: str = "", limit: int = 1_000) -> list[ProjectRecord]:
    """Names > after, in order."""
    prefix = project_key(tenant, "")
    start = project_key(tenant, after) + b"\0" if after else prefix
    return [decode(value, ProjectRecord) for _, value in await kv.scan(start, prefix_end(prefix), limit)]
