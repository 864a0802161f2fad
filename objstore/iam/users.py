"""Users of tenants. A user's name is unique in the whole store; its tenant never changes."""

from collections.abc import Sequence
from typing import Final

import msgspec

from objstore.errors import BadArgument, Conflict, Denied, Overloaded
from objstore.iam.changes import ATTEMPTS_MAX, change_record
from objstore.iam.names import check_email, check_user
from objstore.iam.picking import Picked, pick
from objstore.iam.roles import DEFAULT_ROLE, check_role
from objstore.iam.tenants import no_such_tenant
from objstore.meta.kv import Kv, Transaction, prefix_end
from objstore.meta.schema import UserRecord, decode, encode, tenant_key, user_key

ROOT_USER: Final = "root"
RESERVED: Final = frozenset({"operator", "upkeep"})  # Whom the audit log names so.


def no_such_user(name: str) -> BadArgument:
    return BadArgument(f"there is no user {name!r}", name="user", value=name)


async def create_user(
    kv: Kv,
    name: str,
    *,
    tenant: str,
    now_us: int,
    email: str = "",
    root: bool = False,
    role: str = DEFAULT_ROLE,
) -> UserRecord:
    """Raises: BadArgument (not a name, not a role, it exists, or there is no such tenant)."""
    if name.lower() in RESERVED:
        raise BadArgument(f"no user is called {name!r}: the audit log would not tell them apart", name="name")
    record = UserRecord(
        tenant=tenant,
        name=check_user(name),
        created_us=now_us,
        root=root,
        email=check_email(email),
        role=check_role(role),
    )
    key, owner = user_key(name), tenant_key(tenant)
    for _ in range(ATTEMPTS_MAX):
        tenant_value = await kv.get(owner)
        if tenant_value is None:
            raise no_such_tenant(tenant)
        try:
            await kv.commit(Transaction(expect={key: None, owner: tenant_value}, put={key: encode(record)}))
        except Conflict as conflict:
            if conflict.key == key:
                raise BadArgument(f"user {name!r} exists", name="user", value=name) from conflict
            continue
        return record
    raise Overloaded(f"tenant {tenant!r} kept changing")


async def list_users(
    kv: Kv, *, tenant: str | None = None, after: str = "", limit: int = 1_000
) -> list[UserRecord]:
    """Names > after, in order; of one tenant or of all. `limit` bounds what is returned."""
    found: list[UserRecord] = []
    start = user_key(after) + b"\0" if after else b"u"
    while len(found) < limit and (pairs := await kv.scan(start, prefix_end(b"u"), 1_000)):
        records = [decode(value, UserRecord) for _, value in pairs]
        found += [record for record in records if tenant is None or record.tenant == tenant]
        start = pairs[-1][0] + b"\0"
    return found[:limit]


async def page_of_users(kv: Kv, *, tenant: str, after: str, limit: int) -> Picked[UserRecord]:
    """Names > after, in order; of one tenant, or of all (empty)."""

    async def own(records: Sequence[tuple[str, UserRecord]]) -> Sequence[tuple[str, UserRecord]]:
        return [one for one in records if not tenant or one[1].tenant == tenant]

    return await pick(kv, user_key(""), UserRecord, own, after=after, limit=limit)


async def find_user(kv: Kv, name: str) -> UserRecord:
    """Raises: BadArgument (no such user)."""
    value = await kv.get(user_key(name))
    if value is None:
        raise no_such_user(name)
    return decode(value, UserRecord)


async def set_role(kv: Kv, name: str, role: str) -> UserRecord:
    """It holds from the next request on. Raises: BadArgument (no such user or role), Denied (root)."""
    check_role(role)

    def switch(record: UserRecord) -> UserRecord:
        if record.root and role != DEFAULT_ROLE:
            raise Denied("the root user may do everything: its role cannot be changed")
        return msgspec.structs.replace(record, role=role)

    return await change_record(kv, user_key(name), UserRecord, switch, absent=no_such_user(name))


async def set_user_disabled(kv: Kv, name: str, disabled: bool) -> UserRecord:
    """A disabled user's keys are refused from the next request on.

    Raises: BadArgument (no such user), Denied (root would lock itself out).
    """

    def switch(record: UserRecord) -> UserRecord:
        if record.root and disabled:
            raise Denied("the root user cannot be disabled; disable its access keys instead")
        return msgspec.structs.replace(record, disabled=disabled)

    return await change_record(kv, user_key(name), UserRecord, switch, absent=no_such_user(name))


async def forget_user(kv: Kv, name: str) -> UserRecord:
    """What is a person's goes; the name stays, for the audit log names it, and serves nobody any more.

    Raises: BadArgument (no such user), Denied (the root user stays).
    """

    def forget(record: UserRecord) -> UserRecord:
        if record.root:
            raise Denied("the root user is not forgotten")
        return msgspec.structs.replace(record, disabled=True, email="")

    return await change_record(kv, user_key(name), UserRecord, forget, absent=no_such_user(name))
