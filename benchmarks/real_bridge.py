"""Part of real_models.py: SmolLM2-135M with Gemma-3-270M and Qwen2.5-Coder-0.5B, whole, each with its own tokenizer.

Guests join across bridges (``edges: bridge``). Routers are fitted on calibration text of the train split and measured
on the test split, for several draws of both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from mango import console
from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource, copy_tokenizer, open_tokenizer
from mango.corpus import CorpusParams, Sequences, concatenate, pack, token_losses
from mango.evaluation.baselines import by_prompt, oracle_sequence
from mango.fusion import AdapterParams, FusionParams, MolForCausalLM, RouterParams, build_fused
from mango.fusion.posterior import HeadPosterior
from mango.training import self_stitch
from mango.training.calibration import best_expert
from mango.training.data import mixture
from mango.training.params import StartParams
from mango.training.starts import minimise, start_routers

Row = dict[str, Any]
Losses = dict[str, Tensor]

GUESTS = ("gemma", "qwen")
NAME = "bridge"
WHAT = "Gemma-3-270M and Qwen2.5-Coder-0.5B across bridges, whole"
ROUTER = {"type": "token", "token": {"window": 32}}
START = {"router_steps": 1, "router_learning_rate": 5e-4, "mixture_steps": 60}
"""A router of few parameters that is hardly told which expert is best, and mostly how to weigh all: mixtures of models
that differ gain most from weights that are nearly even, and there is little calibration text."""


def fusion_of(args: argparse.Namespace) -> FusionParams:
    """Return what is fused."""
    experts = [{"model": guest, "edges": "bridge"} for guest in GUESTS]
    return FusionParams.model_validate({"trunk": "smollm2", "experts": experts, "span": 30, "dtype": args.dtype})


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


def heads_of(
    model: MolForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int, args: argparse.Namespace, corpus: CorpusParams
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return tokens, losses of the heads, and sizes of tokens, of calibration text and of test text of each domain.

    What a whole guest loses depends on no router, so it is kept in the work folder.
    """
    path = args.work / f"{NAME}-heads-{seed}-{args.sequences}-{args.test_length}-{args.bridge_calibration}.pt"
    if not path.is_file():
        number = 2 * len(corpus.domains) * args.bridge_calibration
        text = {
            "calibration": mixture(
                corpus, "train", tokenizer, num_sequences=number, switching_share=0.25, seed=seed + 1
            ),
            **pack(corpus, "test", tokenizer, max_sequences_per_domain=args.sequences, seed=seed),
        }
        found = {
            name: (some.input_ids, model.heads_at(some.input_ids, batch_size=2)[1].cpu(), some.num_bytes)
            for name, some in text.items()
        }
        torch.save(found, path)
    kept: dict[str, tuple[Tensor, Tensor, Tensor]] = torch.load(path, weights_only=True)
    return kept


def mixed(weights: Tensor, lost: Tensor) -> Tensor:
    """Return the loss of a mixture with log-weights, ``[rows, length - 1]``."""
    return -torch.logsumexp(weights - lost, -1)


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


def predicted(lost: Tensor, calibration: Tensor) -> Tensor:
    """Return log-weights by what each head predicted of the tokens so far alone, fitted on calibration text."""
    posterior = HeadPosterior(lost.shape[-1])
    posterior.start_weights(0.0)

    def weights(some: Tensor) -> Tensor:
        told = torch.nn.functional.pad(-some[:, :-1], (0, 0, 1, 0))
        even = torch.full_like(some, 1 / some.shape[-1])
        return posterior.log_weights(even, told, torch.ones(some.shape[:2], dtype=torch.bool))[0]

    posterior.requires_grad_(True)
    minimise(list(posterior.parameters()), lambda _: mixed(weights(calibration), calibration)[:, :-1].mean(), 60, 0.1)
    posterior.requires_grad_(False)
    return weights(lost)


