"""The only module that draws for people: results to stdout, everything else to stderr.

Bars are drawn only on a terminal; elsewhere progress is one line at intervals.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def note(message: str) -> None:
    """Write one line for a person to stderr."""
    print(message, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """Write a result to stdout."""
    print(text, flush=True)


def result_json(value: Any) -> None:
    """Write a result for machines to stdout, as one JSON document with sorted keys."""
    print(json.dumps(value, indent=2, sort_keys=True, allow_nan=False), flush=True)


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Return an aligned text table; numbers are right-aligned."""
    cells = [[str(c) for c in header]] + [[f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [all(isinstance(row[i], int | float) or row[i] in ("", "-") for row in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *(line(row) for row in cells[1:])])


def progress(items: Iterable[T], what: str, total: int, every_s: float = 10.0) -> Iterator[T]:
    """Yield ``items`` and show how far it is: a bar on a terminal, a line at intervals elsewhere."""
    terminal = sys.stderr.isatty()
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if terminal and (now - shown > 0.1 or done == total):
            filled = int(30 * done / max(total, 1))
            left = (now - start) / done * (total - done)
            sys.stderr.write(f"\r{what} [{'#' * filled}{'.' * (30 - filled)}] {done}/{total} {left:.0f} s left ")
            sys.stderr.flush()
            shown = now
        elif not terminal and now - shown > every_s:
            note(f"{what}: {done}/{total}")
            shown = now
    if terminal:
        sys.stderr.write("\n")
