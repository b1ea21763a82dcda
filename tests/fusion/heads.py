"""Tiny random models of other kinds than causal language models, stored, and fused models of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, PretrainedConfig, PreTrainedModel, RobertaConfig

from mango.architectures.tasks import class_for
from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from mango.fusion import AdapterParams, FusionParams, RouterParams, build_fused
from mango.fusion.core import MolPreTrainedModel

VOCAB = 64
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": VOCAB,
}  # fmt: skip
ENCODERS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**SIZES, max_position_embeddings=64, pad_token_id=0),
    "sister": BertConfig(**SIZES, max_position_embeddings=64, pad_token_id=0),
    "roberta": RobertaConfig(
        **{**SIZES, "hidden_size": 24, "num_hidden_layers": 2}, max_position_embeddings=66, pad_token_id=0
    ),
    "untied": BertConfig(**SIZES, max_position_embeddings=64, pad_token_id=0, tie_word_embeddings=False),
}

SIMPLE = {"type": "simple", "simple": {"prompt": 4}}
CHOOSING = {"type": "simple", "simple": {"prompt": 4, "k": 1}}
TOKEN = {"type": "token", "token": {"window": 3}}


def store_of(root: Path, configs: Mapping[str, PretrainedConfig], task: str) -> BlockStore:
    """Write each model with random weights, and extract all of them."""
    return extract(
        {name: ModelSource(source=str(save_head(root / name, config, task, seed=seed)))
         for seed, (name, config) in enumerate(configs.items())},
        root / "store",
        "reference",
    )  # fmt: skip


def save_head(folder: Path, config: PretrainedConfig, task: str, *, seed: int) -> Path:
    """Write a model with random weights and the small tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model_class: Any = class_for(config, task)
        model: PreTrainedModel = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    vocabulary = {f"t{number}": number for number in range(VOCAB)}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def fuse_heads(
    store: BlockStore,
    task: str,
    trunk: str,
    experts: Sequence[Any],
    router: dict[str, Any] | None = None,
    *,
    span: int = 1,
    scatter: bool = True,
) -> MolPreTrainedModel:
    """Build a fused model whose routers, unless told otherwise, spread rows over all experts."""
    fusion = {"task": task, "trunk": trunk, "experts": list(experts), "span": span}
    model = build_fused(
        store,
        FusionParams.model_validate(fusion),
        RouterParams.model_validate(router or SIMPLE),
        AdapterParams.model_validate({"type": "linear", "linear": {"rank": 4}}),
        seed=0,
    )
    if scatter:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for each in model.iter_routers():
                each.outer.weight.copy_(torch.randn(each.outer.weight.shape, generator=generator) * 0.7)
    return model


def train_steps(model: MolPreTrainedModel, inputs: dict[str, Any], steps: int = 20) -> list[float]:
    """Train adapters and routers on one batch, and return the loss of each step."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses: list[float] = []
    model.train(True)
    for _ in range(steps):
        loss = model(**inputs, losses_only=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.train(False)
    return losses
