"""The search for parameters: exact in its budget, never worse than its start, the same for a seed."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from mango.checkpoints import ModelSource, open_model, sha256_file
from mango.corpus import token_losses
from mango.errors import ConfigError, MergeError
from mango.merging import load_document, merge, merge_tensors, plan
from mango.merging.search import _Candidates, _Judge
from tests.merging.conftest import Stopped, hashes, problems

pytestmark = pytest.mark.usefixtures("one_thread")
Family = dict[str, ModelSource]


def document(text: Path, **changes: Any) -> dict[str, Any]:
    return {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "a", "parameters": {"weight": 0.9}}, {"model": "b", "parameters": {"weight": 0.4}}],
        "parameters": {"lambda": 0.7, "density": 0.5},
        "calibration": {"data": str(text), "sequences": 4, "tokens": 12},
        "search": {"parameters": {"weight": [0, 1], "lambda": [0.1, 1.5]}, "evaluations": 9, "groups": 2},
        **changes,
    }


def loss_of(folder: Path, data: dict[str, Any], family: Family) -> float:
    """Bits per byte of a merged model on the document's text."""
    quest = plan(data, family).quest
    assert quest is not None
    losses = token_losses(open_model(folder, dtype=torch.float32), quest.text.input_ids, batch_size=8)
    return float(losses.double().sum()) / math.log(2) / float(quest.text.num_bytes[:, 1:].sum())


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of every model that is measured from here on."""
    found: list[float] = []
    loss = _Judge.loss

    def noted(self: Any, *arguments: Any, **options: Any) -> float:
        found.append(loss(self, *arguments, **options))
        return found[-1]

    monkeypatch.setattr(_Judge, "loss", noted)
    return found


def test_the_best_of_the_budget_is_what_is_written(
    family: Family,
    text: Path,
    tmp_path: Path,
    losses: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = document(text)
    merge(data, tmp_path / "out", family)
    assert len(losses) == 9
    assert len(set(losses)) == 9
    assert min(losses) < losses[0]
    # the judge merges in the type that is written, so that the file gives the same figure
    assert loss_of(tmp_path / "out", data, family) == pytest.approx(min(losses), abs=1e-6)
    start = {key: value for key, value in data.items() if key not in ("search", "calibration")}
    merge(start, tmp_path / "start", family)
    assert loss_of(tmp_path / "start", data, family) == pytest.approx(losses[0], abs=1e-6)
    said = capsys.readouterr().err
    assert f"search: the best of 9 has {min(losses):.4f} bits per byte, the start {losses[0]:.4f}" in said


def test_the_document_in_the_result_makes_it_again_without_searching(
    family: Family,
    text: Path,
    tmp_path: Path,
    losses: list[float],
) -> None:
    merge(document(text), tmp_path / "out", family)
    again = load_document(tmp_path / "out" / "mango_merge.yaml")
    assert (again.calibration, again.search) == (None, None)
    assert again.models is not None
    assert [part.get("filter") for part in again.models[0].parameters["weight"]] == [
        "model.layers.0.", "model.layers.1.", "model.layers.2.", None
    ]  # fmt: skip
    first, second, third, _ = (part["value"] for part in again.models[0].parameters["weight"])
    assert first == second != third  # two groups of three blocks
    assert again.parameters["density"] == 0.5
    done = len(losses)
    merge(again, tmp_path / "again", family)
    assert len(losses) == done
    assert sha256_file(tmp_path / "again" / "model.safetensors") == sha256_file(tmp_path / "out" / "model.safetensors")


def test_the_seed_decides(family: Family, text: Path) -> None:
    results = []
    for seed in (0, 0, 1):
        np.random.seed(len(results))  # the global generator has no part in it
        data = document(text)
        data["search"] |= {"seed": seed, "evaluations": 4}
        results.append(merge_tensors(data, family))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_a_budget_of_one_is_the_document_itself(family: Family, text: Path, losses: list[float]) -> None:
    data = document(text)
    data["search"]["evaluations"] = 1
    found = merge_tensors(data, family)
    plain = merge_tensors({k: v for k, v in data.items() if k not in ("search", "calibration")}, family)
    assert len(losses) == 1
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_it_does_not_repeat_evaluations_after_a_stop(
    family: Family,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = document(text)
    merge(data, tmp_path / "calm", family)
    count, loss = [0], _Judge.loss

    def counted(self: Any, *arguments: Any, **options: Any) -> float:
        count[0] += 1
        if count[0] == 6:
            raise Stopped
        return loss(self, *arguments, **options)

    monkeypatch.setattr(_Judge, "loss", counted)
    with pytest.raises(Stopped):
        merge(data, tmp_path / "out", family)
    (notes,) = tmp_path.glob(".out.*/search.jsonl")
    with notes.open("a") as file:
        file.write('{"point": [0.1')  # a line that was torn
    with monkeypatch.context() as patched:
        patched.setattr("os.truncate", Mock(side_effect=Stopped))
        with pytest.raises(Stopped):  # while the torn line is removed
            merge(data, tmp_path / "out", family)
    merge(data, tmp_path / "out", family)
    assert count == [5 + 1 + 4]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    assert not list(tmp_path.glob(".out.*"))


def test_one_parameter_that_models_share(family: Family, text: Path, losses: list[float]) -> None:
    data = {
        "merge_method": "slerp",
        "base_model": "a",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": [0.2, 0.8]},
        "calibration": {"data": str(text), "sequences": 4, "tokens": 12},
        "search": {"parameters": {"t": [0, 1]}, "evaluations": 8},
    }
    assert "search 2 values of t in 8 evaluations of 48 tokens" in getattr(plan(data, family).quest, "words", "")
    merge_tensors(data, family)
    assert len(losses) == 8


def test_the_search_goes_with_methods_that_measure(family: Family, text: Path, losses: list[float]) -> None:
    data = {
        "merge_method": "fisher",
        "models": [{"model": "a"}, {"model": "b"}],
        "calibration": {"data": str(text), "sequences": 2, "tokens": 12},
        "search": {"parameters": {"weight": [0, 1]}, "evaluations": 4},
    }
    found = merge_tensors(data, family)
    plain = merge_tensors({k: v for k, v in data.items() if k != "search"}, family)
    assert len(losses) == 4
    assert any(not torch.equal(found[name], plain[name]) for name in plain)


def test_candidates_stay_in_their_bounds_and_go_on_for_ever() -> None:
    candidates = _Candidates(np.array([1.0, 0.0, 0.5]), 0.5, 3)
    best = math.inf
    for number in range(400):
        point = candidates.ask()
        assert point.shape == (3,)
        assert (point >= 0).all()
        assert (point <= 1).all()
        loss = math.inf if number % 7 == 0 else float(((point - [0.3, 0.6, 0.9]) ** 2).sum())
        best = min(best, loss)
        candidates.tell(loss)
    assert best < 1e-3


def test_without_its_package_the_plan_says_what_to_install(
    family: Family, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(MergeError, match=r"search: the package cma is missing .*install the extra 'search'"):
        plan(document(text), family)


SEARCH = """merge_method: ties
base_model: b
models:
  - model: a
