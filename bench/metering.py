"""What meters and quotas cost a PUT of 4 KiB: its CPU against the same store without them.

    python -m bench.metering [--rounds 40] [--objects 2000] [--connections 64]

Both stores (the other is bench/without_meters.py) are up at the same time and take the same PUTs in turn, a
second's worth or less at a time, each first in every other round: what else the machine does meets both. CPU
is the time that all threads of a store's processes were on a core (/proc/PID/task/*/schedstat, nanoseconds):
no tick of a clock is in it. The median of the rounds' ratios is what counts, and beside it stands between
which figures it lies with 95 % certainty: how much a busy machine leaves open.
"""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Sequence
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Final

if __package__ in (None, ""):  # Run as `bench/metering.py`.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.load import Generator
from bench.rows import KIB, Bench, Plan
from bench.targets import ROOT, Target, TargetFailed, objstore

BAR = 0.10  # Of the CPU of a PUT without.
OUTSIDE: Final = Fraction(1, 20)
SIZE = 4 * KIB
WITHOUT = (sys.executable, "-m", "bench.without_meters")


def on_core_ns(target: Target) -> int:
    """What all threads of the target's processes have used until now."""
    total = 0
    for pid in target.tree():
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[0])
    return total


def put_us(bench: Bench, objects: int, connections: int) -> float:
    """Microseconds of CPU for each of so many PUTs. Raises: TargetFailed."""
    before = on_core_ns(bench.target)
    row = bench.put(SIZE, connections, count=objects)
    if row.errors:
        raise TargetFailed(f"{bench.target.name}: {row.errors}")
    return (on_core_ns(bench.target) - before) / objects / 1_000


def median_bounds(ordered: Sequence[float]) -> tuple[float, float]:
    """Between which of these the median of what they were drawn from lies, in 95 of 100 cases.

    Args:
        ordered: ascending; independent of each other, of whatever distribution.

    Source: the number of draws below a median is binomial with one half; H. A. David, Order Statistics, 2.5.
    """
    count = len(ordered)
    below, outside = 0, Fraction(1, 2**count)  # The chance that at most `below` draws lie below the median.
    while below < count // 2 and outside + Fraction(comb(count, below + 1), 2**count) <= OUTSIDE / 2:
        below += 1
        outside += Fraction(comb(count, below), 2**count)
    return ordered[below], ordered[count - 1 - below]


def verdict(rounds: list[tuple[float, float]]) -> tuple[float, list[str]]:
    """The share that meters cost, and lines that say so. rounds: microseconds with and without."""
    costs = [with_ / without - 1 for with_, without in rounds]
    cost = statistics.median(costs)
    ordered = sorted(costs)
    least, most = median_bounds(ordered)
    lines = [
        f"with meters     {statistics.median(one for one, _ in rounds):7.1f} us of CPU",
        f"without         {statistics.median(other for _, other in rounds):7.1f} us of CPU",
        f"meters cost     {cost:7.1%}  (95 %: {least:.1%} to {most:.1%}; {len(rounds)} rounds: "
        f"{ordered[0]:.1%} to {ordered[-1]:.1%})",
        f"at most         {BAR:7.1%}  {'holds' if cost <= BAR else 'MISSED'}",
    ]
    return cost, lines


def measure(options: argparse.Namespace) -> list[tuple[float, float]]:
    scratch = Path(options.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    rounds: list[tuple[float, float]] = []
    with contextlib.ExitStack() as stack:
        benches = []
        for launcher in (None, WITHOUT):
            log = scratch / "metering.log"
            target = stack.enter_context(objstore(scratch, 1, log, launcher=launcher))
            target.make_bucket()
            generator = stack.enter_context(Generator(target.endpoint, 1))
            bench = Bench(target, generator, Plan())
            put_us(bench, options.objects, options.connections)  # Nobody is measured cold.
            benches.append(bench)
        for number in range(options.rounds):
            order = (0, 1) if number % 2 else (1, 0)
            found = {one: put_us(benches[one], options.objects, options.connections) for one in order}
            rounds.append((found[0], found[1]))
            print(f"round {number + 1}: {found[0]:.1f} us with, {found[1]:.1f} us without", file=sys.stderr)
    return rounds


def main(arguments: list[str] | None = None) -> int:
    """0: the figure holds. 1: it does not. 2: something went wrong."""
    parser = argparse.ArgumentParser(
        prog="bench.metering", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40, help="paired rounds (default: %(default)s)")
    parser.add_argument("--objects", type=int, default=2_000, help="PUTs of one measurement")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--scratch", default=str(ROOT / "bench" / "out" / "scratch"))
    options = parser.parse_args(arguments)
    if min(options.rounds, options.objects, options.connections) < 1:
        parser.error("--rounds, --objects and --connections are 1 or more")
    try:
        rounds = measure(options)
    except (TargetFailed, TimeoutError) as failure:
        print(f"stopped: {failure}", file=sys.stderr)
        return 2
    cost, lines = verdict(rounds)
    print("\n".join(lines))
    return int(cost > BAR)


if __name__ == "__main__":
    sys.exit(main())
