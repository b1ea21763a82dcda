"""What each block was given and what it returned, captured by hooks and never rebuilt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mango.architectures.component_map import ComponentMap
from mango.architectures.description import describe
from mango.errors import ArchitectureError


@dataclass(frozen=True)
class BlockCall:
    """One call of one block.

    Args:
        args: positional arguments, tensors copied as they were before the block ran.
        kwargs: keyword arguments, likewise.
        output: what the block returned (a tensor, or a tuple that begins with one), tensors copied.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class _Copies:
    """Copies of tensors, one for each version, so that a mask shared by all blocks is copied once."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}

    def of(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            known = self._copies.get(id(value))
            if known is None or known[1] != value._version:
                # The original is kept too: while it lives, its id stands for no other tensor.
                known = (value, value._version, value.detach().clone())
                self._copies[id(value)] = known
            return known[2]
        if isinstance(value, tuple) and type(value) is tuple:
            return tuple(self.of(item) for item in value)
        if type(value) is list:
            return [self.of(item) for item in value]
        if type(value) is dict:
            return {key: self.of(item) for key, item in value.items()}
        return value


def block_list(model: PreTrainedModel, components: ComponentMap | None = None) -> nn.ModuleList:
    """Return the block list of a causal language model.

    Args:
        model: a causal language model.
        components: its map, where it is known already.

    Returns:
        The model's own list, not a copy.

    Raises:
        ArchitectureError: the model has no such list.
    """
    components = components or describe(model.config)
    try:
        blocks = model.get_submodule(components.blocks_path)
    except AttributeError as error:
        raise ArchitectureError(
            f"{type(model).__name__} has no {components.blocks_path}: wanted a {components.architecture}"
        ) from error
    if not isinstance(blocks, nn.ModuleList):
        raise ArchitectureError(f"{type(model).__name__}: {components.blocks_path} is a {type(blocks).__name__}")
    return blocks


def capture_block_calls(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> list[BlockCall]:
    """Run a causal language model once and return what each block was given and returned.

    The model runs in the mode it is in, without gradient and without a cache.

    Args:
        model: a causal language model with its weights.
        input_ids: token ids of shape ``[batch, tokens]``.
        attention_mask: 1 where a token counts, of shape ``[batch, tokens]``.
        position_ids: positions of shape ``[batch, tokens]``.

    Returns:
        One call for each block, in order.

    Raises:
        ArchitectureError: the model has no block list, or a block did not run exactly once.
    """
    blocks = block_list(model)
    copies = _Copies()
    given: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    calls: list[BlockCall] = []
    handles = []

    def enter(index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given[index] = (copies.of(args), copies.of(kwargs))

        return hook

    def leave(index: int) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            args, kwargs = given.pop(index)
            if len(calls) != index:
                raise ArchitectureError(f"{type(model).__name__}: block {index} ran after {len(calls)} others")
            calls.append(BlockCall(args, kwargs, copies.of(output)))

        return hook

    optional = {"attention_mask": attention_mask, "position_ids": position_ids}
    inputs = {name: value for name, value in optional.items() if value is not None}
    for index, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(enter(index), with_kwargs=True))
        handles.append(block.register_forward_hook(leave(index)))
    try:
        with torch.no_grad():
            model(input_ids=input_ids, use_cache=False, **inputs)
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != len(blocks):
        raise ArchitectureError(f"{type(model).__name__}: {len(calls)} of {len(blocks)} blocks ran")
    return calls
