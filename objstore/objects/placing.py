"""Under which placement policy an object's bytes lie: its bucket's, or its storage class's within that.

A bucket's policy stands in its record, which every commit inside the bucket expects: bytes that were written
under another one are written again before they are published (`Kept.policy`). Nothing that the bucket's
policy does not admit is ever chosen: a storage class of other sites or another pool is refused.

May not know: disks. What a policy's name means, `blobs.topology.Layout` says.
"""

from typing import TYPE_CHECKING, Final

from objstore.blobs.topology import Layout, Policy, policy_of_sites
from objstore.errors import BadStorageClass
from objstore.meta.schema import AccountRecord, BucketRecord, Extra
from objstore.rental.records import lease_of_pool

if TYPE_CHECKING:
    from objstore.objects.store import Store

PLACEMENT: Final = "placement"  # The name in a bucket's settings; the value is the policy's name.
STORAGE_CLASS: Final = "x-amz-storage-class"
STANDARD: Final = "STANDARD"


class Placing:
    """The layout as this process last saw it: what a storage class means. A guess: volumes are made by the
    layout as it is then."""

    __slots__ = ("layout",)

    def __init__(self) -> None:
        self.layout = Layout(0, {}, {})

    def classes(self) -> dict[str, str]:
        """The policy's name of every storage class that there is."""
        return {
            policy.storage_class: name
            for name, policy in self.layout.policies.items()
            if policy.storage_class
        }


def policy_of_bucket(record: BucketRecord) -> str:
    """The name of a bucket's policy; empty: the default one."""
    if record.settings is None:
        return ""
    return record.settings.get(PLACEMENT, b"").decode()


async def sites_open_to_all(store: "Store") -> set[str]:
    """The sites that a tenant may ask for: those with nodes of no pool, whose name is no other policy's.

    Raises: MetaUnavailable.
    """
    layout = await store.ledger.layout()
    sites = {spot.site for spot in layout.spots.values() if spot.site and not spot.pool}
    return {site for site in sites if not layout.policy(site).pool and layout.policy(site).sites == (site,)}


def own_policy(account: AccountRecord) -> str:
    """The policy of a bucket for which its tenant asks for none."""
    return account.placement or policy_of_sites(account.sites)


def is_bound(account: AccountRecord) -> bool:
    """Whether the tenant's bytes may not lie everywhere."""
    return bool(account.placement or account.sites)


def is_admitted(account: AccountRecord, layout: Layout, policy: str) -> bool:
    """Whether a bucket of the tenant may have this policy: it admits no site, and no nodes, beyond what the
    account allows."""
    chosen = layout.policy(policy)
    sites = Policy(sites=tuple(account.sites), pool=chosen.pool)
    return chosen.within(sites) and (not account.placement or chosen.within(layout.policy(account.placement)))


def storage_class_of(extra: Extra | None) -> str:
    """What an object's record says; empty: STANDARD."""
    return "" if extra is None else extra.headers.get(STORAGE_CLASS, "")


def with_class(extra: Extra | None, storage_class: str) -> Extra | None:
    """What a client says of an object, with this storage class and no other."""
    if storage_class_of(extra) == storage_class:
        return extra
    base = extra or Extra()
    headers = {name: value for name, value in base.headers.items() if name != STORAGE_CLASS}
    if storage_class:
        headers[STORAGE_CLASS] = storage_class
    if not (base.content_type or headers or base.metadata):
        return None
    return Extra(content_type=base.content_type, headers=headers, metadata=base.metadata)


def policy_for(store: "Store", record: BucketRecord, storage_class: str) -> str:
    """The name of the policy for an object's bytes. Raises: BadStorageClass."""
    own = policy_of_bucket(record)
    if not storage_class or storage_class == STANDARD:
        return own
    chosen = store.placing.classes().get(storage_class)
    layout = store.placing.layout
    if chosen is None or not _leads_within(layout.policy(chosen), layout.policy(own)):
        raise BadStorageClass(storage_class)
    return chosen


def _leads_within(chosen: Policy, own: Policy) -> bool:
    """Nodes that are leased take what their own tenant's buckets bring, and nothing else."""
    leased = bool(lease_of_pool(chosen.pool)) and chosen.pool != own.pool
    return not leased and chosen.within(own)
