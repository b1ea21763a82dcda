"""What the tensors of an expert are called in its source model, and which of them are one."""

from __future__ import annotations

from copy import deepcopy

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mango.architectures import ComponentMap, build_meta
from mango.fusion.seq2seq_shells import stack_parts


def source_names(fused: nn.Module, parts: ComponentMap, spans: list[tuple[int, int]]) -> dict[str, str]:
    """Return the name in the source model of every tensor that an expert has of it.

    Args:
        fused: the expert, with or without data.
        parts: the map of its source model.
        spans: first block and the one after the last, of each of its spans.
    """
    encodes = getattr(fused, "encoder", None) is not None
    own = stack_parts(parts, "decoder") if encodes else parts
    base = f"{own.base_prefix}." if own.base_prefix else ""
    names: dict[str, str] = {}
    for name in fused.state_dict():
        kind, _, rest = name.partition(".")
        if kind == "encoder":
            names[name] = f"{stack_parts(parts, 'encoder').base_prefix}.{rest.removeprefix('base.')}"
        elif kind == "tail":
            names[name] = rest.removeprefix("model.")
        elif kind == "bodies":
            number, _, inner = rest.partition(".base.")
            if inner.startswith(f"{own.blocks}."):
                index, _, leaf = inner.removeprefix(f"{own.blocks}.").partition(".")
                inner = f"{own.blocks}.{int(index) + spans[int(number)][0]}.{leaf}"
            names[name] = f"{base}{inner}"
    return names


def canonical(config: PretrainedConfig, parts: ComponentMap) -> tuple[dict[str, str], set[str]]:
    """Return the name that each tied tensor of a model really has, and the names of all its tensors.

    Args:
        config: the model's configuration.
        parts: where it keeps its parts.
    """
    model: PreTrainedModel = build_meta(deepcopy(config), parts.task)
    own: dict[str, str] = dict(model.all_tied_weights_keys)
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        own.setdefault(name, first.setdefault(id(tensor), own.get(name, name)))
    return own, set(model.state_dict())


def _lent(name: str, known: set[str], parts: ComponentMap) -> str:
    """Return the name of what a block has, or of what the model's first block has lent it."""
    prefix = f"{parts.blocks_path}."
    if name in known or not name.startswith(prefix):
        return name
    return f"{prefix}0.{name.removeprefix(prefix).partition('.')[2]}"


def true_names(
    fused: nn.Module, config: PretrainedConfig, parts: ComponentMap, spans: list[tuple[int, int]]
) -> dict[str, str]:
    """Return the true name in the source model of every tensor that an expert has of it; tied ones have one name.

    Args:
        fused: the expert.
        config: the source model's configuration.
        parts: where it keeps its parts.
        spans: first block and the one after the last, of each of its spans.
    """
    own, known = canonical(config, parts)
    found: dict[str, str] = {}
    for name, source in source_names(fused, parts, spans).items():
        there = _lent(source, known, parts)
        found[name] = own.get(there, there)
    return found


def shared_names(names: dict[str, str]) -> dict[str, str]:
    """Return, of tensors that are one in the source model, all but the first, with the name of the first.

    Args:
        names: from :func:`true_names`.
    """
    first: dict[str, str] = {}
    return {name: first[true] for name, true in names.items() if first.setdefault(true, name) != name}
