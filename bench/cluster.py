"""The cluster's figures: one gateway before eight storage nodes, all on this machine.

    python -m bench.cluster [--quick] [--only throughput] [--workers 1,2] [--rows 'GET 4 KiB']

Sections:

    throughput   the cluster (LMDB, its journal on nodes), the one-machine store and the bare proxy
                 (bench/proxy.py) side by side, row by row in turn
    postgresql   the same with metadata in PostgreSQL; its processes' CPU is counted
    repair       a lost disk of an 8+4 cluster is rebuilt while clients read (bench/repair.py)

Everybody shares the same cores: a rate is what they have left for a request after all that it costs, so a
row's `CPU us/op`, of all processes together, says more than its rate where others keep the machine busy.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Final

if __package__ in (None, ""):  # Run as `bench/cluster.py`.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import figures as promised
from bench import repair
from bench.compare import Run, add_common_options, finish, settle_options
from bench.rows import GIB, KIB, MIB, Bench, size_name
from bench.targets import ROOT, TargetFailed, bare_proxy, cluster

SECTIONS: Final = ("throughput", "postgresql", "repair")
NODES: Final = 8
KINDS: Final = (  # Operation, bytes, connections.
    ("PUT", 4 * KIB, 64),
    ("GET", 4 * KIB, 32),
    ("GET", 64 * MIB, 4),
)


class ClusterRun(Run):
    """One invocation."""

    def everything(self) -> None:
        self.measure_machine()
        for workers in self.options.workers:
            for section in ("throughput", "postgresql"):
                if section in self.options.only:
                    self.measure_throughput(workers, postgresql=section == "postgresql")
        if "repair" in self.options.only:
            self.measure_repair()

    def measure_throughput(self, workers: int, *, postgresql: bool) -> None:
        self.say(f"{'PostgreSQL' if postgresql else 'LMDB'}, {workers} worker{'s' if workers > 1 else ''}")
        with contextlib.ExitStack() as stack:
            proxy = stack.enter_context(bare_proxy(self.scratch, workers, NODES))
            one = stack.enter_context(self.objstore(workers))
            many, _ = stack.enter_context(cluster(self.scratch, workers, NODES, postgresql=postgresql))
            benches = [stack.enter_context(self.bench(target)) for target in (many, one, proxy)]
            wanted = [kind for kind in KINDS if self.plan.wants(label(*kind))]
            for bench in benches:
                self._prepare(bench, {size for _, size, _ in wanted})
            for _ in range(self.options.repeat):
                for operation, size, connections in wanted:
                    for bench in benches:
                        if operation == "GET":
                            self.show(bench.get(size, connections))
                        elif not bench.target.bare:
                            self.show(bench.put(size, connections))
        self.figures += promised.of_a_cluster(self.rows, many.name, one.name, proxy.name)

    def measure_repair(self) -> None:
        self.say("repair")
        bodies = 16 if self.options.quick else 64
        settings = {"disks": repair.DISKS, "codec": repair.CODEC, "environment": repair.ENVIRONMENT}
        with (
            cluster(self.scratch, 1, repair.NODES, **settings) as (target, local),  # type: ignore[arg-type]
            self.bench(target) as bench,
        ):
            self.figures += repair.measure(
                bench, local, self.scratch, bodies, self.options.seconds, self.show
            )

    def _prepare(self, bench: Bench, sizes: set[int]) -> None:
        """Something to read is there, and nobody is measured cold."""
        if 4 * KIB in sizes:
            bench.put(4 * KIB, 16, count=2_000)
        if 64 * MIB in sizes:
            bench.put(64 * MIB, 4, unsigned=True, count=4 if self.options.quick else 16)
        spoiled = [row for row in bench.rows if row.errors]
        if spoiled:
            raise TargetFailed(f"cannot fill {bench.target.name}: {spoiled[0].errors}")
        bench.rows.clear()


def label(operation: str, size: int, connections: int) -> str:
    return f"{operation} {size_name(size)} x{connections}"


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=SECTIONS, help="sections to run; default: all")
    add_common_options(parser, ROOT / "bench" / "out" / "cluster")
    return settle_options(parser, arguments, SECTIONS)


def main(arguments: list[str] | None = None) -> int:
    """See compare.finish for what is returned."""
    options = parse_options(arguments)
    return finish(ClusterRun(options), (4 if options.quick else 20) * GIB)


if __name__ == "__main__":
    sys.exit(main())
