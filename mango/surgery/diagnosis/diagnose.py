"""Measuring models against each other, one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from mango.checkpoints import ModelSource, open_tokenizer, tokenizer_sha256
from mango.errors import CheckpointError, DataError, IncompatibleBlocksError, MangoError, MergeError
from mango.surgery.diagnosis.deltas import SPECTRUM, TensorMeasure, measure_tensor
from mango.surgery.diagnosis.findings import findings_of
from mango.surgery.diagnosis.result import PARTS, Diagnosis, Summary, summarise_spectra
from mango.surgery.diagnosis.states import cka, state_grams
from mango.surgery.lora.factors import seed_of
from mango.surgery.opened import OpenedModel, open_model

_FLOATS = {"F64", "F32", "F16", "BF16"}
_SEQUENCE = 256


def diagnose(
    references: list[str],
    base: str | None = None,
    models: Mapping[str, ModelSource] | None = None,
    *,
    text: str | None = None,
    num_tokens: int = 512,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    on_tensor: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Measure how models differ, before they are merged.

    Weights are read tensor by tensor. With text, one model at a time is run on it.

    Args:
        references: the models; see :func:`mango.surgery.opened.open_model`.
        base: what they were tuned from; without one their weights are compared instead of what they learned.
        models: where named models are.
        text: text to compare the models' states on.
        num_tokens: most tokens of it.
        cache: see :func:`mango.checkpoints.resolve`.
        device: where models run.
        on_tensor: called with (tensors done, tensors in all).

    Returns:
        The diagnosis.

    Raises:
        MergeError: a model cannot be had, there is too little to compare, or a weight is not finite.
        IncompatibleBlocksError: the models are of different architectures.
        DataError: the text has too few tokens.
    """
    named = [*references, *([] if base is None else [base])]
    if len(set(named)) < max(2, len(named)):
        raise MergeError("a diagnosis compares at least two different models (or one with its --base), each named once")
    opened: dict[str, OpenedModel] = {}
    problems = []
    for reference in named:
        try:
            opened[reference] = open_model(reference, models, cache=cache)
        except MangoError as error:
            problems.append(f"model {reference!r}: {error}")
    if problems:
        raise MergeError("\n".join(problems))
    _check_architectures(list(opened.values()))
    tensors, skipped = _measure(opened, references, base, on_tensor)
    aligned, notes = _states(opened, references, base, text, num_tokens, device)
    count = len(references)
    groups: dict[tuple[int, str], list[TensorMeasure]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.block, tensor.part), []).append(tensor)
    parts = {
        key: Summary.of(groups[key], count) for key in sorted(groups, key=lambda key: (key[0], PARTS.index(key[1])))
    }
    num_blocks = opened[references[0]].parts.num_blocks
    blocks = tuple(Summary.of([t for t in tensors if t.block == index], count) for index in range(num_blocks))
    whole = Summary.of(tensors, count)
    spectra = tuple(summarise_spectra(tensors, index) for index in range(count))
    overlap, by_chance = _overlap(tensors, count)
    state_models = ([] if base is None else [base]) + references if aligned else []
    short = _short_names(named)
    findings = tuple(
        findings_of(
            [short[name] for name in references], base, whole, blocks, spectra, overlap, by_chance, aligned,
            [(short[a], short[b]) for a, b in combinations(state_models, 2)],
        )
    )  # fmt: skip
    return Diagnosis(
        models=tuple(references),
        base=base,
        architecture=opened[references[0]].parts.architecture,
        whole=whole,
        blocks=blocks,
        parts=parts,
        tensors=tuple(tensors),
        spectra=spectra,
        overlap=overlap,
        overlap_by_chance=by_chance,
        cka=tuple(tuple(row) for row in aligned),
        cka_models=tuple(state_models),
        num_tokens=0 if not aligned else num_tokens,
        skipped=tuple(skipped),
        findings=findings,
        notes=tuple(notes),
    )


def _short_names(references: list[str]) -> dict[str, str]:
    """Return each reference's last part, where that is enough to tell them apart."""
    short = {reference: Path(reference).name or reference for reference in references}
    return short if len(set(short.values())) == len(short) else {reference: reference for reference in references}


def _check_architectures(opened: list[OpenedModel]) -> None:
    first = opened[0]
    wrong = [
        f"model {model.reference!r} is a {model.parts.architecture} of {model.parts.num_blocks} blocks and width "
        f"{model.parts.width}, {first.reference!r} a {first.parts.architecture} of {first.parts.num_blocks} and "
        f"{first.parts.width}: tensors of one architecture can be compared"
        for model in opened[1:]
        if (model.parts.architecture, model.parts.num_blocks, model.parts.width)
        != (first.parts.architecture, first.parts.num_blocks, first.parts.width)
    ]
    if wrong:
        raise IncompatibleBlocksError("\n".join(wrong))


