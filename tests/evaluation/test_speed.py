"""Clocks and memory meters show what is there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from mango.evaluation.speed import PeakMemory, relative_time, seconds

CPU = torch.device("cpu")


def test_time_is_that_of_the_work_without_its_warm_up() -> None:
    calls: list[str] = []

    def slow() -> None:
        time.sleep(0.3 if not calls.count("slow") else 0.04)
        calls.append("slow")

    def fast() -> None:
        time.sleep(0.01)
        calls.append("fast")

    ratio = relative_time(slow, fast, 3, CPU)
    assert 1.5 < ratio < 6  # four, on a machine that does other things too
    assert calls == ["slow", "fast"] * 4
    assert 0.01 <= seconds(fast, 3, CPU) < 0.1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no accelerator, and this is not Linux")
def test_peak_memory_sees_what_was_freed_again() -> None:
    meter = PeakMemory(CPU)
    block = torch.ones(25_000_000)  # 100 MB
    del block
    found = meter.read()
    assert found is not None
    assert 90 < found < 200
    again = PeakMemory(CPU).read()
    assert again is not None
    assert again < 20
