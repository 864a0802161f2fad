"""What is sold, billed and sealed, in figures: looked at now and then, for metrics and alerts.

A look reads every volume's record, every lease, and what is open of invoices: seconds with millions of
volumes. A scrape shows the last look and reads nothing; only ages are told as of the scrape.

Concurrency: one process at a time, under the upkeep's claim; a look only reads.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import nlargest
from typing import Final

from objstore.clock import SECOND_US, Clock
from objstore.meta.kv import Kv
from objstore.meta.schema import RotationRecord, decode, setting_key
from objstore.metrics import Family, Labels
from objstore.rental.capacity import Capacity
from objstore.rental.figures import (
    BillingFigures,
    LeaseFigures,
    PurgeFigures,
    billing_figures,
    lease_figures,
    purge_figures,
    unserved,
)
from objstore.rental.meters import HOUR_S
from objstore.rental.sales import all_leases
from objstore.rental.usage import sealed_until
from objstore.upkeep.metering import SETTLE_S
from objstore.upkeep.quotas import OTHER, label_of

POOLS_SHOWN: Final = 100
SHARED: Final = "shared pool"  # The pool without a name: a name has no space.
NEVER: Final = float("inf")
ROTATION_KEY: Final = setting_key("master-key")

Samples = list[tuple[Labels, list[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What one look has found."""

    pools: list[Capacity]
    leases: LeaseFigures
    billing: BillingFigures
    sealed_hour: int  # The first that is not sealed; 0: none was ever.
    rotation: RotationRecord | None
    purges: PurgeFigures
    unserved: int  # Minutes of this month.


class Figures:
    """Keeps the last picture. One a process; `look` is a service's step."""

    def __init__(
        self, kv: Kv, clock: Clock, report: Callable[[], Awaitable[list[Capacity]]] | None, shown: int
    ) -> None:
        """
        Args:
            report: of every pool (upkeep/leasing.py); None: nothing is sold here.
            shown: how many tenants are named.
        """
        self._shown = shown
        self._kv = kv
        self._clock = clock
        self._report = report
        self.picture: Picture | None = None  # None: nobody has looked yet.

    async def look(self) -> str:
        """Read all of it anew; in words what was found. Raises: StoreError."""
        now_us = self._clock.now_us()
        pools = [] if self._report is None else await self._report()
        leases = lease_figures(await all_leases(self._kv), now_us)
        billing = await billing_figures(self._kv, now_us)
        rotation = await self._kv.get(ROTATION_KEY)
        self.picture = Picture(
            pools=sorted(pools, key=_urgency),
            leases=leases,
            billing=billing,
            sealed_hour=await sealed_until(self._kv),
            rotation=None if rotation is None else decode(rotation, RotationRecord),
            purges=await purge_figures(self._kv),
            unserved=await unserved(self._kv, now_us),
        )
        return (
            f"{len(pools)} pools, {sum(leases.count.values())} leases, "
            f"{sum(billing.customers.values())} customers, {billing.invoices['overdue']} invoices overdue"
        )

    def forget(self) -> None:
        """Another process looks now: what this one saw last would grow old."""
        self.picture = None

    def families(self) -> list[Family]:
        """For /metrics. Without samples until somebody has looked."""
        picture = self.picture
        now_us = self._clock.now_us()
        return [
            *_pool_families([] if picture is None else picture.pools[:POOLS_SHOWN]),
            *_lease_families(None if picture is None else picture.leases, self._shown),
            *_billing_families(None if picture is None else picture.billing),
            *_sealing_families(0 if picture is None else picture.sealed_hour, now_us),
            *_rotation_families(picture is not None, None if picture is None else picture.rotation),
            *_service_families(None if picture is None else picture.unserved),
            *_purge_families(None if picture is None else picture.purges),
        ]


def _urgency(capacity: Capacity) -> tuple[bool, bool, bool, int, str]:
    """Those that need somebody first, then the shared one, then the largest."""
    return (
        not capacity.oversold,
        not (capacity.order_now and capacity.growth),
        bool(capacity.pool),
        -capacity.usable,
        capacity.pool,
    )


def _gauge(name: str, doc: str, labels: Labels, samples: Samples) -> Family:
    return Family(name, "gauge", doc, labels, (), samples)


# Pools.

