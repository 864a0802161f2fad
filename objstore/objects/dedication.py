"""Dedicated leases: nodes of a tenant's own, through the layout.

    prepare    its nodes get a pool of their own, and a policy that is just this pool. From now on nothing of
               others comes there; what lies there is moved away as the layout wants it
    begin      refused until nothing of others is left (upkeep/leasing.py looks); then the policy is the
               tenant's: all of its buckets lie within it
    release    when the lease is over: the tenant's buckets lie elsewhere from now on, and the nodes are their
               old pool's again. What lies on them stays until the rebalancer evens it out, or they are
               emptied like any node; so the policy stays, over the old pool, while a volume names it

Each changes the layout's record once, and repeated it changes nothing. What an operator has staged is
kept and edited in the same way, under a new number; what was before is no longer gone back to, since a lease
is no matter of the layout alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from objstore.blobs.topology import Policy
from objstore.errors import BadArgument, Conflict, NoSuchBucket, Overloaded
from objstore.meta.kv import VALUE_SIZE_MAX, Add, Transaction, pages, prefix_end
from objstore.meta.schema import AccountRecord, BucketRecord, decode, encode, serial_key
from objstore.objects.accounting import open_account
from objstore.objects.buckets import place_bucket
from objstore.objects.layout import (
    LAYOUT_KEY,
    NO_PLACE,
    PLACED_KEY,
    LayoutRecord,
    Plan,
    check_plan,
    read_layout,
)
from objstore.objects.placing import own_policy, policy_of_bucket
from objstore.objects.residence import bind_tenant, buckets_of
from objstore.objects.store import Store
from objstore.rental.leases import find_lease
from objstore.rental.records import LeaseRecord, lease_of_pool, pool_of_lease
from objstore.rental.sales import SOLD

ATTEMPTS_MAX: Final = 64
PAGE: Final = 1_000
BUCKETS_AT_ONCE: Final = 200  # Placed by one call of `release`: two seconds, a commit for each.


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What a release came to."""

    lease: LeaseRecord
    nodes: tuple[str, ...]  # That are their old pool's again.
    buckets: int  # That this call placed elsewhere.
    finished: bool  # False: more buckets are left; ask again.


def check_is_dedicated(lease: LeaseRecord) -> None:
    """Raises: BadArgument."""
    if lease.kind != "dedicated":
        raise BadArgument(f"lease {lease.id} is {lease.kind}: it has no nodes", name="lease", value=lease.id)


def is_prepared(plan: Plan, lease: LeaseRecord) -> bool:
    """Whether its nodes are a pool of their own."""
    pool = pool_of_lease(lease.id)
    placed = all(plan.machines.get(node, NO_PLACE).pool == pool for node in lease.nodes)
    return placed and pool in plan.policies


def with_nodes_of(plan: Plan, lease: LeaseRecord, sites: Sequence[str] = ()) -> Plan:
    """The plan with the lease's nodes in its pool, and the policy for it.

    Args:
        sites: of its tenant, to which the policy keeps; none: anywhere.
    """
    pool = pool_of_lease(lease.id)
    machines = dict(plan.machines)
    for node in lease.nodes:
        machines[node] = msgspec.structs.replace(machines.get(node, NO_PLACE), pool=pool)
    policies = dict(plan.policies)
    policies.setdefault(pool, Policy(name=pool, pool=pool, sites=tuple(sites)))
    return msgspec.structs.replace(plan, machines=machines, policies=policies)


def without_nodes_of(plan: Plan, lease: LeaseRecord, *, is_named: bool) -> Plan:
    """The plan with the lease's nodes back where they were.

    Args:
        is_named: something lies under its policy still: it stays, and means the pool where they were.
    """
    pool = pool_of_lease(lease.id)
    machines = {
        node: msgspec.structs.replace(place, pool=lease.pool) if place.pool == pool else place
        for node, place in plan.machines.items()
    }
    machines = {node: place for node, place in machines.items() if place != NO_PLACE}
    policies = dict(plan.policies)
    policy = policies.pop(pool, None)
    if is_named and policy is not None:
        policies[pool] = msgspec.structs.replace(policy, pool=lease.pool)
    return msgspec.structs.replace(plan, machines=machines, policies=policies)


