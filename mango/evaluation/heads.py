"""The evaluation of fused models that are no causal language models, each by the measure of its task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mango import console
from mango.blocks import load_source
from mango.checkpoints import open_model
from mango.corpus import CorpusParams, Examples, ImageReader, examples, image_examples, mistakes, predictions
from mango.errors import EvaluationError
from mango.evaluation.metrics import Estimate, mean_of, ratio
from mango.evaluation.params import EvaluateParams
from mango.evaluation.routing import RoutingTotals
from mango.evaluation.speed import PeakMemory, relative_time, seconds
from mango.evaluation.subjects import Subjects, merge_facts, saved_models
from mango.evaluation.work import operations
from mango.fusion import MolPreTrainedModel, MolRowModel

Row = dict[str, Any]

UNITS = {
    "masked-lm": "bits_per_byte",
    "seq2seq-lm": "bits_per_byte",
    "sentence-embedding": "share_of_texts_not_found",
    "image-classification": "share_of_images_mistaken",
}
"""What each task is measured in; less is better."""

NOTES = {
    "masked-lm": "each token masked once, all others of its neighbourhood seen",
    "seq2seq-lm": "each text is continued from its beginning; the cost counts decoders; operations count encoders too",
    "image-classification": "the most probable class is the answer",
    "sentence-embedding": "the right half of each text is looked for among those of its domain",
}


@dataclass
class _Answers:
    """What one system says of the examples of each domain, and what that took."""

    said: dict[str, Tensor]
    cost: dict[str, float]
    relative_time: float | None = None
    peak_memory_mb: float | None = None
    totals: dict[str, RoutingTotals] = field(default_factory=dict)
    flops: float | None = None


@dataclass(frozen=True)
class _Bench:
    task: str
    texts: Mapping[str, Examples]
    params: EvaluateParams
    device: torch.device
    trunk: nn.Module

    def batch(self) -> dict[str, Tensor]:
        first = next(iter(self.texts.values())).batches(self.params.batch_size)
        batch = {name: value.to(self.device) for name, value in next(first).items()}
        if self.task != "seq2seq-lm":  # whose targets are made of labels
            del batch["labels"]
        return {name: value.flatten(0, 1) if value.ndim == 3 else value for name, value in batch.items()}

    def work(self, model: nn.Module) -> float:
        """Return the floating-point operations of a model for each token, or image, of some examples of each domain."""
        total, number = 0.0, 0
        for own in self.texts.values():
            some = own.select(torch.arange(min(len(own), self.params.counted_sequences)))
            total += operations(lambda some=some: predictions(self.task, model, some, batch_size=1))  # type: ignore[misc]
            number += sum(_tokens(batch) for batch in some.batches(1))
        return total / number

    def measure(self, load: Callable[[], nn.Module]) -> _Answers:
        memory = PeakMemory(self.device)
        model = load()
        batch = self.batch()
        with torch.no_grad():
            model(**batch)
            peak = memory.read()
            time = relative_time(
                lambda: model(**batch), lambda: self.trunk(**batch), self.params.speed_repeats, self.device
            )
        answers = _Answers({}, {}, time, peak, flops=self.work(model))
        for domain, own in self.texts.items():
            totals = RoutingTotals(model) if isinstance(model, MolPreTrainedModel) else None

            def watch(output: Any, inputs: dict[str, Tensor], totals: RoutingTotals | None = totals) -> None:
                if totals is not None:
                    totals.add(output, int(output.routing[0].present.sum()) if output.routing else _tokens(inputs))

            answers.said[domain] = predictions(self.task, model, own, batch_size=self.params.batch_size, watch=watch)
            answers.cost[domain] = 1.0 if totals is None else totals.cost()
            if totals is not None:
                answers.totals[domain] = totals
        return answers


def _tokens(inputs: Mapping[str, Tensor]) -> int:
    first = next(iter(inputs.values()))
    return len(first) if first.is_floating_point() else first.numel()  # images, or tokens


def evaluate_head(
    fused: MolRowModel,
    subjects: Subjects,
    corpus: CorpusParams,
    params: EvaluateParams,
    reader: PreTrainedTokenizerBase | ImageReader,
    *,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Measure every system, and return what depends on the task of ``reports/evaluation.json``.

    Args:
        fused: the fused model.
        subjects: where what is compared lies.
        corpus: the corpus.
        params: how systems are compared.
        reader: the models' tokenizer, or how they want their pixels.
        seed: of the test examples.
        device: where models run.

    Raises:
        EvaluationError: a system gives no finite figures, or there is too little text.
        CheckpointError: a model cannot be read.
    """
    task = fused.task
    if isinstance(reader, ImageReader):
        every = image_examples(corpus, "test", reader, per_domain=params.sequences, seed=seed, evaluated=True)
    else:
        every = examples(task, corpus, "test", reader, per_domain=params.sequences, seed=seed, evaluated=True)
    texts = {domain: every.of(domain) for domain in every.domains}
    short = [domain for domain, own in texts.items() if len(own) < 2 * own.group]
    if short:
        raise EvaluationError(
            f"{corpus.path}: the test split has fewer than two texts for {', '.join(short)}: lower "
            "corpus.sequence_length or add text"
        )
    names = list(dict.fromkeys(expert.source for expert in fused.layout.experts))
    trunk = load_source(subjects.store, names[0], device=device)
    bench = _Bench(task, texts, params, device, trunk)
    batch = bench.batch()
    with torch.no_grad():
        speed = _tokens(batch) / seconds(lambda: trunk(**batch), params.speed_repeats, device)
    rows: list[Row] = []

    def add(name: str, label: str, kind: str, answers: _Answers, note: str) -> None:
        wrong = {domain: mistakes(task, said, texts[domain]) for domain, said in answers.said.items()}
        rows.append(_row(name, label, kind, wrong, answers, texts, speed, note))
        console.note(f"{label}: {rows[-1]['pure_mean']:.3f} {UNITS[task].replace('_', ' ')}")

    single: list[_Answers] = []
    for place, name in enumerate(names):
        single.append(bench.measure(lambda name=name: load_source(subjects.store, name, device=device)))  # type: ignore[misc]
        if place == 0:
            add("trunk", f"Trunk ({name})", "trunk", single[0], "the model that the fused one falls back on")
        else:
            add(f"expert_{name}", f"Expert {name}", "expert", single[-1], "one source model, alone")
    best = min(rows, key=lambda row: row["pure_mean"])
    note = "the source model with the lowest mean over domains"
    rows.insert(
        1, {**best, "name": "best_single", "label": f"Best single model ({best['label']})", "kind": "expert",
            "note": note}
    )  # fmt: skip
    for name, label, kind, folder, words in saved_models(subjects):
        add(name, label, kind, bench.measure(lambda folder=folder: _opened(folder, task, device)), words)  # type: ignore[misc]
        if kind == "merge":
            rows[-1]["merge"] = merge_facts(folder)
    number = float(len(single))
    if len(single) > 1 and task != "sentence-embedding":  # vectors of different models have no mean
        whole = {domain: torch.stack([answers.said[domain] for answers in single]) for domain in texts}
        mixed = {domain: torch.logsumexp(said.double(), 0) - math.log(number) for domain, said in whole.items()}
        asked = {domain: (said[0] != 0) for domain, said in whole.items()}
        mixed = {domain: said * asked[domain] for domain, said in mixed.items()}
        cost = dict.fromkeys(texts, number)
        add("ensemble_uniform", "Ensemble, uniform", "ensemble", _Answers(mixed, cost),
            "mean of all source models' distributions")  # fmt: skip
    rows.append(_oracle(task, single, texts))
    modes: dict[str, _Answers] = {}
    for mode, label, words in (
        ("soft", "Fused, soft", "every expert processes every row"),
        ("hard", "Fused, hard", "each row is processed by the one expert that its router chooses"),
    ):
        modes[mode] = bench.measure(lambda mode=mode: _fused(subjects, mode, device))  # type: ignore[misc]
        add(f"fused_{mode}", label, "fused", modes[mode], f"{words}; {NOTES[task]}")
    own = next((router.selection for router in fused.iter_routers()), None)
    if own is not None and own.k not in (None, 1):  # neither all of them nor one
        answers = bench.measure(lambda: _fused(subjects, None, device))
        add("fused_as_routed", f"Fused, up to {own.k} experts", "fused", answers,
            f"each row is processed by the {own.k} experts at most that its router chooses; {NOTES[task]}")  # fmt: skip
    return {"domains": list(texts), "systems": rows, "units": UNITS[task], "soft": modes["soft"].totals,
            "hard": modes["hard"].totals, "examples": texts,
            "sources": {expert.name: expert.source for expert in fused.layout.experts}}  # fmt: skip