_POOLS: Final[Mapping[str, tuple[str, Callable[[Capacity], float | None]]]] = {
    "pool_raw_bytes": ("Of the pool's disks that are well and stay.", lambda one: one.raw),
    "pool_failed_bytes": (
        "Of the pool's disks that are not well, or are to be emptied.",
        lambda one: one.failed,
    ),
    "pool_spare_bytes": ("Raw bytes of the pool kept free to rebuild in.", lambda one: one.spare),
    "pool_usable_bytes": ("Of objects that the pool may hold, by the rules of sale.", lambda one: one.usable),
    "pool_used_bytes": ("Of objects and parts in the pool.", lambda one: one.used_logical),
    "pool_physical_used_bytes": (
        "Of fragment files in the pool, with what is garbage in them.",
        lambda one: one.used_physical,
    ),
    "pool_reserved_bytes": ("That uploads under way may still store in the pool.", lambda one: one.reserved),
    "pool_free_bytes": ("Free on the pool's disks that are well.", lambda one: one.free),
    "pool_sellable_bytes": (
        "Of the pool that can be promised from now on for ever.",
        lambda one: one.sellable,
    ),
    "pool_oversold_bytes": (
        "Of the pool promised above what is usable, at the worst moment from now on.",
        lambda one: one.oversold,
    ),
    "pool_growth_bytes_per_day": (
        "Median slope of used bytes over 28 days; without a value before there are two days.",
        lambda one: None if one.growth is None else float(one.growth),
    ),
    "pool_runway_days": (
        "Until used bytes reach the share by which more should have come; +Inf: they do not grow.",
        lambda one: NEVER if one.runway_days is None else one.runway_days,
    ),
    "pool_full_days": (
        "Until used bytes reach what is usable; +Inf: they do not grow.",
        lambda one: NEVER if one.full_days is None else one.full_days,
    ),
    "pool_lead_days": ("Days that an order of disks takes.", lambda one: one.lead_days),
}


def _pool_families(pools: Iterable[Capacity]) -> list[Family]:
    shown = [(one.pool or SHARED, one) for one in pools]
    families: list[Family] = []
    for name, (doc, number) in _POOLS.items():
        samples: Samples = []
        for label, one in shown:
            value = number(one)
            if value is not None:
                samples.append(((label,), [value]))
        families.append(_gauge(name, doc, ("pool",), samples))
    sold: Samples = []
    for label, one in shown:
        sold.append(((label, "guaranteed"), [one.sold_guaranteed]))
        sold.append(((label, "best_effort"), [one.sold_best_effort]))
    families.append(
        _gauge("pool_sold_bytes", "Of the pool promised just now, by kind of lease.", ("pool", "kind"), sold)
    )
    return families


# Leases.


def _lease_families(leases: LeaseFigures | None, shown: int) -> list[Family]:
    count: Samples = []
    ending: Samples = []
    monthly: Samples = []
    committed: Samples = []
    if leases is not None:
        for labels, number in leases.count.items():
            count.append((labels, [number]))
        ending = _labelled({str(days): number for days, number in leases.ending.items()})
        monthly = _amounts(leases.monthly)
        most = nlargest(shown, leases.committed.items(), key=lambda one: (one[1], one[0]))
        rest = sum(leases.committed.values()) - sum(size for _, size in most)
        committed = _labelled({**{label_of(tenant): size for tenant, size in most}, OTHER: rest})
    return [
        _gauge("leases", "Leases by kind and state.", ("kind", "state"), count),
        _gauge(
            "leases_ending", "Leases that end within so many days and are not renewed.", ("days",), ending
        ),
        _gauge(
            "leases_monthly_minor_units",
            "What leases charge a month for what they hold now, before tax.",
            ("currency",),
            monthly,
        ),
        _gauge(
            "tenant_committed_bytes",
            "Promised to the tenant just now, guaranteed or on nodes of its own.",
            ("tenant",),
            committed,
        ),
    ]


# Billing.

_AMOUNTS: Final[Mapping[str, tuple[str, Callable[[BillingFigures], Mapping[str, int]]]]] = {
    "billing_open_minor_units": ("Still to be paid of invoices, overdue or not.", lambda one: one.open),
    "billing_overdue_minor_units": (
        "Still to be paid of invoices that are overdue.",
        lambda one: one.overdue,
    ),
    "billing_drafted_minor_units": ("On drafts of invoices, with tax.", lambda one: one.drafted),
    "billing_last_month_minor_units": (
        "On invoices and drafts of the month before this one, before tax.",
        lambda one: one.last_month,
    ),
    "billing_service_credits_minor_units": (
        "Given back of the month before this one for service levels, before tax.",
        lambda one: one.credited,
    ),
    "billing_prepaid_minor_units": ("Paid in advance and not used up.", lambda one: one.wallets),
}


