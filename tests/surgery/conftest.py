"""Tiny models of several families, made in the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

TINY = Path(__file__).parents[2] / "models" / "tiny"
SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
MakeModel = Callable[..., Path]


def random_model(family: str, seed: int, **changes: Any) -> PreTrainedModel:
    """A model whose every parameter is random, biases and norms included."""
    if family == "gpt2":
        config: PretrainedConfig = GPT2Config(vocab_size=2048, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    else:
        sizes = SIZES | ({"head_dim": 8} if family != "qwen2" else {}) | changes
        config = FAMILIES[family](**sizes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name or "ln_" in name else 0.0, std=0.1)
    model.train(False)
    return model


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Save a model with the tiny models' tokenizer."""

    def make(name: str, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> Path:
        folder = tmp_path / name
        model.to(dtype).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).write_bytes((TINY / "base" / file).read_bytes())
        return folder

    return make


@torch.no_grad()
def logits_of(model: Any, seed: int = 0, length: int = 24) -> torch.Tensor:
    """Logits of random tokens."""
    ids = torch.randint(1, 2048, (2, length), generator=torch.Generator().manual_seed(seed))
    return model(input_ids=ids).logits


def load(folder: Path) -> PreTrainedModel:
    """Open a saved model in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model
