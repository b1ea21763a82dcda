"""One HTML page that needs nothing outside itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, parts: Sequence[str], *, css: str = "") -> str:
    """Return a whole page: its head, a policy that forbids every request, the house's style, and its parts.

    Args:
        title: of the browser's tab.
        parts: HTML, one below the other.
        css: style of this page's own, after the house's.
    """
    house = files("mango.pages").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{house}{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def scrolling(table: str, label: str) -> str:
    """Return a wide part inside of an area that scrolls on its own, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'


def heat_cell(value: float | None, text: str, *, low: float, high: float, strong: bool = False) -> str:
    """Return a table cell whose tint says where its value lies between two others.

    Args:
        value: None for a cell without a figure.
        text: what stands in it.
        low: value of no tint.
        high: value of the full tint.
        strong: bold text.
    """
    if value is None:
        return f'<td class="plain">{escape(text)}</td>'
    share = min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)
    top = " top" if strong else ""
    return f'<td class="cell{top}" style="--v:{share:.3f}">{escape(text)}</td>'
