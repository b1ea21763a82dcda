"""One example for each family, run as it stands."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

FAMILIES = Path(__file__).parents[1] / "examples" / "families"
TRAINED = ("decoder", "encoder", "encoder_decoder", "hybrid", "vision", "multimodal")


def test_every_family_has_an_example() -> None:
    found = {path.stem for path in FAMILIES.glob("*.py")} - {"tiny_models"}
    assert found == {*TRAINED, "audio"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(path.stem for path in FAMILIES.glob("*.py") if path.stem != "tiny_models"))
def test_an_example_does_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FAMILIES))
    monkeypatch.setenv("MANGO_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng():
        found = importlib.import_module(name).main(tmp_path)
    assert all(value == value for value in found.values())
    if name in TRAINED:
        assert found["last"] < found["first"] - 0.05
    else:
        assert max(found.values()) > 0.9
    assert found.get("seen", 1.0) > 0.01
    assert found.get("accuracy", 1.0) > 0.7
