"""Charts as inline SVG: no script, no font and no colour from outside; the page's CSS colours them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360.0
LEFT, RIGHT, TOP, BOTTOM = 38.0, 10.0, 12.0, 36.0


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


def svg(height: float, title: str, body: Sequence[str]) -> str:
    """Return an ``<svg>`` element of a height in units of a width of 360, with its title for screen readers."""
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "") -> str:
    """Return a ``<text>`` element."""
    kind = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """Return a ``<line>`` element."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def axes(
    height: float,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_at: Callable[[float], float],
    y_at: Callable[[float], float],
    x_name: str,
) -> list[str]:
    """Return the elements of both axes, their ticks and the horizontal grid."""
    right, bottom = WIDTH - RIGHT, height - BOTTOM
    body = []
    for value in y_ticks:
        body.append(line(LEFT, y_at(value), right, y_at(value), "grid"))
        body.append(text(LEFT - 5, y_at(value) + 3.5, number(value), "end", "tick"))
    for value in x_ticks:
        body.append(line(x_at(value), bottom, x_at(value), bottom + 4, "axis"))
        body.append(text(x_at(value), bottom + 15, number(value), "middle", "tick"))
    body.append(line(LEFT, bottom, right, bottom, "axis"))
    body.append(text((LEFT + right) / 2, height - 4, x_name, "middle", "tick"))
    return body


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
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    right, bottom = WIDTH - RIGHT, height - BOTTOM
    x_low, x_high = min(xs), max(xs)
    pad = 0.08 * (max(ys) - min(ys)) or max(0.05 * abs(max(ys)), 1e-3)
    low, high = min(ys) - pad, max(ys) + pad

    def x_at(x: float) -> float:
        return LEFT + 4 + (x - x_low) / ((x_high - x_low) or 1.0) * (right - LEFT - 8)

    def y_at(y: float) -> float:
        return bottom - (y - low) / (high - low) * (bottom - TOP)

    body = axes(height, ticks(x_low, x_high), ticks(low, high, 4), x_at, y_at, x_name)
    for one in series:
        places = [(x_at(x), y_at(y)) for x, y in one.points]
        body.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" class="line {one.css}"/>')
        if one.dots or len(places) == 1:
            body += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot {one.css}">'
                f"<title>{escape(f'{one.name}, {x_name} {step:g}: {value:.4g}')}</title></circle>"
                for (x, y), (step, value) in zip(places, one.points, strict=True)
            ]
    return svg(height, title, body)
