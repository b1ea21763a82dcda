"""Merges that need no torch: which they are, and that they make the same bits as those that do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mango.merging.engine
from mango.errors import MergeError
from mango.merging import merge
from tests.merging.conftest import MakeModel, hashes

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "parameters": {"weight": [0.2, 0.7, 0.4]}},
    "sum": {"merge_method": "linear", "parameters": {"weight": 0.3, "normalize": False}},
    "slerp": {"merge_method": "slerp", "base_model": "a", "parameters": {"t": [0.1, 0.9]}},
    "task_arithmetic": {"merge_method": "task_arithmetic", "base_model": "a", "parameters": {"weight": 0.6}},
    "lambda": {
        "merge_method": "task_arithmetic",
        "base_model": "a",
        "parameters": {"weight": 0.6, "lambda": 0.4, "normalize": True},
    },
    "dare_linear": {
        "merge_method": "dare_linear",
        "base_model": "a",
        "parameters": {"weight": -0.6, "density": 0.4, "normalize": True},
    },
    "dare_ties": {"merge_method": "dare_ties", "base_model": "a", "parameters": {"weight": 0.6, "density": 0.3}},
    "dare_mean": {
        "merge_method": "dare_ties",
        "base_model": "a",
        "parameters": {"weight": 0.6, "density": 0.7, "normalize": True, "rescale": False, "lambda": 0.8},
    },
    "passthrough": {"merge_method": "passthrough", "models": [{"model": "a", "parameters": {"scale": 0.9}}]},
}


def document(name: str, dtype: str | None = None) -> dict[str, Any]:
    names = "ab" if name in ("slerp", "passthrough") else "abc"
    return {"models": [{"model": n} for n in names], **METHODS[name], **({"dtype": dtype} if dtype else {})}


@pytest.fixture
def places(make_model: MakeModel) -> dict[str, str]:
    return {name: str(make_model(name, seed)) for seed, name in enumerate("abc")}


def as_type(folder: Path, dtype: torch.dtype) -> None:
    file = folder / "model.safetensors"
    save_file({n: t.to(dtype) for n, t in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("types", ["bfloat16", "float16", "float32", "mixed"])
def test_both_ways_make_the_same_bits(
    name: str, types: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("bfloat16", "float32", "float16") if types == "mixed" else (types,) * 3
    for place, kind in zip(places.values(), kinds, strict=True):
        as_type(Path(place), getattr(torch, kind))
    asked: list[bool] = []
    is_plain = mango.merging.engine.is_plain
    monkeypatch.setattr(mango.merging.engine, "is_plain", lambda some: asked.append(is_plain(some)) or asked[-1])
    for written in (None, "bfloat16", "float16"):
        merge(document(name, written), tmp_path / "plain", places)
        assert asked[-1]
        with monkeypatch.context() as patch:
            patch.setattr(mango.merging.engine, "is_plain", lambda some: False)
            merge(document(name, written), tmp_path / "torch", places)
        assert hashes(tmp_path / "plain") == hashes(tmp_path / "torch")


def test_other_methods_are_not_plain(places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    is_plain = mango.merging.engine.is_plain
    monkeypatch.setattr(mango.merging.engine, "is_plain", lambda some: found.append(is_plain(some)) or found[-1])
    merge(
        {**document("lambda"), "merge_method": "ties", "parameters": {"weight": 1, "density": 0.5}},
        tmp_path / "o",
        places,
    )
    assert found == [False]


def test_integers_must_be_equal_and_are_copied(places: dict[str, str], tmp_path: Path) -> None:
    for number, place in enumerate(places.values()):
        file = Path(place) / "model.safetensors"
        tensors = load_file(file)
        tensors["model.counts"] = torch.tensor([1, 2, 3 + number // 2])
        tensors["model.layers.0.flags"] = torch.tensor([True, False])
        save_file(tensors, file, metadata={"format": "pt"})
    merge(document("slerp"), tmp_path / "out", places)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["model.counts"].tolist() == [1, 2, 3]
    assert written["model.layers.0.flags"].tolist() == [True, False]
    with pytest.raises(MergeError, match=r"model\.counts: holds integers that differ"):
        merge(document("linear"), tmp_path / "other", places)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(wrong: float, places: dict[str, str], tmp_path: Path) -> None:
    file = Path(places["b"]) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = wrong
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"model\.norm\.weight: the result has elements that are not finite"):
        merge(document("linear"), tmp_path / "out", places)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "needs"), [("linear", False), ("slerp", False), ("dare_ties", False), ("ties", True)])
def test_the_command_imports_torch_only_where_it_is_used(
    name: str, needs: bool, places: dict[str, str], tmp_path: Path
) -> None:
    asked = {**document("lambda"), "merge_method": "ties"} if name == "ties" else document(name)
    (tmp_path / "asked.yaml").write_text(json.dumps(asked).replace('"a"', json.dumps(places["a"])))
    (tmp_path / "models.yaml").write_text(json.dumps({"models": {n: {"source": p} for n, p in places.items()}}))
    code = (
        "import sys, mango.cli.merging\n"
        "from typer.testing import CliRunner\n"
        "from mango.cli.app import app\n"
        "done = CliRunner().invoke(app, ['merge', 'asked.yaml', 'out', '--models', 'models.yaml'])\n"
        "print(done.output, done.exit_code, 'torch._C' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["0", str(needs)], done.stdout + done.stderr
