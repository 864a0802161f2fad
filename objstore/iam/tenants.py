"""Tenants: who rents. A bucket belongs to one, a user to one; nothing crosses between two."""

from typing import Final

import msgspec

from objstore.errors import BadArgument, Conflict, Denied
from objstore.iam.changes import change_record
from objstore.iam.names import check_tenant
from objstore.meta.kv import Kv, Transaction, prefix_end
from objstore.meta.schema import TenantRecord, decode, encode, tenant_key

DEFAULT_TENANT: Final = "default"  # Root's.


def no_such_tenant(name: str) -> BadArgument:
    return BadArgument(f"there is no tenant {name!r}", name="tenant", value=name)


async def create_tenant(kv: Kv, name: str, *, now_us: int) -> TenantRecord:
    """Raises: BadArgument (not a name, or it exists)."""
    record = TenantRecord(name=check_tenant(name), created_us=now_us)
    key = tenant_key(name)
    try:
        await kv.commit(Transaction(expect={key: None}, put={key: encode(record)}))
    except Conflict as conflict:
        raise BadArgument(f"tenant {name!r} exists", name="tenant", value=name) from conflict
    return record


async def list_tenants(kv: Kv, *, after: str = "", limit: int = 1_000) -> list[TenantRecord]:
    """Names > after, in order."""
    start = tenant_key(after) + b"\0" if after else b"t"
    pairs = await kv.scan(start, prefix_end(b"t"), limit)
    return [decode(value, TenantRecord) for _, value in pairs]


async def find_tenant(kv: Kv, name: str) -> TenantRecord:
    """Raises: BadArgument (no such tenant)."""
    value = await kv.get(tenant_key(name))
    if value is None:
        raise no_such_tenant(name)
    return decode(value, TenantRecord)


async def set_tenant_disabled(kv: Kv, name: str, disabled: bool) -> TenantRecord:
    """A disabled tenant's keys are refused from the next request on.

    Raises: BadArgument (no such tenant), Denied (root would lock itself out).
    """
    if disabled and name == DEFAULT_TENANT:
        raise Denied(f"tenant {name!r} is root's and cannot be disabled; disable its other users instead")

    def switch(record: TenantRecord) -> TenantRecord:
        return msgspec.structs.replace(record, disabled=disabled)

    return await change_record(kv, tenant_key(name), TenantRecord, switch, absent=no_such_tenant(name))