def edited(record: LayoutRecord, edit: Callable[[Plan], Plan], now_us: int) -> LayoutRecord:
    """What is current is edited at once, and what is staged too, each under a number of its own."""
    version = record.serial + 1
    staged = None if record.staged is None else edit(record.staged)
    return msgspec.structs.replace(
        record,
        serial=version if staged is None else version + 1,
        version=version,
        current=edit(record.current),
        staged=staged,
        previous=None,
        applied_us=now_us,
    )


async def prepare(store: Store, lease: LeaseRecord, *, code: tuple[int, int]) -> LayoutRecord:
    """Give a signed lease's nodes a pool of their own.

    Args:
        code: the store's (k, m).

    Raises: BadArgument: it is not signed, a node is not there or in another lease's pool, or too few disks
        would be left for others; Overloaded.
    """
    check_is_dedicated(lease)
    if lease.state not in SOLD:
        raise BadArgument(f"lease {lease.id} is {lease.state}", name="state", value=lease.state)
    sites = (await open_account(store, lease.tenant)).record.sites
    for _ in range(ATTEMPTS_MAX):
        value, record = await read_layout(store.kv)
        if is_prepared(record.current, lease):
            return record
        await _check_nodes(store, record, lease, code, sites)
        after = edited(record, lambda plan: with_nodes_of(plan, lease, sites), store.clock.now_us())
        if await _commit(store, {LAYOUT_KEY: value}, after):
            return after
    raise Overloaded("the layout kept changing")


async def _check_nodes(
    store: Store, record: LayoutRecord, lease: LeaseRecord, code: tuple[int, int], sites: Sequence[str]
) -> None:
    layout = await store.ledger.layout_under(record.current, record.version)
    pools = {spot.node: spot.pool for spot in layout.spots.values()}
    for spot in layout.spots.values():
        if sites and spot.node in lease.nodes and spot.site not in sites:
            raise BadArgument(
                f"bytes of {lease.tenant} may not lie at site {spot.site or '(none)'}, of node {spot.node}",
                name="nodes",
                value=spot.node,
            )
    own = pool_of_lease(lease.id)
    for node in lease.nodes:
        if pools.get(node) not in (lease.pool, own):
            where = f"in pool {pools[node]}" if node in pools else "not in the store"
            raise BadArgument(f"node {node} is {where}", name="nodes", value=node)
    left = [
        spot
        for spot in layout.spots.values()
        if spot.pool == lease.pool and spot.node not in lease.nodes and spot.usable and not spot.leaving
    ]
    if len(left) < sum(code):
        raise BadArgument(
            f"{len(left)} disks would be left for others, whose volumes need {sum(code)}", name="nodes"
        )


async def begin(store: Store, lease: LeaseRecord) -> AccountRecord:
    """The tenant's buckets lie on its own nodes from now on.

    Raises: BadArgument: its nodes are not prepared, or the tenant has buckets elsewhere; Overloaded.
    """
    check_is_dedicated(lease)
    _, record = await read_layout(store.kv)
    if not is_prepared(record.current, lease):
        raise BadArgument(f"the nodes of lease {lease.id} are not prepared", name="lease", value=lease.id)
    return await bind_tenant(store, lease.tenant, placement=pool_of_lease(lease.id))


async def release(store: Store, lease: str) -> Released:
    """The nodes of a lease that is over are their old pool's again, and its tenant's buckets lie elsewhere.

    Bounded: of many buckets some are placed, and `finished` says whether to ask again.

    Raises: BadArgument: it is not over, or a bucket may lie nowhere else; Denied, Overloaded.
    """
    record = await find_lease(store.kv, lease)
    check_is_dedicated(record)
    if record.state in SOLD or not record.signed_us:
        raise BadArgument(
            f"lease {lease} is {record.state}: it is not over", name="state", value=record.state
        )
    pool = pool_of_lease(lease)
    if (await open_account(store, record.tenant)).record.placement == pool:
        await bind_tenant(store, record.tenant, placement="")
    placed, finished = await _place_buckets(store, record.tenant, pool)
    nodes: tuple[str, ...] = ()
    if finished:
        nodes = await _release_nodes(store, record)
    return Released(lease=record, nodes=nodes, buckets=placed, finished=finished)


