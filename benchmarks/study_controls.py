"""What is simpler than a fused model, in the fusion study: static merges, and the trunk trained further."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from study_corpus import CORE
from study_jobs import scores, texts_of
from study_sources import Sizes
from transformers import AutoModelForCausalLM, AutoTokenizer

from mango.checkpoints import ModelSource
from mango.corpus import token_losses
from mango.merging import merge


def merge_core(args: argparse.Namespace) -> None:
    """Merge the experts of the core domains with each method of the comparison."""
    models = {n: ModelSource(source=str(args.work / "models" / n)) for n in ("base", *CORE)}
    entries: list[dict[str, Any]] = [{"model": n, "parameters": {"weight": 1.0}} for n in CORE]
    documents: dict[str, dict[str, Any]] = {
        "uniform soup": {"merge_method": "linear", "parameters": {"normalize": True}},
        "task arithmetic, 0.2": {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.2}},
        "task arithmetic, 0.3": {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.3}},
        "TIES": {"merge_method": "ties", "parameters": {"density": 0.2, "lambda": 0.3, "normalize": True}},
    }
    for name, document in documents.items():
        based = {} if document["merge_method"] == "linear" else {"base_model": "base"}
        merge({**document, **based, "models": entries, "dtype": "float32"}, args.work / "merged" / name, models)


def controls(args: argparse.Namespace, sizes: Sizes) -> None:
    """Score what is simpler than a fused model: merges, and the trunk trained further."""
    seed = int(args.job[-1])
    tokenizer = AutoTokenizer.from_pretrained(args.work / "models/base")
    texts = texts_of(args, sizes, CORE, tokenizer, seed)
    systems: dict[str, Any] = {}
    merged, dense = (sorted((args.work / kind).iterdir()) for kind in ("merged", "dense"))
    for folder in (*merged, *dense):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(args.device)
        losses = {t: token_losses(model, x.input_ids, batch_size=20) for t, x in texts.items()}
        label = f"trunk trained further, as long as {folder.name.removeprefix('dense_')}"
        systems[f"merge, {folder.name}" if folder in merged else label] = scores(losses, texts, CORE)
    folder = args.work / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"controls-{seed}.json").write_text(json.dumps({"seed": seed, "systems": systems}, indent=1))
