"""The whole evaluation: the fused model, soft and hard, against everything that a user would pick instead."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mango import console
from mango.blocks import BlockStore, load_source
from mango.checkpoints import open_config, open_model, open_tokenizer
from mango.corpus import CorpusParams, ImageReader, corpus_sha256, pack, switching
from mango.errors import EvaluationError
from mango.evaluation import baselines
from mango.evaluation.budget import dominance, points
from mango.evaluation.calibration import calibration
from mango.evaluation.harness import Harness, score_subjects
from mango.evaluation.head_document import head_document
from mango.evaluation.headline import headline
from mango.evaluation.heads import evaluate_head
from mango.evaluation.params import EvaluateParams
from mango.evaluation.pictures import evaluate_pictures
from mango.evaluation.retention import retention
from mango.evaluation.routing import positions, sample
from mango.evaluation.speed import seconds
from mango.evaluation.subjects import Subjects, merge_facts, saved_models
from mango.evaluation.systems import SWITCHING, Bench, Measured, Texts, row
from mango.fusion import MolForCausalLM, MolPreTrainedModel, MolRowModel
from mango.fusion.routers import Selection
from mango.fusion.tasks import task_of_source
from mango.surgery.vocabulary import Retokeniser, Retold

Row = dict[str, Any]


def test_texts(corpus: CorpusParams, params: EvaluateParams, tokenizer: PreTrainedTokenizerBase, seed: int) -> Texts:
    """Return the test sequences of each domain, and those that switch domain."""
    packed = pack(corpus, "test", tokenizer, max_sequences_per_domain=params.sequences, seed=seed)
    whole = pack(corpus, "test", tokenizer, seed=seed + 1)
    mixed = switching(whole, segment_length=corpus.segment_length, max_sequences=params.switching_sequences, seed=seed)
    if len(mixed) < 2 or any(len(sequences) < 2 for sequences in packed.values()):
        short = [domain for domain, sequences in packed.items() if len(sequences) < 2] or ["text that switches domain"]
        raise EvaluationError(
            f"{corpus.path}: the test split has fewer than two sequences of {corpus.sequence_length} tokens for "
            f"{', '.join(short)}: lower corpus.sequence_length or add text"
        )
    return {**packed, SWITCHING: mixed}


def evaluate_all(
    subjects: Subjects,
    corpus: CorpusParams,
    params: EvaluateParams,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    parameters: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure every system and return the document of ``reports/evaluation.json``.

    Args:
        subjects: where what is compared lies.
        corpus: the corpus.
        params: how systems are compared.
        seed: of the test sequences.
        device: where models run.
        parameters: parameters to record.
        provenance: git revision and versions to record.

    Raises:
        EvaluationError: a system gives no finite probabilities, or there is too little text.
        CheckpointError: a model cannot be read.
    """
    device = torch.device(device)
    opened = _load_fused(subjects.fused, device)
    record = {
        "seed": seed,
        "training": {"curve": _curve(subjects.fused)},
        "layers": json.loads((subjects.fused / "training.json").read_text(encoding="utf-8")).get("layers", []),
        "parameters": dict(parameters or {}),
        "provenance": dict(provenance or {}),
    }
    harness = _harness(opened, subjects, params, seed)
    if isinstance(opened, MolRowModel):
        images = opened.task == "image-classification"
        reader = ImageReader.of(subjects.fused) if images else open_tokenizer(subjects.fused)
        found = evaluate_head(opened, subjects, corpus, params, reader, seed=seed, device=device)
        return head_document(found, corpus_sha256(corpus.path), record)
    assert isinstance(opened, MolForCausalLM)
    fused = opened
    tokenizer = open_tokenizer(subjects.fused)
    texts = test_texts(corpus, params, tokenizer, seed)
    sources = [fused.layout.experts[0].source]
    sources += [e.source for e in fused.layout.experts[1:] if e.source not in sources]
    trunk = load_source(subjects.store, sources[0], device=device)
    bench = Bench(texts, params.batch_size, params.speed_repeats, device, trunk, params.counted_sequences)
    batch = bench.timing_batch()
    with torch.no_grad():
        speed = batch.numel() / seconds(lambda: trunk(input_ids=batch), params.speed_repeats, device)
    rows: list[Row] = []
    calibrated: dict[str, Any] = {}

    def add(name: str, label: str, kind: str, measured: Measured, note: str = "") -> None:
        rows.append(row(name, label, kind, measured, texts, trunk_tokens_per_s=speed, note=note))
        last = rows[-1]
        if measured.guesses is not None:
            calibrated[name] = calibration(measured.guesses)
        console.note(f"{label}: {last['pure_mean']:.3f} bits per byte, {last['switching']:.3f} nats on switching text")

    tokenizers = {name: subjects.store.model(name).tokenizer_sha256 for name in sources}
    strangers = {name for name in sources if tokenizers[name] != tokenizers[sources[0]]}
    single: list[Measured] = []
    for place, name in enumerate(sources):
        single.append(bench.measure(lambda name=name: _source(subjects.store, sources[0], name, bench)))  # type: ignore[misc]
        if place == 0:
            add("trunk", f"Trunk ({name})", "trunk", single[0], "the model that the fused one falls back on")
        else:
            note = "one source model, alone"
            if name in strangers:
                note += f"; it reads the text with its own tokenizer, and is compared on the tokens of {sources[0]}"
            add(f"expert_{name}", f"Expert {name}", "expert", single[-1], note)
    rows.insert(1, _best_single(rows))
    for name, label, kind, folder, note in saved_models(subjects):
        add(name, label, kind, bench.measure(lambda folder=folder: _saved(folder, device, fused.task)), note)  # type: ignore[misc]
        if kind == "merge":
            rows[-1]["merge"] = merge_facts(folder)
    _whole_models(add, single, params, corpus, len(sources), one_tokenizer=not strangers)
    soft, hard = _fused_modes(add, bench, subjects.fused, device)
    for name, label, note, selection in points(fused, params.budget):
        add(name, label, "fused", bench.measure(lambda how=selection: _routed(subjects.fused, device, how)), note)  # type: ignore[misc]
    domains = [text for text in texts if text != SWITCHING]
    scored = None
    if harness is not None:
        scored = score_subjects(harness, subjects, sources, rows, task=fused.task, device=device)
    fused.set_routing("hard")
    kept = retention(rows, hard.totals, {expert.name: expert.source for expert in fused.layout.experts})
    return {
        "schema_version": 1,
        "units": {
            "pure": "bits_per_byte",
            "switching": "nats_per_token",
            "cost": "tokens processed by experts, in units of one expert",
        },
        "domains": domains,
        "systems": rows,
        "headline": headline(rows, kept, calibrated),
        "routing": {
            "positions": positions({domain: soft.totals[domain] for domain in domains}),
            "processed": {
                domain: {e: round(n) for e, n in hard.totals[domain].by_expert().items()} for domain in domains
            },
            "sample": [
                sample(fused, tokenizer, texts[SWITCHING], index, f"Text that switches domain, {index + 1}")
                for index in range(2)
            ],
        },
        "retention": kept,
        "calibration": calibrated,
        "budget": dominance(rows),
        "lm_eval": scored,
        "images": evaluate_pictures(subjects, corpus, sources[0], device=device),
        "corpus": {
            "domains": {
                domain: {
                    "test_bytes": int(texts[domain].num_bytes.sum()),
                    "test_tokens": int(texts[domain].input_ids.numel()),
                }
                for domain in domains
            },
            "sha256": corpus_sha256(corpus.path),
        },
        **record,
    }


