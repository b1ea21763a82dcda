"""How a run is asked to end, and what it says then: requests become exceptions, so that what is open is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_END = ("SIGTERM", "SIGHUP")
_replaced: dict[Path, None] = {}
_hints: list[Callable[[], str]] = []


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM or SIGHUP; it exits with 128 plus the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)


class OverLimit(SystemExit):
    """The process has used more memory or time than it may; it exits with 2.

    Args:
        problem: what was used and what is allowed.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(2)
        self.problem = problem


@contextmanager
def end_signals_as_exceptions() -> Iterator[None]:
    """Raise `Terminated` where SIGTERM and SIGHUP would end the process at once.

    Only the main thread may set handlers; elsewhere this does nothing, and whoever owns the main thread decides.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    with handlers(end, _END):
        yield


@contextmanager
def end_signals_ignored() -> Iterator[None]:
    """Let nothing interrupt the few calls that close a run: it is being closed because of a signal already."""
    with handlers(signal.SIG_IGN, (*_END, "SIGINT")):
        yield


@contextmanager
def resumes(hint: Callable[[], str]) -> Iterator[None]:
    """Remember how a run goes on when its body is ended by a signal or a limit.

    Args:
        hint: called by `how_to_go_on`, when all is closed; returns a clause such as ``"'fused' goes on from step 40"``,
            or nothing where there is nothing to go on from.
    """
    try:
        yield
    except (KeyboardInterrupt, Terminated, OverLimit):
        _hints.append(hint)
        raise


def replaced(path: Path) -> None:
    """Remember that this run has put a new version of an output into place."""
    _replaced[path] = None


def how_to_go_on(command: str) -> str:
    """Return what an ended run has replaced and how it goes on, and forget it.

    Args:
        command: what starts it again.
    """
    done = ", ".join(map(_shown, _replaced))
    state = f"already replaced, whole: {done}" if done else "nothing was replaced"
    hints = "; ".join(dict.fromkeys(clause for hint in _hints if (clause := hint()))) or "it starts over"
    _replaced.clear()
    _hints.clear()
    return f"{state}. To go on, run `{command}`: {hints}"


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def handlers(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, names: tuple[str, ...]
) -> Iterator[None]:
    """Handle signals by name in the body; this does nothing outside the main thread.

    Args:
        handler: what to call, or one of the system's.
        names: of signals; those that the system does not have are left out.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
