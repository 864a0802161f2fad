"""Results for people (a table), for machines (JSON) and for the eye (a plot, written as SVG by hand)."""

import json
import math
import platform
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.figures import Figure, Machine
from bench.rows import GIB, MIB, Row


def _bytes_rate(row: Row) -> str:
    if row.operation not in ("PUT", "GET", "MULTIPART"):
        return ""
    return f"{row.rate * row.size / MIB:,.1f}"


def table(rows: Sequence[Row]) -> str:
    """One line a row, in columns."""
    head = (
        "target",
        "row",
        "ops/s",
        "MiB/s",
        "p50 ms",
        "p99 ms",
        "CPU us/op",
        "anon MiB",
        "gen us/op",
        "shares",
        "",
    )
    lines = [head]
    for row in rows:
        remarks = "; ".join(f"{count} x {what}" for what, count in row.errors.items())
        lines.append(
            (
                row.target,
                row.label,
                f"{row.rate:,.1f}" if row.rate < 1_000 else f"{row.rate:,.0f}",
                _bytes_rate(row),
                f"{row.p50_ms:,.2f}",
                f"{row.p99_ms:,.2f}",
                "-" if row.cpu_us is None else f"{row.cpu_us:,.0f}",
                "-" if row.worker_anonymous_peak is None else f"{row.worker_anonymous_peak / MIB:,.0f}",
                f"{row.generator_cpu_us:,.0f}",
                "+".join(map(str, row.shares)),
                ("ERRORS: " + remarks) if remarks else row.note,
            )
        )
    return _columns(lines, left={0, 1, 10})


def figures_table(figures: Sequence[Figure]) -> str:
    lines: list[tuple[str, ...]] = [("figure", "measured", "bar", "", "", "")]
    for figure in figures:
        sign = ">=" if figure.at_least else "<="
        lines.append(
            (
                figure.name,
                f"{figure.value:,.2f}",
                f"{sign} {figure.bar:,.2f}",
                figure.unit,
                "pass" if figure.passed else "FAIL",
                figure.detail,
            )
        )
    return _columns(lines, left={0, 3, 4, 5})


def machine_lines(machine: Machine) -> str:
    busy = (
        f"\nTHE MACHINE IS BUSY: others used {machine.busy_before:.0%} of it before the run; do not quote it."
        if machine.busy_before > 0.1
        else ""
    )
    return (
        f"floor: {machine.cores} cores; MD5 {machine.md5_rate / GIB:.2f} GiB/s a core; "
        f"append 4 KiB + fdatasync p50 {machine.fdatasync_p50_s * 1e3:.2f} ms, "
        f"p99 {machine.fdatasync_p99_s * 1e3:.2f} ms; "
        f"sequential write with fdatasync {machine.write_rate / MIB:,.0f} MiB/s ({machine.filesystem}){busy}"
    )


def _columns(lines: Sequence[tuple[str, ...]], left: set[int]) -> str:
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def as_json(
    rows: Sequence[Row], figures: Sequence[Figure], machine: Machine | None, options: dict[str, object]
) -> str:
    from dataclasses import asdict

    return json.dumps(
        {
            "format": 1,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "processor": _processor(),
            "options": options,
            "machine": asdict(machine) if machine else None,
            "figures": [figure.as_json() for figure in figures],
            "rows": [row.as_json() for row in rows],
        },
        indent=1,
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


_COLOURS = ("#3b6ea5", "#c06c2b", "#5a8f4e", "#8c5a9e", "#a0413d", "#5f6b76")


def plot(rows: Sequence[Row]) -> str:
    """Operations a second of every row, all targets side by side, on a logarithmic axis."""
    rows = [row for row in rows if row.operations]
    labels = list(dict.fromkeys(row.label for row in rows))
    targets = list(dict.fromkeys(row.target for row in rows))
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        best[(row.label, row.target)] = max(row.rate, best.get((row.label, row.target), 0.0))
    bar_height, gap, left, width, top = 9, 8, 190, 620, 46
    band = bar_height * len(targets) + gap
    height = top + band * len(labels) + 30
    low = math.floor(math.log10(min(best.values(), default=1.0)))
    high = max(math.ceil(math.log10(max(best.values(), default=10.0))), low + 1)

    def x(rate: float) -> float:
        return left + (math.log10(rate) - low) / (high - low) * width

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{left + width + 90}" height="{height}" fill="white"/>',
        '<text x="10" y="16" font-size="13">operations a second (logarithmic)</text>',
    ]
    for at, target in enumerate(targets):
        colour = _COLOURS[at % len(_COLOURS)]
        out.append(f'<rect x="{left + at * 120}" y="24" width="10" height="10" fill="{colour}"/>')
        out.append(f'<text x="{left + at * 120 + 14}" y="33">{escape(target)}</text>')
    for power in range(low, high + 1):
        at_x = x(10.0**power)
        out.append(f'<line x1="{at_x:.1f}" y1="{top}" x2="{at_x:.1f}" y2="{height - 24}" stroke="#ddd"/>')
        out.append(f'<text x="{at_x:.1f}" y="{height - 10}" text-anchor="middle">{10.0**power:,g}</text>')
    for line, label in enumerate(labels):
        y = top + line * band
        out.append(f'<text x="{left - 6}" y="{y + band / 2:.1f}" text-anchor="end">{escape(label)}</text>')
        for at, target in enumerate(targets):
            rate = best.get((label, target))
            if rate is None:
                continue
            y_bar = y + at * bar_height
            out.append(
                f'<rect x="{left}" y="{y_bar}" width="{max(x(rate) - left, 1):.1f}" '
                f'height="{bar_height - 1}" fill="{_COLOURS[at % len(_COLOURS)]}"/>'
            )
            text = f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"
            out.append(
                f'<text x="{x(rate) + 3:.1f}" y="{y_bar + bar_height - 2}" font-size="8">{text}</text>'
            )
    out.append("</svg>")
    return "\n".join(out) + "\n"