def _load_fused(folder: Path, device: torch.device) -> MolPreTrainedModel:
    model = open_model(folder)
    if not isinstance(model, MolPreTrainedModel):
        raise EvaluationError(f"{folder}: holds a {type(model).__name__}, no fused model; run the training stage")
    nn.Module.to(model, device)  # the class's own `to` has no types
    return model


def _harness(fused: MolPreTrainedModel, subjects: Subjects, params: EvaluateParams, seed: int) -> Harness | None:
    """Return the tasks of lm-eval, loaded before anything is measured; None where there are none."""
    if not params.lm_eval.tasks:
        return None
    if isinstance(fused, MolRowModel):
        raise EvaluationError(
            f"evaluate.lm_eval.tasks: they ask a model that writes text, and this one is for {fused.task}: leave them "
            "out"
        )
    return Harness(params.lm_eval, seed=seed, tokenizer=subjects.fused)


def _routed(folder: Path, device: torch.device, how: str | Selection) -> nn.Module:
    model = _load_fused(folder, device)
    model.set_routing(how)
    return model


def _best_single(rows: list[Row]) -> Row:
    best = min(rows, key=lambda r: r["pure_mean"])
    return {**best, "name": "best_single", "label": f"Best single model ({best['label']})", "kind": "expert",
            "note": "the source model with the lowest mean over domains"}  # fmt: skip


