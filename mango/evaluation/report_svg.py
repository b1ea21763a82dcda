"""The report's chart of quality against cost, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mango.evaluation.schema_base import SystemKind
from mango.pages import BOTTOM, LEFT, RIGHT, TOP, WIDTH, axes, line, svg, text, ticks

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
    """Draw loss against cost: down and left is better; lines join what nothing cheaper beats, and the fused points.

    Args:
        points: Systems, those whose label matters most first.
        title: What the chart shows, for screen readers.
        cost_name: Name of the horizontal axis.

    Returns:
        One ``<svg>`` element.
    """
    height = 290.0
    right, bottom = WIDTH - RIGHT, height - BOTTOM
    limit = visible_limit(points)
    best = min(point.loss for point in points)
    pad = 0.07 * (limit - best) or 0.05
    low, high = best - pad, limit + 2 * pad
    costs = [point.cost for point in points]
    x_low, x_high = math.log2(min(costs)) - 1.1, math.log2(max(costs)) + 0.35

    def x_at(cost: float) -> float:
        return LEFT + (math.log2(cost) - x_low) / (x_high - x_low) * (right - LEFT)

    def y_at(loss: float) -> float:
        return bottom - (min(loss, high - 0.4 * pad) - low) / (high - low) * (bottom - TOP)

    x_ticks = [c for c in (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if x_low <= math.log2(c) <= x_high]
    body = axes(height, x_ticks, ticks(low, high), x_at, y_at, cost_name)
    front = _front([point for point in points if point.kind != "oracle"])
    path = "".join(
        f"M{x_at(p.cost):.1f},{y_at(p.loss):.1f}" if i == 0 else f"H{x_at(p.cost):.1f}V{y_at(p.loss):.1f}"
        for i, p in enumerate(front)
    )
    body.append(f'<path d="{path}H{right:.1f}" class="front"/>')
    fused = sorted((point.cost, point.loss) for point in points if point.kind == "fused" and point.loss <= limit)
    if len(fused) > 1:
        joined = " ".join(f"{x_at(cost):.1f},{y_at(loss):.1f}" for cost, loss in fused)
        body.append(f'<polyline points="{joined}" class="curve"/>')
    taken = [(x_at(p.cost) - 6, y_at(p.loss) - 6, x_at(p.cost) + 6, y_at(p.loss) + 6) for p in points]
    marks = []
    for point in points:
        x, y = x_at(point.cost), y_at(point.loss)
        beyond = point.loss > limit
        words = ([point.label] if point.labelled else []) + ([f"\N{UPWARDS ARROW} {point.loss:.2f}"] if beyond else [])
        label = " ".join(words)
        placed = _place(x, y, label, taken, (LEFT, 0.0, right, bottom)) if label else None
        if placed is not None:
            box, leader = placed
            taken.append(box)
            middle = (box[1] + box[3]) / 2
            near = box[0] - 1 if box[0] > x else box[2] + 1
            if leader:
                body.append(line(x, y, near, middle, "leader"))
            on_right = box[0] > x
            anchor, edge = ("start", box[0]) if on_right else ("end", box[2])
            marks.append(text(edge, middle + 3.5, label, anchor, f"label {point.kind}"))
        tip = escape(f"{point.label}: {point.loss:.3f} at cost {point.cost:.2f}")
        marks.append(
            f'<path d="{MARKERS[point.kind]}" transform="translate({x:.1f},{y:.1f})" class="mark {point.kind}">'
            f"<title>{tip}</title></path>"
        )
    return svg(height, title, body + marks)


def _front(points: Sequence[Point]) -> list[Point]:
    """Return the systems that none of the same or lower cost beats, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return front
