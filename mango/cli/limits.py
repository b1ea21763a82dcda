"""What a command may use, from ``MANGO_MEMORY_LIMIT`` and ``MANGO_TIME_LIMIT_S``, watched by a thread beside it.

A limit of the kernel's would not do: one on address space counts what is mapped and never read, so a model of which a
tensor at a time is in memory would be refused, and one on the heap ends a process without a word. Since every output
is whole or absent whatever happens, a command that does not end when it is asked to can be ended hard.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from mango import console
from mango.errors import ConfigError
from mango.signals import OverLimit, handlers

_NAMES = ("MANGO_MEMORY_LIMIT", "MANGO_TIME_LIMIT_S")
_PERIOD_S = 0.05
_CHILDREN_EVERY = 10  # periods between two looks for child processes
_GRACE_S = 10.0
_TOO_MUCH = 1.25  # times the memory limit, at which there is no time to wait for a clean end
_ASK = "SIGXCPU"
_OWN = ("RssAnon:", "RssShmem:", "VmSwap:")
_CHILDS = ("RssAnon:", "VmSwap:")  # what is shared with the parent is counted there


@contextmanager
def limits(command: str) -> Iterator[None]:
    """Hold the body to the limits that the environment sets; without any, nothing is watched.

    Memory is what this process and its children hold of their own: pages of mapped files, which the kernel can take
    back at any time, do not count.

    Args:
        command: its name, for the message.

    Raises:
        OverLimit: the body used more than it may. In a body that does not end within ten seconds, or that goes on to
            take a quarter more memory than it may, the process ends with the same message and exit code 2.
        ConfigError: a limit is malformed, or this system does not tell how much memory a process holds.
    """
    if not any(os.environ.get(name) for name in _NAMES):
        yield
        return
    from mango.config import Settings

    settings = Settings.from_environ()
    memory = None if settings.memory_limit is None else int(settings.memory_limit)
    if memory is not None and not Path("/proc/self/status").is_file():
        raise ConfigError("environment MANGO_MEMORY_LIMIT: needs /proc, which this system has not; unset it")
    watch = _Watch(command, memory, settings.time_limit_s)
    with handlers(watch.end, (_ASK,)):
        watch.start()
        try:
            yield
        finally:
            watch.stop()


def held_bytes(pid: int | str = "self", fields: tuple[str, ...] = _OWN) -> int:
    """Return how much memory a process holds that no file backs; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(fields))


def children(pid: int) -> list[int]:
    """Return the processes below one, however deep."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *children(child)]
    return found


class _Watch:
    """Compares use with limits until it is stopped.

    Args:
        command: its name, for the message.
        memory: bytes that may be held, or None.
        time_s: seconds that it may take, or None.
    """

    def __init__(self, command: str, memory: int | None, time_s: float | None) -> None:
        self._command = command
        self._memory = memory
        self._time_s = time_s
        self._problem = ""
        self._done = threading.Event()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._run, daemon=True, name="limits")

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._done.set()

    def end(self, _number: int, _frame: FrameType | None) -> None:
        """Leave what the main thread does; the watching thread asks for it by a signal."""
        if not self._done.is_set():
            raise OverLimit(self._problem)

    def _run(self) -> None:
        begin_s = time.monotonic()
        below: list[int] = []
        asked_s: float | None = None
        tick = 0
        while not self._done.wait(_PERIOD_S):
            now_s = time.monotonic()
            held = 0
            if self._memory is not None:
                if tick % _CHILDREN_EVERY == 0:
                    below = children(os.getpid())
                held = held_bytes() + sum(held_bytes(child, _CHILDS) for child in below)
                tick += 1
                if held > self._memory and not self._problem:
                    self._problem = (
                        f"{self._command}: used {held / 2**20:,.0f} MiB of memory, MANGO_MEMORY_LIMIT allows "
                        f"{self._memory / 2**20:,.0f} MiB; raise it, or work on less at a time"
                    )
            if self._time_s is not None and now_s - begin_s > self._time_s and not self._problem:
                self._problem = (
                    f"{self._command}: ran for {now_s - begin_s:.1f} s, MANGO_TIME_LIMIT_S allows {self._time_s:g}; "
                    "raise it"
                )
            if not self._problem:
                continue
            if asked_s is None:
                asked_s = now_s
                self._ask()
            elif now_s - asked_s > _GRACE_S or (self._memory is not None and held > _TOO_MUCH * self._memory):
                self._end_hard()

    def _ask(self) -> None:
        assert self._main is not None
        with suppress(ProcessLookupError):
            signal.pthread_kill(self._main, getattr(signal, _ASK))

    def _end_hard(self) -> None:
        console.error(self._problem)
        console.note("it did not end by itself, so it was ended; every output is whole, old or new")
        for child in children(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        os._exit(2)
