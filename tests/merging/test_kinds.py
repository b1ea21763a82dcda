"""Models with several parts, mixtures of experts, shards: merged as they should be, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from mango.checkpoints import Checkpoint
from mango.errors import MergeError
from mango.merging import merge, plan
from tests.merging.conftest import save_tokenizer

TEXT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
EYES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
                        "image_size": 8, "patch_size": 4}  # fmt: skip
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def llava(**text: Any) -> PreTrainedModel:
    eyes = CLIPVisionConfig(**EYES, projection_dim=8)
    config = LlavaConfig(vision_config=eyes, text_config=LlamaConfig(**{**TEXT, **text}), image_token_index=5)
    return LlavaForConditionalGeneration(config)


def qwen2_vl(**text: Any) -> PreTrainedModel:
    eyes = {"depth": 2, "embed_dim": 8, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 2,
            "spatial_merge_size": 1, "temporal_patch_size": 1}  # fmt: skip
    inner = {**TEXT, "rope_parameters": ROPE, **text}
    tokens = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=inner, vision_config=eyes, **tokens))


def gemma3(**text: Any) -> PreTrainedModel:
    tokens = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7, "mm_tokens_per_image": 4}
    inner = {**TEXT, "head_dim": 8, "pad_token_id": 0, **text}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=inner, vision_config=EYES, **tokens))


MAKE: dict[str, Callable[..., PreTrainedModel]] = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
    "gemma3": gemma3,
    "llama": lambda **more: LlamaForCausalLM(LlamaConfig(**{**TEXT, **more})),
    "qwen2": lambda **more: Qwen2ForCausalLM(Qwen2Config(**{**TEXT, **more})),
    "gemma3_text": lambda **more: Gemma3ForCausalLM(
        Gemma3TextConfig(**{**TEXT, "head_dim": 8, "pad_token_id": 0, **more})
    ),
    "mixtral": lambda **more: MixtralForCausalLM(
        MixtralConfig(**{**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, **more})
    ),
    "qwen3_moe": lambda **more: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **{**TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 8, **more}
        )
    ),
    "phimoe": lambda **more: PhimoeForCausalLM(
        PhimoeConfig(**{**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, **more})
    ),
}
SEEING = {"llava": "llama", "qwen2_vl": "qwen2", "gemma3": "gemma3_text"}
MIXTURES = ("mixtral", "qwen3_moe", "phimoe")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    def make(kind: str, seed: int, *, saving: dict[str, Any] | None = None, **more: Any) -> str:
        model = MAKE[kind](**more)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.1, generator=generator)
        folder = tmp_path / f"{kind}-{seed}"
        model.bfloat16().save_pretrained(folder, **(saving or {}))
        save_tokenizer(folder)
        return str(folder)

    return make


Save = Callable[..., str]


def tensors(folder: Path | str) -> dict[str, torch.Tensor]:
    opened = Checkpoint.open(Path(folder))
    return {name: opened.tensor(name) for name in opened.names()}


def mean(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return ((first.double() + second.double()) / 2).bfloat16()


def linear(*names: str, **more: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": n} for n in names], "parameters": {"weight": 1.0}, **more}


def text_of(first: str, second: str) -> dict[str, Any]:
    models = [{"model": first}, {"model": second}]
    part = {"text_decoder": {"models": models}}
    return {"merge_method": "linear", "base_model": first, "modules": part, "parameters": {"weight": 1.0}}


def check_opens(folder: Path, kind: str) -> PreTrainedModel:
    opened, loading = type(MAKE[kind]()).from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return opened


@pytest.mark.parametrize("kind", [*SEEING, *MIXTURES])
def test_two_of_one_kind_are_merged_tensor_by_tensor(tmp_path: Path, save: Save, kind: str) -> None:
    a, b = save(kind, 1), save(kind, 2)
    merge(linear(a, b), tmp_path / "out")
    first, second = tensors(a), tensors(b)
    found = tensors(tmp_path / "out")
    assert sorted(found) == sorted(first)
    for name, tensor in found.items():
        assert torch.equal(tensor, mean(first[name], second[name])), name
    check_opens(tmp_path / "out", kind)


@pytest.mark.parametrize("kind", SEEING)
def test_the_text_part_is_merged_with_a_model_of_text_alone(tmp_path: Path, save: Save, kind: str) -> None:
    a, b = save(kind, 1), save(SEEING[kind], 2)
    report = merge(text_of(a, b), tmp_path / "out")
    first, second = tensors(a), tensors(b)
    merged = 0
    for name, tensor in tensors(tmp_path / "out").items():
        own = name.replace("language_model.", "")
        if own in second and "vision" not in name and "visual" not in name:
            assert torch.equal(tensor, mean(first[name], second[own])), name
            merged += 1
        else:
            assert torch.equal(tensor, first[name]), name
    assert merged == len(second)
    check_opens(tmp_path / "out", kind)
    assert not any("config.json" in note and "text_config" in note for note in report.notes)


@pytest.mark.parametrize("kind", SEEING)
def test_a_model_that_sees_and_one_that_reads_are_refused_with_what_can_be_done(save: Save, kind: str) -> None:
    a, b = save(kind, 1), save(SEEING[kind], 2)
    with pytest.raises(MergeError, match=rf"name '{a}' as base_model, and list both under modules: {{text_decoder"):
        plan(linear(a, b))
    with pytest.raises(MergeError, match=rf"name '{a}' as base_model, and list both under modules: {{text_decoder"):
        plan(linear(b, a))


def test_a_text_part_of_another_size_is_refused(save: Save) -> None:
    a = save("llava", 1)
    with pytest.raises(MergeError, match="num_hidden_layers 3 against 2"):
        plan(text_of(a, save("llama", 2, num_hidden_layers=3)))
    with pytest.raises(MergeError, match="intermediate_size 32 against 24"):
        plan(text_of(a, save("llama", 3, intermediate_size=32)))
    seeing = {**text_of(a, save("llama", 4))}
    seeing["modules"] = {"vision_tower": seeing["modules"]["text_decoder"]}
    with pytest.raises(MergeError, match="has no tensor"):
        plan(seeing)


def test_two_that_see_in_different_ways_are_refused(save: Save) -> None:
    with pytest.raises(MergeError, match="model_type 'qwen2_vl' against 'llava'"):
        plan(linear(save("llava", 1), save("qwen2_vl", 2)))


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_in_one_tensor(tmp_path: Path, save: Save, kind: str) -> None:
    """Checkpoints of newer releases may hold the experts of a block in one tensor; two of them merge."""
    fused = {"save_original_format": False}
    a, b = save(kind, 1, saving=fused), save(kind, 2, saving=fused)
    merge(linear(a, b), tmp_path / "out")
    name = next(name for name in tensors(a) if name.endswith("experts.gate_up_proj"))
    assert torch.equal(tensors(tmp_path / "out")[name], mean(tensors(a)[name], tensors(b)[name]))
    opened = check_opens(tmp_path / "out", kind)
    assert torch.equal(opened.state_dict()[name], tensors(tmp_path / "out")[name])
    apart = save(kind, 3)
    for pair in ((a, apart), (apart, a)):
        with pytest.raises(MergeError, match="stores the experts of a block in one tensor"):
            plan(linear(*pair))


def test_mixtures_of_other_numbers_of_experts_are_refused(save: Save) -> None:
    with pytest.raises(MergeError, match="num_local_experts 8 against 4"):
        plan(linear(save("mixtral", 1), save("mixtral", 2, num_local_experts=8)))
    with pytest.raises(MergeError, match="model_type 'llama' against 'mixtral'"):
        plan(linear(save("mixtral", 3), save("llama", 4)))


def test_what_one_configuration_leaves_open_is_no_difference(tmp_path: Path, save: Save) -> None:
    """Older configurations have no head_dim, or null."""
    import json

    a, b = save("llama", 1), save("llama", 2)
    path = Path(b) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "head_dim": None}))
    plan(linear(a, b))


@pytest.mark.parametrize("tied", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("sharded", [(True, False), (False, True), (True, True)])
def test_shards_and_ties(tmp_path: Path, save: Save, tied: tuple[bool, bool], sharded: tuple[bool, bool]) -> None:
    names = [
        save("llama", i, tie_word_embeddings=tie, saving={"max_shard_size": "4KB"} if shards else {})
        for i, (tie, shards) in enumerate(zip(tied, sharded, strict=True))
    ]
    for name, shards in zip(names, sharded, strict=True):
        assert (len(list(Path(name).glob("*.safetensors"))) > 1) == shards
    report = merge(linear(*names), tmp_path / "out")
    assert report.tied == all(tied)
    first, second = map(tensors, names)
    heads = [part.get("lm_head.weight", part["model.embed_tokens.weight"]) for part in (first, second)]
    found = tensors(tmp_path / "out")
    assert ("lm_head.weight" in found) == (not all(tied))
    if not all(tied):
        assert torch.equal(found.pop("lm_head.weight"), mean(*heads))
    assert all(torch.equal(tensor, mean(first[name], second[name])) for name, tensor in found.items())
    check_opens(tmp_path / "out", "llama")
