"""Train the tiny base further on all domains, as long as one expert and as all experts together, and score it.

It answers what a user might do instead of training experts and fusing them. The recipe is that of
``models/train_tiny.py``; the test text is that of ``benchmarks/fusion.py`` with the same seeds and ``--set``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from fusion import spread
from transformers import AutoModelForCausalLM, AutoTokenizer

from mango import console
from mango.corpus import token_losses
from mango.evaluation import bits_per_byte, nats_per_token
from mango.evaluation.runner import test_texts
from mango.evaluation.systems import SWITCHING
from stages.params import load_params


def recipe() -> ModuleType:
    """Return the module that trains the tiny models."""
    spec = importlib.util.spec_from_file_location("train_tiny", "models/train_tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_tiny"] = module
    sys.path.insert(0, "models")  # what it imports stands beside it
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    params = load_params(Path("params.yaml"), overrides=args.changes)
    tiny = recipe()
    base = params.models[params.fusion.trunk].source
    tokenizer = AutoTokenizer.from_pretrained(base)
    sizes = tiny.token_bytes(tokenizer)
    streams = {
        split: {d: tiny.encode(tokenizer, t) for d, t in tiny.read_domains(params.corpus.path, split).items()}
        for split in ("train", "validation")
    }
    summary: dict[str, Any] = {}
    for name, factor in (("as many as one expert", 1), ("as many as all experts together", len(streams["train"]))):
        steps = tiny.EXPERT.steps * factor
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        schedule = replace(tiny.EXPERT, steps=steps)
        tiny.train(model, streams["train"], streams["validation"], sizes, schedule, 1, args.device, name)
        model.to(args.device)
        model.train(False)
        pure: list[float] = []
        switching: list[float] = []
        for seed in args.seeds:
            texts = test_texts(params.corpus, params.evaluate, tokenizer, seed)
            losses = {key: token_losses(model, text.input_ids, batch_size=8) for key, text in texts.items()}
            scores = [bits_per_byte(losses[k], texts[k].num_bytes).value for k in texts if k != SWITCHING]
            pure.append(sum(scores) / len(scores))
            switching.append(nats_per_token(losses[SWITCHING]).value)
        each = {"pure_mean": pure, "switching": switching}
        summary[f"{steps} ({name})"] = {"pure_mean": spread(pure), "switching": spread(switching), "by_seed": each}
    changes = "".join(f" --set {change}" for change in args.changes)
    result = {
        "command": f"python benchmarks/data_matched.py --seeds {' '.join(map(str, args.seeds))}{changes}",
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "summary": summary,
    }
    console.result_json(result)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
