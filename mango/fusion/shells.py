"""Shells: a source model's own class, pruned to the part that a fused model uses.

A span runs inside its own model's forward pass, so masks, position embeddings and every other argument of its blocks
are made by the code that the blocks were trained with; nothing is rebuilt. What stands before the blocks gives way to
the states that come in, and what stands after them to the identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from mango.architectures import ComponentMap
from mango.architectures.tasks import IMAGE_TEXT, class_for
from mango.errors import ArchitectureError


class SpanCache(Cache):
    """Keys and values of a span's blocks; blocks keep their true index, so it subtracts that of the first."""

    def __init__(self, num_blocks: int, first: int) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(num_blocks)])
        self.first = first

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append keys and values of block `layer_idx` of the source model."""
        layer: Any = self.layers[layer_idx - self.first]
        return layer.update(key_states, value_states, *args, **kwargs)


class _Zeros(nn.Module):
    """Stands for an embedding whose output is replaced before the first block, whatever it is looked up with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(1, 1, self.width, device=ids.device)


class _Same(nn.Module):
    """Returns the states that it is given, first or by name, among whatever else."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["inputs_embeds"]


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
    own.tie_word_embeddings = False  # ties are the fused model's to make
    with _skeleton():
        model_class: Any = class_for(own, parts.task)
        model: PreTrainedModel = model_class(own)
    base = model.get_submodule(parts.base_prefix)
    blocks = base.get_submodule(parts.blocks)
    assert isinstance(blocks, nn.ModuleList)
    # Blocks are built in the whole model first, so that each has its true index, kind and scale.
    put(base, parts.blocks, nn.ModuleList(list(blocks)[start:stop]))
    if not whole:
        _drop_unreached(base, (*parts.before, parts.blocks, *parts.after), "")
    runner: Any = model.get_submodule(parts.stacks[0].root) if parts.task == IMAGE_TEXT else base
    for part in {id(c): c for c in (own, model.config, getattr(base, "config", own), runner.config)}.values():
        field = part.attribute_map.get("layer_types", "layer_types")
        computed = isinstance(getattr(type(part), field, None), property)  # follows from the number of blocks
        if getattr(part, "layer_types", None) and not computed:
            part.layer_types = list(part.layer_types)[start:stop] or list(part.layer_types)[:1]
        part.num_hidden_layers = max(1, stop - start)  # some divide by it
    return model


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


def _without_blocks(module: nn.Module, path: str) -> nn.Module:
    """Return a module that shares everything with `module` but has no blocks at `path`."""
    name, _, rest = path.partition(".")
    twin = copy(module)
    inner = _without_blocks(module.get_submodule(name), rest) if rest else nn.ModuleList()
    twin._modules = {**module._modules, name: inner}
    return twin


def _drop_before(base: nn.Module, parts: ComponentMap) -> None:
    for path in parts.before:
        module = base.get_submodule(path)
        put(base, path, _Zeros(module.embedding_dim) if isinstance(module, nn.Embedding) else _Same())


class Body(GradientCheckpointingLayer):
    """A span of a source model's blocks, run by the model's own forward pass.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
        start: its first block.
        stop: the block after its last.
        front: whether it starts from token ids, through the source model's own embedding.
    """

    whole = False
    """Whether a front keeps all that stands before the blocks, and not only what token ids go through."""

    def __init__(self, config: PretrainedConfig, parts: ComponentMap, start: int, stop: int, *, front: bool) -> None:
        super().__init__()
        if front and start:
            raise ArchitectureError(f"a span that starts at block {start} cannot start from token ids")
        base = pruned(config, parts, start, stop, whole=front and self.whole).get_submodule(parts.base_prefix)
        if not front:
            self.drop_before(base, parts)
        for path in parts.after:
            put(base, path, nn.Identity())
        self.base: PreTrainedModel = base  # type: ignore[assignment]
        self.front = front
        self.start = start
        self.width = parts.width
        self.num_blocks = stop - start
        self._blocks_path = parts.blocks
        self._incoming: Tensor | None = None
        first = base.get_submodule(parts.blocks).get_submodule("0")
        if not front:
            first.register_forward_pre_hook(self._inject, with_kwargs=True)
        self.frozen()

    def drop_before(self, base: nn.Module, parts: ComponentMap) -> None:
        """Let nothing run before the blocks."""
        _drop_before(base, parts)

    def _inject(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (self._incoming, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._incoming}

    def frozen(self) -> None:
        """Keep every weight as it is, and dropout off; gradients still flow through."""
        self.base.requires_grad_(False)
        self.base.train(False)

    def train(self, mode: bool = True) -> Body:
        """Set whether gradient checkpointing applies; the blocks themselves stay in evaluation mode."""
        self.training = mode
        self.base.train(False)
        return self

    def entrance(self, ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return what the source model hands to its first block; only for a front.

        Args:
            ids: token ids, ``[rows, length]``.
            position_ids: true positions, ``[rows, length]``.

        Returns:
            States ``[rows, length, width]``.
        """
        out = self.without_blocks()(input_ids=ids, position_ids=position_ids, use_cache=False)
        return out.last_hidden_state  # type: ignore[no-any-return]

    def without_blocks(self) -> nn.Module:
        """Return the source model with everything but its blocks."""
        return _without_blocks(self.base, self._blocks_path)

    def new_cache(self) -> SpanCache:
        """Return an empty cache for this span."""
        return SpanCache(self.num_blocks, self.start)

    def forward(self, inputs: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: SpanCache | None) -> Tensor:
        """Run the span.

        Args:
            inputs: token ids ``[rows, length]`` for a front, states ``[rows, length, width]`` otherwise.
            attention_mask: which of the cached and new tokens are real, ``[rows, cached + length]``.
            position_ids: true positions, ``[rows, length]``.
            cache: the span's cache, to which the new tokens are added.

        Returns:
            States that leave the last block, ``[rows, length, width]``.
        """
        self._incoming = None if self.front else inputs
        try:
            out = self.base(
                **{"input_ids" if self.front else "inputs_embeds": inputs},
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        finally:
            self._incoming = None
        return out.last_hidden_state  # type: ignore[no-any-return]


class Tail(nn.Module):
    """A source model's final norm and head, run by its own forward pass without blocks.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
    """

    inner_ties: dict[str, str]
    """Tensors of the model that are other tensors of it, by name."""

    def __init__(self, config: PretrainedConfig, parts: ComponentMap) -> None:
        super().__init__()
        self.inner_ties = {}
        if parts.head is None:
            raise ArchitectureError(f"{parts.architecture}: it has no output projection")
        model = pruned(config, parts, 0, 0)
        base = model.get_submodule(parts.base_prefix)
        _drop_before(base, parts)
        self.model = model
        self.head_path: str | None = parts.head
        self._incoming: Tensor | None = None
        first = base.get_submodule(parts.after[0]) if parts.after else model.get_submodule(parts.head)
        first.register_forward_pre_hook(self._inject)
        self.frozen()

    def _inject(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (self._incoming, *args[1:])

    def frozen(self) -> None:
        """Keep every weight as it is."""
        self.model.requires_grad_(False)
        self.model.train(False)

    def train(self, mode: bool = True) -> Tail:
        """Do nothing: norm and head stay in evaluation mode."""
        self.training = mode
        return self

    def forward(self, states: Tensor) -> Tensor:
        """Return logits ``[tokens, vocabulary]`` of states ``[tokens, width]``."""
        self._incoming = states.unsqueeze(1)
        try:
            # One token a row: no mask is built, and every row is a matrix row for the head.
            positions = torch.zeros(1, 1, dtype=torch.long, device=states.device)
            out = self.model(inputs_embeds=self._incoming, position_ids=positions, use_cache=False)
        finally:
            self._incoming = None
        return out.logits.squeeze(1)  # type: ignore[no-any-return]
