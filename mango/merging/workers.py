"""Merging pieces on several threads: each operation on one thread, several operations at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

Call = Callable[[], torch.Tensor]


class Workers:
    """Runs calls on a pool of threads and returns their results in order, with few of them in memory."""

    def __init__(self, pool: ThreadPoolExecutor, num_threads: int) -> None:
        self._pool = pool
        self._num_ahead = num_threads + 1

    def in_order(self, calls: Iterable[Call]) -> Iterator[torch.Tensor]:
        """Yield the result of each call, in the order of the calls."""
        waiting: deque[Future[torch.Tensor]] = deque()
        for call in calls:
            waiting.append(self._pool.submit(call))
            if len(waiting) > self._num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def workers() -> Iterator[Workers]:
    """Open as many threads as torch may use, and set torch to one thread for each operation meanwhile.

    Operations on pieces are too short to be shared between threads: on a busy machine they would mostly wait for each
    other. The number of threads is a setting of the whole process; it is restored at the end.

    Yields:
        The workers.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads, thread_name_prefix="mango-merge") as pool:
            yield Workers(pool, num_threads)
    finally:
        torch.set_num_threads(num_threads)