def _measure(
    opened: Mapping[str, OpenedModel],
    references: list[str],
    base: str | None,
    on_tensor: Callable[[int, int], None] | None,
) -> tuple[list[TensorMeasure], list[tuple[str, str]]]:
    names = list(dict.fromkeys(name for model in opened.values() for name in model.tensors))
    found: list[TensorMeasure] = []
    skipped: list[tuple[str, str]] = []
    lead = opened[references[0]]
    for done, name in enumerate(names, 1):
        reason = _incomparable(name, opened)
        if reason:
            skipped.append((name, reason))
        else:
            tensors = [opened[reference].tensor(name) for reference in references]
            origin = None if base is None else opened[base].tensor(name)
            block, part = _place(name, lead)
            found.append(measure_tensor(name, block, part, tensors, origin, seed=seed_of(name, 0)))
        if on_tensor is not None:
            on_tensor(done, len(names))
    if not found:
        raise MergeError(f"no tensor of {', '.join(references)} can be compared: {skipped[0][1]}")
    return found, skipped


def _incomparable(name: str, opened: Mapping[str, OpenedModel]) -> str | None:
    if lacking := [reference for reference, model in opened.items() if name not in model.tensors]:
        return f"{lacking[0]} has no such tensor"
    shapes = {model.tensors[name].shape: reference for reference, model in opened.items()}
    if len(shapes) > 1:
        return "; ".join(f"{list(shape)} in {reference}" for shape, reference in shapes.items())
    kinds = {model.tensors[name].dtype for model in opened.values()}
    return f"element type {sorted(kinds - _FLOATS)[0]}" if kinds - _FLOATS else None


def _place(name: str, lead: OpenedModel) -> tuple[int, str]:
    if name == lead.embeddings:
        return -1, "embedding"
    if lead.parts.head is not None and name.startswith(f"{lead.parts.head}."):
        return -1, "head"
    found = re.match(rf"{re.escape(lead.parts.blocks_path)}\.(\d+)\.", name)
    block = int(found[1]) if found else -1
    inner = name[found.end() :] if found else name
    if re.search(r"norm|(^|\.)ln", inner):
        return block, "norm"
    if re.search(r"attn|attention", inner):
        return block, "attention"
    return block, "feed-forward" if re.search(r"mlp|ffn|feed_forward|fc\d|experts|moe", inner) else "other"


def _overlap(tensors: list[TensorMeasure], count: int) -> tuple[tuple[float, ...], float]:
    """Return the mean overlap of leading directions by pair, and what random directions would have."""
    known = [tensor for tensor in tensors if tensor.overlaps]
    if not known:
        return (), 0.0
    pairs = count * (count - 1) // 2
    mean = tuple(sum(tensor.overlaps[i] for tensor in known) / len(known) for i in range(pairs))
    return mean, sum(min(SPECTRUM / tensor.num_rows, 1.0) for tensor in known) / len(known)


def _states(
    opened: Mapping[str, OpenedModel],
    references: list[str],
    base: str | None,
    text: str | None,
    num_tokens: int,
    device: torch.device | str,
) -> tuple[list[list[float]], list[str]]:
    if text is None:
        return [], ["states were not compared: give text"]
    order = ([] if base is None else [base]) + references
    try:
        vocabularies = {tokenizer_sha256(opened[name].folder) for name in order}
    except CheckpointError as error:
        return [], [f"states were not compared: {error}"]
    if len(vocabularies) > 1:
        return [], [
            "states were not compared: the models' vocabularies differ, so their tokens do not stand side by side"
        ]
    sequences = _sequences(opened[order[0]], text, num_tokens)
    grams = [_grams(opened[name], sequences, device) for name in order]
    blocks = len(grams[0])
    return [[cka(grams[i][b], grams[j][b]) for i, j in combinations(range(len(order)), 2)] for b in range(blocks)], []


def _sequences(model: OpenedModel, text: str, num_tokens: int) -> list[Tensor]:
    ids = open_tokenizer(model.folder)(text, add_special_tokens=False, verbose=False)["input_ids"]
    length = min(_SEQUENCE, model.parts.max_positions or _SEQUENCE)
    kept = torch.tensor(ids[:num_tokens])
    if len(kept) < 32:
        raise DataError(f"the text to compare states on has {len(kept)} tokens; wanted at least 32")
    return [part for part in torch.split(kept, length) if len(part) > 1]


def _grams(model: OpenedModel, sequences: list[Tensor], device: torch.device | str) -> list[Tensor]:
    loaded = model.load(device)
    return state_grams(loaded, model.parts.blocks_path, sequences)