def of_seed(
    seed: int,
    model: MolForCausalLM,
    store: BlockStore,
    args: argparse.Namespace,
    domains: tuple[str, ...],
    alone: Callable[[str, Mapping[str, Sequences]], Losses],
) -> tuple[Row, dict[str, Losses], dict[str, Sequences]]:
    """Fit the router on one draw of calibration text and measure on one of test text."""
    start = time.monotonic()
    tokenizer = open_tokenizer(store.tokenizer_folder("smollm2"))
    corpus = CorpusParams(path=args.corpus, domains=domains, sequence_length=args.test_length, segment_length=32)
    heads = heads_of(model, tokenizer, seed, args, corpus)
    ids, calibration, _ = heads["calibration"]
    calibration = calibration[:, :-1]
    params = StartParams.model_validate(START)
    targets = best_expert(calibration.movedim(-1, 0), params.window).unsqueeze(-1)
    starts = start_routers(model, ids, targets, params, batch_size=args.batch_size, losses=[calibration])
    fixed = fixed_weights(calibration)
    texts = {
        domain: Sequences(heads[domain][0], torch.full_like(heads[domain][0], place), heads[domain][2], domains)
        for place, domain in enumerate(domains)
    }
    found: dict[str, Losses] = {}

    def add(name: str, domain: str, losses: Tensor) -> None:
        found.setdefault(name, {})[domain] = losses

    shares: Row = {}
    for domain in domains:
        some, lost, _ = heads[domain]
        parts = [model.routing_at(part.to(model.device), 0).weights.cpu() for part in some.split(args.batch_size)]
        mass = torch.cat(parts)[:, :-1]
        by_predictions = predicted(lost, heads["calibration"][1])[:, :-1]
        lost = lost[:, :-1]
        even = torch.zeros(lost.shape[-1]).log_softmax(-1)
        add("trunk", domain, lost[..., 0])
        add("fused_soft", domain, mixed(mass.log(), lost))
        add("fused_hard", domain, lost.gather(-1, mass.argmax(-1, keepdim=True)).squeeze(-1))
        add("predicted_bridged", domain, mixed(by_predictions, lost))
        add("fixed_bridged", domain, mixed(fixed, lost))
        add("uniform_bridged", domain, mixed(even, lost))
        for place, guest in enumerate(GUESTS, 1):
            add(f"{guest}_bridged", domain, lost[..., place])
            add(f"uniform_{guest}", domain, mixed(torch.zeros(2).log_softmax(-1), lost[..., [0, place]]))
        each = lost.movedim(-1, 0)
        add("by_prompt_bridged", domain, by_prompt(each, args.prompt))
        add("oracle_bridged", domain, oracle_sequence(each))
        shares[domain] = dict(zip(("trunk", *GUESTS), mass.mean((0, 1)).tolist(), strict=True))
    for guest in GUESTS:
        found[guest] = alone(guest, texts)
    for domain in domains:
        each = torch.stack([found["trunk"][domain], *(found[guest][domain] for guest in GUESTS)])
        add("by_prompt", domain, by_prompt(each, args.prompt))
        add("oracle", domain, oracle_sequence(each))
    built: Row = {
        "seed": seed,
        "seconds": time.monotonic() - start,
        "calibration_sequences": len(ids),
        "starts": starts,
        "fixed_weights": dict(zip(("trunk", *GUESTS), fixed.exp().tolist(), strict=True)),
        "mean_weights": shares,
    }
    if seed == args.bridge_seeds[0]:
        some = texts[domains[0]].input_ids[:2].to(model.device)
        with torch.no_grad():
            whole = model(input_ids=some, labels=some, losses_only=True).token_losses
        assert whole is not None
        built["forward_differs_from_heads_by"] = float((whole.cpu() - found["fused_soft"][domains[0]][:2]).abs().max())
        built |= opened_alike(model, store, args)
        stitched = build_fused(
            store,
            self_stitch(fusion_of(args), model.layout),
            RouterParams.model_validate(ROUTER),
            AdapterParams(),
            seed=seed,
        ).to(args.device)  # type: ignore[arg-type]
        for domain, text in texts.items():
            add("self_stitch", domain, token_losses(stitched, text.input_ids, batch_size=args.batch_size))
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
    model = build_fused(store, fusion_of(args), RouterParams.model_validate(ROUTER), AdapterParams(), seed=0)
    model.to(args.device)  # type: ignore[arg-type]
    assert isinstance(model, MolForCausalLM)
    untrained = deepcopy(model.routers.state_dict())
    seeds: list[Row] = []
    losses: list[dict[str, Losses]] = []
    texts: list[Mapping[str, Sequences]] = []
    for seed in args.bridge_seeds:
        model.routers.load_state_dict(untrained)
        own = partial(alone, store, seed)
        built, found, some = of_seed(seed, model, store, args, domains, own)
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
