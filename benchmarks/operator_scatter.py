"""Scatter plots of predicted against measured seconds as small SVG files: same points, same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

import numpy as np

from planner.operators.grid import Floats

WIDTH, HEIGHT = 420, 400
LEFT, TOP, SIDE = 58, 34, 320  # of the square that holds the points
CELLS = (64, 128)  # a side, for few and for many points; those of a cell are drawn as one square
FEW_POINTS = 1000
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#b8860b", "#6a4c93", "#4d4d4d")
LEVELS = ((1, 0.45), (3, 0.7), (10, 1.0))  # points of a cell from which on: opacity
TEXT = 'font-family="sans-serif" font-size="11" fill="#222"'


def scatter(title: str, groups: Mapping[str, tuple[Floats, Floats]]) -> str:
    """An SVG, log-log: `groups` are (predicted, measured) seconds by label, drawn in their order."""
    every = np.concatenate([values for pair in groups.values() for values in pair])
    low, high = float(np.log10(every.min())), float(np.log10(every.max()))
    room = max(0.05 * (high - low), 0.01)  # equal points have an axis too
    low, high = low - room, high + room
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" {TEXT} font-weight="bold">{escape(title)}</text>',
        *_axes(low, high),
    ]
    for number, (label, (predicted, measured)) in enumerate(groups.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts += _points(predicted, measured, low, high, colour, CELLS[len(every) > 2 * FEW_POINTS])
        y = TOP + 14 + 15 * number
        parts.append(f'<rect x="{LEFT + 8}" y="{y - 8}" width="9" height="9" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 22}" y="{y}" {TEXT}>{escape(label)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(low: float, high: float) -> list[str]:
    def place(value: float) -> float:
        return SIDE * (value - low) / (high - low)

    bottom = TOP + SIDE
    parts = [f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="#fafafa" stroke="#888"/>']
    for leading, power in _ticks(low, high):
        at = place(power + float(np.log10(leading)))
        x, y = f"{LEFT + at:.1f}", f"{bottom - at:.1f}"
        parts.append(f'<path d="M{x} {TOP}V{bottom}M{LEFT} {y}H{LEFT + SIDE}" stroke="#ddd"/>')
        name = _seconds(leading, power)
        parts.append(f'<text x="{x}" y="{bottom + 15}" {TEXT} text-anchor="middle">{name}</text>')
        parts.append(f'<text x="{LEFT - 5}" y="{bottom - at + 4:.1f}" {TEXT} text-anchor="end">{name}</text>')
    parts.append(f'<path d="M{LEFT} {bottom}L{LEFT + SIDE} {TOP}" stroke="#000" stroke-width="0.7"/>')
    parts.append(f'<text x="{LEFT + SIDE / 2}" y="{bottom + 32}" {TEXT} text-anchor="middle">measured</text>')
    middle = TOP + SIDE / 2
    parts.append(
        f'<text x="14" y="{middle}" {TEXT} text-anchor="middle" transform="rotate(-90 14 {middle})">predicted</text>'
    )
    return parts


def _ticks(low: float, high: float) -> list[tuple[int, int]]:
    """(leading digit, power of ten) between two logarithms: powers of ten, and 2 and 5 over less than two decades."""
    leading = (1, 2, 5) if high - low < 2.0 else (1,)
    every = [(digit, power) for power in range(int(np.floor(low)), int(np.floor(high)) + 1) for digit in leading]
    return [(digit, power) for digit, power in every if low <= power + float(np.log10(digit)) <= high]


def _seconds(leading: int, power: int) -> str:
    unit, base = next(((unit, base) for unit, base in (("s", 0), ("ms", -3), ("µs", -6)) if power >= base), ("ns", -9))
    return f"{leading * 10 ** (power - base)} {unit}"


def _points(predicted: Floats, measured: Floats, low: float, high: float, colour: str, side: int) -> list[str]:
    def cell(values: Floats) -> Floats:
        return np.clip((side * (np.log10(values) - low) / (high - low)).astype(np.int64), 0, side - 1)

    cells, counts = np.unique(np.stack([cell(measured), cell(predicted)]), axis=1, return_counts=True)
    size = SIDE / side
    parts = []
    for level, (least, opacity) in enumerate(LEVELS):
        most = LEVELS[level + 1][0] if level + 1 < len(LEVELS) else np.inf
        chosen = cells[:, (counts >= least) & (counts < most)]
        if chosen.shape[1]:
            path = "".join(f"M{x} {side - 1 - y}h1v1h-1z" for x, y in chosen.T.tolist())
            place = f'transform="translate({LEFT} {TOP}) scale({size:g})"'
            parts.append(f'<path {place} fill="{colour}" fill-opacity="{opacity}" d="{path}"/>')
    return parts
