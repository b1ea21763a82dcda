"""Part of real_models.py: SmolLM2-135M with Gemma-3-270M and Qwen2.5-Coder-0.5B, whole, each with its own tokenizer.

Guests join across bridges (``edges: bridge``). Routers, and how far heads are weighed by what they predicted, are
fitted on calibration text of the train split and measured on the test split, for several draws of both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mango import console
from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource, copy_tokenizer, open_tokenizer
from mango.corpus import CorpusParams, Sequences, concatenate, pack, token_losses
from mango.evaluation.baselines import by_prompt, oracle_sequence
from mango.fusion import AdapterParams, FusionParams, MolForCausalLM, RouterParams, build_fused
from mango.fusion.bridge import module
from mango.training import Job, TrainParams, prepare, self_stitch, train_one

Row = dict[str, Any]
Losses = dict[str, Tensor]

GUESTS = ("gemma", "qwen")
NAME = "bridge"
WHAT = "Gemma-3-270M and Qwen2.5-Coder-0.5B across bridges, whole"
ROUTER = {
    "type": "token",
    "token": {"pooling": "windows", "windows": [1, 8, 32], "hidden": 64, "switch": 0.01, "posterior": True},
}
"""As params.yaml has it, without stickiness, which counts in hard use alone."""


def job_of(args: argparse.Namespace, domains: tuple[str, ...], seed: int) -> Job:
    """Return how routers are started for one draw; nothing is trained after that."""
    train = {
        "steps": 0, "batch_size": args.batch_size, "switching_share": 0.25, "save_every": 0,
        "validation_sequences": 1, "start": {"sequences": args.bridge_calibration, "mixture_steps": 100},
        "controls": {"self_stitch": False, "continued_trunk": False},
    }  # fmt: skip
    experts = [{"model": guest, "edges": "bridge"} for guest in GUESTS]
    return Job(
        seed=seed,
        corpus=CorpusParams(path=args.corpus, domains=domains, sequence_length=args.test_length, segment_length=32),
        fusion=FusionParams.model_validate({"trunk": "smollm2", "experts": experts, "span": 30, "dtype": args.dtype}),
        router=RouterParams.model_validate(ROUTER),
        adapter=AdapterParams(),
        train=TrainParams.model_validate(train),
    )


@torch.no_grad()
def opened_alike(model: MolForCausalLM, store: BlockStore, args: argparse.Namespace) -> Row:
    """Save, open and generate; return what was seen, as it is."""
    folder = args.work / NAME
    model.save_pretrained(folder)
    copy_tokenizer(store.tokenizer_folder("smollm2"), folder)
    opened: Any = AutoModelForCausalLM.from_pretrained(folder).to(args.device)
    tokenizer = open_tokenizer(folder)
    texts = ["def read(path):\n    with open(", "It is a truth universally"]
    ids = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(args.device)
    found = [
        opened.generate(**ids, max_new_tokens=16, do_sample=False, use_cache=c, pad_token_id=0) for c in (True, False)
    ]
    output = opened(**ids)
    return {
        "saved_equals_opened": bool(torch.equal(output.logits, model(**ids).logits)),
        "cached_equals_uncached": bool(torch.equal(*found)),
        "tokens_processed_by_each_span": [int(number) for number in output.processed],
        "tokens_of_the_trunk": int(ids.attention_mask.sum()),
        "text": tokenizer.batch_decode(found[0], skip_special_tokens=True),
    }


def heads_of(model: MolForCausalLM, ids: Tensor, args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Return shares of the routers, log-weights of the fused model, and losses of its heads.

    Each is ``[rows, length - 1, heads]``.
    """
    mass, lost = (part.cpu() for part in model.heads_at(ids, batch_size=args.batch_size))
    weights = mass.clamp(min=torch.finfo(torch.float32).tiny).log()
    if model.posterior is not None:
        told = torch.nn.functional.pad(-lost[:, :-1], (0, 0, 1, 0))
        weights, _ = model.posterior.cpu().log_weights(mass, told, torch.ones(mass.shape[:2], dtype=torch.bool))
        model.posterior.to(model.device)
    return mass[:, :-1], weights[:, :-1].detach(), lost[:, :-1]


def mixed(weights: Tensor, lost: Tensor) -> Tensor:
    """Return the loss of a mixture with log-weights, ``[rows, length - 1]``."""
    return -torch.logsumexp(weights - lost, -1)


@contextmanager
def without_steps_back() -> Iterator[None]:
    """Let a guest's next token begin at the end of the text alone."""
    kept = module.STEPS_BACK
    module.STEPS_BACK = 0
    try:
        yield
    finally:
        module.STEPS_BACK = kept


