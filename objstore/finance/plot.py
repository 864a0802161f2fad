"""Two drawings of a plan: what is left month by month, and what matters most. SVG: any browser shows it."""

import html
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final

from objstore.finance.inputs import written
from objstore.finance.sensitivity import Bar

WIDTH: Final = 720  # Pixels, like all below.
HEIGHT: Final = 440
LEFT: Final = 150  # Room for names and amounts.
RIGHT: Final = 110
TOP: Final = 50
BOTTOM: Final = 50
BAR: Final = 26
LOW, HIGH = "#d55e00", "#0072b2"  # Okabe and Ito's, like all below.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
LINES: Final = 8  # Of the grid, about.


def cash_flow(title: str, lines: Mapping[str, Sequence[Fraction]]) -> str:
    """What is left, month by month from 0 on: one line a name, all equally long."""
    assert lines
    values = [float(value) for line in lines.values() for value in line]
    low, high = min([*values, 0.0]), max([*values, 0.0])
    months = max(len(line) for line in lines.values()) - 1
    assert months >= 1

    def x(month: float) -> float:
        return LEFT + month / months * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / ((high - low) or 1.0) * (HEIGHT - TOP - BOTTOM)

    parts = [_head(title, HEIGHT)]
    parts += [
        f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="{"#888" if value == 0 else "#ddd"}"/>'
        f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.0f}</text>'
        for value in _grid(low, high)
    ]
    step = max(1, months // 10)
    parts += [
        f'<text x="{x(month):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{month}</text>'
        for month in range(0, months + 1, step)
    ]
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 10}">months; upwards: what is left</text>')
    ends: list[float] = []
    for at, (name, line) in enumerate(lines.items()):
        colour = COLOURS[at % len(COLOURS)]
        points = " ".join(f"{x(month):.1f},{y(float(value)):.1f}" for month, value in enumerate(line))
        end = y(float(line[-1])) + 4
        while any(abs(end - other) < 14 for other in ends):
            end += 14
        ends.append(end)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{WIDTH - RIGHT + 6}" y="{end:.1f}" fill="{colour}">{html.escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def tornado(title: str, base: Fraction, bars: Sequence[Bar]) -> str:
    """The widest bar first; `base` is what is left as planned."""
    height = TOP + BAR * (2 * len(bars) or 1) + BOTTOM
    values = [float(value) for bar in bars for value in (bar.at_low, bar.at_high)] + [float(base)]
    low, high = min(values), max(values)

    def x(value: float) -> float:
        return LEFT + (value - low) / ((high - low) or 1.0) * (WIDTH - LEFT - RIGHT)

    parts = [_head(title, height)]
    for at, bar in enumerate(bars):
        y = TOP + 2 * BAR * at
        name = html.escape(bar.name.replace("_", " "))
        parts.append(f'<text x="{LEFT - 70}" y="{y + BAR}" text-anchor="end">{name}</text>')
        for row, (value, result, colour) in enumerate(
            ((bar.low, bar.at_low, LOW), (bar.high, bar.at_high, HIGH))
        ):
            begin, end = sorted((x(float(base)), x(float(result))))
            top = y + row * (BAR - 4)
            text, size = html.escape(written(bar.name, value)), f"{end - begin:.1f}"
            parts.append(
                f'<rect x="{begin:.1f}" y="{top}" width="{size}" height="{BAR - 6}" fill="{colour}"/>'
                f'<text x="{LEFT - 8}" y="{top + 15}" text-anchor="end">{text}</text>'
                f'<text x="{WIDTH - RIGHT + 6}" y="{top + 15}" fill="{colour}">{float(result):,.0f}</text>'
            )
    middle = x(float(base))
    parts.append(
        f'<path d="M{middle:.1f} {TOP - 8}V{height - BOTTOM}" stroke="#000"/>'
        f'<text x="{middle:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{float(base):,.0f}</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _head(title: str, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/>'
        f'<text x="20" y="22" font-size="14">{html.escape(title)}</text>'
    )


def _grid(low: float, high: float) -> list[float]:
    """Round amounts from low to high, zero among them if it is between."""
    step = 1.0
    while (high - low) / step > LINES:
        step *= 2.5 if f"{step:e}"[0] == "2" else 2.0
    return [step * at for at in range(-int(-low // step), int(high // step) + 1)]
