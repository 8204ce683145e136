"""The frontier as a picture: one self-contained SVG, steps from the tightest limits to the loosest."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from planner.amounts import amount
from planner.answers.frontier import Frontier, Point

WIDTH, HEIGHT = 640.0, 360.0
LEFT, RIGHT, TOP, BOTTOM = 90.0, 20.0, 40.0, 60.0


def frontier_svg(found: Frontier, quantity: str, title: str) -> str:
    """A step plot: across, how loose the limits are (1 is as stated); up, the value. Empty axes without points."""
    points = found.points
    lines = "\n".join([*_axes(points, quantity), *_steps(points), *_marks(points, quantity)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="{LEFT:g}" y="22" font-size="14">{escape(title)}</text>\n{lines}\n</svg>\n'
    )


def _across(points: tuple[Point, ...], scale: float) -> float:
    most = max(point.scale for point in points) * 1.1
    return LEFT + (WIDTH - LEFT - RIGHT) * scale / most


def _up(points: tuple[Point, ...], value: float) -> float:
    most = max(point.value for point in points) * 1.1 or 1.0
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / most


def _axes(points: tuple[Point, ...], quantity: str) -> Iterator[str]:
    floor, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    yield f'<path d="M{LEFT:g} {TOP:g} V{floor:g} H{end:g}" fill="none" stroke="#555"/>'
    caption = "limits, times those stated (filled: proven)"
    yield f'<text x="{(LEFT + end) / 2:g}" y="{HEIGHT - 12:g}" text-anchor="middle">{caption}</text>'
    for value in sorted({point.value for point in points}):
        at = _up(points, value)
        yield f'<text x="{LEFT - 8:g}" y="{at + 4:.1f}" text-anchor="end">{escape(amount(quantity, value))}</text>'
    for scale in sorted({point.scale for point in points}):
        at = _across(points, scale)
        yield f'<text x="{at:.1f}" y="{floor + 18:g}" text-anchor="middle">{scale:g}</text>'


def _steps(points: tuple[Point, ...]) -> Iterator[str]:
    """Between two points the tighter one's plan is the best that is known."""
    if not points:
        return
    path = f"M{_across(points, points[0].scale):.1f} {_up(points, points[0].value):.1f}"
    for point in points[1:]:
        path += f" H{_across(points, point.scale):.1f} V{_up(points, point.value):.1f}"
    yield f'<path d="{path} H{WIDTH - RIGHT:g}" fill="none" stroke="#1f6feb" stroke-width="2"/>'


def _marks(points: tuple[Point, ...], quantity: str) -> Iterator[str]:
    for point in points:
        fill = "#1f6feb" if point.proven else "white"
        text = escape(f"{amount(quantity, point.value)}: {point.replicas}")
        yield (
            f'<circle cx="{_across(points, point.scale):.1f}" cy="{_up(points, point.value):.1f}" r="5" '
            f'fill="{fill}" stroke="#1f6feb"><title>{text}</title></circle>'
        )
