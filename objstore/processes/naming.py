"""Which tenants the metrics name: a few, those that ask most; all others are one, `other`.

Workers count every tenant. At each scrape what was counted since the last one is added to the tenant's own
series if it is named just now, else to `other`: so no series ever goes back, and all of them add up to what
was counted, whoever is named. A tenant keeps its name until another one asks twice as much.

Concurrency: one event loop, the upkeep process's.
"""

from collections.abc import Mapping
from typing import Final

from objstore.metrics import Family, Labels, TenantNumbers
from objstore.upkeep.quotas import OTHER, label_of

MEMORY: Final = 0.99  # Of a tenant's weight, from scrape to scrape: half of it is gone in 69.
NOTHING: Final[Mapping[str, TenantNumbers]] = {}


class Naming:
    """Args: shown: how many tenants are named (`metrics.tenant_limit`)."""

    def __init__(self, shown: int) -> None:
        assert shown > 0
        self._shown = shown
        self._said: dict[str, tuple[str, Mapping[str, TenantNumbers]]] = {}  # By process: the last time.
        self._new: dict[str, TenantNumbers] = {}  # Counted since the last scrape.
        self._told: dict[str, TenantNumbers] = {OTHER: TenantNumbers()}  # In all, by the label it has.
        self._weights: dict[str, float] = {}
        self.named: set[str] = set()

    def take(self, process: str, incarnation: str, tenants: Mapping[str, TenantNumbers]) -> None:
        """What a process has counted since it began; it is held against what it said the last time."""
        known_incarnation, known = self._said.get(process, ("", NOTHING))
        if known_incarnation != incarnation:
            known = NOTHING  # It counts from zero.
        for tenant, numbers in tenants.items():
            before = known.get(tenant)
            if numbers == before:
                continue
            new = self._new.setdefault(tenant, TenantNumbers())
            new.add(numbers)
            if before is not None:
                new.add(before, -1)
        self._said[process] = (incarnation, tenants)

    def families(self) -> list[Family]:
        """Of a few tenants, and of all others as one. Once a scrape."""
        self._choose()
        for tenant, numbers in self._new.items():
            label = label_of(tenant) if tenant in self.named else OTHER
            self._told.setdefault(label, TenantNumbers()).add(numbers)
        self._new = {}
        return _families(self._told)

    def _choose(self) -> None:
        weights = {tenant: MEMORY * weight for tenant, weight in self._weights.items()}
        for tenant, numbers in self._new.items():
            weights[tenant] = weights.get(tenant, 0.0) + sum(numbers.classes)
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
            self._told.pop(label_of(least), None)  # Its series ends; named again, it begins anew.


def _families(told: Mapping[str, TenantNumbers]) -> list[Family]:
    def counter(name: str, doc: str, samples: list[tuple[Labels, list[float]]], *labels: str) -> Family:
        return Family(name, "counter", doc, ("tenant", *labels), (), samples)

    return [
        counter(
            "tenant_requests",
            "S3 requests of the tenant answered.",
            [
                ((tenant, f"{digit}xx"), [count])
                for tenant, numbers in told.items()
                for digit, count in enumerate(numbers.classes)
                if count
            ],
            "code_class",
        ),
        counter(
            "tenant_received_bytes",
            "Bytes of the bodies of the tenant's requests.",
            [((tenant,), [numbers.received]) for tenant, numbers in told.items()],
        ),
        counter(
            "tenant_sent_bytes",
            "Bytes of the bodies of answers to the tenant.",
            [((tenant,), [numbers.sent]) for tenant, numbers in told.items()],
        ),
        counter(
            "tenant_refusals",
            "Requests refused: past a rate, past its share of a busy process, past a quota.",
            [
                ((tenant, reason), [count])
                for tenant, numbers in told.items()
                for reason, count in numbers.refusals.items()
            ],
            "reason",
        ),
    ]
