"""A tiny checkpoint with a tokenizer, written as the pipeline writes one, and what a package needs beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mango.checkpoints import replace_folder
from mango.packaging import DataState, GitState, PackageParams, Parent

EVALUATION = Path(__file__).parents[1] / "evaluation" / "example.json"


def save_tiny_checkpoint(folder: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w3", bos_token="w0", eos_token="w1", pad_token="w2"
    )
    with replace_folder(folder) as new:
        LlamaForCausalLM(config).save_pretrained(new)
        tokenizer.save_pretrained(new)


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "fused"
    save_tiny_checkpoint(folder)
    return folder


@pytest.fixture
def facts() -> dict[str, Any]:
    """Return everything that build_package asks for beside the two folders."""
    return {
        "params": PackageParams(),
        "evaluation": json.loads(EVALUATION.read_text(encoding="utf-8")),
        "gates": {"corpus": True, "blocks": True, "metrics": True},
        "parameters": {"seed": 0, "router": {"type": "topk", "topk": {"k": 1, "catch_up": 16}}},
        "parents": [
            Parent(name="base", source="models/tiny/base", revision=None, licence="apache-2.0", sha256="a" * 64),
            Parent(name="code", source="someone/code", revision="c0ffee", licence="MIT", sha256="b" * 64),
        ],
        "data": DataState(corpus_sha256="c" * 64, files={"data/corpus/train.parquet": "d" * 64}),
        "git": GitState(revision="e" * 40, dirty=False),
        "reproduce": "git checkout eeee && dvc repro package",
    }
