"""What is counted: plain numbers in each process, merged and rendered when someone asks.

Nothing here locks, formats or allocates on the way of a request: a counter is an int in a dict, a
histogram a list of ints. Each process hands out a `snapshot()` (MessagePack) over its control
socket; the admin port merges the snapshots of all processes and renders one page for Prometheus.
Names are `objstore_...` with base units; labels never hold a bucket, a key or a user, and name few tenants.

Concurrency: a Registry belongs to one process and is changed by its event loop's thread only. A
snapshot taken between two additions is a moment too early for the second, never torn.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

PREFIX: Final = "objstore_"

# Seconds. A group commit on a good disk takes 1 to 10 ms, a cached read 0.1: the buckets are dense there.
DURATIONS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip

TENANTS_MAX: Final = 4_000  # That one process counts by name: about 2 MB. All others are one.

Labels = tuple[str, ...]


class Family(msgspec.Struct, array_like=True):
    """One metric with all its label sets, as it travels between processes.

    `samples` holds (label values, numbers): one number for a counter or gauge; for a histogram the
    counts of its buckets (not cumulative, the last one is +Inf) and then the sum.
    """

    name: str  # Without prefix; counters without `_total`.
    kind: str  # counter | gauge | histogram
    doc: str
    labels: Labels
    bounds: tuple[float, ...]
    samples: list[tuple[Labels, list[float]]]


class TenantNumbers(msgspec.Struct, array_like=True, gc=False):
    """What one process has counted of one tenant.

    Of thousands they travel as they are: whoever shows them makes families, of a few (processes/naming.py).
    """

    classes: list[int] = msgspec.field(default_factory=lambda: [0] * 6)  # By the status' first digit.
    received: int = 0  # Bytes of bodies.
    sent: int = 0
    refusals: dict[str, int] = msgspec.field(default_factory=dict)  # By what it was refused for.

    def add(self, other: "TenantNumbers", sign: int = 1) -> None:
        """Args: sign: -1 takes them off."""
        self.classes = [own + sign * count for own, count in zip(self.classes, other.classes, strict=True)]
        self.received += sign * other.received
        self.sent += sign * other.sent
        for reason, count in other.refusals.items():
            self.refusals[reason] = self.refusals.get(reason, 0) + sign * count


def counter(name: str, doc: str, value: float) -> Family:
    """A counter without labels that something else has counted."""
    return Family(name, "counter", doc, (), (), [((), [value])])


def gauge(name: str, doc: str, value: float) -> Family:
    """A gauge without labels, read just now."""
    return Family(name, "gauge", doc, (), (), [((), [value])])


class Counter:
    """A number that only grows, per set of label values."""

    __slots__ = ("_values", "doc", "labels", "name")

    def __init__(self, name: str, doc: str, labels: Labels = ()) -> None:
        self.name, self.doc, self.labels = name, doc, labels
        self._values: dict[Labels, float] = {} if labels else {(): 0}

    def add(self, amount: float = 1, *values: str) -> None:
        self._values[values] = self._values.get(values, 0) + amount

    def family(self) -> Family:
        return Family(
            self.name, "counter", self.doc, self.labels, (), [(k, [v]) for k, v in self._values.items()]
        )


class Histogram:
    """Counts per bucket and a sum, per set of label values."""

    __slots__ = ("_values", "bounds", "doc", "labels", "name")

    def __init__(
        self, name: str, doc: str, labels: Labels = (), bounds: tuple[float, ...] = DURATIONS
    ) -> None:
        assert list(bounds) == sorted(bounds)
        self.name, self.doc, self.labels, self.bounds = name, doc, labels, bounds
        self._values: dict[Labels, list[float]] = {}

    def observe(self, value: float, *values: str) -> None:
        cell = self._values.get(values)
        if cell is None:
            cell = self._values[values] = [0] * (len(self.bounds) + 1) + [0.0]
        cell[bisect_left(self.bounds, value)] += 1
        cell[-1] += value

    def family(self) -> Family:
        samples = [(k, list(v)) for k, v in self._values.items()]
        return Family(self.name, "histogram", self.doc, self.labels, self.bounds, samples)


class Gauge:
    """A number that is read when asked for: `read` returns {label values: number}."""

    __slots__ = ("_read", "doc", "labels", "name")

    def __init__(
        self, name: str, doc: str, read: Callable[[], dict[Labels, float]], labels: Labels = ()
    ) -> None:
        self.name, self.doc, self.labels = name, doc, labels
        self._read = read

    def family(self) -> Family:
        samples = [(k, [float(v)]) for k, v in self._read().items()]
        return Family(self.name, "gauge", self.doc, self.labels, (), samples)


class Registry:
    """All metrics of one process."""

    def __init__(self) -> None:
        self._parts: list[Callable[[], Iterable[Family]]] = []
        self.tenants: dict[str, TenantNumbers] = {}  # In no family: there can be thousands.

    def counter(self, name: str, doc: str, labels: Labels = ()) -> Counter:
        made = Counter(name, doc, labels)
        self._parts.append(lambda: [made.family()])
        return made

    def histogram(
        self, name: str, doc: str, labels: Labels = (), bounds: tuple[float, ...] = DURATIONS
    ) -> Histogram:
        made = Histogram(name, doc, labels, bounds)
        self._parts.append(lambda: [made.family()])
        return made

    def gauge(
        self, name: str, doc: str, read: Callable[[], dict[Labels, float]], labels: Labels = ()
    ) -> Gauge:
        made = Gauge(name, doc, read, labels)
        self._parts.append(lambda: [made.family()])
        return made

    def include(self, families: Callable[[], Iterable[Family]]) -> None:
        """Add a part that makes its families itself when asked."""
        self._parts.append(families)

    def families(self) -> list[Family]:
        return [family for part in self._parts for family in part()]

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(self.families())


class _Operation:
    """The numbers of one S3 operation: fixed slots, so that a request costs a few additions."""

    __slots__ = ("buckets", "classes", "first", "received", "seconds", "sent")

    def __init__(self) -> None:
        self.classes = [0] * 6  # By the status' first digit.
        self.buckets = [0] * (len(DURATIONS) + 1)
        self.first = [0] * (len(DURATIONS) + 1)
        self.seconds = [0.0, 0.0]  # Whole requests; to the first byte.
        self.received = 0
        self.sent = 0


class RequestMetrics:
    """The S3 face's numbers. `finished` is on the hot path: about 1 us a call.

    `gateway` is the worker's number; it is a label, so that a restarted worker resets only its own series.
    """

    def __init__(self, registry: Registry, gateway: str = "1") -> None:
        self.gateway = gateway
        self.in_flight = 0
        self.connections = 0
        self._operations: dict[str, _Operation] = {}
        self._tenants = registry.tenants
        self._errors: dict[Labels, float] = {}
        self._denied: dict[Labels, float] = {}
        self._throttled = 0
        registry.include(self._s3_families)

    def finished(
        self,
        operation: str,
        status: int,
        seconds: float,
        received: int = 0,
        sent: int = 0,
        error_code: str = "",
        first_byte_seconds: float | None = None,
        tenant: str = "",
        refusal: str = "",
    ) -> None:
        """One request has ended.

        Args:
            received, sent: bytes of bodies.
            tenant: who asked; empty: a stranger.
            refusal: of its tenant's: rate | share | quota; empty: it was refused for none of these.
        """
        numbers = self._operations.get(operation)
        if numbers is None:
            numbers = self._operations[operation] = _Operation()
        digit = status // 100 if 100 <= status < 600 else 0
        numbers.classes[digit] += 1
        numbers.buckets[bisect_left(DURATIONS, seconds)] += 1
        numbers.seconds[0] += seconds
        numbers.received += received
        numbers.sent += sent
        if first_byte_seconds is not None:
            numbers.first[bisect_left(DURATIONS, first_byte_seconds)] += 1
            numbers.seconds[1] += first_byte_seconds
        if error_code:
            self._error(operation, status, error_code)
        if tenant:
            own = self._tenants.get(tenant) or self._tenant(tenant)
            own.classes[digit] += 1
            own.received += received
            own.sent += sent
            if refusal:
                own.refusals[refusal] = own.refusals.get(refusal, 0) + 1

    def _tenant(self, tenant: str) -> TenantNumbers:
        """Its numbers, or, when too many tenants are known by name, those of all others."""
        name = tenant if len(self._tenants) < TENANTS_MAX else ""
        return self._tenants.setdefault(name, TenantNumbers())

    def _error(self, operation: str, status: int, error_code: str) -> None:
        labels = (operation, error_code)
        self._errors[labels] = self._errors.get(labels, 0) + 1
        if status == 403:
            self._denied[(error_code,)] = self._denied.get((error_code,), 0) + 1
        elif status == 503 and error_code == "SlowDown":
            self._throttled += 1

    def _s3_families(self) -> list[Family]:
        requests: list[tuple[Labels, list[float]]] = []
        durations: list[tuple[Labels, list[float]]] = []
        firsts: list[tuple[Labels, list[float]]] = []
        received = sent = 0
        for operation, numbers in self._operations.items():
            received += numbers.received
            sent += numbers.sent
            durations.append(((operation,), [*map(float, numbers.buckets), numbers.seconds[0]]))
            if any(numbers.first):
                firsts.append(((operation,), [*map(float, numbers.first), numbers.seconds[1]]))
            for digit, count in enumerate(numbers.classes):
                if count:
                    requests.append(((operation, f"{digit}xx", self.gateway), [count]))
        return [
            Family(
                "s3_requests",
                "counter",
                "S3 requests answered.",
                ("op", "code_class", "gateway"),
                (),
                requests,
            ),
            Family(
                "s3_errors",
                "counter",
                "S3 requests answered with an error, by its code.",
                ("op", "error_code"),
                (),
                [(k, [v]) for k, v in self._errors.items()],
            ),
            Family(
                "s3_request_duration_seconds",
                "histogram",
                "From a request's head to the end of its answer.",
                ("op",),
                DURATIONS,
                durations,
            ),
            Family(
                "s3_ttfb_seconds",
                "histogram",
                "From a request's head to the first byte of its answer.",
                ("op",),
                DURATIONS,
                firsts,
            ),
            Family(
                "s3_requests_in_flight",
                "gauge",
                "Requests being served.",
                ("gateway",),
                (),
                [((self.gateway,), [self.in_flight])],
            ),
            Family(
                "s3_received_bytes",
                "counter",
                "Bytes of request bodies received.",
                (),
                (),
                [((), [received])],
            ),
            Family("s3_sent_bytes", "counter", "Bytes of answer bodies sent.", (), (), [((), [sent])]),
            Family(
                "s3_auth_failures",
                "counter",
                "Requests refused with 403, by error code.",
                ("reason",),
                (),
                [(k, [v]) for k, v in self._denied.items()],
            ),
            Family(
                "s3_throttled",
                "counter",
                "Requests refused with 503 SlowDown.",
                (),
                (),
                [((), [self._throttled])],
            ),
        ]


_snapshot_decoder = msgspec.msgpack.Decoder(list[Family])


def decode_snapshot(snapshot: bytes) -> list[Family]:
    return _snapshot_decoder.decode(snapshot)


def merge(snapshots: Iterable[Sequence[Family]]) -> list[Family]:
    """Add up equal label sets over processes. A gauge that must not be added carries a label that
    names its process. Families of one name must agree in kind, labels and bounds."""
    merged: dict[str, Family] = {}
    cells: dict[tuple[str, Labels], list[float]] = {}
    for families in snapshots:
        for family in families:
            known = merged.get(family.name)
            if known is None:
                known = merged[family.name] = Family(
                    family.name, family.kind, family.doc, family.labels, family.bounds, []
                )
            assert (known.kind, known.labels, known.bounds) == (family.kind, family.labels, family.bounds)
            for labels, numbers in family.samples:
                cell = cells.get((family.name, labels))
                if cell is None:
                    cell = cells[(family.name, labels)] = list(numbers)
                    known.samples.append((labels, cell))
                else:
                    for index, number in enumerate(numbers):
                        cell[index] += number
    return list(merged.values())


class Accumulator:
    """Keeps totals over the deaths of the processes they came from.

    A process that was started again counts from zero; what its predecessor had at the last scrape
    is kept and added, so that no counter goes back.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, list[Family]]] = {}  # Process name -> (incarnation, families).
        self._past: list[Family] = []

    def take(self, process: str, incarnation: str, families: list[Family]) -> None:
        known = self._last.get(process)
        if known is not None and known[0] != incarnation:
            ended = [family for family in known[1] if family.kind != "gauge"]
            self._past = merge([self._past, ended])
        self._last[process] = (incarnation, families)

    def drop_gauges(self, process: str) -> None:
        """The process does not answer: its counters stay, what it said of the present does not."""
        known = self._last.get(process)
        if known is not None:
            self._last[process] = (known[0], [family for family in known[1] if family.kind != "gauge"])

    def families(self) -> list[Family]:
        return merge([self._past, *(families for _, families in self._last.values())])


class _Source:
    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[object]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for family in sorted(self._families, key=lambda family: family.name):
            name = PREFIX + family.name
            if family.kind == "histogram":
                histogram = HistogramMetricFamily(name, family.doc, labels=family.labels)
                for labels, numbers in sorted(family.samples):
                    total, buckets = 0.0, []
                    for bound, count in zip([*map(_bound, family.bounds), "+Inf"], numbers[:-1], strict=True):
                        total += count
                        buckets.append((bound, total))
                    histogram.add_metric(labels, buckets, numbers[-1])
                yield histogram
                continue
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            simple = kind(name, family.doc, labels=family.labels)
            for labels, numbers in sorted(family.samples):
                simple.add_metric(labels, numbers[0])
            yield simple


def _bound(bound: float) -> str:
    return repr(float(bound))


def render(families: Sequence[Family]) -> bytes:
    """The page for Prometheus (text format 0.0.4)."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Source(families))  # type: ignore[arg-type]
    return generate_latest(registry)
