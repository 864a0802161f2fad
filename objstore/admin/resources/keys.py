"""Access keys of users: for S3."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from objstore.admin.callers import Rule, check_gives
from objstore.admin.pages import picked_page
from objstore.admin.routes import Call, Page, Route
from objstore.admin.views import Done, LimitsView, List, microseconds, moment, shown
from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.iam.keys import KeyTerms, find_key, page_of_keys, remove_key, set_key_disabled
from objstore.iam.picking import Picked
from objstore.iam.users import find_user
from objstore.meta.schema import AccessKeyRecord, access_key_key
from objstore.rental.terms import check_limits

READ, WRITE = Rule(action="keys:Read"), Rule(action="keys:Write")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    access_key: str
    user: str
    disabled: bool
    created: str | None
    comment: str
    project: str
    policy: str  # JSON in AWS's policy language; empty: whatever its user may.
    expires: str | None
    networks: list[str]
    limits: LimitsView
    last_used: str | None  # To the hour.


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """On which terms a key may be used: all of them, what is left out is not bounded."""

    project: str = ""
    policy: str = ""
    expires: datetime | None = None
    networks: list[str] = []
    limits: LimitsView = LimitsView()

    def terms(self) -> KeyTerms:
        return KeyTerms(
            project=self.project,
            policy=self.policy,
            expires_us=microseconds(self.expires),
            networks=tuple(self.networks),
            limits=check_limits(self.limits.limits()),
        )


class NewKey(Terms, frozen=True, kw_only=True, forbid_unknown_fields=True):
    user: str
    comment: str = ""


class MadeKey(msgspec.Struct, frozen=True, kw_only=True):
    access_key: str
    secret_key: str  # Shown this once.
    user: str
    endpoint: str
    region: str


class Keys(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    user: str = ""
    tenant: str = ""


def records(call: Call) -> Sequence[bytes]:
    return [access_key_key(call.params["key"])]


async def of_key(call: Call) -> str | None:
    """Raises: BadArgument."""
    return (await find_user(call.kv, (await find_key(call.kv, call.params["key"])).user)).tenant


async def of_body_user(call: Call) -> str | None:
    if call.caller.is_operator:
        return ""  # The handler says in words what is wrong with the user's name.
    return (await find_user(call.kv, call.body.user)).tenant


async def of_query(call: Call) -> str | None:
    if call.query.user:
        tenant = (await find_user(call.kv, call.query.user)).tenant
        return tenant if call.query.tenant in ("", tenant) else None
    return call.query.tenant or call.caller.tenant


async def _shown(call: Call, *found: tuple[str, AccessKeyRecord]) -> list[dict[str, Any]]:
    used = await call.directory.last_used([one for one, _ in found])
    return [
        {
            "access_key": one,
            "user": record.user,
            "disabled": record.disabled,
            "created": moment(record.created_us),
            "comment": record.comment,
            "project": record.project,
            "policy": record.policy,
            "expires": moment(record.expires_us),
            "networks": record.networks,
            "limits": shown(record.limits),
            "last_used": moment((seconds or 0) * SECOND_US),
        }
        for (one, record), seconds in zip(found, used, strict=True)
    ]


async def list_all(call: Call) -> List[Any]:
    user, tenant = call.query.user, call.query.tenant or call.caller.tenant

    async def read(after: str, limit: int) -> Picked[AccessKeyRecord]:
        return await page_of_keys(call.kv, user=user, tenant=tenant, after=after, limit=limit)

    async def show(found: list[tuple[str, AccessKeyRecord]]) -> list[Any]:
        return await _shown(call, *found)

    return await picked_page(call, read, show)


async def create(call: Call) -> Any:
    body: NewKey = call.body
    if not body.user:
        raise BadArgument("user is missing", name="user")
    check_gives(call.caller, (await find_user(call.kv, body.user)).role)
    access_key, secret = await call.directory.create_key(body.user, comment=body.comment, terms=body.terms())
    return {
        "access_key": access_key,
        "secret_key": secret,
        "user": body.user,
        "endpoint": call.services.endpoint,
        "region": call.services.region,
    }


async def show(call: Call) -> Any:
    one = call.params["key"]
    return (await _shown(call, (one, await find_key(call.kv, one))))[0]


async def _gives(call: Call) -> str:
    """The key, if the caller may act for its user. Raises: BadArgument, Problem 403."""
    one = call.params["key"]
    check_gives(call.caller, (await find_user(call.kv, (await find_key(call.kv, one)).user)).role)
    return one


async def change(call: Call) -> Any:
    one = await _gives(call)
    return (await _shown(call, (one, await call.directory.set_terms(one, call.body.terms()))))[0]


async def disable(call: Call) -> Any:
    one = await _gives(call)
    return (await _shown(call, (one, await set_key_disabled(call.kv, one, True))))[0]


async def enable(call: Call) -> Any:
    one = await _gives(call)
    return (await _shown(call, (one, await set_key_disabled(call.kv, one, False))))[0]


async def remove(call: Call) -> Any:
    one = await _gives(call)
    await remove_key(call.kv, one)
    return {"done": f"access key {one} is gone, and its secret with it"}


_ALL: Final = "/api/v1/keys"
_ONE: Final = "/api/v1/keys/{key}"
ROUTES: Final = (
    Route(
        method="GET", path=_ALL, name="list_keys", summary="Access keys, of a user or a tenant.",
        rule=READ, owner=of_query, query=Keys, handler=list_all, answer=List[Key],
    ),
    Route(
        method="POST", path=_ALL, name="create_key", summary="Make an access key on terms.",
        rule=WRITE, owner=of_body_user, owner_in_body=True, body=NewKey, handler=create, answer=MadeKey,
        status=201, once=frozenset({"secret_key"}),
    ),
    Route(
        method="GET", path=_ONE, name="show_key", summary="An access key, without its secret.",
        rule=READ, owner=of_key, handler=show, answer=Key, tags=records,
    ),
    Route(
        method="PUT", path=f"{_ONE}/terms", name="set_key_terms",
        summary="Put a key on other terms: project, policy, expiry, networks, limits.",
        rule=WRITE, owner=of_key, body=Terms, handler=change, answer=Key, tags=records,
    ),
    Route(
        method="POST", path=f"{_ONE}/disable", name="disable_key", summary="Refuse a key, at once.",
        rule=WRITE, owner=of_key, handler=disable, answer=Key, tags=records,
    ),
    Route(
        method="POST", path=f"{_ONE}/enable", name="enable_key", summary="Accept it again.",
        rule=WRITE, owner=of_key, handler=enable, answer=Key, tags=records,
    ),
    Route(
        method="DELETE", path=_ONE, name="remove_key", summary="Remove a key for good.",
        rule=WRITE, owner=of_key, handler=remove, answer=Done, tags=records,
    ),
)  # fmt: skip
