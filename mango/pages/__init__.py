"""Pages that people read: one self-contained HTML file, with charts that are part of it."""

from __future__ import annotations

from mango.pages.drawing import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Series, axes, line, lines, number, svg, text, ticks
from mango.pages.page import heat_cell, page, scrolling

__all__ = [
    "BOTTOM",
    "LEFT",
    "RIGHT",
    "TOP",
    "WIDTH",
    "Series",
    "axes",
    "heat_cell",
    "line",
    "lines",
    "number",
    "page",
    "scrolling",
    "svg",
    "text",
    "ticks",
]
