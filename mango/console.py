"""The only module that draws for people: results to stdout, everything else to stderr.

Bars are drawn only on a terminal; elsewhere progress is one line at intervals.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from mango.errors import printable

T = TypeVar("T")


def note(message: str) -> None:
    """Write one line for a person to stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def error(problem: BaseException | str) -> None:
    """Write an error to stderr: one ``error:`` line for each problem that its message lists."""
    for line in str(problem).splitlines() or [type(problem).__name__]:
        note(f"error: {line}")


def result(text: str) -> None:
    """Write a result to stdout."""
    print(printable(text), flush=True)


def result_json(value: Any) -> None:
    """Write a result for machines to stdout, as one JSON document with sorted keys."""
    print(json.dumps(value, indent=2, sort_keys=True, allow_nan=False), flush=True)


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Return an aligned text table; columns of numbers are right-aligned.

    Args:
        rows: cells, as many in each row as in the header; floats are shown with three decimals, None as ``-``.
        header: names of the columns.

    Returns:
        Lines without trailing spaces, joined by newlines.
    """
    cells = [[str(name) for name in header], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *(line(row) for row in cells[1:])])


def progress(items: Iterable[T], what: str, total: int, every_s: float = 10.0) -> Iterator[T]:
    """Yield ``items`` and show on stderr how far it is; see `Meter`.

    Args:
        items: what is worked through.
        what: name of the work.
        total: how many items there are.
        every_s: seconds between lines when stderr is no terminal.

    Yields:
        each item.
    """
    with Meter(what, every_s=every_s) as meter:
        for done, item in enumerate(items, 1):
            yield item
            meter(done, total)


class Meter:
    """Shows on stderr how far some work is: a bar on a terminal, a line at intervals elsewhere.

    Call it with (done, total) after each step; as a context manager it ends the bar's line, also after an error.

    Args:
        what: name of the work.
        every_s: seconds between lines when stderr is no terminal.
        unit: ``"bytes"`` shows steps as sizes.
    """

    def __init__(self, what: str, *, every_s: float = 10.0, unit: str = "") -> None:
        self._what = what
        self._unit = unit
        self._every_s = every_s
        self._terminal = sys.stderr.isatty()
        self._start_s = self._shown_s = time.monotonic()
        self._drawn = False
        self._first: tuple[float, int] | None = None  # what came before it may be other work, or an earlier run's

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps are done, if it is time to."""
        now_s = time.monotonic()
        since_s, before = self._first or (self._start_s, 0)
        left_s = (now_s - since_s) / max(done - before, 1) * max(total - done, 0)
        self._first = self._first or (now_s, done)
        if self._terminal and (now_s - self._shown_s > 0.1 or done == total):
            filled = int(30 * done / max(total, 1))
            bar = f"[{'#' * filled}{'.' * (30 - filled)}]"
            sys.stderr.write(f"\r{self._what} {bar} {self._steps(done, total)}, {left_s:.0f} s left\x1b[K")
            sys.stderr.flush()
            self._shown_s, self._drawn = now_s, True
        elif not self._terminal and now_s - self._shown_s > self._every_s:
            note(f"{self._what}: {self._steps(done, total)}, {left_s:.0f} s left")
            self._shown_s = now_s

    def _steps(self, done: int, total: int) -> str:
        if self._unit == "bytes":
            return f"{done / 1e9:.2f}/{total / 1e9:.2f} GB"
        return f"{done}/{total}"

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            note("")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return value in ("", "-", None) or (isinstance(value, int | float) and not isinstance(value, bool))
