"""From a fine-tuned model and its base to an adapter that peft opens, one tensor at a time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mango.checkpoints import ModelSource, TensorSpec, copy_tokenizer, replace_folder, write_file, write_tensors
from mango.checkpoints.reader import SINGLE_NAME
from mango.errors import CheckpointError, MergeError
from mango.surgery.lora.factors import factorise, seed_of
from mango.surgery.lora.pairs import Pair, check_same_shape, differing
from mango.surgery.lora.params import ExtractionParams
from mango.surgery.lora.peft_files import ADAPTER_NAME, CONFIG_NAME, PREFIX, REPORT_NAME, adapter_config, tensor_names
from mango.surgery.lora.spill import Spill
from mango.surgery.opened import OpenedModel, open_model
from mango.tensors import parse_dtype

OnLayer = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerReport:
    """What became of one tensor that differs.

    Attributes:
        name: its name in the model.
        kind: ``linear``, ``transposed`` or ``embedding`` (factors), ``full`` or ``bias`` (stored as it is), or
            ``left out``.
        shape: its extents.
        rank: of the factors; 0 where there are none.
        norm: Frobenius norm of the difference.
        error: norm of what the adapter leaves out, over ``norm``; 0 where the tensor is stored as it is.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rank: int
    norm: float
    error: float


@dataclass(frozen=True)
class AdapterReport:
    """What an extraction did.

    Attributes:
        out: the folder written.
        layers: every tensor that differs.
        error: norm of all that is left out over the norm of the whole difference.
        num_parameters: elements of the adapter.
        num_bytes: size of its weights.
        seconds: wall-clock time.
    """

    out: Path
    layers: tuple[LayerReport, ...]
    error: float
    num_parameters: int
    num_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {**asdict(self), "out": self.out.as_posix()}


def extract_adapter(
    finetuned: str,
    base: str,
    out: Path | str,
    params: ExtractionParams | None = None,
    models: Mapping[str, ModelSource] | None = None,
    *,
    cache: Path | None = None,
    on_layer: OnLayer | None = None,
) -> AdapterReport:
    """Write the difference of two models as a LoRA adapter: base and adapter together are the fine-tuned model.

    Linear layers become factors of least error, by a randomised singular value decomposition of their difference.
    Biases and what has no two sides (norms) are stored as they are. What is equal costs nothing.

    Args:
        finetuned: the model to express: a name from ``models``, a folder, or a Hub id.
        base: the model that it was tuned from; the adapter names it.
        out: folder of the adapter; an older version is replaced in one step at the end.
        params: what to extract, and how closely.
        models: where named models are.
        cache: see :func:`mango.checkpoints.resolve`.
        on_layer: called with (tensors done, tensors in all).

    Returns:
        The report, which also lies in the folder as ``mango_extraction.json``.

    Raises:
        IncompatibleBlocksError: the models do not have the same tensors.
        MergeError: the models are equal, no tensor is taken, or a difference is not finite.
        CheckpointError: a model cannot be read, or the result cannot be written; an older version is intact.
    """
    start = time.monotonic()
    params = params or ExtractionParams()
    tuned, origin = (open_model(reference, models, cache=cache) for reference in (finetuned, base))
    check_same_shape(tuned, origin)
    if params.embeddings == "lora" and origin.parts.tied and not origin.parts.embeddings.endswith("embed_tokens"):
        raise MergeError(
            f"{base}: ties its head to {origin.parts.embeddings}, and peft ties factors only where that is called "
            "embed_tokens; store the embedding whole (embeddings: full)"
        )
    pairs = differing(tuned, origin, params)
    if not pairs:
        raise MergeError(f"{finetuned}: every tensor equals that of {base}; there is nothing to extract")
    if all(pair.kind == "left out" for pair in pairs):
        raise MergeError(f"{finetuned}: include, exclude and embeddings leave out all {len(pairs)} tensors that differ")
    layers: list[LayerReport] = []
    with replace_folder(out) as folder, Spill(folder) as spill:
        for pair in pairs:
            layers.append(_work(pair, tuned, origin, params, spill))
            if on_layer is not None:
                on_layer(len(layers), len(pairs))
        num_parameters, num_bytes = _write(folder, pairs, layers, tuned, origin, params, spill)
        report = AdapterReport(
            out=Path(out),
            layers=tuple(layers),
            error=_overall(layers),
            num_parameters=num_parameters,
            num_bytes=num_bytes,
            seconds=time.monotonic() - start,
        )
        write_file(
            folder / REPORT_NAME, json.dumps({**report.to_dict(), "out": None, "seconds": None}, indent=1) + "\n"
        )
    return replace(report, seconds=time.monotonic() - start)


def _work(pair: Pair, tuned: OpenedModel, origin: OpenedModel, params: ExtractionParams, spill: Spill) -> LayerReport:
    new, old = tuned.tensor(pair.name), origin.tensor(pair.name)
    shape = tuple(new.shape)
    difference = new.float() - old.float()
    norm = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    if not math.isfinite(norm):
        raise MergeError(f"{pair.name}: one of the models holds NaN or infinity there")
    if pair.kind in ("full", "bias", "left out"):
        return LayerReport(pair.name, pair.kind, shape, 0, norm, 1.0 if pair.kind == "left out" else 0.0)
    if pair.kind in ("transposed", "embedding"):
        difference = difference.T
    factors = factorise(
        difference,
        rank=params.rank,
        energy=params.kept_energy,
        scale=params.alpha or float(params.rank),
        dtype=parse_dtype(params.dtype),
        seed=seed_of(pair.name, params.seed),
    )
    if not (bool(torch.isfinite(factors.up).all()) and bool(torch.isfinite(factors.down).all())):
        raise MergeError(f"{pair.name}: its factors are too large for {params.dtype}; use bfloat16 or float32")
    down, up = tensor_names(pair)
    spill.put(down, factors.down)
    spill.put(up, factors.up)
    if pair.kind == "embedding" and origin.parts.tied and pair.name == origin.embeddings:
        spill.put(f"{PREFIX}.{origin.parts.head}.lora_A.weight", factors.up.T)  # peft asks for both ends of a tie
        spill.put(f"{PREFIX}.{origin.parts.head}.lora_B.weight", factors.down.T)
    return LayerReport(pair.name, pair.kind, shape, factors.rank, norm, factors.error / norm)


def _write(
    folder: Path,
    pairs: list[Pair],
    layers: list[LayerReport],
    tuned: OpenedModel,
    origin: OpenedModel,
    params: ExtractionParams,
    spill: Spill,
) -> tuple[int, int]:
    stored = {tensor_names(pair)[0]: pair.name for pair in pairs if pair.kind in ("full", "bias")}
    if origin.parts.tied and origin.embeddings in stored.values():
        stored[f"{PREFIX}.{origin.parts.head}.weight"] = origin.embeddings
    specs = [
        *spill.specs(),
        *(TensorSpec(name, tuned.tensors[own].dtype, tuned.tensors[own].shape) for name, own in stored.items()),
    ]

    def produce(name: str) -> torch.Tensor:
        return tuned.tensor(stored[name]) if name in stored else spill.get(name)

    write_tensors(folder, specs, produce, max_shard_bytes=1 << 62)
    (folder / SINGLE_NAME).rename(folder / ADAPTER_NAME)
    ranks = {pair.module: layer.rank for pair, layer in zip(pairs, layers, strict=True) if layer.rank}
    config = adapter_config(pairs, ranks, params, origin)
    write_file(folder / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")
    try:
        copy_tokenizer(tuned.folder, folder, generation_config=False)
    except CheckpointError:
        if (tuned.folder / "tokenizer.json").exists():
            raise  # there is one, and it cannot be copied
    return sum(spec.num_elements for spec in specs), sum(spec.num_bytes for spec in specs)


def _overall(layers: list[LayerReport]) -> float:
    left = math.fsum((layer.norm * layer.error) ** 2 for layer in layers)
    return math.sqrt(left / math.fsum(layer.norm**2 for layer in layers))
