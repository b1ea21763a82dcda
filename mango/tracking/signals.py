"""Turns requests to end into exceptions, so that what is open is closed on the way out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_END = ("SIGTERM", "SIGHUP")


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM or SIGHUP; it exits with 128 plus the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)


@contextmanager
def end_signals_as_exceptions() -> Iterator[None]:
    """Raise `Terminated` where SIGTERM and SIGHUP would end the process at once.

    Only the main thread may set handlers; elsewhere this does nothing, and whoever owns the main thread decides.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    with _handlers(end, _END):
        yield


@contextmanager
def end_signals_ignored() -> Iterator[None]:
    """Let nothing interrupt the few calls that close a run: it is being closed because of a signal already."""
    with _handlers(signal.SIG_IGN, (*_END, "SIGINT")):
        yield


@contextmanager
def _handlers(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, names: tuple[str, ...]
) -> Iterator[None]:
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
