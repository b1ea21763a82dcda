"""Documents merged by mergekit 0.1.5, as a black box, and by Mango: equal up to rounding, or who is right is shown."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mango
from tests.parity.mergekit_documents import EXAMPLES, OWN
from tests.parity.mergekit_models import by_mergekit, placed, save, save_adapter, tensors_of, ulps

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own

MORE = ("elk", "dog", "owl", "cat", "bee", "fox", "hen", "ant", "cow")
TOLERANCE = 1e-6
"""Mergekit computes in float32 what lies near 0.1: where terms cancel, rounding is about 1e-8 beside exact zeros."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {name: save(root / name, seed) for seed, name in enumerate(("base", "a", "b", "c"))}
    found["more"] = save(root / "more", 5, words=MORE)
    found["other"] = save(root / "other", 6, words=("cow", "elk", "fox", "hen"))
    found |= {name: save(root / name, seed, kind="qwen2") for seed, name in ((0, "q"), (2, "r"))}
    found |= {name: save(root / name, seed, kind="mixtral", layers=2) for seed, name in ((0, "x"), (2, "y"))}
    found["adapter"] = save_adapter(root / "adapter", found["a"])
    return found


def float32(document: Mapping[str, Any], places: Mapping[str, Path]) -> dict[str, Any]:
    made = placed({**copy.deepcopy(dict(document)), "dtype": "float32", "out_dtype": "bfloat16"}, places)
    assert isinstance(made, dict)
    return made


def by_token(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put the rows of a vocabulary into the order of its words: ids of new tokens are chosen by each program."""
    tokens = AutoTokenizer.from_pretrained(folder).get_vocab()
    order = torch.tensor([tokens[token] for token in sorted(tokens)])
    names = {"model.embed_tokens.weight", "lm_head.weight"}
    return {name: torch.cat([t[order], t[len(order) :]]) if name in names else t for name, t in tensors.items()}


def compare(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> None:
    assert sorted(theirs) == sorted(ours)
    wrong = size = 0
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.bfloat16
        assert tensor.shape == theirs[name].shape, name
        apart = ulps(tensor, theirs[name])
        near = (tensor.double() - theirs[name].double()).abs() <= TOLERANCE
        assert bool(((apart <= 1) | near).all()), name
        wrong += int(((apart > 0) & ~near).sum())
        size += tensor.numel()
    assert wrong <= 0.006 * size


EVERY = {**EXAMPLES, **OWN}
ANOTHER_NAMING = sorted(name for name in OWN if name.startswith("mixtral"))


def test_there_are_enough_documents() -> None:
    assert len(EXAMPLES) >= 6
    assert len(OWN) >= 40


@pytest.mark.parametrize("name", sorted(set(EVERY) - set(ANOTHER_NAMING)))
def test_both_programs_make_the_same_weights(tmp_path: Path, places: dict[str, Path], name: str) -> None:
    document = float32(EVERY[name], places)
    theirs = by_mergekit(document, tmp_path / "mergekit")
    mango.merge(document, tmp_path / "mango")
    ours = tensors_of(tmp_path / "mango")
    if "tokenizer" in name:
        words = [AutoTokenizer.from_pretrained(tmp_path / folder).get_vocab() for folder in ("mergekit", "mango")]
        assert set(words[0]) == set(words[1])
        theirs, ours = by_token(tmp_path / "mergekit", theirs), by_token(tmp_path / "mango", ours)
    compare(theirs, ours)
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "mango", output_loading_info=True)
    assert not any(loading.values()), loading
    assert bool(model(torch.tensor([[1, 3]])).logits.isfinite().all())


@pytest.mark.parametrize("name", ANOTHER_NAMING)
def test_experts_keep_the_names_that_checkpoints_have(tmp_path: Path, places: dict[str, Path], name: str) -> None:
    """Mergekit writes mixtures by the names that the library has in memory; the models are the same when opened."""
    document = float32(OWN[name], places)
    by_mergekit(document, tmp_path / "mergekit")
    mango.merge(document, tmp_path / "mango")
    source = tensors_of(places["x"])
    assert {part for part in tensors_of(tmp_path / "mango") if ".layers.0." in part} <= set(source)
    opened = [AutoModelForCausalLM.from_pretrained(tmp_path / f).state_dict() for f in ("mergekit", "mango")]
    compare(*({name: t.bfloat16() for name, t in part.items()} for part in opened))


def test_random_dropping_keeps_the_mean_that_mergekit_has(tmp_path: Path, places: dict[str, Path]) -> None:
    """Which elements are dropped differs, since mergekit draws from one stream for all tensors; how many does not."""
    for method in ("dare_linear", "dare_ties"):
        models = [{"model": "a", "parameters": {"weight": 1.0, "density": 0.4}}]
        document = float32({"merge_method": method, "base_model": "base", "models": models}, places)
        theirs = by_mergekit(document, tmp_path / f"mergekit-{method}")
        ours = mango.merge(document)
        start = tensors_of(places["base"])
        for found in (theirs, ours):
            kept = sum(int((found[n] != start[n].bfloat16()).sum()) for n in start)
            size = sum(t.numel() for t in start.values())
            assert kept / size == pytest.approx(0.4, abs=0.03)


def test_breadcrumbs_of_a_small_tensor_keep_an_element(tmp_path: Path, places: dict[str, Path]) -> None:
    """Below one element mergekit keeps nothing, and the merge is lost; the paper's largest change stays here."""
    models = [{"model": "a", "parameters": {"weight": 1.0, "density": 0.05, "gamma": 0.0}}]
    document = float32({"merge_method": "breadcrumbs", "base_model": "base", "models": models}, places)
    theirs = by_mergekit(document, tmp_path / "mergekit")
    ours = mango.merge(document)
    start, changed = (tensors_of(places[name])["model.norm.weight"] for name in ("base", "a"))
    assert bool((theirs["model.norm.weight"] == start.bfloat16()).all())
    largest = int((changed.double() - start.double()).abs().argmax())
    moved = (ours["model.norm.weight"] != start.bfloat16()).nonzero().view(-1)
    assert moved.tolist() == [largest]


def test_bfloat16_throughout_is_rounded_once_here(tmp_path: Path, places: dict[str, Path]) -> None:
    """With ``dtype: bfloat16`` mergekit rounds before it merges; the float64 result says who is nearer."""
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("a", "b")]
    document = placed({"merge_method": "task_arithmetic", "base_model": "base", "models": models}, places)
    document["dtype"] = "bfloat16"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = by_mergekit(document, tmp_path / "mergekit")
    ours = mango.merge(document)
    parts = {name: tensors_of(places[name]) for name in ("base", "a", "b")}
    wrong = {"mergekit": 0, "mango": 0}
    for name, start in parts["base"].items():
        change = sum((parts[model][name].double() - start.double()) * 0.5 for model in ("a", "b"))
        exact = (start.double() + change).bfloat16()
        wrong["mergekit"] += int((theirs[name] != exact).sum())
        wrong["mango"] += int((ours[name] != exact).sum())
    size = sum(tensor.numel() for tensor in parts["base"].values())
    assert wrong["mango"] <= 0.001 * size
    assert wrong["mergekit"] > 0.05 * size
