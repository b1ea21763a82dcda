"""Which tensors of a checkpoint are which block and which are edges, checked against the model itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

from mango.architectures import ComponentMap, build_meta, describe
from mango.architectures.handlers import handler_for
from mango.architectures.meta import is_unsaved
from mango.architectures.screening import unknown_type
from mango.blocks.conversion import Conversion, plan
from mango.blocks.quick import Layout
from mango.checkpoints import Checkpoint, TensorInfo
from mango.errors import ArchitectureError, CheckpointError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a checkpoint has for its model, before tensors that must be computed have a place.

    Args:
        components: map of the model's parts.
        model: the model without weights.
        places: where each tensor that is stored as the model has it lies, by its name in the model.
        conversions: how the others are made.
    """

    components: ComponentMap
    model: PreTrainedModel
    places: dict[str, TensorInfo]
    conversions: tuple[Conversion, ...]


def read_config(raw: dict[str, Any], where: str) -> PretrainedConfig:
    """Return the configuration object of a ``config.json``.

    Args:
        raw: content of the file.
        where: the file or model, for messages.

    Returns:
        An object of the model type's own class.

    Raises:
        ArchitectureError: this ``transformers`` knows no such model type, or refuses the content.
    """
    model_type = raw.get("model_type")
    if isinstance(model_type, str) and model_type not in CONFIG_MAPPING:
        handler_for(model_type)  # a package that brings the type registers it when its handler is looked up
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise unknown_type(model_type, where, sorted(CONFIG_MAPPING.keys()))
    try:
        # Infinite limits are written as objects, since JSON has no word for them.
        config = CONFIG_MAPPING[model_type].from_dict(PretrainedConfig._decode_special_floats(dict(raw)))
    except (TypeError, ValueError, LookupError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ArchitectureError(f"{where}: transformers refuses this configuration: {reason}") from error
    assert isinstance(config, PretrainedConfig)
    return config


def plan_layout(checkpoint: Checkpoint) -> Plan:
    """Return where a checkpoint has each tensor of its model, and which have to be computed.

    Args:
        checkpoint: an opened model folder.

    Returns:
        The plan; every tensor that the model needs is in it once, with the shape that the model has.

    Raises:
        ArchitectureError: the model's blocks cannot be found.
        CheckpointError: a tensor is missing or has another shape, the weights are quantised, or a tied head
            differs from the embedding.
    """
    folder = checkpoint.folder
    raw = checkpoint.config()
    if raw.get("quantization_config") is not None:
        raise CheckpointError(
            f"{folder}: the weights are quantised, and blocks are stored as floating point; "
            "dequantise the model and save it first"
        )
    config = read_config(raw, str(folder / "config.json"))
    components = describe(config)
    model = build_meta(config, components.task)
    wanted: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    names, conversions = plan(checkpoint, model)
    found = _match(checkpoint, model, wanted, names, components, conversions)
    return Plan(components, model, found, tuple(c for c in conversions if set(c.shapes) & set(wanted)))


def lay_out(checkpoint: Checkpoint) -> Layout:
    """Return which tensors of a checkpoint that stores every tensor as its model has it are which block.

    Args:
        checkpoint: an opened model folder.

    Raises:
        ArchitectureError: the model's blocks cannot be found, or blocks share a tensor.
        CheckpointError: a tensor is missing, has another shape or has to be computed from several, the weights are
            quantised, or a tied head differs from the embedding.
    """
    found = plan_layout(checkpoint)
    if found.conversions:
        raise CheckpointError(
            f"{checkpoint.folder}: it stores {found.conversions[0].name!r} in {len(found.conversions[0].sources)} "
            "pieces; extract it with --mode copy, and use the folder in the block store"
        )
    return fill_layout(found, {}, str(checkpoint.folder))


def fill_layout(plan: Plan, computed: dict[str, TensorInfo], where: str) -> Layout:
    """Return which tensors are which block and which are edges.

    Args:
        plan: where tensors lie.
        computed: where those that had to be computed were written, by their names in the model.
        where: the model folder, for messages.

    Raises:
        ArchitectureError: blocks share a tensor with another part.
    """
    components, model = plan.components, plan.model
    wanted = model.state_dict(keep_vars=True)
    found = plan.places | computed
    blocks: list[tuple[str, dict[str, TensorInfo]]] = []
    block_modules = model.get_submodule(components.blocks_path)
    for index, block in enumerate(block_modules.children()):
        prefix = components.block_prefix(index)
        own = {name: found[name] for name in sorted(found) if name.startswith(prefix)}
        shared = [name for name in wanted if name.startswith(prefix) and name not in own]
        if shared:
            raise ArchitectureError(
                f"{where}: block {index} shares {shared[0]!r} with another part of the model, and a block is stored "
                "with weights of its own; models whose blocks share weights cannot be extracted"
            )
        blocks.append((type(block).__name__, own))
    edges = {name: found[name] for name in sorted(found) if not name.startswith(f"{components.blocks_path}.")}
    return Layout(components, tuple(blocks), edges)


def _match(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    wanted: dict[str, torch.Tensor],
    names_in_file: dict[str, str],
    components: ComponentMap,
    conversions: list[Conversion],
) -> dict[str, TensorInfo]:
    """Return where each distinct tensor of the model lies; tied names stand once, the embedding's or the first."""
    table = f"{components.embeddings}.weight"
    groups: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        groups.setdefault(id(tensor), []).append(name)
    found: dict[str, TensorInfo] = {}
    used: set[str] = {stored for conversion in conversions for _, stored in conversion.sources}
    computed = {name: shape for conversion in conversions for name, shape in conversion.shapes.items()}
    missing: list[str] = []
    for names in groups.values():
        made = next((name for name in names if name in computed), None)
        if made is not None:
            if computed[made] != tuple(wanted[made].shape):
                raise CheckpointError(
                    f"{checkpoint.folder}: what {made!r} is made of gives the shape {list(computed[made])}, but "
                    f"{components.architecture} wants {list(wanted[made].shape)}; the weights and the configuration do "
                    "not belong together"
                )
            continue
        stored = [place for name in names if (place := _place(names_in_file, name, components)) is not None]
        used.update(stored)
        if not stored:
            if not any(is_unsaved(model, name) for name in names):
                missing.append(names[0])
            continue
        _refuse_different(checkpoint, stored)
        info = checkpoint.info(stored[0])
        shape = tuple(wanted[names[0]].shape)
        if info.shape != shape:
            raise CheckpointError(
                f"{info.file}: {stored[0]!r} has shape {list(info.shape)}, but {components.architecture} of its "
                f"config.json wants {list(shape)}; the weights and the configuration do not belong together"
            )
        found[table if table in names else names[0]] = info
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.folder}: lacks tensor {missing[0]!r}{more} that {components.architecture} needs; "
            "the checkpoint is incomplete or stores this architecture in another layout"
        )
    surplus = sorted(set(checkpoint.names()) - used)
    if surplus:
        _log.info("%s: left out %d tensors that %s does not use, such as %r",
                  checkpoint.folder, len(surplus), components.architecture, surplus[0])  # fmt: skip
    return found


def _place(names_in_file: dict[str, str], name: str, components: ComponentMap) -> str | None:
    """Return the name under which a checkpoint keeps a tensor, saved by the model or by its base model alone."""
    return names_in_file.get(name) or names_in_file.get(name.removeprefix(f"{components.base_prefix}."))


def _refuse_different(checkpoint: Checkpoint, names: list[str]) -> None:
    first = checkpoint.info(names[0])
    for name in names[1:]:
        info = checkpoint.info(name)
        same_place = (info.file, info.start, info.end) == (first.file, first.start, first.end)
        if not same_place and not torch.equal(_bytes(checkpoint, names[0]), _bytes(checkpoint, name)):
            raise CheckpointError(
                f"{checkpoint.folder}: the configuration ties {name!r} to {names[0]!r}, but the checkpoint holds two "
                "different tensors; set tie_word_embeddings to false in its config.json, or save the model again"
            )


def _bytes(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return checkpoint.tensor(name).contiguous().view(-1).view(torch.uint8)
