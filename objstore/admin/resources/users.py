"""Users of tenants, and their tokens for this API."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from objstore.admin.callers import Rule, check_gives
from objstore.admin.pages import picked_page
from objstore.admin.routes import Call, Page, Route, in_body, in_query
from objstore.admin.views import Done, List, moment
from objstore.clock import SECOND_US
from objstore.errors import BadArgument
from objstore.iam.names import check_user
from objstore.iam.picking import Picked, users_of
from objstore.iam.roles import DEFAULT_ROLE, check_role
from objstore.iam.tenants import create_tenant
from objstore.iam.tokens import create_token, find_token, page_of_tokens, remove_token
from objstore.iam.users import create_user, find_user, page_of_users, set_role, set_user_disabled
from objstore.meta.schema import TokenRecord, UserRecord, tenant_key, user_key

READ, WRITE = Rule(action="users:Read"), Rule(action="users:Write")


class User(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    tenant: str
    role: str
    root: bool
    disabled: bool
    created: str | None
    email: str


class NewUser(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    tenant: str = ""  # Empty: the caller's own. The operator's is made if it is new.
    email: str = ""
    role: str = DEFAULT_ROLE


class Role(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: str


class Users(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tenant: str = ""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    user: str
    role: str  # Of its user, and the same
    tenant: str
    created: str | None
    expires: str | None
    expired: bool
    comment: str
    last_used: str | None  # To the hour.


class NewToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    days: int = 90
    comment: str = ""


class MadeToken(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    user: str
    expires: str | None
    token: str  # Shown this once.


def records(call: Call) -> Sequence[bytes]:
    return [user_key(call.params["user"])]


async def of_user(call: Call) -> str | None:
    """The tenant of the user that the path names. Raises: BadArgument."""
    return (await find_user(call.kv, call.params["user"])).tenant


async def of_token(call: Call) -> str | None:
    record = await find_token(call.kv, call.params["token"])
    return (await find_user(call.kv, record.user)).tenant


def shown_user(record: UserRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "tenant": record.tenant,
        "role": record.role,
        "root": record.root,
        "disabled": record.disabled,
        "created": moment(record.created_us),
        "email": record.email,
    }


async def list_all(call: Call) -> List[Any]:
    tenant = call.query.tenant or call.caller.tenant

    async def read(after: str, limit: int) -> Picked[UserRecord]:
        return await page_of_users(call.kv, tenant=tenant, after=after, limit=limit)

    async def show(found: list[tuple[str, UserRecord]]) -> list[Any]:
        return [shown_user(record) for _, record in found]

    return await picked_page(call, read, show)


async def create(call: Call) -> Any:
    body: NewUser = call.body
    tenant = body.tenant or call.caller.tenant
    if not tenant:
        raise BadArgument("tenant is missing", name="tenant")
    check_gives(call.caller, check_role(body.role))
    check_user(body.name)  # Before its tenant is made.
    if call.caller.is_operator and await call.kv.get(tenant_key(tenant)) is None:
        await create_tenant(call.kv, tenant, now_us=call.now_us)
    record = await create_user(
        call.kv, body.name, tenant=tenant, now_us=call.now_us, email=body.email, role=body.role
    )
    return shown_user(record)


async def show(call: Call) -> Any:
    return shown_user(await find_user(call.kv, call.params["user"]))


async def _gives(call: Call) -> UserRecord:
    """The user, if the caller may act for it. Raises: BadArgument, Problem 403."""
    record = await find_user(call.kv, call.params["user"])
    check_gives(call.caller, record.role)
    return record


async def give_role(call: Call) -> Any:
    await _gives(call)
    check_gives(call.caller, check_role(call.body.role))
    return shown_user(await set_role(call.kv, call.params["user"], call.body.role))


async def disable(call: Call) -> Any:
    await _gives(call)
    return shown_user(await set_user_disabled(call.kv, call.params["user"], True))


async def enable(call: Call) -> Any:
    await _gives(call)
    return shown_user(await set_user_disabled(call.kv, call.params["user"], False))


async def _shown_tokens(call: Call, found: list[tuple[str, TokenRecord]]) -> list[Any]:
    users = await users_of(call.kv, [record.user for _, record in found])
    used = await call.directory.last_used([one for one, _ in found])
    return [
        {
            "id": token,
            "user": record.user,
            "role": users[record.user].role if record.user in users else "",
            "tenant": users[record.user].tenant if record.user in users else "",
            "created": moment(record.created_us),
            "expires": moment(record.expires_us),
            "expired": call.now_us >= record.expires_us,
            "comment": record.comment,
            "last_used": moment((seconds or 0) * SECOND_US),
        }
        for (token, record), seconds in zip(found, used, strict=True)
    ]


async def _tokens(call: Call, *, user: str, tenant: str) -> List[Any]:
    async def read(after: str, limit: int) -> Picked[TokenRecord]:
        return await page_of_tokens(call.kv, user=user, tenant=tenant, after=after, limit=limit)

    async def show(found: list[tuple[str, TokenRecord]]) -> list[Any]:
        return await _shown_tokens(call, found)

    return await picked_page(call, read, show)


async def tokens_of_user(call: Call) -> List[Any]:
    return await _tokens(call, user=call.params["user"], tenant="")


async def all_tokens(call: Call) -> List[Any]:
    return await _tokens(call, user="", tenant=call.query.tenant or call.caller.tenant)


async def make_token(call: Call) -> Any:
    await _gives(call)
    token, record = await create_token(
        call.kv,
        call.params["user"],
        now_us=call.now_us,
        days=call.body.days,
        randomness=call.services.randomness,
        comment=call.body.comment,
    )
    one = token.partition(".")[0]
    return {"id": one, "user": record.user, "expires": moment(record.expires_us), "token": token}


async def revoke(call: Call) -> Any:
    record = await find_token(call.kv, call.params["token"])
    check_gives(call.caller, (await find_user(call.kv, record.user)).role)
    await remove_token(call.kv, call.params["token"])
    return {"done": f"token {call.params['token']} is no longer good"}


_ALL: Final = "/api/v1/users"
_ONE: Final = "/api/v1/users/{user}"
ROUTES: Final = (
    Route(
        method="GET", path=_ALL, name="list_users", summary="Users of a tenant; of the operator all.",
        rule=READ, owner=in_query, query=Users, handler=list_all, answer=List[User],
    ),
    Route(
        method="POST", path=_ALL, name="create_user",
        summary="Make a user; nobody makes one who may more than they may.",
        rule=WRITE, owner=in_body, owner_in_body=True, body=NewUser, handler=create, answer=User, status=201,
    ),
    Route(
        method="GET", path=_ONE, name="show_user", summary="A user.",
        rule=READ, owner=of_user, handler=show, answer=User, tags=records,
    ),
    Route(
        method="PUT", path=f"{_ONE}/role", name="set_role", summary="Give a user another role.",
        rule=WRITE, owner=of_user, body=Role, handler=give_role, answer=User, tags=records,
    ),
    Route(
        method="POST", path=f"{_ONE}/disable", name="disable_user",
        summary="Refuse a user's keys and tokens, at once.",
        rule=WRITE, owner=of_user, handler=disable, answer=User, tags=records,
    ),
    Route(
        method="POST", path=f"{_ONE}/enable", name="enable_user", summary="Accept them again.",
        rule=WRITE, owner=of_user, handler=enable, answer=User, tags=records,
    ),
    Route(
        method="GET", path=f"{_ONE}/tokens", name="list_tokens",
        summary="A user's tokens, without their secrets.",
        rule=READ, owner=of_user, query=Page, handler=tokens_of_user, answer=List[Token],
    ),
    Route(
        method="POST", path=f"{_ONE}/tokens", name="create_token",
        summary="Make a token for this API: it may what its user may.",
        rule=WRITE, owner=of_user, body=NewToken, handler=make_token, answer=MadeToken, status=201,
        once=frozenset({"token"}),
    ),
    Route(
        method="GET", path="/api/v1/tokens", name="list_all_tokens",
        summary="Tokens of a tenant's users, without their secrets; of the operator all.",
        rule=READ, owner=in_query, query=Users, handler=all_tokens, answer=List[Token],
    ),
    Route(
        method="DELETE", path="/api/v1/tokens/{token}", name="remove_token", summary="Revoke a token.",
        rule=WRITE, owner=of_token, handler=revoke, answer=Done,
    ),
)  # fmt: skip
