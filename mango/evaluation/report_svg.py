"""Charts of the report as inline SVG: no script, no font and no colour from outside; the page's CSS colours them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from mango.evaluation.schema import SystemKind

WIDTH = 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 38.0, 10.0, 12.0, 36.0
_FONT = 10.0
_CHARACTER = 0.56 * _FONT

Box = tuple[float, float, float, float]

MARKERS: dict[SystemKind, str] = {
    "fused": "M0,-6A6,6 0 1 1 0,6A6,6 0 1 1 0,-6Z",
    "trunk": "M-4.5,-4.5H4.5V4.5H-4.5Z",
    "expert": "M0,-4.5L4.5,0L0,4.5L-4.5,0Z",
    "merge": "M0,-5L5,4H-5Z",
    "control": "M-5,-4H5L0,5Z",
    "ensemble": "M0,-5.5L4.8,-2.7V2.7L0,5.5L-4.8,2.7V-2.7Z",
    "routing": "M0,-5.5L5.2,-1.7L3.2,4.5H-3.2L-5.2,-1.7Z",
    "oracle": "M0,-4.5A4.5,4.5 0 1 1 0,4.5A4.5,4.5 0 1 1 0,-4.5Z",
}
"""The outline of each kind's marker, about the origin: kinds differ in shape and not in colour alone."""


