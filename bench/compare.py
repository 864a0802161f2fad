"""The benchmark's command: measures S3 endpoints beside the machine's floor, in one run.

    python -m bench.compare                                     # objstore and the floor, every section
    python -m bench.compare --quick                             # the same, short: two to three minutes
    python -m bench.compare --only figures                      # what the store has promised
    python -m bench.compare --no-objstore --target other=http://127.0.0.1:9100,KEY,SECRET,pid=1234

Sections: rows (every operation, size and number of connections), figures, list (pages over many keys), space
(allocated bytes per byte stored), memory (anonymous memory of a worker). `--target` endpoints run the rows
and lists.
"""

import argparse
import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):  # Run as `bench/compare.py`.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import figures as promised
from bench import floor, report
from bench.figures import Figure, Machine
from bench.load import Generator, GeneratorFailed, Job
from bench.rows import CONNECTIONS, GIB, KIB, MIB, SIZES, Bench, Plan, Row, every_row
from bench.targets import (
    ROOT,
    MemoryWatch,
    Target,
    TargetFailed,
    bare_aiohttp,
    filesystem_of,
    objstore,
    parse,
)

SECTIONS = ("rows", "figures", "list", "space", "memory")


class Run:
    """One invocation: its options, and what it has found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.plan = Plan(
            seconds=options.seconds,
            bytes_max=options.bytes_max * MIB,
            seed=options.seed,
            only=re.compile(options.rows) if options.rows else None,
        )
        self.out: Path = options.out
        self.scratch: Path = options.scratch
        self.rows: list[Row] = []
        self.figures: list[Figure] = []
        self.machine: Machine | None = None

    def say(self, text: str) -> None:
        print(text, flush=True)

    @contextlib.contextmanager
    def bench(self, target: Target) -> Iterator[Bench]:
        """A generator and its rows on this target; what was measured is kept even when a row fails."""
        with Generator(target.endpoint, self.options.generators) as generator:
            bench = Bench(target, generator, self.plan)
            target.make_bucket()
            try:
                yield bench
            finally:
                self.rows += bench.rows

    def show(self, row: Row) -> None:
        remarks = f"  ERRORS {row.errors}" if row.errors else ""
        cpu = "" if row.cpu_us is None else f"  CPU {row.cpu_us:,.0f} us"
        shares = f"  shares {'+'.join(map(str, row.shares))}" if row.shares else ""
        self.say(
            f"  {row.target:12} {row.label:24} {row.rate:10,.1f}/s  p50 {row.p50_ms:9,.2f} ms  "
            f"p99 {row.p99_ms:9,.2f} ms{cpu}{shares}{remarks}"
        )

    def objstore(self, workers: int) -> "contextlib.AbstractContextManager[Target]":
        return objstore(self.scratch, workers, self.out / "objstore.log", options=tuple(self.options.serve))

    # -- sections ----------------------------------------------------------------------------------------

    def measure_machine(self) -> None:
        busy = floor.busy_share()
        quick = self.options.quick
        latency = floor.fdatasync_latency(self.scratch, 100 if quick else 1_000)
        self.machine = Machine(
            cores=len(os.sched_getaffinity(0)),
            md5_rate=floor.md5_rate(64 * MIB if quick else 256 * MIB),
            fdatasync_p50_s=latency[0],
            fdatasync_p99_s=latency[1],
            write_rate=floor.write_rate(self.scratch, *((256 * MIB, 1) if quick else (GIB, 3))),
            filesystem=filesystem_of(self.scratch),
            busy_before=busy,
        )
        self.say(report.machine_lines(self.machine))

    def measure_figures(self, workers: int) -> None:
        """Floor and store side by side, row by row, so that a noisy neighbour hits both."""
        quick = self.options.quick
        self.say(f"figures, {workers} worker{'s' if workers > 1 else ''} each")
        with contextlib.ExitStack() as stack:
            bare = stack.enter_context(self.bench(stack.enter_context(bare_aiohttp(workers))))
            own = None
            if not self.options.no_objstore:
                own = stack.enter_context(self.bench(stack.enter_context(self.objstore(workers))))
            benches = [bench for bench in (bare, own) if bench]
            for bench in benches:  # Nobody is measured cold.
                bench.put(4 * KIB, 16, count=2_000)
                bench.rows.clear()
            for _ in range(self.options.repeat):
                for bench in benches:
                    self.show(bench.put(4 * KIB, 64))
                for bench in benches:
                    self.show(bench.get(4 * KIB, 32))
                for bench in benches:
                    self.show(bench.put(4 * KIB, 1))
                for bench in benches:
                    self.show(bench.get(4 * KIB, 1))
                if not quick or workers == max(self.options.workers):
                    for bench in benches:
                        self.show(bench.put(64 * MIB, 4, unsigned=True, count=16 if quick else 32))
                    for bench in benches:
                        self.show(bench.get(64 * MIB, 4))

    def measure_rows(self, target: Target) -> None:
        sizes: Sequence[int] = SIZES
        connections: Sequence[int] = CONNECTIONS
        if self.options.quick:
            sizes, connections = ((4 * KIB, 64 * KIB) if not target.bare else (64 * KIB,)), (16,)
        with self.bench(target) as bench:
            self.say(f"rows, {target.name}")
            try:
                every_row(bench, sizes, connections)
                if not target.bare and self.plan.wants("MULTIPART 1 GiB x4"):
                    bench.multipart(
                        128 * MIB if self.options.quick else GIB, 16 * MIB if self.options.quick else 64 * MIB
                    )
            finally:
                for row in bench.rows:
                    self.show(row)
                if not target.ours:
                    self._empty(bench)

    def measure_list(self, bench: Bench, keys: int, bare: Bench) -> None:
        """Pages anywhere in one bucket of `keys` keys under one prefix, flat, and folded by a delimiter.

        In turn with GETs of 4 KiB from the bare handler and from the same store, on one connection each.
        """
        prefix = f"{KIB}/"
        paths = sorted(bench.stored(KIB))
        names = [path.split("/", 2)[2] for path in paths[:: max(1, len(paths) // 200)]]
        queries = [{"start-after": name, "max-keys": "1000", "prefix": prefix} for name in names[:-1]]
        folded = [{"delimiter": "/", "max-keys": "1000"}]
        bench.put(4 * KIB, 16, count=2_000)
        pages, bare_gets, own_gets = [], [], []
        for _ in range(self.options.repeat):
            bare_gets.append(bare.get(4 * KIB, 1))
            pages.append(bench.list_pages(queries, "LIST", keys))
            pages.append(bench.list_pages(folded, "LIST-DELIMITER", keys))
            own_gets.append(bench.get(4 * KIB, 1))
            for row in (bare_gets[-1], *pages[-2:], own_gets[-1]):
                self.show(row)
        if bench.target.ours:
            self.figures += promised.listing(pages, bare_gets, own_gets)

    def measure_space_and_list(self) -> None:
        """1,000,000 x 1 KiB and 100,000 x 64 KiB through 64 connections, on fresh stores, nothing forced."""
        workers = max(self.options.workers)
        for size, count, bar in (
            (KIB, self.options.objects, 3.0),
            (64 * KIB, self.options.objects // 10, 1.7),
        ):
            if size != KIB and "space" not in self.options.only:
                continue
            if not self.options.no_objstore:
                with self.objstore(workers) as target, self.bench(target) as bench:
                    self.measure_filled(bench, size, count, bar, before=0)
            for target in self.options.target:
                before = target.allocated_bytes()
                with self.bench(target) as bench:
                    self.measure_filled(bench, size, count, bar, before)
                    self._empty(bench)

    def measure_filled(self, bench: Bench, size: int, count: int, bar: float, before: int | None) -> None:
        """Load `count` objects; then the space they take, and lists. `before`: allocated already."""
        target = bench.target
        self.say(f"loading {count:,} objects of {size // KIB} KiB into {target.name}")
        started, left = time.monotonic(), count
        while left:
            row = bench.put(size, 64, count=min(left, 50_000))
            if row.errors:
                raise TargetFailed(f"loading {target.name} failed: {row.errors}")
            left -= min(left, 50_000)
        self.say(f"  {count / (time.monotonic() - started):,.0f} a second, signing included")
        allocated, stored = target.allocated_bytes(), len(bench.stored(size))
        if stored != count:
            raise TargetFailed(f"{stored:,} objects were acknowledged, {count:,} were meant to be")
        if "space" in self.options.only and allocated is not None and before is not None:
            name = f"space, {count:,} x {size // KIB} KiB"
            if before:
                name += f", {target.name}"
            figure = promised.space(name, allocated - before, count * size, bar)
            self.figures.append(figure)
            self.say(report.figures_table([figure]))
        if size == KIB and "list" in self.options.only:
            with bare_aiohttp(max(self.options.workers)) as floor_target, self.bench(floor_target) as bare:
                bare.put(4 * KIB, 16, count=2_000)
                self.measure_list(bench, count, bare)

    def measure_memory(self) -> None:
        """Anonymous memory of one worker: it gets all connections, which is the worst case."""
        slow_size = (64 if self.options.quick else 1024) * MIB
        seconds = 3.0 if self.options.quick else 20.0
        self.say("memory, 1 worker")
        with self.objstore(1) as target, self.bench(target) as bench:
            with MemoryWatch(target, 0.05) as memory:
                self.show(bench.put(64 * MIB, 64, unsigned=True, count=64))
            self._note_memory("64 uploads of 64 MiB at once", memory)
            self.show(bench.multipart(slow_size, 16 * MIB if self.options.quick else 64 * MIB))
            path = "/" + _only(
                re.findall(
                    r"<Key>([^<]+)</Key>",
                    target.must(
                        "GET", f"/{target.bucket}", {"list-type": "2", "prefix": "multipart/"}
                    ).decode(),
                )
            )
            job = Job(
                method="GET",
                paths=[f"/{target.bucket}{path}"],
                connections=64,
                seconds=seconds,
                cycle=True,
                read_rate=2 * MIB,
            )
            with MemoryWatch(target, 0.05) as memory:
                outcome = bench.generator.run([job])
            if outcome.errors:
                raise TargetFailed(f"slow readers: {outcome.errors}")
            self._note_memory(f"64 slow readers of {slow_size // MIB:,} MiB", memory)

    def _note_memory(self, name: str, memory: MemoryWatch) -> None:
        assert memory.worker_peak is not None
        figure = promised.memory(name, memory.worker_peak)
        self.figures.append(figure)
        self.say(report.figures_table([figure]))

    def _empty(self, bench: Bench) -> None:
        """Leave an endpoint that is not ours as we found it."""
        target = bench.target
        if target.bare:
            return
        while True:
            answer = target.must("GET", f"/{target.bucket}", {"list-type": "2", "max-keys": "1000"}).decode()
            keys = re.findall(r"<Key>([^<]+)</Key>", answer)
            if not keys:
                break
            paths = [f"/{target.bucket}/{key}" for key in keys]  # Our own keys need no escaping.
            outcome = bench.generator.run([Job(method="DELETE", paths=paths, connections=16, seconds=None)])
            if outcome.errors:
                raise TargetFailed(f"cannot empty {target.bucket}: {outcome.errors}")
        target.must("DELETE", f"/{target.bucket}")

    # -- all of it ---------------------------------------------------------------------------------------

    def everything(self) -> None:
        options = self.options
        only: list[str] = options.only
        self.measure_machine()
        if "figures" in only:
            for workers in options.workers:
                self.measure_figures(workers)
        if "rows" in only:
            workers = max(options.workers)
            with bare_aiohttp(workers) as target:
                self.measure_rows(target)
            if not options.no_objstore:
                with self.objstore(workers) as target:
                    self.measure_rows(target)
            for target in options.target:
                self.measure_rows(target)
        if "memory" in only and not options.no_objstore:
            self.measure_memory()
        if "space" in only or "list" in only:
            self.measure_space_and_list()
        assert self.machine is not None
        workers_list = options.workers
        self.figures = (
            promised.against_bare_aiohttp(self.rows, workers_list)
            + promised.single_put_latency(self.rows, self.machine, workers_list)
            + promised.large_put(self.rows, self.machine, workers_list)
            + self.figures
        )

    def write(self) -> None:
        """table.txt, results.json and plot.svg."""
        self.out.mkdir(parents=True, exist_ok=True)
        lines = [report.machine_lines(self.machine)] if self.machine else []
        lines += ["", report.table(self.rows)]
        if self.figures:
            lines += ["", report.figures_table(self.figures)]
        text = "\n".join(lines) + "\n"
        (self.out / "table.txt").write_text(text)
        shown = {
            name: value
            for name, value in vars(self.options).items()
            if isinstance(value, (int, float, str, bool)) or name in ("only", "workers")
        }
        (self.out / "results.json").write_text(
            report.as_json(self.rows, self.figures, self.machine, shown) + "\n"
        )
        if self.rows:
            (self.out / "plot.svg").write_text(report.plot(self.rows))
        self.say("\n" + text)
        self.say(f"written to {self.out}: table.txt, results.json, plot.svg")


def _only(found: list[str]) -> str:
    if len(found) != 1:
        raise TargetFailed(f"one key expected, {len(found)} listed")
    return found[0]


def add_common_options(parser: argparse.ArgumentParser, out: Path) -> None:
    """What every command that makes a Run takes. `settle_options` fills in the rest."""
    parser.add_argument("--rows", metavar="REGEX", help="only rows whose label matches, e.g. 'PUT 4 KiB'")
    parser.add_argument(
        "--quick", action="store_true", help="few and short rows, few objects: two to three minutes"
    )
    parser.add_argument("--seconds", type=float, help="of each row (5; quick: 1.5)")
    parser.add_argument("--repeat", type=int, help="of the figures' rows; the median counts (3; quick: 1)")
    parser.add_argument("--bytes-max", type=int, help="MiB of one row (2,048; quick: 256)")
    parser.add_argument("--workers", default="1,2", help="numbers of workers to measure the figures with")
    parser.add_argument(
        "--generators",
        type=int,
        default=max(1, (os.cpu_count() or 2) // 2),
        help="generator processes (half the cores)",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--serve",
        action="append",
        default=[],
        metavar="OPTION",
        help="handed to objstore serve, e.g. --serve=--codec=4+2",
    )
    parser.add_argument("--out", type=Path, default=out, help="where the results go")
    parser.add_argument(
        "--scratch", type=Path, help="the data disk: where stores keep their bytes (OUT/scratch); no tmpfs"
    )


def settle_options(
    parser: argparse.ArgumentParser, arguments: list[str] | None, sections: Sequence[str]
) -> argparse.Namespace:
    """Parse, and fill in what was not given."""
    options = parser.parse_args(arguments)
    for name, long, short in (
        ("seconds", 5.0, 1.5),
        ("repeat", 3, 1),
        ("objects", 1_000_000, 20_000),
        ("bytes_max", 2_048, 256),
    ):
        if getattr(options, name, None) is None:
            setattr(options, name, short if options.quick else long)
    options.only = options.only or list(sections)
    try:
        options.workers = sorted({int(part) for part in options.workers.split(",")})
    except ValueError:
        parser.error(f"--workers takes numbers with commas between them, not {options.workers!r}")
    if not options.workers or options.workers[0] < 1 or options.generators < 1 or options.repeat < 1:
        parser.error("workers, generators and repeat count from 1")
    options.scratch = options.scratch or options.out / "scratch"
    return options


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--target", action="append", default=[], type=parse, metavar="NAME=URL,KEY,SECRET[,pid=N][,dir=PATH]"
    )
    parser.add_argument(
        "--no-objstore", action="store_true", help="measure only the floor and the --target endpoints"
    )
    parser.add_argument("--only", action="append", choices=SECTIONS, help="sections to run; default: all")
    parser.add_argument(
        "--space", action="append_const", dest="only", const="space", help="short for --only space"
    )
    parser.add_argument(
        "--memory", action="append_const", dest="only", const="memory", help="short for --only memory"
    )
    parser.add_argument("--objects", type=int, help="for space and list (1,000,000; quick: 20,000)")
    add_common_options(parser, ROOT / "bench" / "out")
    return settle_options(parser, arguments, SECTIONS)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    run = Run(options)
    return finish(run, 0 if options.no_objstore else (2 if options.quick else 45) * GIB)


def finish(run: Run, needed: int) -> int:
    """Everything, and what is written.

    Args:
        needed: bytes that the run may need on the data disk.

    Returns: 0: measured, no errors, every figure holds. 1: a figure missed its bar. 2: an error spoiled a row
        or the run.
    """
    run.out.mkdir(parents=True, exist_ok=True)
    run.scratch.mkdir(parents=True, exist_ok=True)
    kind = filesystem_of(run.scratch)
    if kind in ("tmpfs", "ramfs"):
        print(f"{run.scratch} is on a {kind}: a sync costs nothing there. Use --scratch.", file=sys.stderr)
        return 2
    free = shutil.disk_usage(run.scratch).free
    if free < needed:
        print(f"{run.scratch} has {free // GIB} GiB free, the run may need {needed // GIB}.", file=sys.stderr)
        return 2
    status = 0
    try:
        run.everything()
    except (TargetFailed, GeneratorFailed, TimeoutError) as failure:
        print(f"\nstopped: {failure}", file=sys.stderr)
        status = 2
    finally:
        run.write()
    spoiled = [row for row in run.rows if row.errors]
    for row in spoiled:
        print(f"errors spoiled {row.target} {row.label}: {row.errors}", file=sys.stderr)
    if status or spoiled:
        return 2
    return 0 if all(figure.passed for figure in run.figures) else 1


if __name__ == "__main__":
    sys.exit(main())
