"""A project for each task of a fused model, on models of a few thousand weights, and all its stages in one process."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    BartConfig,
    BertConfig,
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    PretrainedConfig,
    RobertaConfig,
    ViTConfig,
)

from mango.architectures.tasks import class_for
from tests.pipeline.project import PARAMS, ROOT, WORDS, make_tokenizer, write_corpus

STAGES = {
    "extract-blocks": "extract_blocks",
    "merge": "merge",
    "train-adapters-and-routers": "train",
    "evaluate": "evaluate",
    "package": "package",
}
"""The stages, and the function of each that does its work."""
SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
DIGITS: dict[str, Any] = {**SIZES, "image_size": 8, "num_channels": 1, "num_labels": 10}


def sources(task: str, vocabulary: int) -> dict[str, tuple[str, PretrainedConfig]]:
    """Return what each source model is and its configuration; the first is the trunk, and two of them can be merged."""
    text = {**SIZES, "vocab_size": vocabulary, "max_position_embeddings": 128, "pad_token_id": 0}
    if task in ("masked-lm", "sentence-embedding"):
        masked = {"base": BertConfig(**text), "code": BertConfig(**text), "novels": RobertaConfig(**text)}
        return {name: ("masked-lm", config) for name, config in masked.items()}
    if task == "seq2seq-lm":
        bart: dict[str, Any] = {
            "vocab_size": vocabulary, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 128,
            "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0,
            "forced_eos_token_id": None,
        }  # fmt: skip
        widths = {"base": 16, "code": 16, "novels": 24}
        return {name: (task, BartConfig(**bart, d_model=width)) for name, width in widths.items()}
    if task == "image-classification":
        return {
            "base": (task, ViTConfig(**DIGITS, patch_size=4)),
            "code": (task, ViTConfig(**DIGITS, patch_size=4)),
            "novels": (task, Dinov2Config(**{**DIGITS, "hidden_size": 24}, mlp_ratio=2, patch_size=4)),
        }
    eyes = CLIPVisionConfig(**SIZES, image_size=16, patch_size=8)
    sighted = LlavaConfig(text_config=LlamaConfig(**text), vision_config=eyes, image_token_index=1)
    blind = LlamaConfig(**{**text, "hidden_size": 24})
    return {"base": (task, sighted), "code": ("causal-lm", blind), "novels": ("causal-lm", blind)}


def make(root: Path, task: str) -> None:
    """Write models, corpus and params.yaml of a project whose fused model is for a task."""
    tokenizer = make_tokenizer(" ".join(" ".join(words) * 3 for words in WORDS.values()))
    tokenizer.add_special_tokens({"mask_token": "<mask>", "cls_token": "<cls>", "sep_token": "<sep>"})
    models = sources(task, len(tokenizer))
    for seed, (name, (kind, config)) in enumerate(models.items()):
        torch.manual_seed(seed)
        folder = root / "models" / "tiny" / name
        model_class: Any = class_for(config, kind)
        model_class(config).save_pretrained(folder)
        if task == "image-classification":
            (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
        else:
            tokenizer.save_pretrained(folder)
    if task == "image-classification":
        command = [sys.executable, "data/build_digits.py", "--out", str(root / "data" / "corpus")]
        subprocess.run(command, check=True, cwd=ROOT)
    else:
        write_corpus(root / "data" / "corpus")
    params = yaml.safe_load(PARAMS)
    params["fusion"]["task"] = task
    params["router"]["type"] = "simple"
    params["train"]["controls"] = {"self_stitch": False, "continued_trunk": False}
    same = [name for name, (_, config) in models.items() if config.to_dict() == models["code"][1].to_dict()]
    params["merge"] |= {"base": same[0], "models": same[:2], "documents": []}
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def run(root: Path) -> Iterator[str]:
    """Run the stages one after another in this process, whose working folder is the project; yield each one's name."""
    from stages.run import _run

    for name, work in STAGES.items():
        module = importlib.import_module(f"stages.{name.replace('-', '_')}")
        _run(name, getattr(module, work), module.SECTIONS, root / "params.yaml", ())
        yield name


def units(root: Path) -> str:
    """Return what the project's evaluation measures in."""
    document: dict[str, Any] = json.loads((root / "reports" / "evaluation.json").read_text())
    return str(document["units"]["pure"])
