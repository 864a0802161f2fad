"""What tenants use, against what they may: looked at now and then, for metrics and alerts.

One pass reads every tenant's account and counters, so it costs O(tenants), not O(objects). The metrics name
a few, those that use most (`metrics.tenant_limit`); all others are one, `other`. Who is near a limit is
counted of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Final

from objstore.meta.kv import Kv, counter, pages, prefix_end
from objstore.meta.schema import (
    AccountRecord,
    account_key,
    decode,
    project_use_key,
    tenant_key,
    tenant_use_key,
)
from objstore.metrics import Family, Labels
from objstore.rental.quota import THRESHOLDS, Quota, Scope
from objstore.rental.terms import READS, STATES, STORES

TENANTS_AT_ONCE: Final = 250  # Of one page: four reads for each.
NEAR_MAX: Final = 1_000  # Scopes near a limit that are remembered by name.
OTHER: Final = "other"
CLOSED: Final = frozenset(STATES - READS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What one pass has found."""

    most: list[Quota] = field(default_factory=list)  # The tenants that use most, most first.
    other_size: int = 0  # Of all other tenants together.
    other_objects: int = 0
    tenants: int = 0
    near: list[Quota] = field(default_factory=list)  # At a threshold or over a soft limit, worst first.
    at_level: dict[int, int] = field(default_factory=dict)  # How many scopes are at a threshold or beyond.
    over_soft: int = 0
    states: dict[str, int] = field(default_factory=dict)  # How many tenants may store, read only, nothing.


class QuotaWatch:
    """Keeps the last picture. One a process; `look` is a service's step."""

    def __init__(self, kv: Kv, shown: int) -> None:
        """shown: how many tenants are named."""
        self._kv = kv
        self._shown = shown
        self.picture: Picture | None = None  # None: nobody has looked yet.

    async def look(self) -> str:
        """Read all tenants anew; in words what was found. Raises: MetaUnavailable."""
        quotas: list[Quota] = []
        near: list[Quota] = []
        states = dict.fromkeys(("open", "read_only", "closed"), 0)
        at_level = dict.fromkeys(THRESHOLDS, 0)
        size = objects = tenants = over_soft = 0
        start = tenant_key("")
        async for pairs in pages(self._kv, start, prefix_end(start), TENANTS_AT_ONCE):
            names = [key[len(start) :].decode() for key, _ in pairs]
            found = await self._page(names)
            for account, scopes in found:
                tenants += 1
                size, objects = size + scopes[0].size, objects + scopes[0].objects
                states[_stage(account.state)] += 1
                for quota in scopes:
                    level = quota.level
                    for threshold in THRESHOLDS:
                        at_level[threshold] += level >= threshold
                    over_soft += quota.over_soft
                    if level or quota.over_soft:
                        near.append(quota)
            quotas = nlargest(self._shown, [*quotas, *(scopes[0] for _, scopes in found)], key=_use)
            near = nlargest(NEAR_MAX, near, key=_urgency)
        self.picture = Picture(
            most=quotas,
            other_size=size - sum(quota.size for quota in quotas),
            other_objects=objects - sum(quota.objects for quota in quotas),
            tenants=tenants,
            near=near,
            at_level=at_level,
            over_soft=over_soft,
            states=states,
        )
        return f"{tenants} tenants, {at_level[90]} scopes at 90 % of a limit or beyond"

    async def _page(self, tenants: Sequence[str]) -> list[tuple[AccountRecord, list[Quota]]]:
        """Each tenant's account, and the quotas of itself and of its projects that have limits."""
        values = await self._kv.get_many([account_key(tenant) for tenant in tenants])
        accounts = [AccountRecord() if value is None else decode(value, AccountRecord) for value in values]
        keys: list[bytes] = []
        for tenant, account in zip(tenants, accounts, strict=True):
            uses = [tenant_use_key(tenant), *(project_use_key(tenant, name) for name in account.projects)]
            keys += [use + unit for use in uses for unit in (b"s", b"o")]
            keys.append(uses[0] + b"b")
        numbers = iter([counter(value) for value in await self._kv.get_many(keys)])
        found = []
        for tenant, account in zip(tenants, accounts, strict=True):
            own = (next(numbers), next(numbers))
            scopes = [
                Quota(
                    scope=Scope(kind="project", tenant=tenant, name=name),
                    limits=limits,
                    size=next(numbers),
                    objects=next(numbers),
                )
                for name, limits in account.projects.items()
            ]
            of_tenant = Quota(
                scope=Scope(kind="tenant", tenant=tenant),
                limits=account.limits,
                leased=account.leased,
                size=own[0],
                objects=own[1],
                buckets=next(numbers),
            )
            found.append((account, [of_tenant, *scopes]))
        return found

    def forget(self) -> None:
        """Another process looks now: what this one saw last would grow old."""
        self.picture = None

    def families(self) -> list[Family]:
        """For /metrics. Without samples until somebody has looked."""
        picture = self.picture or Picture()
        used: list[tuple[Labels, list[float]]] = []
        objects: list[tuple[Labels, list[float]]] = []
        over: list[tuple[Labels, list[float]]] = []
        if self.picture is not None:
            used.append(((OTHER,), [picture.other_size]))
            objects.append(((OTHER,), [picture.other_objects]))
            over.append(((), [picture.over_soft]))
        hard: list[tuple[Labels, list[float]]] = []
        soft: list[tuple[Labels, list[float]]] = []
        for quota in picture.most:
            label = (label_of(quota.scope.tenant),)
            used.append((label, [quota.size]))
            objects.append((label, [quota.objects]))
            if quota.in_force.bytes_max is not None:
                hard.append((label, [quota.in_force.bytes_max]))
            if quota.limits.bytes_soft is not None:
                soft.append((label, [quota.limits.bytes_soft]))
        names = ("tenant",)
        return [
            Family("tenant_used_bytes", "gauge", "Billed bytes that the tenant stores.", names, (), used),
            Family("tenant_objects", "gauge", "Objects that the tenant stores.", names, (), objects),
            Family("tenant_quota_bytes", "gauge", "What the tenant may store at most.", names, (), hard),
            Family(
                "tenant_soft_quota_bytes",
                "gauge",
                "What the tenant may store before it is told.",
                names,
                (),
                soft,
            ),
            Family(
                "quota_scopes_at_level",
                "gauge",
                "Tenants and projects that use this much of a limit, in percent, or more.",
                ("level",),
                (),
                [((str(level),), [count]) for level, count in picture.at_level.items()],
            ),
            Family(
                "quota_scopes_over_soft",
                "gauge",
                "Tenants and projects beyond their soft limit.",
                (),
                (),
                over,
            ),
            Family(
                "tenants",
                "gauge",
                "Tenants that may store, that may only read and delete, that may do nothing.",
                ("state",),
                (),
                [((state,), [count]) for state, count in picture.states.items()],
            ),
        ]


def label_of(tenant: str) -> str:
    """What a tenant is called in metrics: nobody is taken for the rest."""
    return f"tenant {OTHER}" if tenant == OTHER else tenant


def _stage(state: str) -> str:
    return "open" if state in STORES else "closed" if state in CLOSED else "read_only"


def _use(quota: Quota) -> tuple[int, int]:
    return quota.size, quota.objects


def _urgency(quota: Quota) -> tuple[int, bool, int]:
    return quota.level, quota.over_soft, quota.size
