"""Writing a mixture of experts, one tensor at a time."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mango.checkpoints import ModelSource, copy_tokenizer, replace_folder, write_file, write_tensors
from mango.errors import MergeError
from mango.surgery.lora.factors import seed_of
from mango.surgery.moe.document import BY_PROMPT, MoeDocument
from mango.surgery.moe.gates import make_gates, overlaps
from mango.surgery.moe.plan import MoePlan, Part, plan_moe
from mango.surgery.moe.targets import config_json
from mango.tensors import torch_dtype

DOCUMENT_NAME = "mango_moe.yaml"
DEGENERATE = 0.98
"""Cosine above which two experts' gates are called alike."""


@dataclass(frozen=True)
class MoeReport:
    """What an assembly did.

    Attributes:
        out: the folder written.
        architecture: class of the model.
        num_experts: experts of each layer, the shared one not counted.
        experts_per_token: how many of them process a token.
        num_tensors: tensors written.
        num_parameters: elements written.
        num_active_parameters: elements that process one token.
        num_bytes: size of the weights.
        gate_overlap: for each layer, the largest cosine between two experts' gates: near 1 they are hard to tell apart.
        seconds: wall-clock time.
        notes: what a person should know and is no error.
    """

    out: Path
    architecture: str
    num_experts: int
    experts_per_token: int
    num_tensors: int
    num_parameters: int
    num_active_parameters: int
    num_bytes: int
    gate_overlap: tuple[float, ...]
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {**asdict(self), "out": self.out.as_posix()}


def assemble(
    document: MoeDocument | Mapping[str, Any],
    out: Path | str,
    models: Mapping[str, ModelSource] | None = None,
    *,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    on_tensor: Callable[[int, int], None] | None = None,
) -> MoeReport:
    """Assemble dense models into a mixture of experts.

    The mixture has the base's embeddings, attention and norms; each expert's feed-forward layers become one expert of
    each layer, and a gate chooses among them.

    Args:
        document: what to assemble; a mapping is validated first.
        out: folder of the result; an older version is replaced in one step at the end.
        models: where named models are.
        cache: see :func:`mango.checkpoints.resolve`.
        device: where the base runs, for gates from hidden states.
        on_tensor: called with (tensors done, tensors in all).

    Returns:
        What was done.

    Raises:
        ConfigError: the document is wrong.
        MergeError: a model cannot be had, no architecture fits, or a weight is not finite.
        IncompatibleBlocksError: the models do not fit together.
        CheckpointError: a model is damaged, or the result cannot be written; an older version is intact.
    """
    start = time.monotonic()
    ready = plan_moe(document, models, cache=cache)
    gates = make_gates(ready.document, ready.document.experts, ready.base, device=device)
    shared_gates = _shared_gates(ready, device)
    parts = {part.spec.name: part for part in ready.parts}
    done = 0

    def produce(name: str) -> Tensor:
        nonlocal done
        done += 1
        if on_tensor is not None:
            on_tensor(done, len(parts))
        return _tensor(ready, parts[name], gates, shared_gates)

    with replace_folder(out) as folder:
        write_tensors(folder, [part.spec for part in ready.parts], produce)
        write_file(folder / "config.json", config_json(ready.config, ready.dtype))
        copy_tokenizer(ready.base.folder, folder)
        write_file(folder / DOCUMENT_NAME, _yaml(ready))
    overlap = tuple(overlaps(gates))
    facts = ready.to_dict()
    return MoeReport(
        out=Path(out),
        architecture=facts["architecture"],
        num_experts=facts["num_experts"],
        experts_per_token=facts["experts_per_token"],
        num_tensors=len(parts),
        num_parameters=ready.num_parameters,
        num_active_parameters=ready.num_active_parameters,
        num_bytes=ready.num_bytes,
        gate_overlap=overlap,
        seconds=time.monotonic() - start,
        notes=(*ready.notes, *_gate_notes(ready.document, overlap)),
    )


def _shared_gates(ready: MoePlan, device: torch.device | str) -> Tensor | None:
    """Return the gates of the shared expert, or None where it has no prompts: then it is always on."""
    shared = ready.document.shared_experts
    if not shared or ready.document.gate_mode not in BY_PROMPT or not any(shared[0].positive_prompts or ()):
        return None
    return make_gates(ready.document, shared, ready.base, device=device)


def _tensor(ready: MoePlan, part: Part, gates: Tensor, shared_gates: Tensor | None) -> Tensor:
    dtype = torch_dtype(part.spec.dtype)
    if part.gate is not None:
        own = shared_gates if part.shared else gates
        return torch.zeros(part.spec.shape, dtype=dtype) if own is None else own[part.gate].to(dtype)
    if part.model is None:
        return torch.zeros(part.spec.shape, dtype=dtype)
    tensor = ready.models[part.model].tensor(part.name)
    if tuple(tensor.shape) != part.spec.shape:
        wanted = list(part.spec.shape)
        raise MergeError(f"{part.name}: {list(tensor.shape)} in model {part.model!r}, {wanted} in the base")
    tensor = _changed(ready, part, tensor, shared_gates is None)
    return _finite(part, tensor.to(dtype))


def _changed(ready: MoePlan, part: Part, tensor: Tensor, always_on: bool) -> Tensor:
    """Return an expert's weight with its noise and scale, in float32 where it has any."""
    entry = part.entry
    if entry is None:
        return tensor
    if entry.noise_scale:
        generator = torch.Generator().manual_seed(seed_of(part.spec.name, ready.document.seed))
        tensor = tensor.float() + entry.noise_scale * torch.randn(tensor.shape, generator=generator)
    if part.name.endswith("down_proj.weight"):
        scale = 1.0 if entry.residual_scale is None else entry.residual_scale
        if part.shared and always_on:
            scale *= 2.0  # its gate is zero, and the sigmoid of zero is a half
        if scale != 1.0:
            tensor = tensor.float() * scale
    return tensor


def _finite(part: Part, tensor: Tensor) -> Tensor:
    if not math.isfinite(float(tensor.float().abs().sum())) and not bool(torch.isfinite(tensor).all()):
        raise MergeError(
            f"{part.spec.name}: has elements that are not finite in {part.spec.dtype}: model {part.model!r} holds NaN "
            "or infinity there, or its values are too large for that type"
        )
    return tensor


def _gate_notes(document: MoeDocument, overlap: tuple[float, ...]) -> list[str]:
    if document.gate_mode in ("uniform",):
        return []
    alike = [index for index, cosine in enumerate(overlap) if cosine > DEGENERATE]
    if not alike:
        return []
    layers = f"{len(alike)} of {len(overlap)} layers"
    return [
        f"two experts' gates point the same way in {layers} (cosine above {DEGENERATE}): give prompts that differ more"
    ]


def _yaml(ready: MoePlan) -> str:
    from ruamel.yaml import YAML

    stream = io.StringIO()
    for name, model in ready.models.items():
        stream.write(f"# {name}: {model.source.source}\n")
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 4096
    data = ready.document.model_dump(mode="json", exclude_none=True)
    data["architecture"] = ready.target.name
    writer.dump(data, stream)
    return stream.getvalue()