parameters: {weight: 1.0}
"""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("search: {parameters: {weight: [0, 1]}}\n", "6 search: measures the merged model on text: name it"),
        (
            "calibration: {data: x}\nsearch: {parameters: {wieght: [0, 1]}}\n",
            "did you mean 'weight'? Known here: densi",
        ),
        ("calibration: {data: x}\nsearch: {parameters: {density: [0, 2]}}\n", "density.1: 2.0: must be less than or"),
        (
            "calibration: {data: x}\nsearch: {parameters: {density: [1, 0]}}\n",
            "the first bound must be below the second",
        ),
        (
            "calibration: {data: x}\nsearch: {parameters: {normalize: [0, 1]}}\n",
            "normalize: is no number that ties takes",
        ),
        ("calibration: {data: x}\nsearch: {parameters: {weight: [0]}}\n", "search.parameters.weight.1: is missing"),
        (
            "calibration: {data: x}\nsearch: {parameters: {weight: [0, 1]}, evalutions: 3}\n",
            "search.evalutions: unknown key; did you mean 'evaluations'?",
        ),
    ],
)
def test_wrong_searches_are_reported(tmp_path: Path, lines: str, message: str) -> None:
    found = problems(tmp_path, SEARCH + lines)
    assert len(found) == 1
    assert message in found[0]


def test_what_no_tensor_takes_cannot_be_searched(family: Family, text: Path) -> None:
    data = document(text)
    data["search"]["parameters"] = {"rescale": [0, 1]}
    with pytest.raises(ConfigError, match="rescale: is no number that ties takes"):
        plan(data, family)
