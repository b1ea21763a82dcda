"""What an assembly will write, worked out from headers alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mango.blocks import read_config
from mango.checkpoints import ModelSource, TensorSpec, tokenizer_sha256
from mango.errors import CheckpointError, IncompatibleBlocksError, MangoError, MergeError
from mango.surgery.moe.document import ExpertEntry, MoeDocument, parse_moe_mapping
from mango.surgery.moe.targets import SHARED_NOTHING, Target, choose_target, named_target
from mango.surgery.opened import OpenedModel, open_model
from mango.tensors import dtype_name, parse_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Part:
    """Where a tensor of the mixture comes from.

    Attributes:
        spec: its name, type and shape.
        model: the model that gives it; None for a gate or zeros.
        name: its name there.
        entry: the expert whose scale and noise are applied to it, or None.
        gate: the layer whose gate it is, or None.
        shared: whether it belongs to the shared expert.
    """

    spec: TensorSpec
    model: str | None = None
    name: str = ""
    entry: ExpertEntry | None = None
    gate: int | None = None
    shared: bool = False


@dataclass(frozen=True)
class MoePlan:
    """A mixture that is ready to be written.

    Attributes:
        document: what was asked for.
        target: its architecture.
        config: its configuration.
        models: the dense models, the base first.
        parts: what will be written, in order.
        dtype: type of its weights, as ``config.json`` names it.
        notes: what a person should know and is no error.
    """

    document: MoeDocument
    target: Target
    config: PretrainedConfig
    models: Mapping[str, OpenedModel]
    parts: tuple[Part, ...]
    dtype: str
    notes: tuple[str, ...]

    @property
    def base(self) -> OpenedModel:
        """The base model."""
        return self.models[self.document.base_model]

    @property
    def num_parameters(self) -> int:
        """Elements that will be written."""
        return sum(part.spec.num_elements for part in self.parts)

    @property
    def num_active_parameters(self) -> int:
        """Elements that process one token."""
        chosen = [p for p in self.parts if p.entry is not None and not p.shared]
        idle = sum(p.spec.num_elements for p in chosen)
        return self.num_parameters - idle + idle * self.document.experts_per_token // len(self.document.experts)

    @property
    def num_bytes(self) -> int:
        """Size of the weights."""
        return sum(part.spec.num_bytes for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON."""
        return {
            "architecture": str((self.config.architectures or [self.target.name])[0]),
            "models": {name: model.source.source for name, model in self.models.items()},
            "num_experts": len(self.document.experts),
            "experts_per_token": self.document.experts_per_token,
            "gate_mode": self.document.gate_mode,
            "num_tensors": len(self.parts),
            "num_parameters": self.num_parameters,
            "num_active_parameters": self.num_active_parameters,
            "num_bytes": self.num_bytes,
            "notes": list(self.notes),
        }


def plan_moe(
    document: MoeDocument | Mapping[str, Any],
    models: Mapping[str, ModelSource] | None = None,
    *,
    cache: Path | None = None,
) -> MoePlan:
    """Work out a mixture without reading a weight.

    Args:
        document: what to assemble; a mapping is validated first.
        models: where named models are.
        cache: see :func:`mango.checkpoints.resolve`.

    Returns:
        The plan.

    Raises:
        ConfigError: the document is wrong.
        MergeError: a model cannot be had, or no architecture fits; one line for each problem.
        IncompatibleBlocksError: the models do not fit together; one line for each problem.
    """
    document = document if isinstance(document, MoeDocument) else parse_moe_mapping(document)
    opened: dict[str, OpenedModel] = {}
    problems = []
    for reference in document.references():
        try:
            opened[reference] = open_model(reference, models, cache=cache)
        except MangoError as error:
            problems.append(f"model {reference!r}: {error}")
    if problems:
        raise MergeError("\n".join(problems))
    if problems := list(_misfits(document, opened)):
        raise IncompatibleBlocksError("\n".join(problems))
    base = opened[document.base_model]
    dense = read_config(base.config, str(base.folder))
    target = _target(document, dense)
    config = target.configure(dense, document)
    word = document.dtype or str(base.config.get("dtype") or base.config.get("torch_dtype") or "float32")
    dtype = parse_dtype(word)
    parts = tuple(_parts(document, base, target, dtype_name(dtype)))
    notes = tuple(_notes(document, opened))
    return MoePlan(document, target, config, opened, parts, str(dtype).removeprefix("torch."), notes)