def unreleased(plan: Plan, leases: Sequence[LeaseRecord]) -> list[LeaseRecord]:
    """The dedicated leases that are over and whose nodes are nobody's, but are still kept apart."""
    kept = {place.pool for place in plan.machines.values()}
    return [one for one in leases if is_over(one) and pool_of_lease(one.id) in kept]


def is_over(lease: LeaseRecord) -> bool:
    """Whether a dedicated lease was signed and has ended."""
    return lease.kind == "dedicated" and bool(lease.signed_us) and lease.state not in SOLD


async def forget_policies(store: Store) -> list[str]:
    """Drop the policies of released leases under which nothing lies any more; their leases.

    Raises: BadArgument, Overloaded, MetaUnavailable.
    """
    _, record = await read_layout(store.kv)
    over = [
        lease_of_pool(name)
        for name, policy in record.current.policies.items()
        if lease_of_pool(name) and policy.pool != name
    ]
    dropped: list[str] = []
    for lease in over:
        if not await _is_named(store, pool_of_lease(lease)):
            await _release_nodes(store, await find_lease(store.kv, lease))
            dropped.append(lease)
    return dropped


async def _place_buckets(store: Store, tenant: str, pool: str) -> tuple[int, bool]:
    """Give the tenant's buckets under a lease's policy its own policy; how many, and whether all have it."""
    placed = 0
    async for name, bucket in buckets_of(store, tenant):
        if policy_of_bucket(bucket) != pool:
            continue
        if placed == BUCKETS_AT_ONCE:
            return placed, False
        account = await open_account(store, tenant)
        try:
            await place_bucket(store, name, own_policy(account.record), new_only=True)
        except NoSuchBucket:
            continue  # Deleted since it was listed.
        placed += 1
    return placed, True


async def _release_nodes(store: Store, lease: LeaseRecord) -> tuple[str, ...]:
    """The nodes that went back. Raises: Overloaded."""
    pool = pool_of_lease(lease.id)
    for _ in range(ATTEMPTS_MAX):
        value, record = await read_layout(store.kv)
        placed = await store.kv.get(PLACED_KEY)  # Before it is looked at what lies there.
        nodes = tuple(sorted(key for key, place in record.current.machines.items() if place.pool == pool))
        is_named = await _is_named(store, pool)
        if not nodes and (is_named or pool not in record.current.policies):
            return ()

        def given_back(plan: Plan, is_named: bool = is_named) -> Plan:
            return without_nodes_of(plan, lease, is_named=is_named)

        after = edited(record, given_back, store.clock.now_us())
        if await _commit(store, {LAYOUT_KEY: value, PLACED_KEY: placed}, after):
            return nodes
    raise Overloaded("the layout kept changing")


async def _is_named(store: Store, policy: str) -> bool:
    """Whether a bucket or a volume lies under a policy."""
    after = 0
    while records := await store.ledger.volumes(after, PAGE):
        after = records[-1].id
        if any(volume.policy == policy for volume in records):
            return True
    async for pairs in pages(store.kv, b"b", prefix_end(b"b"), PAGE):
        if any(policy_of_bucket(decode(value, BucketRecord)) == policy for _, value in pairs):
            return True
    return False


async def _commit(store: Store, expect: Mapping[bytes, bytes | None], after: LayoutRecord) -> bool:
    """Whether it was: False if another process was quicker. Raises: BadArgument."""
    check_plan(after.current)
    value = encode(after)
    if len(value) > VALUE_SIZE_MAX:
        raise BadArgument(
            f"the layout would have {len(value)} bytes, at most {VALUE_SIZE_MAX} are kept", name="nodes"
        )
    # Where machines stand is told to all of them with whom they trust.
    add = {serial_key("trust"): Add(1)}
    try:
        await store.kv.commit(Transaction(expect=expect, put={LAYOUT_KEY: value}, add=add))
    except Conflict:
        return False
    return True
