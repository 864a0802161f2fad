"""What a tenant's leases let it store: its bound beside the limits that people set (rental/terms.py).

    each lease in force   its capacity at that moment, along its ramp
      without overage     no more than that
      overage_max         so much more; with a mode of overage and no overage_max: no bound
    a tenant's bound      the sum, for all storage classes together; none without a lease in force

It stands in the tenant's AccountRecord, which every commit that stores expects. A lease that begins or ends
sets it in the same commit; what changes as time goes by (a step of a ramp) the service that moves leases on
sets in its next pass. Both expect SalesRecord, which whatever changes a lease in force changes: so what was
decided from a scan of leases is still so when it is committed.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from objstore.errors import BadArgument
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import AccountRecord, account_key, decode
from objstore.rental.changes import Change, commit_change
from objstore.rental.records import SALES_KEY, LeaseRecord, SalesRecord, lease_key, tenant_lease_key
from objstore.rental.sales import lease_spans

PAGE: Final = 500


def storable_bytes(leases: Iterable[LeaseRecord], at_us: int) -> int | None:
    """Billed bytes that these leases of one tenant let it store at a moment; None: they set no bound."""
    known = False
    total = 0
    for lease in leases:
        sizes = [span.size for span in lease_spans(lease) if span.begin <= at_us < span.end]
        if lease.state != "active" or not sizes:
            continue
        if lease.overage_mode and lease.overage_max is None:
            return None
        known = True
        total += sizes[0] + (lease.overage_max or 0)
    return total if known else None


async def leases_of(kv: Kv, tenant: str) -> list[LeaseRecord]:
    """In order of making. Raises: MetaUnavailable."""
    start = tenant_lease_key(tenant, "")
    found: list[LeaseRecord] = []
    async for pairs in pages(kv, start, prefix_end(start), PAGE):
        values = await kv.get_many([lease_key(key[len(start) :].decode()) for key, _ in pairs])
        found += [decode(value, LeaseRecord) for value in values if value is not None]
    return found


async def set_leased(change: Change, tenant: str, *, now_us: int, changed: LeaseRecord | None = None) -> bool:
    """Set what a tenant's leases let it store now, as a part of a change; whether it is another bound.

    Args:
        changed: a lease of it as this change leaves it.
    """
    await change.record(SALES_KEY, SalesRecord)  # Expected, before the leases are scanned.
    leases = [one for one in await leases_of(change.kv, tenant) if changed is None or one.id != changed.id]
    leased = storable_bytes(leases if changed is None else [*leases, changed], now_us)
    account = await change.record(account_key(tenant), AccountRecord) or AccountRecord()
    if account.leased == leased:
        return False
    change.put(account_key(tenant), msgspec.structs.replace(account, leased=leased))
    return True


async def follow_leases(
    kv: Kv, leases: Iterable[LeaseRecord], *, now_us: int
) -> tuple[list[str], dict[str, str]]:
    """Bring every tenant's bound to what its leases say now: ramps take their steps. Repeated, it does
    nothing twice.

    Args:
        leases: all that there are, as they were read a moment ago: they only say whom to look at.

    Returns:
        The tenants whose bound changed, and those whose could not, with the reason.

    Raises: Overloaded, MetaUnavailable.
    """
    by_tenant: dict[str, list[LeaseRecord]] = {}
    for lease in leases:
        by_tenant.setdefault(lease.tenant, []).append(lease)
    tenants = sorted(by_tenant)
    moved: list[str] = []
    refused: dict[str, str] = {}
    for begin in range(0, len(tenants), PAGE):
        some = tenants[begin : begin + PAGE]
        values = await kv.get_many([account_key(tenant) for tenant in some])
        for tenant, value in zip(some, values, strict=True):
            known = AccountRecord().leased if value is None else decode(value, AccountRecord).leased
            if known == storable_bytes(by_tenant[tenant], now_us):
                continue
            try:
                if await _follow(kv, tenant, now_us):
                    moved.append(tenant)
            except BadArgument as failure:  # Of this tenant: it holds up no other.
                refused[tenant] = failure.message
    return moved, refused


async def _follow(kv: Kv, tenant: str, now_us: int) -> bool:
    async def decide(change: Change) -> bool:
        return await set_leased(change, tenant, now_us=now_us)

    return await commit_change(kv, decide, what=f"the leases of {tenant!r}")