def _opened(folder: Any, task: str, device: torch.device) -> nn.Module:
    source = {"sentence-embedding": "masked-lm"}.get(task, task)
    model = open_model(folder, dtype=torch.float32, task=source)
    nn.Module.to(model, device)
    if isinstance(model, MolPreTrainedModel):
        model.set_routing("soft")
    return model


def _fused(subjects: Subjects, mode: str | None, device: torch.device) -> nn.Module:
    model = open_model(subjects.fused)
    assert isinstance(model, MolPreTrainedModel)
    nn.Module.to(model, device)
    model.set_routing(mode)
    return model


def _grouped(values: Tensor, group: int) -> Tensor:
    return values.view(-1, group).sum(1)


def _row(
    name: str,
    label: str,
    kind: str,
    wrong: Mapping[str, Tensor],
    answers: _Answers,
    texts: Mapping[str, Examples],
    trunk_tokens_per_s: float,
    note: str,
) -> Row:
    pure: dict[str, Estimate] = {}
    for domain, own in texts.items():
        try:
            pure[domain] = ratio(_grouped(wrong[domain], own.group), _grouped(own.units, own.group))
        except EvaluationError as error:
            raise EvaluationError(f"{label}: {error}") from error
    mean = mean_of(pure)
    time = answers.relative_time
    return {
        "name": name,
        "label": label,
        "kind": kind,
        "pure": {domain: estimate.value for domain, estimate in pure.items()},
        "pure_mean": mean.value,
        "pure_se": mean.error,
        "switching": None,
        "switching_se": None,
        "cost": sum(answers.cost.values()) / len(answers.cost),
        "cost_switching": None,
        "flops": answers.flops,
        "flops_switching": None,
        "tokens_per_s": None if time is None else trunk_tokens_per_s / time,
        "peak_memory_mb": answers.peak_memory_mb,
        "note": note,
    }


def _oracle(task: str, single: list[_Answers], texts: Mapping[str, Examples]) -> Row:
    """Return the row of the best source model of each text, chosen with hindsight."""
    wrong: dict[str, Tensor] = {}
    for domain, own in texts.items():
        every = torch.stack([mistakes(task, answers.said[domain], own) for answers in single])
        best = every.view(len(single), -1, own.group).sum(-1).argmin(0).repeat_interleave(own.group)
        wrong[domain] = every[best, torch.arange(len(own))]
    answers = _Answers({}, dict.fromkeys(texts, 1.0))
    note = "the best source model of each text, chosen with hindsight: no real system"
    return _row("oracle_sequence", "Oracle, per text", "oracle", wrong, answers, texts, 0.0, note)
