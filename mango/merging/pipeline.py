"""Merging many tensors on several threads: whole tensors and pieces of them at a time, results in order."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

import torch

from mango.merging.combining import Prepared, merge_piece, piece_calls, prepare
from mango.merging.devices import bytes_ahead
from mango.merging.outputs import OutputTensor
from mango.tensors import item_bytes
from mango.tensors.pieces import PIECE_ELEMENTS

KEPT_BYTES = 2**22
"""Memory that may stay with the allocator for the next pieces."""

LARGE_BYTES = 2**21
"""Larger buffers, such as samples of a whole tensor, go back to the kernel as soon as they are free."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h

HELD_BYTES_AHEAD = 2**28
"""Memory that tensors may hold which are prepared before their turn."""

PIECES_AT_ONCE = 4
"""Pieces that a thread merges before the next thread is told: waking one costs more than a small piece."""


@contextmanager
def compute_threads(count: int | None) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Open threads that merge, and set torch to one thread for each operation meanwhile.

    Operations on pieces are too short to be shared between threads: on a busy machine they would mostly wait for each
    other. The number of threads is a setting of the whole process; it is restored at the end.

    Args:
        count: how many; as many as this process has processors by default.

    Yields:
        The pool and the number of its threads.
    """
    count = count or len(os.sched_getaffinity(0))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _keep_freed_memory()
    pool = ThreadPoolExecutor(count, thread_name_prefix="mango-merge")
    try:
        yield pool, count
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Let the allocator keep the few buffers that pieces need, instead of asking the kernel for each of them anew."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_ARENA_MAX, 1)  # else each thread keeps buffers of its own


class Lane:
    """Merges tensors in their order, with the work of several of them and of their pieces done at the same time.

    Args:
        pool: threads that compute.
        num_threads: how many they are.
        devices: where tensors are computed, in turn.
    """

    def __init__(self, pool: ThreadPoolExecutor, num_threads: int, devices: Sequence[torch.device]) -> None:
        self._pool = pool
        self._window = 2 * num_threads + 2
        self._ahead = num_threads + 1
        self._devices = devices
        self._is_stopped = False

    def stop(self) -> None:
        """Let every thread that runs tensors end at its next piece."""
        self._is_stopped = True

    def run(
        self, outputs: Sequence[OutputTensor], write: Callable[[torch.Tensor], None], done: Callable[[int], None]
    ) -> None:
        """Merge tensors.

        Args:
            outputs: the tensors.
            write: called with the flat pieces of all tensors, in order.
            done: called with the index of each tensor when all of its pieces were written.

        Raises:
            CancelledError: it was stopped.
        """
        pending: deque[Future[list[torch.Tensor]] | int] = deque()

        def drain(down_to: int) -> None:
            while len(pending) > down_to:
                if self._is_stopped:
                    raise CancelledError
                first = pending.popleft()
                if isinstance(first, int):
                    done(first)
                else:
                    for piece in first.result():
                        write(piece)

        for index, ready in self._prepared(outputs):
            if isinstance(ready, Future):
                pending.append(ready)
            else:
                calls = piece_calls(ready)
                while some := list(islice(calls, PIECES_AT_ONCE if ready.device.type == "cpu" else 1)):
                    pending.append(self._pool.submit(_called, some))
                    drain(self._window)
            pending.append(index)
            drain(2 * self._window)
        drain(0)

    def _prepared(self, outputs: Sequence[OutputTensor]) -> Iterator[tuple[int, Prepared | Future[list[torch.Tensor]]]]:
        """Yield tensors that are ready for their pieces, or the result of small ones, in order."""
        waiting: deque[tuple[int, Future[Prepared] | Future[list[torch.Tensor]], bool, int]] = deque()
        held = 0
        for index, output in enumerate(outputs):
            device = self._devices[index % len(self._devices)]
            small = output.spec.num_elements <= PIECE_ELEMENTS
            on_cpu = device.type == "cpu"
            cost = sum(s.held_bytes if on_cpu else s.num_elements * item_bytes(s.dtype) for s in output.inputs)
            most = HELD_BYTES_AHEAD if on_cpu else bytes_ahead(device)
            while waiting and (len(waiting) >= self._ahead or held + cost > most):
                number, future, whole, its_cost = waiting.popleft()
                held -= its_cost
                yield number, (future if whole else future.result())  # type: ignore[misc]
            if small:
                waiting.append((index, self._pool.submit(_whole, output, device), True, cost))
            else:
                waiting.append((index, self._pool.submit(prepare, output, device), False, cost))
            held += cost
        while waiting:
            number, future, whole, _ = waiting.popleft()
            yield number, (future if whole else future.result())  # type: ignore[misc]


def _called(calls: Sequence[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
    return [call() for call in calls]


def _whole(output: OutputTensor, device: torch.device) -> list[torch.Tensor]:
    return [merge_piece(prepare(output, device), 0, output.spec.num_elements)]