def _misfits(document: MoeDocument, opened: Mapping[str, OpenedModel]) -> Iterator[str]:
    base = opened[document.base_model]
    for reference, model in opened.items():
        if model.parts.model_type != base.parts.model_type:
            yield (
                f"model {reference!r} is of type {model.parts.model_type}, the base {base.reference!r} of "
                f"{base.parts.model_type}: experts must be of the base's architecture"
            )
            continue
        fields = ("width", "num_blocks", "intermediate_size")
        wrong = [
            f"{field} {getattr(model.parts, field)} against {getattr(base.parts, field)}"
            for field in fields
            if getattr(model.parts, field) != getattr(base.parts, field)
        ]
        if wrong:
            yield f"model {reference!r} does not fit the base {base.reference!r}: {'; '.join(wrong)}"


def _target(document: MoeDocument, dense: PretrainedConfig) -> Target:
    kind, shared = str(dense.model_type), document.shared_experts or ()
    named = None if document.architecture is None else named_target(document.architecture)
    target = named if isinstance(named, Target) else choose_target(kind, shared=bool(shared))
    if target is None:
        what = " with shared experts" if shared else ""
        raise MergeError(
            f"models of type {kind}{what} cannot become a mixture; wanted llama or mistral (Mixtral, or Qwen MoE "
            "with a shared expert), qwen2 (Qwen MoE) or qwen3 (Qwen3 MoE, without shared experts)"
        )
    problems = []
    if kind not in target.dense:
        problems.append(f"{target.name} cannot be made of {kind} models; wanted {', '.join(sorted(target.dense))}")
    if shared and not target.shared:
        problems.append(f"{target.name} has no shared expert: leave shared_experts out, or use Qwen MoE")
    if len(shared) > 1:
        problems.append(f"shared_experts: {len(shared)} of them; {target.name} has one")
    if getattr(dense, "mlp_bias", False):
        problems.append(f"{target.name} has no biases in its experts, these models have (mlp_bias)")
    if getattr(dense, "attention_bias", False) and target.model_type != "qwen3_moe":
        problems.append(f"{target.name} cannot hold the biases of these models' attention (attention_bias)")
    if problems:
        raise MergeError("\n".join(problems))
    return target


def _parts(document: MoeDocument, base: OpenedModel, target: Target, dtype: str) -> Iterator[Part]:
    layers = [base.parts.block_prefix(index)[:-1] for index in range(base.parts.num_blocks)]
    feed_forward = re.compile(rf"{re.escape(base.parts.blocks_path)}\.\d+\.mlp\.")
    for name, source in base.tensors.items():
        if not feed_forward.match(name):
            yield Part(TensorSpec(name, dtype, source.shape), document.base_model, name)
    for index, layer in enumerate(layers):
        width = base.parts.width
        gate_shape = (len(document.experts), width)
        yield Part(TensorSpec(target.gate_tensor(layer), dtype, gate_shape), gate=index)
        for number, entry in enumerate(document.experts):
            for projection in PROJECTIONS:
                own = f"{layer}.mlp.{projection}.weight"
                spec = TensorSpec(target.expert_tensor(layer, number, projection), dtype, base.tensors[own].shape)
                yield Part(spec, entry.source_model, own, entry)
        if target.shared:
            yield from _shared_parts(document, base, layer, index, dtype)


def _shared_parts(document: MoeDocument, base: OpenedModel, layer: str, index: int, dtype: str) -> Iterator[Part]:
    width = base.parts.width
    yield Part(TensorSpec(f"{layer}.mlp.shared_expert_gate.weight", dtype, (1, width)), gate=index, shared=True)
    entry = document.shared_experts[0] if document.shared_experts else None
    for projection in PROJECTIONS:
        own = f"{layer}.mlp.{projection}.weight"
        name = f"{layer}.mlp.shared_expert.{projection}.weight"
        if entry is None:
            shape = (width, SHARED_NOTHING) if projection == "down_proj" else (SHARED_NOTHING, width)
            yield Part(TensorSpec(name, dtype, shape), shared=True)
        else:
            yield Part(TensorSpec(name, dtype, base.tensors[own].shape), entry.source_model, own, entry, shared=True)


def _notes(document: MoeDocument, opened: Mapping[str, OpenedModel]) -> Iterator[str]:
    base = opened[document.base_model]
    sources = {(opened[entry.source_model].folder, opened[entry.source_model].adapter) for entry in document.experts}
    if len(document.experts) > 1 and len(sources) == 1 and not any(entry.noise_scale for entry in document.experts):
        yield "all experts are one model: whatever the gate chooses, the result is that model until it is trained"
    wanted = _vocabulary(base)
    for reference, model in opened.items():
        if _vocabulary(model) != wanted:
            yield f"the tokenizer of {reference!r} is not the base's: its layers learned other tokens"
    count = len(document.experts)
    if count & (count - 1):
        yield f"{count} experts are no power of two, which llama.cpp wants"


def _vocabulary(model: OpenedModel) -> str | None:
    try:
        return tokenizer_sha256(model.folder)
    except CheckpointError:
        return None
