"""The figure of repair: a disk of an 8+4 cluster is lost, and rebuilt on the others while clients read.

Eight nodes with two disks each. The disk with the most on it is removed from under its node and given up by
the operator's word; what the upkeep has read and written since (its own count) by the time that took is held
against a bare fetch over the same kind of connections before and after. Clients read 4 KiB all the while.
"""

import shutil
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.figures import Figure
from bench.rows import KIB, MIB, Bench, Row
from bench.targets import TargetFailed, bare_fetch
from objstore.processes.dev import LocalCluster

NODES: Final = 8
DISKS: Final = 2  # Of each.
CODEC: Final = "8+4"
READERS: Final = 4
ROW_SECONDS: Final = 2.0  # Of a row of readers: several fit into one repair.
WAIT_SECONDS: Final = 300.0
LOOK_SECONDS: Final = 0.5  # More often, and the looking is what is measured.
# The pace is an operator's choice, and this measures what there is to choose from.
ENVIRONMENT: Final = {
    "OBJSTORE_UPKEEP__BYTES_PER_SECOND": str(4 * 1024 * MIB),
    "OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.01",
    "OBJSTORE_UPKEEP__REBALANCE": "false",
}


@dataclass(slots=True)
class Watch:
    """Looks at a cluster's upkeep in a thread: how much it has worked, when, and what is left to do."""

    local: LocalCluster
    samples: list[tuple[float, int]] = field(default_factory=list)  # Time, bytes read and written.
    repaired: int = 0  # Files.
    lost: int = 0  # The disk's number, once it is given up: the repair ends when no volume names it.
    ended: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(30)

    def _look(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            status, told = self.local.admin("GET", "/api/v1/upkeep")
            if status != 200:
                continue
            self.samples.append((time.perf_counter(), told["bytes_worked"]))
            self.repaired = max(self.repaired, told["repair"]["repaired"])
            if self.lost and self.repaired and not self._files_left():
                self.ended.set()

    def _files_left(self) -> int:
        status, answer = self.local.admin("GET", "/api/v1/disks")
        if status != 200:
            return 1
        return sum(row["files"] for row in answer["disks"] if row["disk"] == self.lost)

    def working(self) -> tuple[list[tuple[float, float]], int]:
        """The times between two looks in which there was work, and its bytes.

        Between two passes the upkeep waits: for its period, and for volumes in use to be sealed.
        """
        pairs = [
            (one, other)
            for one, other in zip(self.samples, self.samples[1:], strict=False)
            if other[1] > one[1]
        ]
        if not pairs:
            raise TargetFailed("the upkeep has done nothing")
        return [(one[0], other[0]) for one, other in pairs], sum(other[1] - one[1] for one, other in pairs)


def measure(
    bench: Bench, local: LocalCluster, scratch: Path, bodies: int, seconds: float, show: Callable[[Row], None]
) -> list[Figure]:
    """Fill, lose, and watch. Raises: TargetFailed."""
    bench.put(64 * MIB, 4, unsigned=True, count=bodies)
    bench.put(4 * KIB, 16, count=5_000)
    fetches = [bare_fetch(scratch, NODES, seconds)]
    calm = [_readers(bench, show) for _ in range(5)]
    lost = max(_disks_of(local), key=_stored)
    with Watch(local) as watch:
        shutil.rmtree(lost)
        number = _give_up(local, lost)
        # A volume that is still written to is left when the loss is met.
        bench.put(64 * MIB, 4, unsigned=True, count=4)
        bench.put(4 * KIB, 16, count=100)
        watch.lost = number
        busy = []
        limit = time.monotonic() + WAIT_SECONDS
        while not watch.ended.is_set():
            if time.monotonic() > limit:
                raise TargetFailed(f"the disk is not rebuilt after {WAIT_SECONDS:.0f} s")
            began = time.perf_counter()
            busy.append((began, _readers(bench, show)))
    fetches.append(bare_fetch(scratch, NODES, seconds))
    times, worked = watch.working()
    seconds_worked = sum(end - begin for begin, end in times)
    beside = [
        row.p99_ms for at, row in busy if any(begin < at + ROW_SECONDS and end > at for begin, end in times)
    ]
    rate, fetch = worked / seconds_worked, statistics.mean(fetches)
    figures = [
        Figure(
            name=f"repair of a lost {CODEC} disk, bytes read and written a second",
            value=rate / fetch,
            bar=0.25,
            at_least=True,
            unit="x bare fetch",
            detail=f"{worked / MIB:,.0f} MiB for {watch.repaired} files in {seconds_worked:.1f} s of work: "
            f"{rate / MIB:,.0f} MiB/s against {fetch / MIB:,.0f} MiB/s",
        )
    ]
    if beside:
        before = statistics.median(row.p99_ms for row in calm)
        during = statistics.median(beside)
        figures.append(
            Figure(
                name=f"GET 4 KiB x{READERS} p99 beside repair",
                value=during / before,
                bar=2.0,
                at_least=False,
                unit="x before",
                detail=f"{during:,.2f} ms against {before:,.2f} ms, "
                f"medians of {len(beside)} and {len(calm)} rows",
            )
        )
    return figures


def _readers(bench: Bench, show: Callable[[Row], None]) -> Row:
    seconds, bench.plan.seconds = bench.plan.seconds, ROW_SECONDS
    try:
        row = bench.get(4 * KIB, READERS)
    finally:
        bench.plan.seconds = seconds
    show(row)
    return row


def _disks_of(local: LocalCluster) -> list[Path]:
    return [node.data / f"disk{number}" for node in local.members for number in range(1, DISKS + 1)]


def _stored(disk: Path) -> int:
    return sum(path.stat().st_blocks for path in disk.rglob("*") if path.is_file())


def _give_up(local: LocalCluster, lost: Path) -> int:
    """As `objstore disk forget` does, once the loss is seen. Returns: the disk's number."""
    limit = time.monotonic() + WAIT_SECONDS
    told: Any = "no answer"
    while time.monotonic() < limit:
        status, answer = local.admin("GET", "/api/v1/disks")
        rows = answer["disks"] if status == 200 else []
        numbers = [
            row["disk"] for row in rows if row["path"].endswith(str(lost))
        ]  # After its node's address.
        for number in numbers:
            _, told = local.admin("GET", f"/api/v1/disks/{number}/forget")
            if isinstance(told, dict) and "confirm" in told:
                status, told = local.admin(
                    "POST", f"/api/v1/disks/{number}/forget", {"confirm": told["confirm"]}
                )
                if status == 200:
                    return int(number)
        time.sleep(LOOK_SECONDS)
    raise TargetFailed(f"the disk is not given up: {told}")