def _source(store: BlockStore, trunk: str, name: str, bench: Bench) -> nn.Module:
    """Return a source model; one with another tokenizer is asked about the trunk's tokens."""
    model = load_source(store, name, device=bench.device)
    reader = Retokeniser.between(store, trunk, name)
    return model if reader is None else Retold(model, reader, batch_size=bench.batch_size)


def _saved(folder: Path, device: torch.device, task: str) -> nn.Module:
    own = task_of_source(task, open_config(folder))
    model = open_model(folder, dtype=torch.float32, task=own)
    nn.Module.to(model, device)
    if isinstance(model, MolForCausalLM):
        model.set_routing("soft")
    return model


def _whole_models(
    add: Callable[..., None],
    single: list[Measured],
    params: EvaluateParams,
    corpus: CorpusParams,
    number: int,
    *,
    one_tokenizer: bool,
) -> None:
    """Add what follows from the source models' losses alone; there is no ensemble of models with other tokens."""
    stacked = {name: torch.stack([m.losses[name] for m in single]) for name in single[0].losses}
    length = corpus.sequence_length
    window = params.prompt
    prompt_cost = baselines.by_prompt_cost(number, length, params.prompt)
    kinds: list[tuple[str, str, str, Callable[[Tensor], Tensor], float, str]] = [
        ("whole_model_by_prompt", "Whole model by prompt", "routing",
         lambda x: baselines.by_prompt(x, params.prompt), prompt_cost,
         f"the model that predicts the first {params.prompt} tokens best predicts the rest"),
        ("ensemble_uniform", "Ensemble, uniform", "ensemble", baselines.ensemble_uniform, float(number),
         "mean of all source models' distributions"),
        ("ensemble_posterior", "Ensemble, posterior", "ensemble", baselines.ensemble_posterior, float(number),
         "weights are each model's probability of all that came before"),
        ("ensemble_window", "Ensemble, forgetting", "ensemble",
         lambda x: baselines.ensemble_window(x, window), float(number),
         f"weights are each model's probability of the last {window} tokens"),
        ("oracle_sequence", "Oracle, per sequence", "oracle", baselines.oracle_sequence, 1.0,
         "the best source model of each sequence, chosen with hindsight: no real system"),
        ("oracle_segment", "Oracle, per segment", "oracle",
         lambda x: baselines.oracle_segment(x, corpus.segment_length), 1.0,
         f"the best source model of every {corpus.segment_length} tokens, chosen with hindsight: no real system"),
    ]  # fmt: skip
    for name, label, kind, make, cost, note in kinds:
        if kind == "ensemble" and not one_tokenizer:
            continue
        losses = {text: make(values) for text, values in stacked.items()}
        flops = {text: sum(m.flops[text] for m in single) for text in losses} if kind == "ensemble" else {}
        add(name, label, kind, Measured(losses, dict.fromkeys(losses, cost), flops=flops), note)


def _fused_modes(
    add: Callable[..., None], bench: Bench, folder: Path, device: torch.device
) -> tuple[Measured, Measured]:
    measured: list[Measured] = []
    for mode, label, note in (
        ("soft", "Fused, soft", "every expert processes every token"),
        ("hard", "Fused, hard top-1", "each token is processed by one expert, which catches up when it is entered"),
    ):
        measured.append(bench.measure(lambda mode=mode: _routed(folder, device, mode)))  # type: ignore[misc]
        add(f"fused_{mode}", label, "fused", measured[-1], note)
    return measured[0], measured[1]


def _curve(folder: Path) -> list[dict[str, float | None]]:
    """Return the training curve that the fused checkpoint holds."""
    path = folder / "training.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["curve"]
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"{path}: no training curve ({error}); run train-adapters-and-routers") from error
    names = ("loss", "lm", "balance", "entropy", "adapter")
    return [
        {"step": int(e["step"]), **{n: e.get(n, 0.0) for n in names}, "validation": e.get("validation")}
        for e in entries
        if "loss" in e
    ]
