"""Which tenants the metrics name: a few, those that ask most; all others are one, `other`.

Workers count every tenant. At each scrape what was counted since the last one is added to the tenant's own
series if it is named just now, else to `other`: so no series ever goes back, and all of them add up to what
was counted, whoever is named. A tenant keeps its name until another one asks twice as much.

Concurrency: one event loop, the upkeep process's.
"""

from collections.abc import Iterable
from typing import Final

from objstore.metrics import Family, Labels
from objstore.upkeep.quotas import OTHER, TENANTS_SHOWN, label_of

MEASURE: Final = "tenant_requests"  # Of which who asks most is told.
MEMORY: Final = 0.99  # Of a tenant's weight, from scrape to scrape: half of it is gone in 69.


class Naming:
    """Args: shown: how many tenants are named."""

    def __init__(self, shown: int = TENANTS_SHOWN) -> None:
        assert shown > 0
        self._shown = shown
        self._seen: dict[tuple[str, Labels], float] = {}  # What was counted by the last scrape.
        self._told: dict[tuple[str, Labels], float] = {}  # What was told of it, by the labels as shown.
        self._weights: dict[str, float] = {}
        self.named: set[str] = set()

    def cap(self, families: Iterable[Family]) -> list[Family]:
        """The same page, with only a few tenants by name. Once a scrape."""
        whole = list(families)
        counted = [
            family for family in whole if family.kind == "counter" and family.labels[:1] == ("tenant",)
        ]
        for family in counted:
            if family.name == MEASURE:
                self._choose(family)
        capped = {family.name: self._capped(family) for family in counted}
        return [capped.get(family.name, family) for family in whole]

    def _choose(self, family: Family) -> None:
        weights = {tenant: MEMORY * weight for tenant, weight in self._weights.items()}
        for labels, (count,) in family.samples:
            asked = count - self._seen.get((family.name, labels), 0)
            weights[labels[0]] = weights.get(labels[0], 0.0) + asked
        weights.pop("", None)  # Tenants beyond those that a worker knows by name.
        self._weights = weights
        others = sorted(weights.keys() - self.named, key=lambda tenant: (-weights[tenant], tenant))
        for tenant in others:
            if len(self.named) < self._shown:
                self.named.add(tenant)
                continue
            least = min(self.named, key=lambda name: (weights[name], name))
            if weights[tenant] <= 2 * weights[least]:
                break
            self.named.remove(least)
            self.named.add(tenant)
            self._forget(least)

    def _forget(self, tenant: str) -> None:
        """Its series ends; should it be named again, it begins anew."""
        label = label_of(tenant)
        for key in [key for key in self._told if key[1][0] == label]:
            del self._told[key]

    def _capped(self, family: Family) -> Family:
        for labels, (count,) in family.samples:
            key = (family.name, labels)
            tenant = label_of(labels[0]) if labels[0] in self.named else OTHER
            told = (family.name, (tenant, *labels[1:]))
            self._told[told] = self._told.get(told, 0.0) + count - self._seen.get(key, 0.0)
            self._seen[key] = count
        samples = [(labels, [count]) for (name, labels), count in self._told.items() if name == family.name]
        return Family(family.name, family.kind, family.doc, family.labels, family.bounds, samples)
