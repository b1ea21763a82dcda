"""Merging many tensors on several threads: whole tensors and pieces of them at a time, results in order."""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Generic, TypeVar

import torch

from mango.merging.outputs import OutputTensor
from mango.tensors.pieces import PIECE_ELEMENTS

Piece = TypeVar("Piece")
Call = Callable[[], Piece]

KEPT_BYTES = 2**22
"""Memory that may stay with the allocator for the next pieces."""

LARGE_BYTES = 2**21
"""Larger buffers, such as samples of a whole tensor, go back to the kernel as soon as they are free."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h

HELD_BYTES_AHEAD = 2**28
"""Memory that tensors may hold which are prepared before their turn."""

PIECES_AT_ONCE = 4
"""Pieces that a thread merges before the next thread is told: waking one costs more than a small piece."""


class Maker(ABC, Generic[Piece]):
    """Makes the pieces of merged tensors; several threads ask it at the same time."""

    @abstractmethod
    def calls(self, output: OutputTensor, index: int) -> Iterator[Call[Piece]]:
        """Load what a tensor is made of, and yield calls that make its pieces, in order.

        Args:
            output: the tensor.
            index: its number among all, which may decide where it is made.

        Raises:
            MergeError: it cannot be merged; a call raises it too, where elements are not finite.
        """

    def held_bytes(self, output: OutputTensor, index: int) -> int:
        """Return the memory that a tensor holds until its last piece is made."""
        del index
        return sum(source.held_bytes for source in output.inputs)

    def room(self, index: int) -> int:
        """Return how much memory tensors may hold that are prepared before their turn."""
        del index
        return HELD_BYTES_AHEAD

    def at_once(self, index: int) -> int:
        """Return how many pieces a thread makes before the next thread is told."""
        del index
        return PIECES_AT_ONCE

    def window(self) -> int | None:
        """Return how many pieces of a file may wait to be written; None for what suits the number of threads."""
        return None

    def num_files(self, num_threads: int) -> int:
        """Return how many files are written at the same time; what computes on the CPU needs the other threads."""
        return num_threads // 2

    def loaders(self, num_threads: int) -> AbstractContextManager[ThreadPoolExecutor | None]:
        """Return a block that has threads which prepare tensors, or None where those that compute do."""
        del num_threads
        return nullcontext()

    @abstractmethod
    def view(self, piece: Piece) -> memoryview:
        """Return the bytes of a piece."""


@contextmanager
def merge_threads(count: int | None) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Open threads that merge.

    Args:
        count: how many; as many as this process has processors by default.

    Yields:
        The pool and the number of its threads.
    """
    count = count or len(os.sched_getaffinity(0))
    _keep_freed_memory()
    pool = ThreadPoolExecutor(count, thread_name_prefix="mango-merge")
    try:
        yield pool, count
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with merge_threads(count) as opened:
            yield opened
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Let the allocator keep the few buffers that pieces need, instead of asking the kernel for each of them anew."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_ARENA_MAX, 1)  # else each thread keeps buffers of its own


class Lane(Generic[Piece]):
    """Merges tensors in their order, with the work of several of them and of their pieces done at the same time.

    Args:
        pool: threads that compute.
        num_threads: how many they are.
        maker: what computes.
        loaders: threads that prepare tensors; those that compute by default, which then come to pieces late.
        window: how many pieces may wait to be written; by default enough for every thread to have two.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        num_threads: int,
        maker: Maker[Piece],
        *,
        loaders: ThreadPoolExecutor | None = None,
        window: int | None = None,
    ) -> None:
        self._pool = pool
        self._loaders = loaders or pool
        self._window = window or 2 * num_threads + 2
        self._ahead = num_threads + 1
        self._maker = maker
        self._is_stopped = False

    def stop(self) -> None:
        """Let every thread that runs tensors end at its next piece."""
        self._is_stopped = True

    def run(self, outputs: Sequence[OutputTensor], write: Callable[[Piece], None], done: Callable[[int], None]) -> None:
        """Merge tensors.

        Args:
            outputs: the tensors.
            write: called with the flat pieces of all tensors, in order.
            done: called with the index of each tensor when all of its pieces were written.

        Raises:
            CancelledError: it was stopped.
        """
        pending: deque[Future[list[Piece]] | int] = deque()

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
                while some := list(islice(ready, self._maker.at_once(index))):
                    pending.append(self._pool.submit(_made, some))
                    drain(self._window)
            pending.append(index)
            drain(2 * self._window)
        drain(0)

    def _prepared(
        self, outputs: Sequence[OutputTensor]
    ) -> Iterator[tuple[int, Iterator[Call[Piece]] | Future[list[Piece]]]]:
        """Yield tensors that are ready for their pieces, or the result of small ones, in order."""
        waiting: deque[tuple[int, Future[Iterator[Call[Piece]]] | Future[list[Piece]], bool, int]] = deque()
        held = 0
        for index, output in enumerate(outputs):
            small = output.spec.num_elements <= PIECE_ELEMENTS
            cost = self._maker.held_bytes(output, index)
            while waiting and (len(waiting) >= self._ahead or held + cost > self._maker.room(index)):
                number, future, whole, its_cost = waiting.popleft()
                held -= its_cost
                yield number, (future if whole else future.result())  # type: ignore[misc]
            if small:
                waiting.append((index, self._loaders.submit(self._whole, output, index), True, cost))
            else:
                waiting.append((index, self._loaders.submit(self._maker.calls, output, index), False, cost))
            held += cost
        while waiting:
            number, future, whole, _ = waiting.popleft()
            yield number, (future if whole else future.result())  # type: ignore[misc]

    def _whole(self, output: OutputTensor, index: int) -> list[Piece]:
        return _made(self._maker.calls(output, index))


def _made(calls: Iterable[Call[Piece]]) -> list[Piece]:
    return [call() for call in calls]
