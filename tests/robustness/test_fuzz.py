"""The fuzzer and the damage, small, with a fixed seed; `make fuzz` runs them in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.damage import KINDS, damage
from tests.robustness.fuzz import LIMIT_BYTES, fuzz


@pytest.mark.slow
def test_mutated_files_are_opened_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    report = fuzz(300, seed=1)
    assert report["failures"] == []
    for found in report["kinds"].values():
        assert found["bytes"] < LIMIT_BYTES
        assert found["outcomes"].get("opened", 0) > 0, "a fuzzer that opens nothing tests the first check alone"
        assert found["outcomes"]["refused"] > 0


@pytest.mark.slow
def test_every_damage_is_refused_with_the_file_named(tmp_path: Path) -> None:
    report = damage(3, tmp_path)
    assert report["missed"] == []
    assert sum(report["refused"].values()) == 3 * len(KINDS)
