"""Chaos in small: `make chaos` kills each of the five 200 times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.robustness.chaos import broken
from tests.robustness.victims import VICTIMS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_kills_full_disks_and_second_runs_break_nothing(tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "tests.robustness.chaos", "--kills", "5", "--sizes", "2", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["broken"] == []
    assert {name: kills["kills"] for name, kills in report["kills"].items()} == dict.fromkeys(VICTIMS, 5)
    assert all(kills["finished"] > 0 for kills in report["kills"].values())
    for disk in report["disk"].values():
        assert len(disk["bytes"]) == 4
        assert disk["refused"] + disk["full"] > 0  # the disks were too small for some
    assert set(report["two_at_once"]) == set(VICTIMS)


def test_a_broken_promise_is_told() -> None:
    fine = {"corrupt": [], "repairs": [], "different": [], "left": [], "started_over": []}
    two = {"first": 0, "second": 2, "new_version": True, "said": "process 1 is writing it"}
    disk = {"disk": "tmpfs", "corrupt": [], "unclear": []}
    assert broken({"kills": {"x": fine}, "two_at_once": {"x": two}, "disk": {"x": disk}}) == []
    report = {
        "kills": {"x": {**fine, "corrupt": ["half"], "started_over": ["5 were done"]}},
        "two_at_once": {"x": {**two, "second": 0}},
        "disk": {"x": {**disk, "unclear": ["100"], "disk": "none: no rights"}},
    }
    found = broken(report)
    assert [line.split(":")[0] for line in found] == [
        *["x, killed"] * 2, "x, two at once", "x, disk full", "x, disk full"
    ]  # fmt: skip
