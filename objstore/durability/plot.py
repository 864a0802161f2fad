"""Nines against repair time, as a drawing: one line a code. SVG, so that any browser shows it."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Final

from objstore.durability.units import time_text

WIDTH: Final = 720  # Pixels, like all below.
HEIGHT: Final = 440
LEFT: Final = 60
RIGHT: Final = 110  # Room for the lines' names.
TOP: Final = 40
BOTTOM: Final = 50
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito's.


def svg(title: str, repairs_h: Sequence[float], lines: Mapping[str, Sequence[float]]) -> str:
    """A drawing.

    Args:
        repairs_h: the horizontal axis, rising, logarithmic; at least two.
        lines: a code's name, and its nines at each of these repair times.
    """
    assert len(repairs_h) >= 2
    finite = [value for line in lines.values() for value in line if math.isfinite(value)]
    top = max(math.ceil(max(finite, default=1.0)), 1)
    step = max(1, top // 12)

    def x(repair_h: float) -> float:
        along = math.log(repair_h / repairs_h[0]) / math.log(repairs_h[-1] / repairs_h[0])
        return LEFT + along * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - min(max(value, 0.0), top) / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{html.escape(title)}</text>',
    ]
    parts += [
        f'<path d="M{LEFT} {y(nines):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        f'<text x="{LEFT - 8}" y="{y(nines) + 4:.1f}" text-anchor="end">{nines}</text>'
        for nines in range(0, top + 1, step)
    ]
    parts += [
        f'<text x="{x(repair_h):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
        f"{html.escape(time_text(repair_h))}</text>"
        for repair_h in repairs_h
    ]
    parts.append(
        f'<text x="{LEFT}" y="{HEIGHT - 10}">mean repair time; upwards: nines of durability a year</text>'
    )
    for at, (name, values) in enumerate(lines.items()):
        colour = COLOURS[at % len(COLOURS)]
        points = " ".join(f"{x(r):.1f},{y(v):.1f}" for r, v in zip(repairs_h, values, strict=True))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{WIDTH - RIGHT + 6}" y="{y(values[-1]) + 4:.1f}" fill="{colour}">'
            f"{html.escape(name)}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])