def fixed_weights(lost: Tensor) -> Tensor:
    """Return the log-weights, the same for every token, that lower the mixture's loss on calibration text most."""
    logits = torch.zeros(lost.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = mixed(logits.log_softmax(-1), lost).mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return logits.detach().log_softmax(-1)


def of_seed(
    seed: int,
    store: BlockStore,
    args: argparse.Namespace,
    domains: tuple[str, ...],
    alone: Callable[[str, Mapping[str, Sequences]], Losses],
) -> tuple[Row, dict[str, Losses], dict[str, Sequences]]:
    """Fit routers on one draw of calibration text and measure on one of test text."""
    start = time.monotonic()
    tokenizer = open_tokenizer(store.tokenizer_folder("smollm2"))
    job = job_of(args, domains, seed)
    data = prepare(job, store, tokenizer, args.device)
    trained = train_one(job, store, data, what=f"{NAME}-{seed}", work=args.work / "training", device=args.device)
    model: Any = trained.model
    assert isinstance(model, MolForCausalLM)
    model.eval()
    seconds = time.monotonic() - start
    texts = pack(job.corpus, "test", tokenizer, max_sequences_per_domain=args.sequences, seed=seed)
    _, _, calibration = heads_of(model, data.calibration.input_ids[::4], args)  # two numbers do not want more
    fixed = fixed_weights(calibration)
    found: dict[str, Losses] = {}

    def add(name: str, domain: str, losses: Tensor) -> None:
        found.setdefault(name, {})[domain] = losses

    shares: Row = {}
    prompt = args.prompt
    for domain, text in texts.items():
        mass, weights, lost = heads_of(model, text.input_ids, args)
        number = lost.shape[-1]
        add("trunk", domain, lost[..., 0])
        add("fused_soft", domain, mixed(weights, lost))
        add("fused_hard", domain, lost.gather(-1, mass.argmax(-1, keepdim=True)).squeeze(-1))
        add("router_alone", domain, mixed(mass.clamp(min=1e-30).log(), lost))
        add("uniform_bridged", domain, mixed(lost.new_zeros(number).log_softmax(-1), lost))
        add("fixed_bridged", domain, mixed(fixed, lost))
        for place, guest in enumerate(GUESTS, 1):
            add(f"{guest}_bridged", domain, lost[..., place])
            add(f"uniform_{guest}", domain, mixed(lost.new_zeros(2).log_softmax(-1), lost[..., [0, place]]))
        each = lost.movedim(-1, 0)
        add("by_prompt_bridged", domain, by_prompt(each, prompt))
        add("oracle_bridged", domain, oracle_sequence(each))
        shares[domain] = dict(zip(("trunk", *GUESTS), weights.exp().mean((0, 1)).tolist(), strict=True))
    if args.no_steps_back and seed == args.bridge_seeds[0]:
        with without_steps_back():
            for domain, text in texts.items():
                _, _, lost = heads_of(model, text.input_ids, args)
                for place, guest in enumerate(GUESTS, 1):
                    add(f"{guest}_no_steps_back", domain, lost[..., place])
    for guest in GUESTS:
        found[guest] = alone(guest, texts)
    for domain in domains:
        each = torch.stack([found["trunk"][domain], *(found[guest][domain] for guest in GUESTS)])
        add("by_prompt", domain, by_prompt(each, prompt))
        add("oracle", domain, oracle_sequence(each))
    stitched = build_fused(store, self_stitch(job.fusion, model.layout), job.router, job.adapter, seed=seed).to(
        args.device
    )  # type: ignore[arg-type]
    for domain, text in texts.items():
        add("self_stitch", domain, token_losses(stitched, text.input_ids, batch_size=args.batch_size))
    some = texts[domains[0]].input_ids[:2].to(args.device)
    with torch.no_grad():
        whole = model(input_ids=some, labels=some, losses_only=True).token_losses
    assert whole is not None
    built: Row = {
        "seed": seed,
        "seconds": seconds,
        "calibration_sequences": len(data.calibration),
        "starts": trained.starts.routers,
        "posterior_gain_nats": trained.starts.posterior,
        "fixed_weights": dict(zip(("trunk", *GUESTS), fixed.exp().tolist(), strict=True)),
        "mean_weights": shares,
        "forward_differs_from_heads_by": float((whole.cpu() - found["fused_soft"][domains[0]][:2]).abs().max()),
    }
    if seed == args.bridge_seeds[0]:
        built |= opened_alike(model, store, args)
    return built, found, texts


def bridged(
    args: argparse.Namespace,
    domains: tuple[str, ...],
    alone: Callable[[BlockStore, int, str, Mapping[str, Sequences]], Losses],
    compared: Callable[[dict[str, Losses], Mapping[str, Sequences]], Row],
    write: Callable[[Row], None],
) -> None:
    """Run every seed; hand over what has been found after each.

    Args:
        args: of the command.
        domains: domains of the corpus.
        alone: measures a whole model with its own tokens.
        compared: compares systems with the trunk.
        write: takes the result so far.
    """
    files = {name: getattr(args, name) for name in ("smollm2", *GUESTS)}
    sources = {name: ModelSource(source=str(file.resolve())) for name, file in files.items()}
    store = extract(sources, args.work / f"{NAME}-blocks", "reference")
    seeds: list[Row] = []
    losses: list[dict[str, Losses]] = []
    texts: list[Mapping[str, Sequences]] = []
    for seed in args.bridge_seeds:
        built, found, some = of_seed(
            seed,
            store,
            args,
            domains,
            lambda name, text, seed=seed: alone(store, seed, name, text),  # type: ignore[misc]
        )
        seeds.append({"built": built, "measured": compared(found, some)})
        losses.append(found)
        texts.append(some)
        names = [name for name in losses[0] if all(name in one for one in losses)]
        every = {name: {d: torch.cat([one[name][d] for one in losses]) for d in domains} for name in names}
        joined = {d: _joined([one[d] for one in texts]) for d in domains}
        result = {"seeds": seeds, "measured": compared(every, joined)}
        console.note(json.dumps({"built": built, "systems": result["measured"]["systems"]}, indent=1))
        write(result)


def _joined(parts: Sequence[Sequences]) -> Sequences:
    return concatenate(list(parts))
