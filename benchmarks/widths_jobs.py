"""The jobs of benchmarks/widths.py: train a stranger, follow one start of its adapters, or fuse it with the trunk."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from data_matched import recipe
from torch import nn
from transformers import AutoTokenizer, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from mango.blocks import BlockStore, extract, load_source
from mango.checkpoints import ModelSource, open_tokenizer
from mango.corpus import CorpusParams, pack, switching, token_losses
from mango.evaluation import bits_per_byte, nats_per_token
from mango.evaluation.routing import RoutingTotals
from mango.evaluation.systems import Watched
from mango.fusion import AdapterParams, FusionParams, MolForCausalLM, RouterParams, build_fused
from mango.training import (
    Job,
    StartParams,
    calibration_text,
    mixture,
    prepare,
    propose_layers,
    start_adapters,
    train_one,
)
from stages.params import load_params

TRUNK, DOMAIN = "base", "maths"
BLOCKS = {"maths_gpt2": 5, "maths_llama": 6}


def cut_of(guest: str) -> list[dict[str, Any]]:
    """Return the two spans of a stranger that is cut in the middle."""
    last, middle = BLOCKS[guest], (BLOCKS[guest] + 1) // 2
    return [{"enter": 0, "exit": 1, "blocks": [0, middle]}, {"enter": 1, "exit": 2, "blocks": [middle, last]}]


def sources(args: argparse.Namespace) -> dict[str, ModelSource]:
    """Return the trunk and both strangers."""
    folders = {TRUNK: Path("models/tiny/base"), "maths_gpt2": Path("models/tiny/maths-gpt2")}
    return {n: ModelSource(source=str(f)) for n, f in {**folders, "maths_llama": args.work / "maths_llama"}.items()}


def make_stranger(args: argparse.Namespace) -> None:
    """Train a llama of the trunk's width on maths alone, by the recipe of models/train_tiny.py."""
    folder = args.work / "maths_llama"
    if (folder / "config.json").is_file():
        return
    tiny = recipe()
    tokenizer = AutoTokenizer.from_pretrained("models/tiny/base")
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tiny.VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=6,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=tiny.CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": 50_000.0}, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip
    corpus = Path("data/corpus")
    streams = {
        s: {DOMAIN: tiny.encode(tokenizer, tiny.read_domains(corpus, s)[DOMAIN])} for s in ("train", "validation")
    }
    schedule = replace(tiny.STRANGER, steps=args.stranger_steps, dropout=0.0)
    tiny.train(
        model,
        streams["train"],
        streams["validation"],
        tiny.token_bytes(tokenizer),
        schedule,
        7,
        args.device,
        "stranger",
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def random_start(model: nn.Module, seed: int) -> None:
    """Give every whole affine map of an adapter random weights of the scale that keeps the size of states."""
    generator = torch.Generator().manual_seed(seed)
    assert isinstance(model, MolForCausalLM)
    for adapter in model.iter_adapters():
        weight = torch.randn(adapter.width_in, adapter.width_out, generator=generator) * adapter.width_in**-0.5
        adapter.start_from(weight, torch.zeros(adapter.width_out))


def starts(args: argparse.Namespace, store: BlockStore, guest: str, arm: str, seed: int) -> dict[str, Any]:
    """Train from one start; return held-out bits per byte by step, and how well the start fits."""
    corpus = CorpusParams(path=Path("data/corpus"), sequence_length=args.length, segment_length=args.length // 4)
    tokenizer = open_tokenizer(store.tokenizer_folder(TRUNK))
    fusion = FusionParams.model_validate(
        {"trunk": TRUNK, "experts": [{"model": guest, "cut": cut_of(guest)}], "span": 2}
    )
    kind = {"random": "ridge"}.get(arm, arm)
    adapter = AdapterParams.model_validate({"linear": {"start": kind}})
    model: Any = build_fused(store, fusion, RouterParams(), adapter, seed=seed)
    model.to(args.device)
    text = mixture(corpus, "train", tokenizer, num_sequences=64, switching_share=0.5, seed=seed + 1)
    fits: dict[str, float] = {}
    if arm == "random":
        random_start(model, seed)
        model.to(args.device)
    elif arm != "identity":
        fits = start_adapters(model, store, text, StartParams(), batch_size=8)
    for router in model.iter_routers():
        # Every token goes to the stranger: what is followed is its adapters, and no way around them.
        router.requires_grad_(False)
        with torch.no_grad():
            router.outer.weight.zero_()
            router.outer.bias.zero_()[0] = -60.0
    own = corpus.model_copy(update={"domains": (DOMAIN,)})
    train = mixture(own, "train", tokenizer, num_sequences=args.steps * args.batch_size, switching_share=0.0, seed=seed)
    held_out = pack(corpus, "validation", tokenizer, max_sequences_per_domain=args.sequences, seed=seed)[DOMAIN]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    found: dict[str, float] = {}
    for step in range(args.steps + 1):
        if step % args.every == 0:
            model.train(False)
            found[str(step)] = bits_per_byte(
                token_losses(model, held_out.input_ids, batch_size=16), held_out.num_bytes
            ).value
        if step < args.steps:
            model.train()
            ids = train.input_ids[step * args.batch_size : (step + 1) * args.batch_size].to(args.device)
            model(input_ids=ids, labels=ids, losses_only=True).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return {"fits": fits, "bits_per_byte": found}


def joined(args: argparse.Namespace, store: BlockStore, guest: str, cut: str, seed: int) -> dict[str, Any]:
    """Fuse trunk and stranger, train by params.yaml, and measure both parents and the fused model."""
    params = load_params(Path("params.yaml"), overrides=args.changes)
    how: Any = cut_of(guest) if cut == "cut" else "whole"
    fusion = FusionParams.model_validate({"trunk": TRUNK, "experts": [{"model": guest, "cut": how}], "span": 2})
    job = Job(seed, params.corpus, fusion, params.router, params.adapter, params.train)
    tokenizer = open_tokenizer(store.tokenizer_folder(TRUNK))
    data = prepare(job, store, tokenizer, args.device)
    model: Any = train_one(
        job, store, data, what="fused", work=args.work / "run" / "-".join(args.job), device=args.device
    ).model.to(args.device)  # type: ignore[arg-type]
    pure = pack(params.corpus, "test", tokenizer, max_sequences_per_domain=args.sequences, seed=seed)
    packed = pack(params.corpus, "test", tokenizer, seed=seed + 1)
    turning = switching(packed, segment_length=params.corpus.segment_length, max_sequences=args.sequences, seed=seed)
    record: dict[str, Any] = {"systems": {}}
    for name in (TRUNK, guest, "soft", "hard"):
        one: Any = model if name in ("soft", "hard") else load_source(store, name, device=args.device)
        if one is model:
            model.set_routing(name)
        bits, costs, losses = {}, {}, {}
        for key, text in {**pure, "switching": turning}.items():
            watched = Watched(model, RoutingTotals(model)) if one is model else one
            losses[key] = token_losses(watched, text.input_ids, batch_size=16)
            if one is model:
                costs[key] = watched.totals.cost()
            if key != "switching":
                bits[key] = bits_per_byte(losses[key], text.num_bytes).value
        scores = {**bits, "mixture": sum(bits.values()) / len(bits)}
        scores["switching"] = nats_per_token(losses["switching"]).value
        if costs:
            scores |= {"cost": sum(costs[d] for d in pure) / len(pure), "cost_switching": costs["switching"]}
        record["systems"][name] = scores
    if cut == "whole":
        asked = FusionParams.model_validate(
            {"trunk": TRUNK, "experts": [{"model": guest, "cut": "auto"}], "span": 2, "layers": "auto"}
        )
        text = calibration_text(job, tokenizer)
        proposal = propose_layers(
            store, asked, AdapterParams(), text, ridge=params.train.start.ridge, batch_size=8, device=args.device
        )
        record["auto"] = proposal.alignments[0].to_dict()
    return record


def run(args: argparse.Namespace) -> None:
    """Run one job."""
    torch.set_float32_matmul_precision("high")
    kind, *what = args.job
    if kind == "stranger":
        make_stranger(args)
        return
    guest, arm, seed = what[0], what[1], int(what[2])
    folder = args.work / "results"
    target = folder / f"{'-'.join(args.job)}.json"
    if target.is_file():
        return
    store = extract(sources(args), args.work / "stores" / "-".join(args.job), "reference")
    make = {"starts": starts, "joined": joined}[kind]
    record = {"kind": kind, "guest": guest, "arm": arm, "seed": seed, **make(args, store, guest, arm, seed)}
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record))
    print("-".join(args.job), json.dumps(record)[:600], flush=True)
