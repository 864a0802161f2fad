"""Quotas and rates of tenants, projects, buckets and access keys, with what is in use."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from objstore.admin.callers import Rule
from objstore.admin.problems import Problem
from objstore.admin.resources.keys import of_key
from objstore.admin.routes import Call, Route, in_path
from objstore.admin.views import LimitsView, shown
from objstore.errors import BadArgument
from objstore.meta.schema import (
    AccountRecord,
    BucketRecord,
    Limits,
    access_key_key,
    account_key,
    bucket_key,
    decode,
)
from objstore.rental.quota import Scope, change_limits, show_quota
from objstore.rental.terms import BUCKETS_MAX, within_leased

READ, WRITE = Rule(action="quotas:Read"), Rule(action="quotas:Write")
ABOVE: Final = Rule(action="quotas:Write", tenants=False)


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    scope: str  # tenant | project | bucket | key
    tenant: str
    name: str
    limits: LimitsView
    leased: int | None  # Bytes that a tenant's leases let it store, beside its limits; null: none bounds it.
    bytes: int  # Billed bytes in use, reservations of uploads under way among them.
    objects: int
    buckets: int | None
    level: int  # The highest of 50, 80, 90 and 100 percent that any use has reached; 0: none.
    over_soft: bool


class LimitChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Null: no limit. What is left out stays."""

    bytes_max: int | msgspec.UnsetType | None = msgspec.UNSET
    objects_max: int | msgspec.UnsetType | None = msgspec.UNSET
    bytes_soft: int | msgspec.UnsetType | None = msgspec.UNSET
    buckets_max: int | msgspec.UnsetType | None = msgspec.UNSET
    requests_per_s: int | msgspec.UnsetType | None = msgspec.UNSET
    bytes_per_s: int | msgspec.UnsetType | None = msgspec.UNSET

    def given(self) -> dict[str, int | None]:
        found = msgspec.structs.asdict(self)
        return {name: value for name, value in found.items() if value is not msgspec.UNSET}


async def of_bucket(call: Call) -> str | None:
    value = await call.kv.get(bucket_key(call.params["bucket"]))
    if value is None:
        raise BadArgument(
            f"there is no bucket {call.params['bucket']!r}", name="bucket", value=call.params["bucket"]
        )
    return decode(value, BucketRecord).tenant


async def tenants(call: Call) -> Scope:
    return Scope(kind="tenant", tenant=call.params["tenant"])


async def projects(call: Call) -> Scope:
    return Scope(kind="project", tenant=call.params["tenant"], name=call.params["project"])


async def buckets(call: Call) -> Scope:
    return Scope(kind="bucket", tenant=await of_bucket(call) or "", name=call.params["bucket"])


async def keys(call: Call) -> Scope:
    return Scope(kind="key", tenant=await of_key(call) or "", name=call.params["key"])


ScopeOf = Callable[[Call], Awaitable[Scope]]


def shower(scope_of: ScopeOf) -> Callable[[Call], Awaitable[Any]]:
    async def show(call: Call) -> Any:
        return await _shown(call, await scope_of(call))

    return show


def changer(scope_of: ScopeOf) -> Callable[[Call], Awaitable[Any]]:
    async def change(call: Call) -> Any:
        scope = await scope_of(call)
        new = call.body.given()
        if scope.kind == "tenant" and not call.caller.is_operator:
            await check_within_own(call, new)
        await change_limits(call.kv, scope, new)
        return await _shown(call, scope)

    return change


async def _shown(call: Call, scope: Scope) -> dict[str, Any]:
    quota = await show_quota(call.kv, scope)
    return {
        "scope": scope.kind,
        "tenant": scope.tenant,
        "name": scope.name,
        "limits": shown(quota.limits),
        "leased": quota.leased,
        "bytes": quota.size,
        "objects": quota.objects,
        "buckets": quota.buckets,
        "level": quota.level,
        "over_soft": quota.over_soft,
    }


async def limits_of(call: Call, tenant: str) -> Limits:
    """What a tenant is held to."""
    value = await call.kv.get(account_key(tenant))
    account = AccountRecord() if value is None else decode(value, AccountRecord)
    return within_leased(account.limits, account.leased)


async def check_within_own(call: Call, new: Mapping[str, int | None]) -> None:
    """A reseller gives no customer more than it has itself. Raises: Problem 403."""
    own = msgspec.structs.asdict(await limits_of(call, call.caller.tenant))
    for name, value in new.items():
        most = own[name]
        if most is None and name == "buckets_max" and value is not None:
            most = BUCKETS_MAX  # What it has itself where no limit says otherwise.
        if most is not None and name != "bytes_soft" and (value is None or value > most):
            raise Problem(403, f"{name} of a customer of yours is at most your own: {most}")


def _routes(
    name: str, path: str, owner: Any, scope_of: ScopeOf, tags: Callable[[Call], Sequence[bytes]], rule: Rule
) -> tuple[Route, Route]:
    return (
        Route(
            method="GET", path=path, name=f"show_{name}_quota", summary=f"Limits and use of a {name}.",
            rule=READ, owner=owner, handler=shower(scope_of), answer=Quota, tags=tags,
        ),
        Route(
            method="PATCH", path=path, name=f"change_{name}_quota",
            summary=f"Change limits of a {name}, from the next request on.",
            rule=rule, owner=owner, body=LimitChanges, handler=changer(scope_of), answer=Quota, tags=tags,
        ),
    )  # fmt: skip


def _account(call: Call) -> Sequence[bytes]:
    return [account_key(call.params["tenant"])]


ROUTES: Final = (
    *_routes("tenant", "/api/v1/tenants/{tenant}/quota", in_path, tenants, _account, ABOVE),
    *_routes(
        "project", "/api/v1/tenants/{tenant}/projects/{project}/quota", in_path, projects, _account, WRITE
    ),
    *_routes(
        "bucket", "/api/v1/buckets/{bucket}/quota", of_bucket, buckets,
        lambda call: [bucket_key(call.params["bucket"])], WRITE,
    ),
    *_routes(
        "key", "/api/v1/keys/{key}/quota", of_key, keys,
        lambda call: [access_key_key(call.params["key"])], WRITE,
    ),
)  # fmt: skip