def _amounts(amounts: Mapping[str, int]) -> Samples:
    return [((currency,), [amount]) for currency, amount in sorted(amounts.items())]


def _billing_families(billing: BillingFigures | None) -> list[Family]:
    here = billing if billing is not None else BillingFigures()
    there = billing is not None
    invoices = {**here.invoices, "settled": here.settled} if there else {}
    documents = here.documents if there else {}
    numbers = {
        "billing_late_drafts": ("Drafts that could be invoices by now.", here.late_drafts),
        "billing_open_months": ("Months of drafts that could be invoices by now.", here.open_months),
        "billing_oldest_due_timestamp_seconds": (
            "When the oldest overdue invoice was due; 0: nothing is overdue.",
            here.oldest_due_us / 1e6,
        ),
    }
    return [
        _gauge("customers", "Customers by kind.", ("kind",), _labelled(here.customers)),
        _gauge(
            "billing_invoices",
            "Invoices: draft, final (open, not due), overdue, settled (paid or given back).",
            ("state",),
            _labelled(invoices),
        ),
        Family(
            "billing_documents",
            "counter",
            "Invoices and credit notes that were given a number.",
            ("type",),
            (),
            _labelled(documents),
        ),
        *(_gauge(name, doc, ("currency",), _amounts(of(here))) for name, (doc, of) in _AMOUNTS.items()),
        *(
            _gauge(name, doc, (), [((), [number])] if there else [])
            for name, (doc, number) in numbers.items()
        ),
    ]


def _labelled(numbers: Mapping[str, int]) -> Samples:
    return [((label,), [number]) for label, number in numbers.items()]


# Sealing, secrets, service and purges.


def _sealing_families(sealed_hour: int, now_us: int) -> list[Family]:
    """Ages as of now: they grow while nothing is sealed, whatever nobody looks at."""
    until_s = sealed_hour * HOUR_S
    now_s = now_us / SECOND_US
    waiting = max(0, int(now_s - SETTLE_S) // HOUR_S - sealed_hour)
    numbers = {
        "metering_sealed_until_timestamp_seconds": (
            "Up to when all hours of usage are sealed.",
            float(until_s),
        ),
        "metering_lag_seconds": ("Since the end of the last hour that is sealed.", max(0.0, now_s - until_s)),
        "metering_hours_waiting": ("Hours of usage that should be sealed and are not.", float(waiting)),
    }
    return [
        _gauge(name, doc, (), [((), [number])] if sealed_hour else [])
        for name, (doc, number) in numbers.items()
    ]


def _rotation_families(looked: bool, rotation: RotationRecord | None) -> list[Family]:
    under_way = rotation is not None and not rotation.finished_us
    began_us = rotation.began_us if rotation is not None and under_way else 0
    done = 0 if rotation is None else rotation.done
    return [
        _gauge(
            "master_key_rotation_began_timestamp_seconds",
            "When the change of the master key that is under way began; 0: none is.",
            (),
            [((), [began_us / 1e6])] if looked else [],
        ),
        _gauge(
            "master_key_rotation_sealed",
            "What the last change of the master key has sealed anew: keys, targets, authorities.",
            (),
            [((), [float(done)])] if looked else [],
        ),
    ]


def _service_families(minutes: int | None) -> list[Family]:
    doc = "Minutes of this month, as far as it is sealed, in which no gateway served."
    return [_gauge("service_unserved_minutes", doc, (), [] if minutes is None else [((), [minutes])])]


def _purge_families(purges: PurgeFigures | None) -> list[Family]:
    return [
        _gauge(
            "purges",
            "Tenants whose data is deleted for ever: deleting, clearing it off the disks, proven.",
            ("state",),
            [] if purges is None else _labelled(purges.count),
        ),
        _gauge(
            "purge_oldest_timestamp_seconds",
            "When the oldest purge that is not proven was begun; 0: there is none.",
            (),
            [] if purges is None else [((), [purges.oldest_us / 1e6])],
        ),
    ]
