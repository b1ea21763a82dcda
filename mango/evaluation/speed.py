"""Speed and memory of systems, measured beside the trunk in one process."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _sync(device)
    start = time.perf_counter()
    work()
    _sync(device)
    return time.perf_counter() - start


def relative_time(
    work: Callable[[], object], beside: Callable[[], object], repeats: int, device: torch.device
) -> float:
    """Return how many times as long `work` takes as `beside`: the median over alternating pairs, after a warm-up."""
    work()
    beside()
    return statistics.median(_timed(work, device) / _timed(beside, device) for _ in range(repeats))


def seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the median time of a pass in seconds, after a warm-up."""
    work()
    return statistics.median(_timed(work, device) for _ in range(repeats))


@dataclass
class PeakMemory:
    """Peak memory between its making and :meth:`read`, above what was in use before.

    On a GPU that of the allocator; on Linux that of the process; elsewhere it is not known.
    """

    device: torch.device

    def __post_init__(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = float(torch.cuda.memory_allocated(self.device))
        elif _RESET.exists():
            _give_back()
            _RESET.write_text("5")
            self._before = _kilobytes("VmRSS") * 1024

    def read(self) -> float | None:
        """Return the peak in megabytes, or None where it is not known."""
        if self.device.type == "cuda":
            return max(0.0, torch.cuda.max_memory_allocated(self.device) - self._before) / 1e6
        if not _RESET.exists():
            return None
        return max(0.0, _kilobytes("VmHWM") * 1024 - self._before) / 1e6


def _give_back() -> None:
    """Let the C library give freed memory back, so that what is measured next cannot hide in it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _kilobytes(field: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1])
    return 0.0
