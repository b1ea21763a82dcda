"""Extracted adapters: peft opens them, and base and adapter are the fine-tuned model."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from mango.checkpoints import verify
from mango.cli import app
from mango.errors import IncompatibleBlocksError, MergeError
from mango.surgery.lora import ExtractionParams, extract_adapter
from mango.surgery.lora.factors import factorise
from mango.tensors.svd import leading_svd
from tests.surgery.conftest import TINY, MakeModel, load, logits_of, random_model

WHOLE = ExtractionParams(rank=64)


def opened(base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft's use of transformers
        return PeftModel.from_pretrained(load(base), adapter)


def tuned(model: PreTrainedModel, *, rank: int | None = None, seed: int = 7, only: str = "") -> PreTrainedModel:
    """The model with every tensor changed, or with low-rank changes of its matrices."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in changed.named_parameters():
        if only not in name:
            continue
        if rank is None:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        elif parameter.ndim == 2 and "embed" not in name:
            left = torch.randn(parameter.shape[0], rank, generator=generator)
            parameter.data += 0.02 * left @ torch.randn(rank, parameter.shape[1], generator=generator)
    return changed


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_base_and_adapter_are_the_fine_tuned_model(family: str, make_model: MakeModel, tmp_path: Path) -> None:
    """Biases, norms, Conv1D weights and embeddings too; at full rank, nothing is left out."""
    model = random_model(family, 0)
    base, fine = make_model("base", model), make_model("fine", tuned(model))
    report = extract_adapter(str(fine), str(base), tmp_path / "adapter", WHOLE)
    verify(tmp_path / "adapter")
    assert report.error < 1e-6
    wanted = logits_of(load(fine))
    assert (wanted - logits_of(load(base))).abs().max() > 0.1
    adapted = opened(base, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(adapted), wanted, rtol=0, atol=2e-4)  # float32 sums in another order
    torch.testing.assert_close(logits_of(adapted.merge_and_unload()), wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("embeddings", ["full", "lora"])
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_tied_and_untied(tied: bool, embeddings: str, make_model: MakeModel, tmp_path: Path) -> None:
    model = random_model("llama", 0, tie_word_embeddings=tied)
    base, fine = make_model("base", model), make_model("fine", tuned(model))
    extract_adapter(str(fine), str(base), tmp_path / "a", WHOLE.model_copy(update={"embeddings": embeddings}))
    kinds = {layer["kind"] for layer in json.loads((tmp_path / "a" / "mango_extraction.json").read_text())["layers"]}
    assert ("embedding" in kinds) == (embeddings == "lora")
    adapted = opened(base, tmp_path / "a")
    torch.testing.assert_close(logits_of(adapted), logits_of(load(fine)), rtol=0, atol=2e-4)


def test_a_difference_of_low_rank_is_found_exactly(make_model: MakeModel, tmp_path: Path) -> None:
    model = random_model("llama", 0, hidden_size=96, intermediate_size=160)
    base, fine = make_model("base", model), make_model("fine", tuned(model, rank=3))
    report = extract_adapter(str(fine), str(base), tmp_path / "adapter", ExtractionParams(rank=16, error=1e-4))
    assert {layer.rank for layer in report.layers} == {3}
    assert report.error < 1e-5
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.lm_head.lora_A.weight"].shape == (3, 96)
    torch.testing.assert_close(logits_of(opened(base, tmp_path / "adapter")), logits_of(load(fine)), rtol=0, atol=2e-4)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rank", [1, 8, 40])
def test_the_error_is_that_of_the_full_decomposition(rank: int, decay: float) -> None:
    """From a flat spectrum, where a sketch has it hardest, to one that falls as 1/k."""
    generator = torch.Generator().manual_seed(rank)
    left = torch.linalg.qr(torch.randn(300, 200, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(400, 200, generator=generator)).Q
    matrix = left * torch.arange(1, 201).float().pow(-decay) @ right.T
    exact = torch.linalg.svdvals(matrix.double())
    best = float(exact[rank:].square().sum().sqrt())
    found = factorise(matrix, rank=rank, energy=None, scale=None, dtype=torch.float32, seed=0)
    assert best * (1 - 1e-6) <= found.error <= 1.01 * best
    again = leading_svd(matrix, rank, seed=0)
    assert torch.equal(again.left, leading_svd(matrix, rank, seed=0).left)
    torch.testing.assert_close(again.left.T @ again.left, torch.eye(rank), rtol=0, atol=1e-5)


def test_a_target_gives_each_layer_its_own_rank(make_model: MakeModel, tmp_path: Path) -> None:
    report = extract_adapter(
        str(TINY / "code"), str(TINY / "base"), tmp_path / "a", ExtractionParams(rank=192, energy=0.8, alpha=16)
    )
    ranks = {layer.rank for layer in report.layers if layer.rank}
    assert len(ranks) > 3
    assert all(layer.error <= 0.2**0.5 + 1e-6 for layer in report.layers)
    one_less = next(layer for layer in report.layers if layer.rank > 1)
    fewer = extract_adapter(
        str(TINY / "code"),
        str(TINY / "base"),
        tmp_path / "b",
        ExtractionParams(rank=one_less.rank - 1, include=(one_less.name.removesuffix(".weight") + "$",)),
    )
    assert next(layer.error for layer in fewer.layers if layer.name == one_less.name) > 0.2**0.5
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 16
    adapted = opened(TINY / "base", tmp_path / "a")
    gap, whole = (logits_of(m) - logits_of(load(TINY / "code")) for m in (adapted, load(TINY / "base")))
    assert gap.norm() < 0.5 * whole.norm()


def test_patterns_choose_modules(make_model: MakeModel, tmp_path: Path) -> None:
    model = random_model("llama", 0)
    base, fine = make_model("base", model), make_model("fine", tuned(model))
    params = ExtractionParams(rank=4, include=("layers",), exclude=("mlp", "norm"), full=(r"1\.self_attn\.o_proj",))
    report = extract_adapter(str(fine), str(base), tmp_path / "a", params)
    taken = {layer.name: layer.kind for layer in report.layers if layer.kind != "left out"}
    assert set(taken.values()) == {"linear", "full"}
    assert taken["model.layers.1.self_attn.o_proj.weight"] == "full"
    assert len(taken) == 8
    assert 0.5 < report.error < 1
    assert report.num_parameters == sum(t.numel() for t in load_file(tmp_path / "a/adapter_model.safetensors").values())


def test_what_cannot_be_extracted_is_refused_and_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    base = str(make_model("base", random_model("llama", 0)))
    wide = str(make_model("wide", random_model("llama", 0, vocab_size=2050)))
    other = str(make_model("other", random_model("qwen3", 0)))
    tied = str(make_model("tied", random_model("llama", 0, tie_word_embeddings=True)))
    out = tmp_path / "out"
    with pytest.raises(MergeError, match="there is nothing to extract"):
        extract_adapter(base, base, out)
    with pytest.raises(IncompatibleBlocksError, match=r"\[2050, 32\] in .*wide, \[2048, 32\].*transplant"):
        extract_adapter(wide, base, out)
    with pytest.raises(IncompatibleBlocksError, match=r"is a Qwen3ForCausalLM, the base .* a LlamaForCausalLM"):
        extract_adapter(other, base, out)
    with pytest.raises(IncompatibleBlocksError, match=r"base: has a head of its own and .*tied ties it"):
        extract_adapter(tied, base, out)
    fine = str(make_model("fine", tuned(random_model("llama", 0), only="mlp")))
    with pytest.raises(MergeError, match="leave out all 6 tensors"):
        extract_adapter(fine, base, out, ExtractionParams(exclude=("mlp",)))
    broken = random_model("llama", 0)
    broken.lm_head.weight.data[3, 3] = torch.nan
    with pytest.raises(MergeError, match=r"lm_head\.weight: one of the models holds NaN"):
        extract_adapter(str(make_model("broken", broken)), base, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def test_the_command_shows_every_layer_and_every_wrong_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["extract-lora", str(TINY / "code"), str(TINY / "base"), str(tmp_path / "a")]
    with pytest.raises(SystemExit) as stop:
        app.main([*arguments, "--rank", "8", "--dtype", "bfloat16", "--json"])
    assert stop.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert {layer["rank"] for layer in shown["layers"] if layer["kind"] == "linear"} == {8}
    with pytest.raises(SystemExit) as stop:
        app.main([*arguments, "--energy", "0.5", "--error", "0.1", "--dtype", "bfloat", "--include", "("])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "error: stands beside energy" in "".join(lines)
    assert "did you mean 'bfloat16'?" in "".join(lines)
