"""The jobs of the fusion study: fuse and measure one seed, and put the figures into a file."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from study import BUDGETS, COMPOSITES, HARD_STICKINESS, ORDER, RECIPES, STICKINESS
from study_corpus import CORE
from study_sources import Sizes, make_source
from torch import Tensor
from transformers import AutoTokenizer

from mango.blocks import BlockStore, extract, load_source
from mango.checkpoints import ModelSource
from mango.corpus import CorpusParams, Sequences, pack, switching, token_losses
from mango.evaluation import baselines, bits_per_byte, nats_per_token
from mango.evaluation.routing import RoutingTotals
from mango.evaluation.systems import Watched
from mango.fusion import AdapterParams, ExpertParams, FusionParams, MolForCausalLM, RouterParams, Selection, make_layout
from mango.training import Job, TrainParams, prepare, self_stitch, train_one
from mango.training.calibration import best_expert

SWITCHING = "switching"


def corpora(args: argparse.Namespace, sizes: Sizes, domains: Sequence[str]) -> CorpusParams:
    """Return the parameters of the study's corpus with these domains."""
    return CorpusParams(path=args.corpus, domains=tuple(domains), **sizes.lengths)


def texts_of(args: argparse.Namespace, sizes: Sizes, domains: Sequence[str], tokenizer: Any, seed: int) -> Any:
    """Return the test sequences: pure ones by domain, those that switch, and the composites."""
    corpus = corpora(args, sizes, domains)
    pure = pack(corpus, "test", tokenizer, max_sequences_per_domain=sizes.sequences, seed=seed)
    whole = pack(corpus, "test", tokenizer, seed=seed + 1)
    mixed = switching(whole, segment_length=corpus.segment_length, max_sequences=sizes.switching, seed=seed)
    composite = {}
    if set(CORE) <= set(domains):
        composite = pack(
            corpora(args, sizes, COMPOSITES), "test", tokenizer, max_sequences_per_domain=sizes.sequences, seed=seed
        )
    return {**pure, SWITCHING: mixed, **composite}


def scores(losses: Mapping[str, Tensor], texts: Mapping[str, Sequences], domains: Sequence[str]) -> dict[str, Any]:
    """Return bits per byte of each text, their mean over the domains, and nats per token on text that switches."""
    bits = {n: bits_per_byte(x, texts[n].num_bytes).value for n, x in losses.items() if n != SWITCHING}
    out: dict[str, Any] = {"bits": bits, "pure": sum(bits[d] for d in domains) / len(domains)}
    out["switching"] = nats_per_token(losses[SWITCHING]).value
    mixed = [bits[c] for c in COMPOSITES if c in bits]
    if mixed:
        out["composite"] = sum(mixed) / len(mixed)
    return out


def flops_of(run: Any) -> float:
    """Return the floating-point operations of matrix products and attention in a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def measure_fused(
    model: MolForCausalLM, texts: Mapping[str, Sequences], domains: Sequence[str], selection: Any, whole: Any, rows: int
) -> dict[str, Any]:
    """Return quality, tokens processed, and operations beside those of one whole model, of a fused model."""
    model.set_routing(selection)
    losses, tokens, flops, shares = {}, {}, {}, {}
    device = next(model.parameters()).device
    for name, text in texts.items():
        watched = Watched(model, RoutingTotals(model))
        losses[name] = token_losses(watched, text.input_ids, batch_size=20)
        tokens[name] = watched.totals.cost()
        total = sum(watched.totals.by_expert().values())
        shares[name] = {k: round(v / total, 4) for k, v in watched.totals.by_expert().items()}
        if rows:
            ours = theirs = 0.0
            for row in text.input_ids[:rows].to(device).split(1):
                ours += flops_of(lambda row=row: model(input_ids=row, labels=row, losses_only=True))  # type: ignore[misc]
                theirs += flops_of(lambda row=row: whole(input_ids=row))  # type: ignore[misc]
            flops[name] = ours / theirs
    out = scores(losses, texts, domains)
    for key, values in (("tokens", tokens), ("flops", flops)):
        if values:
            out[key] = {
                "pure": sum(values[d] for d in domains) / len(domains),
                "switching": values[SWITCHING],
                **{c: values[c] for c in COMPOSITES if c in values},
            }
    out["shares"] = shares
    return out


def router_accuracy(model: MolForCausalLM, stacked: Tensor, ids: Tensor) -> float:
    """Return how often the last router's first choice is the source with the lowest loss around the token."""
    model.set_routing("soft")
    wanted = best_expert(stacked, 32)
    right = []
    with torch.no_grad():
        for row, part in enumerate(ids.split(10)):
            output = model(input_ids=part.to(next(model.parameters()).device), labels=part.to(
                next(model.parameters()).device), losses_only=True)  # fmt: skip
            chosen = output.routing[-1].log_probs.argmax(-1).cpu()
            right.append((chosen == wanted[row * 10 : row * 10 + len(part)]).float())
    return float(torch.cat(right).mean())


