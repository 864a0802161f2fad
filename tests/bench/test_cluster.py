"""The floor of the cluster's figures is one: bytes come from a node, through the proxy, unchanged."""

from pathlib import Path

from bench import figures
from bench.load import Generator
from bench.rows import KIB, MIB, Bench, Plan, Row
from bench.targets import bare_fetch, bare_proxy


def row(target: str, operation: str, size: int, connections: int, rate: float) -> Row:
    return Row(
        target=target,
        workers=1,
        operation=operation,
        size=size,
        connections=connections,
        operations=100,
        seconds=1.0,
        rate=rate,
        p50_ms=1.0,
        p99_ms=2.0,
        cpu_us=100.0,
        worker_anonymous_peak=None,
        generator_cpu_us=1.0,
    )


def test_the_proxy_passes_on_what_nodes_have_and_a_bare_fetch_counts_bytes(tmp_path: Path) -> None:
    with bare_proxy(tmp_path, 1, 2) as target, Generator(target.endpoint, 1) as generator:
        bench = Bench(target, generator, Plan(seconds=0.3))
        for size in (4 * KIB, 3 * MIB):  # Whole, and as a stream.
            bench.put(size, 2, count=2)
            got = bench.get(size, 2)
            assert got.operations
            assert not got.errors
            assert got.cpu_us is not None
    assert bare_fetch(tmp_path, 2, 0.2) > MIB
    assert not list(tmp_path.iterdir()), "keys and certificates are gone"


def test_puts_are_held_against_one_machine_and_gets_against_the_proxy() -> None:
    rows = [
        row("cluster/1", "PUT", 4 * KIB, 64, 1_200),
        row("objstore/1", "PUT", 4 * KIB, 64, 2_000),
        row("cluster/1", "GET", 4 * KIB, 32, 390),
        row("objstore/1", "GET", 4 * KIB, 32, 8_000),
        row("proxy/1", "GET", 4 * KIB, 32, 1_000),
    ]
    put, get = figures.of_a_cluster(rows, "cluster/1", "objstore/1", "proxy/1")
    assert (put.value, put.passed) == (0.6, True)
    assert (get.value, get.passed) == (0.39, False)