@dataclass(frozen=True)
class Point:
    """One system in the chart of quality against cost."""

    label: str
    kind: SystemKind
    cost: float
    loss: float
    labelled: bool = True


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name, its CSS class and its points (x, y)."""

    name: str
    css: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False


def number(value: float) -> str:
    """Return a number for a tick: short, without trailing zeros, with a true minus sign."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers that cover ``low`` to ``high`` in about ``wanted`` steps."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(height: float, title: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def _axes(
    height: float,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_at: Callable[[float], float],
    y_at: Callable[[float], float],
    x_name: str,
) -> list[str]:
    right, bottom = WIDTH - _RIGHT, height - _BOTTOM
    body = []
    for value in y_ticks:
        body.append(_line(_LEFT, y_at(value), right, y_at(value), "grid"))
        body.append(_text(_LEFT - 5, y_at(value) + 3.5, number(value), "end", "tick"))
    for value in x_ticks:
        body.append(_line(x_at(value), bottom, x_at(value), bottom + 4, "axis"))
        body.append(_text(x_at(value), bottom + 15, number(value), "middle", "tick"))
    body.append(_line(_LEFT, bottom, right, bottom, "axis"))
    body.append(_text((_LEFT + right) / 2, height - 4, x_name, "middle", "tick"))
    return body


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _place(x: float, y: float, text: str, taken: Sequence[Box], frame: Box) -> tuple[Box, bool] | None:
    """Return the nearest free box for a label and whether it needs a leader, or None when all are taken."""
    width = len(text) * _CHARACTER
    for distance in range(0, 55, 6):
        for sign in (1, -1) if distance else (1,):
            middle = y + sign * distance
            for left in (x + 9, x - 9 - width):
                box = (left, middle - 6, left + width, middle + 6)
                inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
                if inside and not any(_overlap(box, other) for other in taken):
                    return box, distance > 6
    return None


def visible_limit(points: Sequence[Point]) -> float:
    """Return the loss above which a point is drawn at the upper edge, so that one bad system hides no difference."""
    losses = sorted(point.loss for point in points)
    best, middle = losses[0], losses[len(losses) // 2]
    limit = best + max(2.2 * (middle - best), 0.05 * max(best, 1e-9))
    return max(loss for loss in losses if loss <= limit)


def quality_against_cost(points: Sequence[Point], *, title: str, cost_name: str) -> str:
    """Draw loss against cost: down and left is better; the line joins what nothing cheaper beats.

    Args:
        points: Systems, those whose label matters most first.
        title: What the chart shows, for screen readers.
        cost_name: Name of the horizontal axis.

    Returns:
        One ``<svg>`` element.
    """
    height = 290.0
    right, bottom = WIDTH - _RIGHT, height - _BOTTOM
    limit = visible_limit(points)
    best = min(point.loss for point in points)
    pad = 0.07 * (limit - best) or 0.05
    low, high = best - pad, limit + 2 * pad
    costs = [point.cost for point in points]
    x_low, x_high = math.log2(min(costs)) - 1.1, math.log2(max(costs)) + 0.35

    def x_at(cost: float) -> float:
        return _LEFT + (math.log2(cost) - x_low) / (x_high - x_low) * (right - _LEFT)

    def y_at(loss: float) -> float:
        return bottom - (min(loss, high - 0.4 * pad) - low) / (high - low) * (bottom - _TOP)

    x_ticks = [c for c in (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if x_low <= math.log2(c) <= x_high]
    body = _axes(height, x_ticks, ticks(low, high), x_at, y_at, cost_name)
    front = _front([point for point in points if point.kind != "oracle"])
    path = "".join(
        f"M{x_at(p.cost):.1f},{y_at(p.loss):.1f}" if i == 0 else f"H{x_at(p.cost):.1f}V{y_at(p.loss):.1f}"
        for i, p in enumerate(front)
    )
    body.append(f'<path d="{path}H{right:.1f}" class="front"/>')
    taken = [(x_at(p.cost) - 6, y_at(p.loss) - 6, x_at(p.cost) + 6, y_at(p.loss) + 6) for p in points]
    marks = []
    for point in points:
        x, y = x_at(point.cost), y_at(point.loss)
        beyond = point.loss > limit
        words = ([point.label] if point.labelled else []) + ([f"\N{UPWARDS ARROW} {point.loss:.2f}"] if beyond else [])
        label = " ".join(words)
        placed = _place(x, y, label, taken, (_LEFT, 0.0, right, bottom)) if label else None
        if placed is not None:
            box, leader = placed
            taken.append(box)
            middle = (box[1] + box[3]) / 2
            near = box[0] - 1 if box[0] > x else box[2] + 1
            if leader:
                body.append(_line(x, y, near, middle, "leader"))
            on_right = box[0] > x
            anchor, edge = ("start", box[0]) if on_right else ("end", box[2])
            marks.append(_text(edge, middle + 3.5, label, anchor, f"label {point.kind}"))
        tip = escape(f"{point.label}: {point.loss:.3f} at cost {point.cost:.2f}")
        marks.append(
            f'<path d="{MARKERS[point.kind]}" transform="translate({x:.1f},{y:.1f})" class="mark {point.kind}">'
            f"<title>{tip}</title></path>"
        )
    return _svg(height, title, body + marks)


def _front(points: Sequence[Point]) -> list[Point]:
    """Return the systems that none of the same or lower cost beats, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return front


def lines(series: Sequence[Series], *, title: str, x_name: str, height: float = 220.0) -> str:
    """Draw lines over a shared horizontal axis.

    Args:
        series: At least one line with at least one point.
        title: What the chart shows, for screen readers.
        x_name: Name of the horizontal axis.
        height: Height in the units of a drawing that is 360 wide.

    Returns:
        One ``<svg>`` element.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    right, bottom = WIDTH - _RIGHT, height - _BOTTOM
    x_low, x_high = min(xs), max(xs)
    pad = 0.08 * (max(ys) - min(ys)) or max(0.05 * abs(max(ys)), 1e-3)
    low, high = min(ys) - pad, max(ys) + pad

    def x_at(x: float) -> float:
        return _LEFT + 4 + (x - x_low) / ((x_high - x_low) or 1.0) * (right - _LEFT - 8)

    def y_at(y: float) -> float:
        return bottom - (y - low) / (high - low) * (bottom - _TOP)

    body = _axes(height, ticks(x_low, x_high), ticks(low, high, 4), x_at, y_at, x_name)
    for line in series:
        places = [(x_at(x), y_at(y)) for x, y in line.points]
        body.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" class="line {line.css}"/>')
        if line.dots or len(places) == 1:
            body += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot {line.css}">'
                f"<title>{escape(f'{line.name}, step {step:g}: {value:.4g}')}</title></circle>"
                for (x, y), (step, value) in zip(places, line.points, strict=True)
            ]
    return _svg(height, title, body)