def calibration_error(model: MolForCausalLM, ids: Tensor, bins: int = 10) -> float:
    """Return the expected calibration error of next-token probabilities, over equal-width bins."""
    device = next(model.parameters()).device
    confidence, right = [], []
    with torch.no_grad():
        for part in ids.split(5):
            part = part.to(device)
            best = model(input_ids=part).logits[:, :-1].float().softmax(-1).max(-1)
            confidence.append(best.values.flatten().cpu())
            right.append((best.indices == part[:, 1:]).flatten().float().cpu())
    p, y = torch.cat(confidence), torch.cat(right)
    place = (p * bins).long().clamp(max=bins - 1)
    error = torch.zeros(bins).index_add(0, place, y - p).abs().sum() / len(p)
    return float(error)


def fuse(args: argparse.Namespace, sizes: Sizes, recipe: str, domains: Sequence[str], seed: int) -> Any:
    """Return the training job, the block store and the training data."""
    changes = RECIPES[recipe]
    names = ["base", *domains]
    store = extract(
        {n: ModelSource(source=str(args.work / "models" / n)) for n in names},
        args.work / "stores" / f"{'-'.join(args.job)}".replace(" ", "_"),
        "reference",
    )
    train: dict[str, Any] = {
        "steps": sizes.steps,
        "batch_size": sizes.train_batch,
        "save_every": 0,
        "log_every": 20,
        "validation_sequences": 1,
        **changes["train"],
    }
    start = {"sequences": sizes.calibration, "batch_size": 32, **train.get("start", {})}
    train["start"] = {**start, "sequences": min(start["sequences"], sizes.most_calibration)}
    job = Job(
        seed,
        corpora(args, sizes, domains),
        FusionParams(
            trunk="base", experts=tuple(ExpertParams(model=d) for d in domains), span=min(changes["span"], sizes.blocks)
        ),
        RouterParams.model_validate(changes["router"]),
        AdapterParams(),
        TrainParams.model_validate(train),
    )
    return job, store


