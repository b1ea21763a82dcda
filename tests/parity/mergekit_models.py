"""Tiny models for comparisons with mergekit, and both programs called on one document."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
WORDS = ("cat", "dog", "owl", "fox", "hen", "ant")


def save(
    folder: Path,
    seed: int,
    *,
    layers: int = 3,
    words: Sequence[str] = WORDS,
    kind: str = "llama",
    apart: float = 0.03,
    **changes: Any,
) -> Path:
    """Save a tiny model near a common start, with a tokenizer of whole words, in float32."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{word: 3 + i for i, word in enumerate(words)}}
    sizes = {**SIZES, "vocab_size": len(vocabulary), "num_hidden_layers": layers, **changes}
    model: PreTrainedModel
    if kind == "mixtral":
        model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=2, num_experts_per_tok=1))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**{"tie_word_embeddings": True, **sizes}))
    else:
        model = LlamaForCausalLM(LlamaConfig(**{"tie_word_embeddings": False, **sizes}))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            start = torch.Generator().manual_seed(sum(map(ord, name)))
            own = torch.Generator().manual_seed(1000 * seed + sum(map(ord, name)))
            parameter.copy_(torch.randn(parameter.shape, generator=start) * 0.1)
            parameter.add_(torch.randn(parameter.shape, generator=own), alpha=apart if seed else 0.0)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def placed(document: Any, places: Mapping[str, Path]) -> Any:
    """Return a document with the names of models replaced by their folders, wherever they stand."""
    if isinstance(document, Mapping):
        words = {"tokenizer_source", "source"}  # where base and union are words, not models
        return {
            key: value if key in words and value in ("base", "union") else placed(value, places)
            for key, value in document.items()
        }
    if isinstance(document, list):
        return [placed(value, places) for value in document]
    if not isinstance(document, str):
        return document
    return (
        "+".join(str(places[part]) for part in document.split("+"))
        if set(document.split("+")) <= set(places)
        else document
    )


def by_mergekit(document: Mapping[str, Any], out: Path) -> dict[str, torch.Tensor]:
    """Merge with mergekit in this process and return the tensors."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    silence = io.StringIO()
    with contextlib.redirect_stderr(silence), contextlib.redirect_stdout(silence):
        run_merge(
            MergeConfiguration.model_validate(copy.deepcopy(dict(document))),
            str(out),
            MergeOptions(
                quiet=True,
                write_model_card=False,
                random_seed=0,
                lora_merge_cache=f"{out}-adapters",
                lora_merge_dtype="float32",
            ),
        )
    return tensors_of(out)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a folder, by name."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def ulps(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return how many bfloat16 numbers lie between two tensors, element by element."""

    def order(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.bfloat16().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (order(first) - order(second)).abs()


def save_adapter(folder: Path, model: Path, seed: int = 0) -> Path:
    """Save a LoRA adapter of a tiny model with peft, with matrices that are not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    torch.manual_seed(seed)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder
