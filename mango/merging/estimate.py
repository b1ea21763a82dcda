"""What a merge will take: disk, memory and time; and under which licences its models are."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mango.errors import MergeError
from mango.merging.combining import merge_piece, prepare
from mango.merging.inputs import Input
from mango.merging.outputs import COPY, OutputTensor
from mango.merging.plain import BYTES_OF_ELEMENT, PLAIN_BYTES, is_plain, seconds_per_element
from mango.merging.plan import MergePlan
from mango.merging.registry import MERGERS
from mango.merging.tensor_sources import Held, TensorSource
from mango.tensors import item_bytes, torch_dtype
from mango.tensors.pieces import wide_piece_elements

_PROCESS_BYTES = 120 << 20
_RUNNING_BYTES = 400 << 20
"""What transformers and the states of a small batch take."""

_DISK_BYTES_PER_S = 1e9
_SAMPLE_ELEMENTS = 2**16
_LICENCE = re.compile(r"^license:\s*[\"']?([\w.\-+ ]+?)[\"']?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Estimate:
    """What a merge is going to take.

    Attributes:
        disk_bytes: size of what is written.
        download_bytes: weights that are fetched from the Hub first.
        memory_bytes: about the most memory at a time, mapped files not counted.
        seconds: about how long it takes, downloads not counted.
        calibration_bytes: size of what is measured on text, which is gone at the end.
        calibration_seconds: about how long text is measured on, a part of ``seconds``.
        licences: the licence that each model's card names, by key; None where it names none.
    """

    disk_bytes: int
    download_bytes: int
    memory_bytes: int
    seconds: float
    calibration_bytes: int
    calibration_seconds: float
    licences: Mapping[str, str | None]


def estimate(plan: MergePlan, threads: int | None = None) -> Estimate:
    """Estimate a merge from its plan; every method in it is timed on a few random numbers.

    Args:
        plan: the merge.
        threads: how many threads will merge; as many as there are processors by default.
    """
    count = threads or len(os.sched_getaffinity(0))
    plain = is_plain(plan.tensors)
    rates = {method: _seconds_per_element(plan, method, plain) for method in plan.methods}
    compute = sum(rates.get(o.method, 1e-9) * o.spec.num_elements for o in plan.tensors) / count
    moved = (plan.read_bytes + plan.num_bytes) / _DISK_BYTES_PER_S
    remote = [model for model in plan.all_inputs() if model.remote]
    calibration = 0.0
    if plan.measurements or plan.quest is not None:
        flops = sum(one.num_flops for one in plan.measurements)
        flops += 0.0 if plan.quest is None else plan.quest.num_flops
        calibration = flops * _seconds_per_flop() + (0.0 if plan.quest is None else plan.quest.num_merges * compute)
    return Estimate(
        disk_bytes=plan.num_bytes,
        download_bytes=sum(tensor.read_bytes for model in remote for tensor in model.tensors.values()),
        memory_bytes=_plain_memory(plan, count) if plain else _memory(plan, count),
        seconds=round(max(compute, moved) + calibration + 0.5, 1),
        calibration_bytes=sum(one.num_bytes for one in plan.measurements),
        calibration_seconds=round(calibration, 1),
        licences={model.key: declared_licence(model) for model in plan.all_inputs()},
    )


def _plain_memory(plan: MergePlan, threads: int) -> int:
    largest = max(output.spec.num_elements for output in plan.tensors)
    return PLAIN_BYTES + threads * min(largest, wide_piece_elements()) * BYTES_OF_ELEMENT


def _memory(plan: MergePlan, threads: int) -> int:
    most = 0
    for output in plan.tensors:
        held = sum(source.held_bytes for source in output.inputs)
        if output.method == COPY or MERGERS[output.method].elementwise:
            piece = min(output.spec.num_elements, wide_piece_elements())
            work = threads * piece * 8 * (2 * len(output.inputs) + 2)
        else:
            work = output.spec.num_elements * 8 * (len(output.inputs) + 2)
        most = max(most, held + work)
    runs = [one.runnable for one in plan.measurements] + ([] if plan.quest is None else [plan.quest.runnable])
    run = max((one.num_parameters for one in runs), default=0)
    return _PROCESS_BYTES + (_RUNNING_BYTES if run else 0) + max(most, 4 * run) + (most if plan.quest else 0)


def _seconds_per_flop() -> float:
    """Time a product of two matrices in float32, as models run."""
    matrix = torch.ones(512, 512)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return best / (2 * 512**3)


def _seconds_per_element(plan: MergePlan, method: str, plain: bool) -> float:
    """Time a method on random numbers in the place of its first large tensor."""
    largest = max((o for o in plan.tensors if o.method == method), key=lambda output: output.spec.num_elements)
    size = min(largest.spec.num_elements, _SAMPLE_ELEMENTS)
    if plain:
        return seconds_per_element(largest, size)
    if not size:
        return 0.0
    shape = _small_shape(largest.spec.shape)
    generator = torch.Generator().manual_seed(0)

    def sample(name: str, dtype: str) -> Held:
        values = torch.randn(shape, generator=generator)
        return Held.of(name, values.to(torch_dtype(dtype)))

    spec = type(largest.spec)(largest.spec.name, largest.spec.dtype, shape)
    output = OutputTensor(
        spec=spec,
        method=method,
        sources=tuple((key, sample(source.name, source.dtype)) for key, source in largest.sources),
        base=None if largest.base is None else (largest.base[0], sample(spec.name, largest.base[1].dtype)),
        arguments=largest.arguments,
        seeds=largest.seeds,
        statistics=tuple(_statistic(source, shape, generator) for source in largest.statistics),
    )
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        try:
            merge_piece(prepare(output), 0, spec.num_elements)
        except MergeError:
            return 0.0  # it refuses random numbers; what it takes is then not known
        best = min(best, time.perf_counter() - start)
    # decomposing a matrix takes longer for each of its elements where there are more of them
    growth = (largest.spec.num_elements / size) ** 0.5 if MERGERS[method].statistics == "grams" else 1.0
    return growth * best / max(1, spec.num_elements)


def _statistic(source: TensorSource | None, shape: tuple[int, ...], generator: torch.Generator) -> TensorSource | None:
    if source is None:
        return None
    if source.dtype == "F32":  # Fisher information
        return Held.of(source.name, torch.rand(shape, generator=generator))
    return Held.of(source.name, torch.eye(shape[1], dtype=torch.float64))


def _small_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    extents = list(shape)
    while torch.Size(extents).numel() > _SAMPLE_ELEMENTS:
        largest = extents.index(max(extents))
        extents[largest] = max(1, extents[largest] // 2)
    return tuple(extents)


def declared_licence(model: Input) -> str | None:
    """Return the licence that a model's own card names, or None."""
    card = None if model.folder is None else model.folder / "README.md"
    if card is None or not card.is_file():
        return None
    text = card.read_bytes()[: 1 << 16].decode("utf-8", errors="replace")
    if not text.startswith("---"):
        return None
    found = _LICENCE.search(text.split("\n---", 1)[0])
    return found[1] if found else None


def describe(plan: MergePlan, taken: Estimate, out: Path) -> dict[str, Any]:
    """Return what a plan tells a person, as plain values for JSON.

    Args:
        plan: the merge.
        taken: what it takes.
        out: where it will be written.
    """
    widths = {model.key: _rows(model) for model in plan.all_inputs() if model.nested is None}
    return {
        "out": out.as_posix(),
        "method": ", ".join(plan.methods) or COPY,
        "models": {model.key: model.place for model in plan.all_inputs()},
        "num_tensors": len(plan.tensors),
        "num_parameters": plan.num_parameters,
        "num_bytes": plan.num_bytes,
        "dtypes": _counted(plan),
        "vocabularies": widths,
        "tokenizer": plan.tokenizer,
        "tied": plan.tied,
        "read_bytes": plan.read_bytes,
        "download_bytes": taken.download_bytes,
        "disk_bytes": taken.disk_bytes,
        "memory_bytes": taken.memory_bytes,
        "seconds": taken.seconds,
        "calibration": _calibration(plan),
        "calibration_bytes": taken.calibration_bytes,
        "calibration_seconds": taken.calibration_seconds,
        "licences": dict(taken.licences),
        "notes": list(plan.notes),
        "tensors": [
            {
                "name": output.spec.name,
                "dtype": output.spec.dtype,
                "shape": list(output.spec.shape),
                "method": output.method,
                "models": [key for key, _ in output.sources],
            }
            for output in plan.tensors
        ],
    }


def _calibration(plan: MergePlan) -> dict[str, str]:
    """Return what is measured on text, and how."""
    found = {}
    for one in plan.measurements:
        rows, tokens = one.text.input_ids.shape
        words = "Fisher information" if one.kind == "fishers" else "Gram matrices"
        found[f"{words} of {one.key!r}"] = f"{rows} sequences of {tokens} tokens"
    if plan.quest is not None:
        found["result"] = plan.quest.words
    return found


def _rows(model: Input) -> int | None:
    return None if model.embedding is None else model.tensors[model.embedding].shape[0]


def _counted(plan: MergePlan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for output in plan.tensors:
        size = output.spec.num_elements * item_bytes(output.spec.dtype)
        counts[output.spec.dtype] = counts.get(output.spec.dtype, 0) + size
    return counts
