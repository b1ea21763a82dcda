"""Tiny random models of the six decoder families, as folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 64
NO_TOKENS = {"bos_token_id": 0, "eos_token_id": 1}
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {**WIDTHS, "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64, **NO_TOKENS}

FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")


def config_of(family: str) -> PretrainedConfig:
    """Return a new tiny configuration."""
    if family == "llama":
        return LlamaConfig(**GROUPED, tie_word_embeddings=True)
    if family == "mistral":
        return MistralConfig(**GROUPED, sliding_window=4)
    if family == "qwen2":
        # Blocks of two kinds: full attention first, then a window.
        return Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    if family == "qwen3":
        return Qwen3Config(**GROUPED, head_dim=16)
    if family == "gpt_neox":
        return GPTNeoXConfig(**WIDTHS, vocab_size=VOCAB, max_position_embeddings=64, **NO_TOKENS)
    return GPT2Config(n_embd=32, n_layer=3, n_head=4, n_inner=48, n_positions=64, vocab_size=VOCAB, **NO_TOKENS)


def save_model(
    folder: Path,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    sharded: bool = False,
    config: PretrainedConfig | None = None,
) -> Path:
    """Write a model folder with weights from a seed and a small tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config or config_of(family), dtype=dtype)
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms too, which start as constants
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder, max_shard_size="20KB" if sharded else "1GB")
    vocabulary = {f"t{number}": number for number in range(VOCAB)}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
