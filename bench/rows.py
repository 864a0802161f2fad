"""The rows: what is asked of a target, in which order, and what is written down.

A row runs one operation at one size over one number of connections. PUT rows leave their objects for the GET
and HEAD rows of the same size; the DELETE row of the same size and connections takes them away.
"""

import random
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from bench.load import Generator, Job, Outcome, Payload
from bench.sigv4 import canonical_query
from bench.targets import MemoryWatch, Target, TargetFailed

KIB, MIB, GIB = 1024, 1024**2, 1024**3
SIZES = (KIB, 4 * KIB, 64 * KIB, MIB, 64 * MIB)
CONNECTIONS = (1, 16, 64)
OPERATIONS = ("PUT", "GET", "HEAD", "DELETE")
_PREPARED_MAX = 200_000  # Request heads of one row: about 100 MB in the generator.


def size_name(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured line. None: not known here (the server runs elsewhere) or not meaningful."""

    target: str
    workers: int | None
    operation: str
    size: int  # Bytes of one body; for LIST the number of keys in the bucket.
    connections: int
    operations: int
    seconds: float
    rate: float  # Operations a second.
    p50_ms: float
    p99_ms: float
    cpu_us: float | None  # Server CPU, microseconds per operation, its whole process tree.
    worker_anonymous_peak: int | None  # Bytes, the hungriest worker.
    generator_cpu_us: float  # The generator's own, per operation: what it took from the server's machine.
    shares: list[int] = field(default_factory=list)  # Connections per worker, where they were balanced.
    errors: dict[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def label(self) -> str:
        what = f"{self.size:,} keys" if self.operation.startswith("LIST") else size_name(self.size)
        return f"{self.operation} {what} x{self.connections}"

    def as_json(self) -> dict[str, object]:
        return {"label": self.label, **asdict(self)}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of an ascending sequence; 0.0 when it is empty."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


@dataclass(slots=True, kw_only=True)
class Plan:
    """How long and how much."""

    seconds: float = 5.0  # Of each row.
    bytes_max: int = 2 * GIB  # Sent or received in one row; at least one body a connection.
    seed: int = 1
    only: re.Pattern[str] | None = None  # Rows whose label does not match are left out.

    def wants(self, label: str) -> bool:
        return self.only is None or bool(self.only.search(label))


class Bench:
    """Runs rows against one target and keeps what it stored."""

    def __init__(self, target: Target, generator: Generator, plan: Plan) -> None:
        self.target = target
        self.generator = generator
        self.plan = plan
        self.rows: list[Row] = []
        self._stored: dict[tuple[int, int], list[str]] = {}  # (size, connections of its PUT row) -> paths.
        self._rate: dict[tuple[str, int], float] = {}  # Last seen, to prepare enough and not far too much.
        self._series = 0
        self._random = random.Random(plan.seed)

    # -- single rows -------------------------------------------------------------------------------------

    def put(self, size: int, connections: int, *, unsigned: bool = False, count: int | None = None) -> Row:
        """Unique keys; `count` objects, or as many as fit into the plan's seconds and bytes."""
        self._series += 1
        processes = self._processes(connections)
        if count is None:
            guess = self._rate.get(("PUT", size), 40_000 if self.target.bare else 16_000)
            wanted = int(guess * 1.5 * self.plan.seconds) + 4 * connections
            total = max(min(wanted, self.plan.bytes_max // max(size, 1), _PREPARED_MAX), connections)
            seconds: float | None = self.plan.seconds
            # Where bytes end the row before the clock does, every object counts.
            warmup = self._warmup(self.plan.seconds) if total >= wanted else 0.0
        else:
            total, seconds, warmup = count, None, 0.0
        each = -(-total // processes)
        path_lists = [
            [f"/{self.target.bucket}/{size}/{self._series}-{part}/{number:08d}" for number in range(each)]
            for part in range(processes)
        ]
        jobs = [
            Job(
                method="PUT",
                paths=paths,
                payload=Payload(size=size, seed=self.plan.seed),
                unsigned_payload=unsigned,
                connections=own,
                seconds=seconds,
                warmup_s=warmup,
                worker_pids=self._balanced(own),
            )
            for paths, own in zip(path_lists, self._split(connections), strict=True)
        ]
        row = self._run("PUT", size, connections, jobs, note="UNSIGNED-PAYLOAD" if unsigned else "")
        stored = self._stored.setdefault((size, connections), [])
        for paths, outcome in zip(path_lists, self.generator.outcomes, strict=True):
            stored += paths[: outcome.done]
        return row

    def get(self, size: int, connections: int) -> Row:
        return self._read("GET", size, connections)

    def head(self, size: int, connections: int) -> Row:
        return self._read("HEAD", size, connections)

    def _read(self, method: str, size: int, connections: int) -> Row:
        paths = self.stored(size)
        if not paths:
            raise TargetFailed(f"no object of {size_name(size)} is there to be read: put some first")
        self._random.shuffle(paths)
        paths = paths[:_PREPARED_MAX]
        processes = self._processes(connections)
        jobs = [
            Job(
                method=method,
                paths=paths[part::processes] or paths,
                expect=Payload(size=size, seed=1 if self.target.bare else self.plan.seed)
                if method == "GET"
                else None,
                connections=own,
                seconds=self.plan.seconds,
                warmup_s=self._warmup(self.plan.seconds),
                cycle=True,
                worker_pids=self._balanced(own),
            )
            for part, own in enumerate(self._split(connections))
        ]
        return self._run(method, size, connections, jobs)

    def delete(self, size: int, connections: int) -> Row:
        """Takes away what the PUT row of the same size and connections has stored (each key once)."""
        paths = self._stored.pop((size, connections), [])
        if not paths:
            raise TargetFailed(f"no object of {size_name(size)} is there to be deleted: put some first")
        self._random.shuffle(paths)
        processes = self._processes(connections)
        jobs = [
            Job(
                method="DELETE",
                paths=paths[part::processes],
                connections=own,
                seconds=self.plan.seconds,
                worker_pids=self._balanced(own),
            )
            for part, own in enumerate(self._split(connections))
        ]
        row = self._run("DELETE", size, connections, jobs)
        left = [
            path
            for part, outcome in enumerate(self.generator.outcomes)
            for path in paths[part::processes][outcome.done :]
        ]
        if left:
            self._stored[(size, connections)] = left
        return row

    def multipart(self, size: int = GIB, part_size: int = 64 * MIB, connections: int = 4) -> Row:
        """One upload of `size` bytes. The row's one operation is the whole: create, parts, complete."""
        path = f"/{self.target.bucket}/multipart/{self._random.getrandbits(32):08x}"
        answer = self.target.must("POST", path, {"uploads": ""}).decode()
        found = re.search(r"<UploadId>([^<]+)</UploadId>", answer)
        if not found:
            raise TargetFailed(f"CreateMultipartUpload without an UploadId: {answer[:300]}")
        upload = found[1]
        numbers = range(1, size // part_size + 1)
        queries = [canonical_query({"partNumber": str(number), "uploadId": upload}) for number in numbers]
        job = Job(
            method="PUT",
            paths=[path] * len(numbers),
            queries=queries,
            payload=Payload(size=part_size, seed=self.plan.seed),
            unsigned_payload=True,
            connections=connections,
            seconds=None,
            collect_etags=True,
            worker_pids=self._balanced(connections),
        )
        cpu = self.target.cpu_seconds()
        with MemoryWatch(self.target) as memory:
            outcome = self.generator.run([job])
            started = time.perf_counter()
            document = "".join(
                f"<Part><PartNumber>{number}</PartNumber>"
                f"<ETag>{outcome.etags.get(number - 1, '')}</ETag></Part>"
                for number in numbers
            )
            body = f"<CompleteMultipartUpload>{document}</CompleteMultipartUpload>".encode()
            answer = self.target.must("POST", path, {"uploadId": upload}, body).decode()
            if "<ETag>" not in answer:
                outcome.note(f"CompleteMultipartUpload: {answer[:200]}")
            seconds = outcome.seconds + time.perf_counter() - started
        after = self.target.cpu_seconds()
        row = Row(
            target=self.target.name,
            workers=self.target.workers,
            operation="MULTIPART",
            size=size,
            connections=connections,
            operations=1,
            seconds=seconds,
            rate=1 / seconds,
            p50_ms=seconds * 1e3,
            p99_ms=seconds * 1e3,
            cpu_us=None if cpu is None or after is None else (after - cpu) * 1e6,
            worker_anonymous_peak=memory.worker_peak,
            generator_cpu_us=outcome.generator_cpu_s * 1e6,
            errors=outcome.errors,
            note=f"{len(numbers)} parts of {size_name(part_size)}",
        )
        self.rows.append(row)
        return row

    def list_pages(
        self, queries: Sequence[dict[str, str]], operation: str, keys: int, connections: int = 1
    ) -> Row:
        """ListObjectsV2 pages, the given queries again and again in random order."""
        chosen = list(queries)
        self._random.shuffle(chosen)
        texts = [canonical_query({"list-type": "2", **query}) for query in chosen]
        job = Job(
            method="GET",
            paths=[f"/{self.target.bucket}"] * len(texts),
            queries=texts,
            connections=connections,
            seconds=self.plan.seconds,
            cycle=True,
            worker_pids=self._balanced(connections),
        )
        return self._run(operation, keys, connections, [job])

    # -- helpers -----------------------------------------------------------------------------------------

    def stored(self, size: int) -> list[str]:
        return [path for (own, _), paths in self._stored.items() if own == size for path in paths]

    def forget(self) -> None:
        self._stored.clear()

    def _warmup(self, seconds: float) -> float:
        return min(0.3, seconds / 10)

    def _processes(self, connections: int) -> int:
        return min(self.generator.count, connections)

    def _split(self, connections: int) -> list[int]:
        processes = self._processes(connections)
        return [connections // processes + (part < connections % processes) for part in range(processes)]

    def _balanced(self, connections: int) -> list[int]:
        """The workers to share the connections equally; none when there is nothing to share."""
        pids = self.target.worker_pids()
        return pids if 1 < len(pids) <= connections else []

    def _run(self, operation: str, size: int, connections: int, jobs: list[Job], note: str = "") -> Row:
        before: list[float | None] = []
        with MemoryWatch(self.target) as memory:
            outcome = self.generator.run(jobs, at_start=lambda: before.append(self.target.cpu_seconds()))
        after = self.target.cpu_seconds()
        row = make_row(self.target, operation, size, connections, outcome, before[0], after, memory, note)
        self._rate[(operation, size)] = row.rate
        self.rows.append(row)
        return row


def make_row(
    target: Target,
    operation: str,
    size: int,
    connections: int,
    outcome: Outcome,
    cpu_before: float | None,
    cpu_after: float | None,
    memory: MemoryWatch,
    note: str,
) -> Row:
    ordered = sorted(outcome.latencies)
    answered = max(outcome.attempted, 1)
    known = cpu_before is not None and cpu_after is not None
    return Row(
        target=target.name,
        workers=target.workers,
        operation=operation,
        size=size,
        connections=connections,
        operations=outcome.operations,
        seconds=outcome.seconds,
        rate=outcome.operations / outcome.seconds,
        p50_ms=percentile(ordered, 0.50) * 1e3,
        p99_ms=percentile(ordered, 0.99) * 1e3,
        cpu_us=(cpu_after - cpu_before) / answered * 1e6 if known else None,  # type: ignore[operator]
        worker_anonymous_peak=memory.worker_peak,
        generator_cpu_us=outcome.generator_cpu_s / answered * 1e6,
        shares=sorted(outcome.shares.values()),
        errors=outcome.errors,
        note=note,
    )


def every_row(bench: Bench, sizes: Iterable[int], connections: Sequence[int]) -> None:
    """The whole matrix. For each size: store, read, ask, take away."""
    plan = bench.plan
    for size in sizes:

        def wanted(operation: str, count: int, size: int = size) -> bool:
            return plan.wants(f"{operation} {size_name(size)} x{count}")

        reads = [n for n in connections if wanted("GET", n) or wanted("HEAD", n)]
        for count in connections:
            if wanted("PUT", count) or wanted("DELETE", count):
                bench.put(size, count)
        if reads and not bench.stored(size):
            bench.put(size, 16, count=min(2_000, max(16, plan.bytes_max // size // 4)))
        for count in connections:
            if wanted("GET", count):
                bench.get(size, count)
        for count in connections:
            if wanted("HEAD", count) and not bench.target.bare:
                bench.head(size, count)
        for count in connections:
            if wanted("DELETE", count) and not bench.target.bare:
                bench.delete(size, count)


def median_row(rows: Sequence[Row]) -> Row:
    """Of repeated rows, the one whose rate is the median: a real row, not an average of several."""
    ordered = sorted(rows, key=lambda row: row.rate)
    middle = statistics.median_low([row.rate for row in ordered])
    return next(row for row in ordered if row.rate == middle)
