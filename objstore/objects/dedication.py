"""Dedicated leases: nodes of a tenant's own, through the layout.

    prepare    its nodes get a pool of their own, and a policy that is just this pool. From now on nothing of
               others comes there; what lies there is moved away as the layout wants it
    begin      refused until nothing of others is left (upkeep/leasing.py looks); then the policy is the
               tenant's: all of its buckets lie within it
    release    when the lease is over and nothing names its policy: the nodes are the shared pool's again

Each is one change of the layout's record, and repeated it changes nothing. What an operator has staged is
kept and edited in the same way, under a new number; what was before is no longer gone back to, since a lease
is no matter of the layout alone.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from objstore.blobs.topology import Policy
from objstore.errors import BadArgument, Conflict, Overloaded
from objstore.meta.kv import VALUE_SIZE_MAX, Add, Transaction, pages, prefix_end
from objstore.meta.schema import AccountRecord, BucketRecord, decode, encode, serial_key
from objstore.objects.accounting import open_account
from objstore.objects.layout import (
    LAYOUT_KEY,
    NO_PLACE,
    PLACED_KEY,
    LayoutRecord,
    Plan,
    check_plan,
    read_layout,
)
from objstore.objects.placing import policy_of_bucket
from objstore.objects.residence import bind_tenant
from objstore.objects.store import Store
from objstore.rental.leases import find_lease
from objstore.rental.records import LeaseRecord, pool_of_lease
from objstore.rental.sales import SOLD

ATTEMPTS_MAX: Final = 64
PAGE: Final = 1_000


def check_is_dedicated(lease: LeaseRecord) -> None:
    """Raises: BadArgument."""
    if lease.kind != "dedicated":
        raise BadArgument(f"lease {lease.id} is {lease.kind}: it has no nodes", name="lease", value=lease.id)


def is_prepared(plan: Plan, lease: LeaseRecord) -> bool:
    """Whether its nodes are a pool of their own."""
    pool = pool_of_lease(lease.id)
    placed = all(plan.machines.get(node, NO_PLACE).pool == pool for node in lease.nodes)
    return placed and pool in plan.policies


def with_nodes_of(plan: Plan, lease: LeaseRecord) -> Plan:
    """The plan with the lease's nodes in its pool, and the policy for it."""
    pool = pool_of_lease(lease.id)
    machines = dict(plan.machines)
    for node in lease.nodes:
        machines[node] = msgspec.structs.replace(machines.get(node, NO_PLACE), pool=pool)
    policies = dict(plan.policies)
    policies.setdefault(pool, Policy(name=pool, pool=pool))
    return msgspec.structs.replace(plan, machines=machines, policies=policies)


def without_nodes_of(plan: Plan, lease: LeaseRecord) -> Plan:
    """The plan with the lease's nodes back where they were."""
    pool = pool_of_lease(lease.id)
    machines = {
        node: msgspec.structs.replace(place, pool=lease.pool) if place.pool == pool else place
        for node, place in plan.machines.items()
    }
    machines = {node: place for node, place in machines.items() if place != NO_PLACE}
    policies = {name: policy for name, policy in plan.policies.items() if name != pool}
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
    for _ in range(ATTEMPTS_MAX):
        value, record = await read_layout(store.kv)
        if is_prepared(record.current, lease):
            return record
        await _check_nodes(store, record, lease, code)
        after = edited(record, lambda plan: with_nodes_of(plan, lease), store.clock.now_us())
        if await _commit(store, {LAYOUT_KEY: value}, after):
            return after
    raise Overloaded("the layout kept changing")


async def _check_nodes(store: Store, record: LayoutRecord, lease: LeaseRecord, code: tuple[int, int]) -> None:
    layout = await store.ledger.layout_under(record.current, record.version)
    pools = {spot.node: spot.pool for spot in layout.spots.values()}
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


async def release(store: Store, lease: str) -> LayoutRecord:
    """The nodes of a lease that is over are its pool's again.

    Raises: BadArgument: it is not over, or buckets or volumes still name its policy; Overloaded.
    """
    lease_record = await find_lease(store.kv, lease)
    check_is_dedicated(lease_record)
    if lease_record.state in SOLD:
        raise BadArgument(f"lease {lease} is {lease_record.state}", name="state", value=lease_record.state)
    pool = pool_of_lease(lease)
    account = await open_account(store, lease_record.tenant)
    if account.record.placement == pool:
        await bind_tenant(store, lease_record.tenant, placement="")
    for _ in range(ATTEMPTS_MAX):
        value, record = await read_layout(store.kv)
        placed = await store.kv.get(PLACED_KEY)  # Before the buckets are looked at.
        if pool not in record.current.policies:
            return record
        if names := await _names_of(store, pool):
            raise BadArgument(f"{names} under the policy of lease {lease}", name="lease", value=lease)
        after = edited(record, lambda plan: without_nodes_of(plan, lease_record), store.clock.now_us())
        if await _commit(store, {LAYOUT_KEY: value, PLACED_KEY: placed}, after):
            return after
    raise Overloaded("the layout kept changing")


async def _names_of(store: Store, policy: str) -> str:
    """What lies, or will lie, under a policy, in words; empty: nothing."""
    buckets = 0
    async for pairs in pages(store.kv, b"b", prefix_end(b"b"), PAGE):
        buckets += sum(policy_of_bucket(decode(value, BucketRecord)) == policy for _, value in pairs)
    volumes = after = 0
    while records := await store.ledger.volumes(after, PAGE):
        after = records[-1].id
        volumes += sum(volume.policy == policy for volume in records)
    return f"{buckets} buckets and {volumes} volumes lie" if buckets or volumes else ""


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
