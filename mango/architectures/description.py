"""From a configuration to a map of the model's parts, by one general method for every family.

The model is built without weights, run once without data, and watched: the block list is the longest list of
modules that the forward pass goes through once and in order; what runs outside it is before or after.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mango.architectures.component_map import ComponentMap
from mango.architectures.meta import build_meta, run_meta
from mango.architectures.trace import Call, Trace, tracing
from mango.errors import ArchitectureError

_known: dict[tuple[type[PretrainedConfig], str], ComponentMap] = {}
_lock = threading.Lock()


def describe(config: PretrainedConfig) -> ComponentMap:
    """Return where the causal language model of a configuration keeps its parts.

    No weight is allocated, so a configuration of any size will do. Results are kept for each configuration.

    Args:
        config: configuration of any causal language model that ``transformers`` knows; it is not changed.

    Returns:
        The map of its parts.

    Raises:
        ArchitectureError: the model cannot be built or run, or its blocks are no single ordered list.
    """
    key = (type(config), config.to_json_string(use_diff=False))
    with _lock:
        if key not in _known:
            _known[key] = _describe(build_meta(config))
        return _known[key]


def _describe(model: PreTrainedModel) -> ComponentMap:
    where = f"{type(model).__name__} (model type {model.config.model_type!r})"
    embeddings = model.get_input_embeddings()
    embeddings_path = _path_of(model, embeddings, where)
    base_prefix = _base_prefix(model, embeddings_path, where)
    base = model.get_submodule(base_prefix)
    with tracing(base) as trace:
        output = run_meta(model)
    blocks_path = _find_blocks(base, trace, where)
    blocks = base.get_submodule(blocks_path)
    assert isinstance(blocks, nn.ModuleList)
    before, after = _around(base, trace, blocks_path, len(blocks), where)

    text = model.config.get_text_config()
    first_block = f"{blocks_path}.0"
    width = _width(trace.calls[trace.first(first_block)], where)
    num_kv_heads, head_dim = _cached_heads(output, where)
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embeddings_weight = _weight(embeddings)
    if embeddings_weight is None:
        raise ArchitectureError(f"{where}: its input embedding is a {type(embeddings).__name__} without a weight")
    return ComponentMap(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        base_prefix=base_prefix,
        blocks=blocks_path,
        block_class="|".join(sorted({type(block).__name__ for block in blocks})),
        num_blocks=len(blocks),
        width=width,
        num_heads=_num_heads(text, where),
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=_intermediate_size(text, base.get_submodule(first_block), trace, first_block, width),
        vocab_size=embeddings_weight.shape[0],
        max_positions=_positive(text, "max_position_embeddings"),
        embeddings=embeddings_path,
        before=before,
        after=after,
        head=None if head is None else _path_of(model, head, where),
        tied=head is not None and _is_tied(model, head, embeddings_weight),
    )


def _is_tied(model: PreTrainedModel, head: nn.Module, embeddings_weight: torch.Tensor) -> bool:
    # While a model is being loaded, transformers puts off tying; what it is going to tie is known by then.
    path = next(path for path, module in model.named_modules() if module is head)
    return _weight(head) is embeddings_weight or f"{path}.weight" in model.all_tied_weights_keys


def _base_prefix(model: PreTrainedModel, embeddings: str, where: str) -> str:
    """Return the attribute that holds the base model: the declared one, else the child that holds the embeddings."""
    declared = model.base_model_prefix
    if declared and isinstance(getattr(model, declared, None), nn.Module):
        return declared
    child, _, inner = embeddings.partition(".")
    if not inner:
        raise ArchitectureError(f"{where}: it has no base model, neither under its prefix {declared!r} nor elsewhere")
    return child


def _find_blocks(base: nn.Module, trace: Trace, where: str) -> str:
    counts = trace.count()
    order: dict[str, int] = {}
    for position, call in enumerate(trace.calls):
        order.setdefault(call.path, position)
    candidates: list[str] = []
    reasons: list[str] = []
    for path, module in base.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        if any(path.startswith(f"{outer}.") for outer in candidates):
            continue  # a list inside a block, such as its experts
        entries = [f"{path}.{index}" for index in range(len(module))]
        starts = [order[entry] for entry in entries if entry in order]
        if not starts:
            continue  # this list is not on the way from token ids to logits
        if len(starts) < len(entries):
            reasons.append(f"{path}: {len(entries) - len(starts)} of {len(entries)} entries did not run")
        elif any(counts[entry] > 1 for entry in entries):
            reasons.append(f"{path}: entries run more than once")
        elif starts != sorted(starts):
            reasons.append(f"{path}: entries do not run in their order")
        else:
            candidates.append(path)
    if not candidates:
        found = "; ".join(reasons) or "no list of modules runs"
        raise ArchitectureError(f"{where}: no block list: wanted a list whose entries run once and in order; {found}")
    # max() keeps the first of equals, so the order of definition decides last.
    return max(candidates, key=lambda path: (_length(base, path), _num_parameters(base.get_submodule(path))))


def _length(base: nn.Module, path: str) -> int:
    blocks = base.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    return len(blocks)


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _around(
    base: nn.Module, trace: Trace, blocks: str, num_blocks: int, where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules with parameters that run before the first block and after the last one."""
    ancestors = {""} | {blocks.rsplit(".", depth)[0] for depth in range(1, blocks.count(".") + 1)}
    first, last = trace.first(f"{blocks}.0"), trace.first(f"{blocks}.{num_blocks - 1}")
    before: dict[str, None] = {}
    after: dict[str, None] = {}
    for position, call in enumerate(trace.calls):
        outside = call.path not in ancestors and not call.path.startswith(f"{blocks}.")
        outermost = all(parent in ancestors for parent in call.parents)
        if not (outside and outermost and _num_parameters(base.get_submodule(call.path))):
            continue
        if position < first:
            before[call.path] = None
        elif position > last:
            after[call.path] = None
        else:
            raise ArchitectureError(f"{where}: {call.path} runs between the blocks of {blocks}, which must follow on")
    both = sorted(before.keys() & after.keys())
    if both:
        raise ArchitectureError(f"{where}: {', '.join(both)} runs both before and after the blocks of {blocks}")
    return tuple(before), tuple(after)


