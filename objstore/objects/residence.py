"""Where a tenant's bytes may lie: sites that bind every one of its buckets, and nodes of its own.

Both stand in the account's record, which the making and the placing of a bucket expect (objects/buckets.py).
An account is bound only when all of its buckets are within already: what is promised is true from then on.
A customer's sites are within its reseller's, and so are all under it; one for which none are said gets its
reseller's when it is made. Whose reseller may store anywhere may too.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from objstore.errors import BadArgument, Conflict, Overloaded
from objstore.meta.kv import Add, Kv, Transaction, pages, prefix_end
from objstore.meta.schema import (
    AccountRecord,
    BucketRecord,
    account_key,
    bucket_key,
    decode,
    encode,
    tenant_bucket_key,
)
from objstore.objects.accounting import open_account
from objstore.objects.layout import LAYOUT_KEY, PLACED_KEY, SITES_MAX, read_layout
from objstore.objects.placing import is_admitted, is_bound, policy_of_bucket
from objstore.objects.store import Store
from objstore.rental.records import CustomerRecord, customer_key, reseller_customer_key
from objstore.rental.terms import check_sites_within, sites_within

ATTEMPTS_MAX: Final = 64
PAGE: Final = 500
NAMED_MAX: Final = 5  # Buckets in an error.


async def bind_tenant(
    store: Store, tenant: str, *, sites: Sequence[str] | None = None, placement: str | None = None
) -> AccountRecord:
    """Say where a tenant's bytes may lie.

    Args:
        sites: none: wherever its reseller's may lie, everywhere without one. None: as it is.
        placement: the policy within which all of its buckets lie; empty: any. None: as it is.

    Raises: BadArgument: there is no such site or policy, buckets lie elsewhere, or its reseller's bytes may
        not lie there, or its own customers' may lie beyond; Overloaded.
    """
    for _ in range(ATTEMPTS_MAX):
        account = await open_account(store, tenant)
        # Before anything is looked at: whoever makes or places a bucket, or binds another tenant, from here
        # on is noticed.
        placed, count = await store.kv.get_many([PLACED_KEY, account.buckets_key])
        known: dict[bytes, bytes | None] = {}
        within = sites
        if sites is not None:
            known, within = await _within_reseller(store.kv, tenant, sites)
        after = bound(account.record, within, placement)
        if sites is not None:
            await _check_customers(store.kv, tenant, after.sites)
        value, layout_record = await read_layout(store.kv)
        layout = await store.ledger.layout_under(layout_record.current, layout_record.version)
        if missing := set(after.sites) - layout.sites:
            raise BadArgument(f"there is no site {min(missing)}", name="sites", value=min(missing))
        if after.placement and after.placement not in layout.policies:
            raise BadArgument(f"there is no policy {after.placement}", name="policy", value=after.placement)
        outside = [
            name
            async for name, record in buckets_of(store, tenant)
            if not is_admitted(after, layout, policy_of_bucket(record))
        ]
        if outside:
            names = ", ".join(outside[:NAMED_MAX])
            raise BadArgument(f"{len(outside)} buckets lie elsewhere: {names}", name="sites", value=names)
        try:
            await store.kv.commit(
                Transaction(
                    expect={
                        **known,
                        account.key: account.value,
                        LAYOUT_KEY: value,
                        account.buckets_key: count,
                        PLACED_KEY: placed,
                    },
                    put={account.key: encode(after)},
                    add={PLACED_KEY: Add(1)},  # Whoever applies a layout looks again.
                )
            )
        except Conflict:
            continue
        return after
    raise Overloaded(f"the buckets of {tenant} kept changing")


async def _within_reseller(
    kv: Kv, tenant: str, sites: Sequence[str]
) -> tuple[dict[bytes, bytes | None], Sequence[str]]:
    """The records that say who stands above a tenant and where their bytes may lie, and the sites that the
    tenant's then may. Raises: BadArgument."""
    value = await kv.get(customer_key(tenant))
    known: dict[bytes, bytes | None] = {customer_key(tenant): value}  # It counts the tenant's own customers.
    parent = "" if value is None else decode(value, CustomerRecord).parent
    if not parent:
        return known, sites
    above = known[account_key(parent)] = await kv.get(account_key(parent))
    allowed = [] if above is None else decode(above, AccountRecord).sites
    return known, sites_within(sites, allowed, parent)


async def _check_customers(kv: Kv, tenant: str, sites: Sequence[str]) -> None:
    """Raises: BadArgument unless the bytes of a tenant's customers may lie only where its own may."""
    prefix = reseller_customer_key(tenant, "")
    async for pairs in pages(kv, prefix, prefix_end(prefix), PAGE):
        names = [key[len(prefix) :].decode() for key, _ in pairs]
        values = await kv.get_many([account_key(name) for name in names])
        for name, value in zip(names, values, strict=True):
            own = [] if value is None else decode(value, AccountRecord).sites
            check_sites_within(own, sites, name, tenant)


async def known_sites(store: Store) -> frozenset[str]:
    """The sites where disks stand. Raises: MetaUnavailable."""
    return frozenset((await store.ledger.layout()).sites)


def bound(account: AccountRecord, sites: Sequence[str] | None, placement: str | None) -> AccountRecord:
    """Raises: BadArgument."""
    if sites is not None:
        if len(sites) > SITES_MAX:
            raise BadArgument(f"more than {SITES_MAX} sites", name="sites")
        account = msgspec.structs.replace(account, sites=sorted(set(sites)))
    if placement is not None:
        account = msgspec.structs.replace(account, placement=placement)
    return account


async def bound_accounts(kv: Kv) -> AsyncIterator[tuple[str, AccountRecord]]:
    """The tenants whose bytes may not lie everywhere."""
    start = account_key("")
    async for pairs in pages(kv, start, prefix_end(start), PAGE):
        for key, value in pairs:
            account = decode(value, AccountRecord)
            if is_bound(account):
                yield key[len(start) :].decode(), account


async def buckets_of(store: Store, tenant: str) -> AsyncIterator[tuple[str, BucketRecord]]:
    """Every bucket of a tenant, in order of names."""
    start = tenant_bucket_key(tenant, "")
    async for pairs in pages(store.kv, start, prefix_end(start), PAGE):
        names = [key[len(start) :].decode() for key, _ in pairs]
        values = await store.kv.get_many([bucket_key(name) for name in names])
        for name, value in zip(names, values, strict=True):
            if value is not None:
                yield name, decode(value, BucketRecord)
