"""One storage node of eight becomes a hundred times slower, or swallows everything: what GET and PUT take.

A dev cluster, one node of which is stopped: for good (it takes connections and never answers), or for all but
every hundredth millisecond. Only in the long form (`make chaos`): what is measured here are times, beside
those of the same minutes in health. tests/blobs/test_slow_nodes.py asserts the states.
"""

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.load import Endpoint, Generator, Job, Outcome, Payload
from bench.rows import KIB, percentile
from bench.sigv4 import Credentials
from objstore.processes.dev import LocalCluster, Process
from tests.chaos.workload import metrics_of

LONG = bool(os.environ.get("OBJSTORE_LONG"))
NODES = 8
OBJECTS = 500
SIZE = 4 * KIB
CONNECTIONS = 2
MEASURED_S = 15.0
FOUND_OUT_S = 60.0  # The figure's.
SLICE_S = 0.001  # How long a slow node runs before it stands for a hundred times as long.
SLOWER = 100
RATIO_MAX = 2.0
BACK_S = 300.0

pytestmark = pytest.mark.timeout(1200)


class Hindered:
    """A node that has a hundredth of its time, or none. `end` gives it back."""

    def __init__(self, node: Process, *, entirely: bool) -> None:
        self._pids = [node.pid, *node.children()]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._signal(signal.SIGSTOP)
        if not entirely:
            self._thread.start()

    def end(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._signal(signal.SIGCONT)

    def _go_on(self) -> None:
        while not self._over.wait(SLOWER * SLICE_S):
            self._signal(signal.SIGCONT)
            self._over.wait(SLICE_S)
            self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):  # A child that was taken for dead is replaced.
                os.kill(pid, number)


class Measured:
    """A cluster, objects in one volume of it, and the times that requests take."""

    def __init__(self, cluster: LocalCluster, generator: Generator) -> None:
        self.cluster = cluster
        self._generator = generator
        self._written = 0
        self._run("PUT", ["/slow"], None)
        self.put(None)

    def put(self, seconds: float | None) -> Outcome:
        paths = [
            f"/slow/{self._written + number}" for number in range(OBJECTS if seconds is None else 50_000)
        ]
        self._written += len(paths) if seconds is None else 0
        return self._run("PUT", paths, seconds)

    def get(self, seconds: float) -> Outcome:
        return self._run("GET", [f"/slow/{number}" for number in range(OBJECTS)], seconds)

    def _run(self, method: str, paths: list[str], seconds: float | None) -> Outcome:
        payload = Payload(size=SIZE) if len(paths) > 1 else None
        job = Job(
            method=method,
            paths=paths,
            payload=payload if method == "PUT" else None,
            expect=payload if method == "GET" else None,
            connections=CONNECTIONS,
            seconds=seconds,
            cycle=method == "GET",
        )
        outcome = self._generator.run([job])
        assert outcome.errors == {}
        return outcome

    def metric(self, name: str, **labels: str) -> float:
        """Summed over everything with these labels."""
        page = metrics_of(self.cluster)
        total = 0.0
        for found in re.finditer(rf"^objstore_{name}(?:\{{(.*)\}})? (\S+)$", page, re.MULTILINE):
            if all(f'{label}="{value}"' in (found[1] or "") for label, value in labels.items()):
                total += float(found[2])
        return total

    def around(self) -> float:
        """Reads that did without the bad node."""
        return self.metric("avoided_reads_total") + self.metric("degraded_reads_total")

    def tell(self) -> None:
        """Print what was done about it."""
        hedges, withheld = self.metric("hedged_reads_total"), self.metric("hedges_withheld_total")
        reads, around = self.metric("blob_reads_total"), self.around()
        print(f"{hedges:.0f} hedges of {reads:.0f} reads, {withheld:.0f} withheld, {around:.0f} around it")
        _, disks = self.cluster.admin("GET", "/api/v1/disks")
        for row in disks["disks"]:
            if row["reason"]:
                print(f"disk {row['disk']} is {row['state']}: {row['reason']}")

    def node_of_the_first_fragments(self) -> Process:
        """One that every fourth of the objects is read from."""
        _, found = self.cluster.admin("GET", "/api/v1/volumes")
        first = max(found["volumes"], key=lambda row: row["bytes"])["disks"][0]
        _, disks = self.cluster.admin("GET", "/api/v1/disks")
        (node,) = [row["node"] for row in disks["disks"] if row["disk"] == first]
        return next(member for member in self.cluster.members if member.name == node)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    made = LocalCluster(directory=tmp_path, nodes=NODES, codec="4+2")
    try:
        made.start()
        yield made
    finally:
        made.close()


def times(outcome: Outcome) -> tuple[float, float]:
    """(p50, p99), milliseconds."""
    ordered = sorted(outcome.latencies)
    return 1000 * percentile(ordered, 0.5), 1000 * percentile(ordered, 0.99)


def told(what: str, outcome: Outcome) -> float:
    """Print it; returns its p99, milliseconds."""
    p50, p99 = times(outcome)
    rate = outcome.operations / outcome.seconds
    print(f"{what:<34} p50 {p50:8.2f} ms  p99 {p99:8.2f} ms  {rate:8.0f}/s", flush=True)
    return p99


if LONG:

    @pytest.mark.parametrize("what", ["slow", "black hole"])
    def test_one_bad_node_at_most_doubles_the_p99_of_get_within_a_minute(
        cluster: LocalCluster, what: str
    ) -> None:
        endpoint = Endpoint(url=cluster.endpoint, credentials=Credentials(*cluster.root))
        with Generator(endpoint, 1) as generator:
            measured = Measured(cluster, generator)
            print(f"\n{what}:")
            measured.get(MEASURED_S)  # By then all that was written lies in volumes.
            before = told("GET healthy", measured.get(MEASURED_S))
            told("PUT healthy", measured.put(MEASURED_S / 3))
            hindered = Hindered(measured.node_of_the_first_fragments(), entirely=what == "black hole")
            try:
                for part in range(6):
                    told(f"GET {10 * part} to {10 * part + 10} s after", measured.get(FOUND_OUT_S / 6))
                bad = told("GET after a minute", measured.get(MEASURED_S))
                told("PUT after a minute", measured.put(MEASURED_S / 3))
                told("PUT after that", measured.put(MEASURED_S / 3))
                measured.tell()
            finally:
                hindered.end()
            assert measured.around() > 0
            # Each process begins with ten; an object at a boundary is two reads.
            assert (
                measured.metric("hedged_reads_total") <= 0.06 * measured.metric("blob_reads_total") + 3 * 10
            )
            assert bad <= RATIO_MAX * before
            slept = 0
            while measured.metric("disk_ejected") or cluster.admin("GET", "/api/v1/cluster")[1]["away"]:
                measured.get(5)
                slept += 5
                assert slept < BACK_S
            print(f"used again {slept} s after it is well")
            told("GET when it is used again", measured.get(MEASURED_S))
