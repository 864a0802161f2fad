"""The figures the store has promised: each a measurement, a bar and a verdict, as ratios to the floor of
the same run."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.rows import KIB, MIB, Row, median_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the hardware does by itself, measured in the same run."""

    cores: int
    md5_rate: float  # Bytes a second, one core.
    fdatasync_p50_s: float
    fdatasync_p99_s: float
    write_rate: float  # Bytes a second, sequential, fdatasync included.
    filesystem: str
    busy_before: float  # Share of all cores that others used just before the run: 0.0 to 1.0.


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    name: str
    value: float
    bar: float
    at_least: bool  # False: at most.
    unit: str
    detail: str

    @property
    def passed(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "passed": self.passed}


def find(rows: Sequence[Row], target: str, operation: str, size: int, connections: int) -> Row | None:
    """The median of the repeated rows of this kind, or None. Rows with errors do not count as measured."""
    same = [
        row
        for row in rows
        if (row.target, row.operation, row.size, row.connections) == (target, operation, size, connections)
        and not row.errors
        and row.operations
    ]
    return median_row(same) if same else None


def against_bare_aiohttp(rows: Sequence[Row], workers: Sequence[int]) -> list[Figure]:
    """The rows that are ratios to the bare handler with as many workers."""
    figures = []
    kinds = (
        ("PUT", 4 * KIB, 64, {1: 0.18, 2: 0.12}),
        ("GET", 4 * KIB, 32, dict.fromkeys(workers, 0.40)),
        ("GET", 64 * MIB, 4, dict.fromkeys(workers, 0.40)),
    )
    for operation, size, connections, bars in kinds:
        for count in workers:
            ours = find(rows, f"objstore/{count}", operation, size, connections)
            bare = find(rows, f"aiohttp/{count}", operation, size, connections)
            if ours and bare and count in bars:
                figures.append(
                    Figure(
                        name=f"{ours.label}, {count} worker{'s' if count > 1 else ''} each",
                        value=ours.rate / bare.rate,
                        bar=bars[count],
                        at_least=True,
                        unit="x bare aiohttp",
                        detail=f"{ours.rate:,.0f}/s against {bare.rate:,.0f}/s",
                    )
                )
    return figures


def of_a_cluster(rows: Sequence[Row], cluster: str, one_machine: str, proxy: str) -> list[Figure]:
    """One gateway and its nodes against one machine and a bare proxy with as many workers, by their names."""
    figures = []
    for operation, size, connections, against, bar in (
        ("PUT", 4 * KIB, 64, one_machine, 0.5),
        ("GET", 4 * KIB, 32, proxy, 0.4),
        ("GET", 64 * MIB, 4, proxy, 0.4),
    ):
        ours = find(rows, cluster, operation, size, connections)
        theirs = find(rows, against, operation, size, connections)
        if ours and theirs:
            figures.append(
                Figure(
                    name=f"{ours.label}, {cluster}",
                    value=ours.rate / theirs.rate,
                    bar=bar,
                    at_least=True,
                    unit=f"x {against}",
                    detail=f"{ours.rate:,.0f}/s against {theirs.rate:,.0f}/s; "
                    f"CPU {ours.cpu_us or 0:,.0f} us against {theirs.cpu_us or 0:,.0f} us",
                )
            )
    return figures


def single_put_latency(rows: Sequence[Row], machine: Machine, workers: Sequence[int]) -> list[Figure]:
    figures = []
    for count in workers:
        row = find(rows, f"objstore/{count}", "PUT", 4 * KIB, 1)
        if row:
            figures.append(
                Figure(
                    name=f"PUT 4 KiB x1 p50, {count} worker{'s' if count > 1 else ''}",
                    value=row.p50_ms,
                    bar=4 * machine.fdatasync_p50_s * 1e3 + 1,
                    at_least=False,
                    unit="ms",
                    detail=f"fdatasync p50 {machine.fdatasync_p50_s * 1e3:.2f} ms, "
                    f"p99 {machine.fdatasync_p99_s * 1e3:.2f} ms",
                )
            )
    return figures


def large_put(rows: Sequence[Row], machine: Machine, workers: Sequence[int]) -> list[Figure]:
    figures = []
    for count in workers:
        row = find(rows, f"objstore/{count}", "PUT", 64 * MIB, 4)
        if row:
            by_md5 = 0.35 * machine.md5_rate * machine.cores
            by_disk = 0.7 * machine.write_rate / 1.5
            figures.append(
                Figure(
                    name=f"PUT 64 MiB x4 unsigned, {count} worker{'s' if count > 1 else ''}",
                    value=row.rate * 64,
                    bar=min(by_md5, by_disk) / MIB,
                    at_least=True,
                    unit="MiB/s",
                    detail=f"0.35 x MD5 x cores = {by_md5 / MIB:,.0f}, "
                    f"0.7 x disk / 1.5 = {by_disk / MIB:,.0f} MiB/s",
                )
            )
    return figures


def listing(pages: Sequence[Row], bare_gets: Sequence[Row], own_gets: Sequence[Row]) -> list[Figure]:
    """CPU of a page against the CPU of a GET of 4 KiB from the bare aiohttp handler.

    Args:
        pages: LIST and LIST-DELIMITER rows.
        bare_gets: of the bare handler, on as many connections, measured in turn with the pages.
        own_gets: the store's own, for the reader; they decide nothing.

    Of each kind the median CPU counts. Rows with errors do not count as measured.
    """
    figures = []
    bare, own = _median_cpu(bare_gets), _median_cpu(own_gets)
    for operation, bar in (("LIST", 10.0), ("LIST-DELIMITER", 2.0)):
        rows = [row for row in pages if row.operation == operation]
        page = _median_cpu(rows)
        if page is None or bare is None:
            continue
        assert {row.connections for row in rows} == {row.connections for row in bare_gets}
        beside = f"; {page / own:.1f} x the store's own GET" if own else ""
        figures.append(
            Figure(
                name=f"{rows[0].label} CPU of a page",
                value=page / bare,
                bar=bar,
                at_least=False,
                unit="x bare aiohttp",
                detail=f"{page:,.0f} us against {bare:,.0f} us of a bare GET of 4 KiB x"
                f"{rows[0].connections}{beside}",
            )
        )
    return figures


def _median_cpu(rows: Sequence[Row]) -> float | None:
    known = [row.cpu_us for row in rows if row.cpu_us and row.operations and not row.errors]
    return statistics.median(known) if known else None


def space(name: str, allocated: int, stored: int, bar: float) -> Figure:
    return Figure(
        name=name,
        value=allocated / stored,
        bar=bar,
        at_least=False,
        unit="bytes/byte",
        detail=f"{allocated / MIB:,.0f} MiB allocated for {stored / MIB:,.0f} MiB",
    )


def memory(name: str, peak: int) -> Figure:
    return Figure(
        name=name,
        value=peak / MIB,
        bar=400.0,
        at_least=False,
        unit="MiB RssAnon",
        detail="the hungriest worker",
    )
