"""The tasks of lm-eval on every model that an evaluation compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mango import console
from mango.blocks import load_source
from mango.checkpoints import has_tokenizer, open_config, open_model, open_tokenizer
from mango.evaluation.harness.scoring import Harness, Scores, context_of
from mango.evaluation.subjects import Subjects, saved_models
from mango.fusion import MolForCausalLM
from mango.fusion.tasks import task_of_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def score_subjects(
    harness: Harness,
    subjects: Subjects,
    sources: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    task: str,
    device: torch.device,
) -> dict[str, Any]:
    """Score the fused model, and the models that a user would pick instead, on the same examples.

    Args:
        harness: the loaded tasks.
        subjects: where what is compared lies.
        sources: the source models by name, the trunk first.
        rows: the evaluated systems, among which ``best_single`` is one of the source models.
        task: what the fused model is for.
        device: where models run.

    Returns:
        The section ``lm_eval`` of ``reports/evaluation.json``.

    Raises:
        EvaluationError: a task fails on a model.
        CheckpointError: a model cannot be read.
    """
    labels = {row["name"]: str(row["label"]) for row in rows}
    found: dict[str, Scores] = {}
    longest = harness.params.max_length or context_of(open_config(subjects.fused))  # the least of all its sources
    for name, home, load in _models(harness, subjects, sources, task):
        model = load()
        nn.Module.to(model, device)  # the class's own `to` has no types
        model.train(False)
        found[name] = harness.run(model, open_tokenizer(home), max_length=longest)
        for line in found[name].lines():
            console.note(f"{labels.get(name, name)}: {line}")
    best = _best_single(rows)
    if best in found:
        found["best_single"] = found[best]
    return document(harness, found)


def document(harness: Harness, found: Mapping[str, Scores]) -> dict[str, Any]:
    """Return scores as a document.

    Args:
        harness: what they were made with.
        found: the scores of each system.
    """
    facts = ("task", "samples", "num_fewshot", "group")
    rows = [{"system": name, **asdict(score)} for name, scores in found.items() for score in scores.scores]
    first = next(iter(found.values())).scores
    tasks = {score.task: {fact: getattr(score, fact) for fact in facts} for score in first}
    return {
        "version": harness.version,
        "tasks": list(tasks.values()),
        "scores": [{key: value for key, value in row.items() if key not in facts[1:]} for row in rows],
        "truncated": {name: scores.truncated for name, scores in found.items() if scores.truncated},
    }


def _best_single(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the name of the source model that the evaluation found best."""
    single = [row for row in rows if row["kind"] in ("trunk", "expert") and row["name"] != "best_single"]
    return min(single, key=lambda row: row["pure_mean"])["name"] if single else None


def _models(
    harness: Harness, subjects: Subjects, sources: Sequence[str], task: str
) -> Iterator[tuple[str, Path, Callable[[], PreTrainedModel]]]:
    """Yield name, folder of the tokenizer and loader of every model that is asked for."""
    kinds = harness.params.systems

    def fused(mode: str) -> PreTrainedModel:
        model = open_model(subjects.fused)
        assert isinstance(model, MolForCausalLM)
        model.set_routing(mode)
        return model

    def saved(folder: Path) -> PreTrainedModel:
        model = open_model(folder, dtype=torch.float32, task=task_of_source(task, open_config(folder)))
        if isinstance(model, MolForCausalLM):
            model.set_routing("soft")
        return model

    if "fused" in kinds:
        for mode in dict.fromkeys(harness.params.routing):
            yield f"fused_{mode}", subjects.fused, lambda mode=mode: fused(mode)  # type: ignore[misc]
    for place, name in enumerate(sources):
        if ("expert" if place else "trunk") in kinds:
            home = subjects.store.tokenizer_folder(name)
            key = f"expert_{name}" if place else "trunk"
            yield key, home, lambda name=name: load_source(subjects.store, name)  # type: ignore[misc]
    for name, _, kind, folder, _ in saved_models(subjects):
        if kind in kinds:
            home = folder if has_tokenizer(folder) else subjects.fused  # merges and controls read as the trunk does
            yield name, home, lambda folder=folder: saved(folder)  # type: ignore[misc]
