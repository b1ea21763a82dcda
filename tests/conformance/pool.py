"""Many checks in processes of their own, each with a limit of time and memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

MEMORY_BYTES = 12 << 30


def _child(work: Callable[[str], Any], item: str, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sender.send(work(item))
    sender.close()


def run(
    work: Callable[[str], Any], items: Iterable[str], *, jobs: int, limit_s: float
) -> Iterator[tuple[str, Any, float, str | None]]:
    """Yield for each item what the work returned, the seconds that it took, and why it did not end, or None.

    Processes are forked, so what was imported before need not be imported again.
    """
    context = multiprocessing.get_context("fork")
    waiting = list(items)
    running: dict[str, tuple[Any, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            item = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(work, item, sender))
            process.start()
            sender.close()
            running[item] = (process, receiver, time.monotonic())
        for item, (process, receiver, start) in list(running.items()):
            taken = time.monotonic() - start
            result, problem = None, None
            if receiver.poll(0.01):
                try:
                    result = receiver.recv()
                except EOFError:
                    process.join()
                    problem = f"its process ended with code {process.exitcode}"
            elif taken > limit_s:
                process.kill()
                problem = f"it takes more than {limit_s:.0f} seconds"
            else:
                continue
            process.join()
            receiver.close()
            del running[item]
            yield item, result, taken, problem