def _width(call: Call, where: str) -> int:
    if call.input_shape is None or call.output_shape is None or call.input_shape[-1] != call.output_shape[-1]:
        raise ArchitectureError(
            f"{where}: {call.path} reads {call.input_shape} and returns {call.output_shape}: "
            "wanted one residual stream of constant width"
        )
    return call.input_shape[-1]


def _cached_heads(output: Any, where: str) -> tuple[int, int]:
    """Return (heads, size of one head) of the first layer that cached keys of shape [batch, heads, tokens, size]."""
    cache = getattr(output, "past_key_values", None)
    for layer in getattr(cache, "layers", ()):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, torch.Tensor) and keys.ndim == 4:
            return keys.shape[1], keys.shape[3]
    raise ArchitectureError(f"{where}: no block cached keys of attention heads: it is no decoder, or has no attention")


def _num_heads(text: PretrainedConfig, where: str) -> int:
    heads = _positive(text, "num_attention_heads")
    if heads is None:
        raise ArchitectureError(f"{where}: its configuration gives no single num_attention_heads")
    return heads


def _positive(text: PretrainedConfig, name: str) -> int | None:
    try:
        value = getattr(text, name, None)
    except RuntimeError:  # the configuration says that layers differ in it
        return None
    return value if isinstance(value, int) and value > 0 else None


def _intermediate_size(
    text: PretrainedConfig, block: nn.Module, trace: Trace, block_path: str, width: int
) -> int | None:
    """Return the inner width: the configuration's, else what the block's last projection to ``width`` reads."""
    declared = _positive(text, "intermediate_size")
    if declared is not None:
        return declared
    for call in reversed(trace.inside(block_path)):
        weight = _weight(block.get_submodule(call.path.removeprefix(f"{block_path}.")))
        if weight is not None and weight.ndim == 2 and call.input_shape is not None and call.output_shape is not None:
            return call.input_shape[-1] if call.output_shape[-1] == width else None
    return None


def _weight(module: nn.Module | None) -> torch.Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) else None


def _path_of(model: nn.Module, wanted: nn.Module, where: str) -> str:
    for path, module in model.named_modules():
        if module is wanted:
            return str(path)
    raise ArchitectureError(f"{where}: its {type(wanted).__name__} embedding is not among its own modules")
