"""One storage node of eight becomes a hundred times slower, or swallows everything: what GET and PUT take.

A dev cluster whose nodes are reached through proxies. Only in the long form (`make chaos`): what is measured
here are times, beside those of the same minutes in health. tests/blobs/test_slow_nodes.py asserts the states.
"""

import asyncio
import os
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.load import Endpoint, Generator, Job, Outcome, Payload
from bench.rows import KIB, percentile
from bench.sigv4 import Credentials
from objstore.processes.dev import LocalCluster
from tests.proxy import Proxy

LONG = bool(os.environ.get("OBJSTORE_LONG"))
NODES = 8
OBJECTS = 500
SIZE = 4 * KIB
CONNECTIONS = 2
MEASURED_S = 15.0
FOUND_OUT_S = 60.0  # The figure's.
SLOWER = 100
RATIO_MAX = 3.0  # The figure is 2; a test machine has other things to do.
BACK_S = 300.0

pytestmark = [
    pytest.mark.skipif(not LONG, reason="what it measures are times: make chaos"),
    pytest.mark.timeout(1200),
]


class Network:
    """The proxies before the nodes, on a loop of their own."""

    def __init__(self, ports: list[int]) -> None:
        self.proxies = [Proxy(port) for port in ports]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        for proxy in self.proxies:
            asyncio.run_coroutine_threadsafe(proxy.start(), self._loop).result(10)

    def change(self, act: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(act)

    def close(self) -> None:
        for proxy in self.proxies:
            asyncio.run_coroutine_threadsafe(proxy.stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


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
        gateway = self.cluster.gateway
        token = (gateway.data / "admin.token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{gateway.ports[1]}/metrics", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            page = answer.read().decode()
        total = 0.0
        for found in re.finditer(rf"^objstore_{name}(?:\{{(.*)\}})? (\S+)$", page, re.MULTILINE):
            if all(f'{label}="{value}"' in (found[1] or "") for label, value in labels.items()):
                total += float(found[2])
        return total

    def node_of_the_first_fragments(self) -> int:
        """The index of a node that every fourth of the objects is read from."""
        _, found = self.cluster.admin("GET", "/api/v1/volumes")
        first = max(found["volumes"], key=lambda row: row["bytes"])["disks"][0]
        _, disks = self.cluster.admin("GET", "/api/v1/disks")
        (node,) = [row["node"] for row in disks["disks"] if row["disk"] == first]
        return int(node.removeprefix("node-")) - 1


@pytest.fixture
def network_and_cluster(tmp_path: Path) -> Iterator[tuple[Network, LocalCluster]]:
    cluster = LocalCluster(directory=tmp_path, nodes=NODES, codec="4+2")
    listens = [
        next(int(word.rpartition(":")[2]) for word in node.command if word.startswith("--listen="))
        for node in cluster.members
    ]
    network = Network(listens)
    for node, proxy in zip(cluster.members, network.proxies, strict=True):
        node.command.append(f"--address=127.0.0.1:{proxy.port}")
    try:
        cluster.start()
        yield network, cluster
    finally:
        cluster.close()
        network.close()


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


@pytest.mark.parametrize("what", ["slow", "black hole"])
def test_one_bad_node_at_most_doubles_the_p99_of_get_within_a_minute(
    network_and_cluster: tuple[Network, LocalCluster], what: str
) -> None:
    network, cluster = network_and_cluster
    endpoint = Endpoint(url=cluster.endpoint, credentials=Credentials(*cluster.root))
    with Generator(endpoint, 1) as generator:
        measured = Measured(cluster, generator)
        proxy = network.proxies[measured.node_of_the_first_fragments()]
        print(f"\n{what}:")
        measured.get(MEASURED_S / 3)
        healthy = measured.get(MEASURED_S)
        before = told("GET healthy", healthy)
        put_before = told("PUT healthy", measured.put(MEASURED_S / 3))
        if what == "slow":
            delay_s = SLOWER * times(healthy)[0] / 1000
            print(f"the node's answers come {1000 * delay_s:.0f} ms late")
            network.change(lambda: setattr(proxy, "delay_s", delay_s))
        else:
            network.change(proxy.swallow)
        for part in range(6):
            told(f"GET {10 * part} to {10 * part + 10} s after", measured.get(FOUND_OUT_S / 6))
        bad = told("GET after a minute", measured.get(MEASURED_S))
        told("PUT after a minute", measured.put(MEASURED_S / 3))
        hedges, withheld = measured.metric("hedged_reads_total"), measured.metric("hedges_withheld_total")
        reads = measured.metric("blob_reads_total")
        around = measured.metric("avoided_reads_total") + measured.metric("degraded_reads_total")
        print(f"{hedges:.0f} hedges of {reads:.0f} reads, {withheld:.0f} withheld; {around:.0f} around it")
        _, disks = cluster.admin("GET", "/api/v1/disks")
        print("\n".join(f"disk {row['disk']}: {row['reason']}" for row in disks["disks"] if row["reason"]))
        assert around > 0
        # Each process begins with ten; an object at a boundary is two reads.
        assert hedges <= 0.06 * reads + 3 * 10
        assert bad <= RATIO_MAX * before
        network.change(proxy.open)
        network.change(lambda: setattr(proxy, "delay_s", 0.0))
        slept = 0
        while measured.metric("disk_ejected") or measured.cluster.admin("GET", "/api/v1/cluster")[1]["away"]:
            measured.get(5)
            slept += 5
            assert slept < BACK_S
        print(f"used again {slept} s after it is well")
        told("GET when it is used again", measured.get(MEASURED_S))
        assert put_before > 0
