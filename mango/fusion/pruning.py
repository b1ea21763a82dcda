"""A source model's own class without data, cut down to some of its blocks and what stands around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mango.architectures import ComponentMap
from mango.architectures.handlers import handler_for
from mango.architectures.tasks import IMAGE_TEXT, MASKED, class_for


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


@contextmanager
def _skeleton() -> Iterator[None]:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        yield


def pruned(
    config: PretrainedConfig, parts: ComponentMap, start: int, stop: int, *, whole: bool = False
) -> PreTrainedModel:
    """Return the model without data, with blocks ``start`` to ``stop - 1`` only.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
        start: its first block.
        stop: the block after its last.
        whole: whether to keep what is on no way from tokens to blocks, such as what reads images.
    """
    own = deepcopy(config)
    handler_for(parts.model_type).settle(own)
    own.tie_word_embeddings = False  # ties are the fused model's to make
    with _skeleton():
        model_class: Any = class_for(own, parts.task)
        model: PreTrainedModel = model_class(own)
    # What a model is told of ties it reads again in its forward pass: some scale what they give to a tied head.
    own.tie_word_embeddings = model.config.tie_word_embeddings = getattr(config, "tie_word_embeddings", False)
    for inner in model.modules():
        if isinstance(inner, PreTrainedModel):
            inner._tied_weights_keys = {}
    base = model.get_submodule(parts.base_prefix)
    blocks = base.get_submodule(parts.blocks)
    assert isinstance(blocks, nn.ModuleList)
    # Blocks are built in the whole model first, so that each has its true index, kind and scale.
    put(base, parts.blocks, nn.ModuleList(list(blocks)[start:stop]))
    if not whole:
        _drop_unreached(base, (*parts.before, parts.blocks, *parts.after), "")
    if (start, stop) == (0, len(blocks)):
        return model
    holders: list[Any] = [base.get_submodule(parts.blocks.rpartition(".")[0][:end]) for end in _ends(parts.blocks)]
    if parts.task == IMAGE_TEXT:
        holders.append(model.get_submodule(parts.stacks[0].root))
    _keep_tables(base, holders, parts.blocks)
    configs = [own, model.config, *(getattr(holder, "config", own) for holder in (base, *holders))]
    for part in {id(config): config for config in configs}.values():
        field = part.attribute_map.get("layer_types", "layer_types")
        computed = isinstance(getattr(type(part), field, None), property)  # follows from the number of blocks
        if getattr(part, "layer_types", None) and not computed:
            part.layer_types = list(part.layer_types)[start:stop] or list(part.layer_types)[:1]
        with suppress(NotImplementedError):  # it counts its blocks in another way, and does not look again
            part.num_hidden_layers = max(1, stop - start)  # some divide by it
    return model


def _keep_tables(base: nn.Module, holders: list[Any], blocks: str) -> None:
    """Let what makes tables of positions for the kinds of blocks see the configuration of all blocks."""
    copies: dict[int, Any] = {}
    for path, module in base.named_modules():
        if isinstance(module, PreTrainedModel) or module in holders or path.startswith(f"{blocks}."):
            continue
        if isinstance(getattr(module, "config", None), PretrainedConfig):
            module.config = deepcopy(module.config, copies)


def _ends(path: str) -> list[int]:
    """Return where each module that holds a path ends within it."""
    parent = path.rpartition(".")[0]
    return [i for i, letter in enumerate(f"{parent}.") if letter == "."] if parent else []


def _drop_unreached(module: nn.Module, kept: tuple[str, ...], path: str) -> None:
    """Take out what has weights and is on no way from tokens to blocks, such as a language model's vision tower."""
    for name, child in list(module.named_children()):
        here = f"{path}{name}"
        if here in kept:
            continue
        if any(other.startswith(f"{here}.") for other in kept):
            _drop_unreached(child, kept, f"{here}.")
        elif next(child.parameters(), None) is not None:
            setattr(module, name, nn.Identity())


def without_blocks(module: nn.Module, path: str) -> nn.Module:
    """Return a module that shares everything with `module` but has no blocks at `path`."""
    name, _, rest = path.partition(".")
    twin = copy(module)
    inner = without_blocks(module.get_submodule(name), rest) if rest else nn.ModuleList()
    twin._modules = {**module._modules, name: inner}
    return twin


def is_opaque(parts: ComponentMap) -> bool:
    """Tell whether no list of a model holds whole blocks that its stream goes through, so that it cannot be cut.

    Args:
        parts: where it keeps its parts; it is a masked language model.
    """
    return why_opaque(parts) is not None


def why_opaque(parts: ComponentMap) -> str | None:
    """Return why a masked language model cannot be cut, or None where it can.

    Args:
        parts: where it keeps its parts.
    """
    if parts.task != MASKED:
        return None
    main, *others = parts.stacks
    if main.between:
        return (
            f"{', '.join(main.between)} runs between the entries of {main.path}, which therefore are no whole blocks, "
            "and no span can be cut out of it"
        )
    around = [f"{main.root}.{path}".strip(".") for path in (*main.before, *main.after)]
    more = [other.path for other in others if any(path.startswith(f"{other.path}.") for path in around)]
    return f"its stream goes through {', '.join(more)} beside {main.path}" if more else None


def closed(parts: ComponentMap) -> ComponentMap:
    """Return the map of a model that is run whole: of one that cannot be cut, nothing stands behind its blocks.

    Args:
        parts: where it keeps its parts.
    """
    if not is_opaque(parts):
        return parts
    return replace(parts, before=(*parts.before, *parts.stacks[0].between, *parts.after), after=())