def fused_job(args: argparse.Namespace, sizes: Sizes) -> None:
    """Fuse, train and measure one seed of one recipe."""
    kind, recipe, value = args.job
    number = int(value) if kind == "number" else len(CORE)
    seed = 0 if kind == "number" else int(value)
    domains = ORDER[:number]
    job, store = fuse(args, sizes, recipe, domains, seed)
    clock = [time.monotonic()]
    tokenizer = AutoTokenizer.from_pretrained(args.work / "models/base")
    data = prepare(job, store, tokenizer, args.device)
    trained = train_one(job, store, data, what="fused", work=args.work / "run" / "-".join(args.job), device=args.device)
    clock.append(time.monotonic())
    model = trained.model.to(args.device)
    texts = texts_of(args, sizes, domains, tokenizer, seed)
    sources = ["base", *domains]
    single: dict[str, dict[str, Tensor]] = {}
    whole: Any = None
    for name in sources:
        whole = load_source(store, name, device=args.device)
        single[name] = {t: token_losses(whole, x.input_ids, batch_size=20) for t, x in texts.items()}
    stacked = {t: torch.stack([single[n][t] for n in sources]) for t in texts}
    every = len(domains) + 1
    hard = model.iter_routers()[0].hard_selection
    systems: dict[str, Any] = {name: scores(x, texts, domains) for name, x in single.items()}
    made = {
        "ensemble, uniform": baselines.ensemble_uniform,
        "ensemble, posterior": baselines.ensemble_posterior,
        "ensemble, forgetting": lambda x: baselines.ensemble_window(x, 32),
        "whole model by prompt": lambda x: baselines.by_prompt(x, 32),
        "oracle, sequence": baselines.oracle_sequence,
        "oracle, segment": lambda x: baselines.oracle_segment(x, sizes.context // 4),
    }
    for label, make in made.items():
        systems[label] = scores({t: make(x) for t, x in stacked.items()}, texts, domains)
    model.set_routing(None)
    systems["fused, soft"] = measure_fused(model, texts, domains, "soft", whole, 0)
    systems["fused, hard"] = measure_fused(model, texts, domains, replace(hard, k=1, mass=1.0), whole, 0)
    record: dict[str, Any] = {
        "recipe": recipe,
        "seed": seed,
        "experts": number,
        "starts": trained.starts.routers,
        "switch": [round(float(r.switch()), 5) for r in model.iter_routers() if r.switch is not None],
        "temperature": [round(float(r.temperature()), 3) for r in model.iter_routers()],
        "accuracy": router_accuracy(model, stacked[SWITCHING], texts[SWITCHING].input_ids),
        "systems": systems,
    }
    if kind in ("compare", "number"):
        selection = Selection(k=1, catch_up=hard.catch_up, stickiness=HARD_STICKINESS)
        label = f"fused, hard, sticky {HARD_STICKINESS:g}"
        systems[label] = measure_fused(model, texts, domains, selection, whole, 0)
    if kind == "main":
        more_of_main(args, sizes, job, store, data, trained, texts, domains, systems, record, every, whole)
    clock.append(time.monotonic())
    record["seconds"] = {"train": round(clock[1] - clock[0]), "measure": round(clock[-1] - clock[1])}
    folder = args.work / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{'-'.join(args.job)}.json".replace(" ", "_")).write_text(json.dumps(record, indent=1))
    shown = {
        n: [round(s[k], 4) for k in ("pure", "switching", "composite") if k in s]
        + [round(s["tokens"][k], 4) for k in ("pure", "switching") if "tokens" in s]
        for n, s in systems.items()
    }
    rest = {k: v for k, v in record.items() if k not in ("systems", "budget")}
    print("-".join(args.job), json.dumps({**rest, "systems": shown}), flush=True)


def more_of_main(
    args: argparse.Namespace, sizes: Sizes, job: Job, store: BlockStore, data: Any, trained: Any, texts: Any,
    domains: Sequence[str], systems: dict[str, Any], record: dict[str, Any], every: int, whole: Any,
) -> None:  # fmt: skip
    """Add the budget curve, calibration, and the controls."""
    model = trained.model
    hard = model.iter_routers()[0].hard_selection
    record["budget"] = []
    kept = ("pure", "switching", "composite", "tokens")
    for mass in BUDGETS if job.seed == 0 else ():
        selection = Selection(k=every, mass=mass, catch_up=hard.catch_up)
        found = measure_fused(model, texts, domains, selection, None, 0)
        record["budget"].append({"mass": mass, **{k: found[k] for k in kept if k in found}})
    for margin in STICKINESS:
        selection = Selection(k=1, catch_up=hard.catch_up, stickiness=margin)
        rows = sizes.flop_rows if job.seed == 0 and margin == HARD_STICKINESS else 0
        systems[f"fused, hard, sticky {margin:g}"] = measure_fused(model, texts, domains, selection, whole, rows)
    ids = torch.cat([texts[d].input_ids[:8] for d in domains])
    record["calibration_error"] = {}
    for mode in ("soft", "hard"):
        model.set_routing(mode)
        record["calibration_error"][mode] = calibration_error(model, ids)
    nothing_read = Selection(k=1, catch_up=0, stickiness=HARD_STICKINESS)
    systems[f"fused, hard, sticky {HARD_STICKINESS:g}, no catch-up"] = measure_fused(
        model, texts, domains, nothing_read, None, 0
    )
    layout = make_layout(job.fusion, {n: store.model(n).architecture for n in job.model_names()})
    stitched = Job(job.seed, job.corpus, self_stitch(job.fusion, layout), job.router, job.adapter, job.train)
    work = args.work / "run" / f"{'-'.join(args.job)}-stitch"
    control = train_one(stitched, store, data, what="self_stitch", work=work, device=args.device, targets_from=model)
    systems["self-stitch"] = measure_fused(control.model.to(args.device), texts, domains, "soft", None, 0)


def run(args: argparse.Namespace) -> None:
    """Run one job."""
    import study_controls

    torch.set_float32_matmul_precision("high")
    sizes = Sizes(args.size)
    if args.job[0] in ("base", "expert", "dense"):
        make_source(args, sizes)
    elif args.job[0] == "merge":
        study_controls.merge_core(args)
    elif args.job[0] == "controls":
        study_controls.controls(args, sizes)
    else:
        fused_job(args, sizes)
