"""What a span has kept of the tokens that it processed, row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from mango.fusion.runs import align_right
from mango.fusion.span_cache import SpanCache

if TYPE_CHECKING:
    from mango.fusion.shells import Body

_OF_TOKENS = {
    "keys": (0, 2),
    "values": (0, 2),
    "inputs": (0, 1),
    "idx_keys": (0, 2),
    "indexer_keys": (0, 1),
    "indexer_position_ids": (1, 2),
}
"""Tensors of cache layers that have a column for each token, with the dimensions of rows and columns."""
_OF_ROWS = ("conv_states", "recurrent_states")
"""Those of layers that keep a state: a tensor for each number of a state, which begins with rows."""


@dataclass
class LayerMemory:
    """What one cache layer holds.

    Args:
        tokens: tensors ``[rows, length, ...]`` by name, with a column for each token.
        states: tensors ``[rows, ...]`` by name and number.
    """

    tokens: dict[str, Tensor] = field(default_factory=dict)
    states: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: Any) -> LayerMemory:
        """Return what a layer holds."""
        memory = cls()
        for name, dims in _OF_TOKENS.items():
            value = getattr(layer, name, None)
            if isinstance(value, Tensor):
                memory.tokens[name] = value.movedim(dims, (0, 1))
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            for name in _OF_ROWS:
                held = getattr(layer, name)
                memory.states |= {(name, number): t for number, t in held.items() if isinstance(t, Tensor)}
        return memory

    def give(self, layer: Any) -> None:
        """Fill an empty layer."""
        values = {name: value.movedim((0, 1), _OF_TOKENS[name]) for name, value in self.tokens.items()}
        if "keys" in values:
            layer.lazy_initialization(values["keys"], values["values"])
        if "indexer_keys" in values:
            layer.lazy_initialization_indexer(values["indexer_keys"])
        for name, value in values.items():
            setattr(layer, name, value)
        for (name, number), state in self.states.items():
            getattr(layer, name)[number] = state
            getattr(layer, f"is_{name}_initialized")[number] = True
            layer.has_previous_state[number] = True
            layer.dtype, layer.device = state.dtype, state.device
            if name == "conv_states":
                layer.conv_kernel_size[number] = state.shape[-1]


@dataclass
class SpanMemory:
    """What a span keeps: of each row the tokens that it processed, packed to the right, and its state after the last.

    Args:
        layers: what each cache layer holds.
        positions: true positions of the tokens, ``[rows, length]``.
        valid: which columns are tokens, ``[rows, length]``; None before the first.
    """

    layers: list[LayerMemory] = field(default_factory=list)
    positions: Tensor | None = None
    valid: Tensor | None = None

    def load(self, body: Body, rows: Tensor) -> tuple[SpanCache, Tensor | None]:
        """Return a cache that holds these rows, and which of its columns are tokens (None when there is none).

        A row that has no token yet gets a state of zeros, which is how every state begins.

        Args:
            body: the span.
            rows: indices of rows, sorted.
        """
        cache = body.new_cache()
        if self.valid is None or self.positions is None:
            return cache, None
        every = len(rows) == self.valid.shape[0]
        valid = self.valid if every else self.valid.index_select(0, rows)
        longest = int(valid.sum(1).max())
        if longest == 0:
            return cache, None
        first = valid.shape[1] - longest

        def cut(values: Tensor) -> Tensor:
            return (values if every else values.index_select(0, rows))[:, first:]

        for layer, memory in zip(cache.own, self.layers, strict=True):
            # States are copied, since layers write into them.
            states = {key: state.index_select(0, rows) for key, state in memory.states.items()}
            LayerMemory({name: cut(value) for name, value in memory.tokens.items()}, states).give(layer)
        cache.note(cut(self.positions))
        return cache, valid[:, first:]

    def store(self, cache: SpanCache, valid: Tensor, rows: Tensor, num_rows: int) -> None:
        """Take back the rows of a cache whose columns marked in `valid` are tokens."""
        order, packed = align_right(valid)
        moved = order.shape[1] != valid.shape[1] or not bool(valid.all())
        every = len(rows) == num_rows
        old_valid, length = self.valid, packed.shape[1]
        if not every:
            kept = torch.ones(num_rows, dtype=torch.bool, device=rows.device).index_fill(0, rows, False)
            length = max(length, 0 if old_valid is None else int(old_valid[kept].sum(1).max()))

        def columns(new: Tensor, old: Tensor | None) -> Tensor:
            if moved and new is not packed:
                index = order.view(*order.shape, *(1,) * (new.ndim - 2)).expand(-1, -1, *new.shape[2:])
                new = new.gather(1, index)
            if every:
                return new
            base = new.new_zeros(num_rows, length, *new.shape[2:])
            if old is not None:
                shared = min(length, old.shape[1])
                base[:, length - shared :] = old[:, old.shape[1] - shared :]
            base[rows, length - new.shape[1] :] = new
            base[rows, : length - new.shape[1]] = 0
            return base

        def state(new: Tensor, old: Tensor | None) -> Tensor:
            if every:
                return new
            base = new.new_zeros(num_rows, *new.shape[1:]) if old is None else old.clone()
            base[rows] = new
            return base

        olds = self.layers or [LayerMemory() for _ in cache.own]
        assert cache.positions is not None
        self.valid, self.positions = columns(packed, old_valid), columns(cache.positions, self.positions)
        self.layers = [
            LayerMemory(
                {name: columns(value, old.tokens.get(name)) for name, value in new.tokens.items()},
                {key: state(value, old.states.get(key)) for key, value in new.states.items()},
            )
            for new, old in zip(map(LayerMemory.of, cache.own), olds, strict=True)
        ]

    def select(self, rows: Tensor) -> None:
        """Keep the rows at these indices, in that order."""
        if self.valid is None or self.positions is None:
            return
        self.valid, self.positions = self.valid.index_select(0, rows), self.positions.index_select(0, rows)
        self.layers = [
            LayerMemory(
                {name: value.index_select(0, rows) for name, value in layer.tokens.items()},
                {key: value.index_select(0, rows) for key, value in layer.states.items()},
            )
            for layer in self.layers
        ]

    def num_tokens(self) -> int:
        """Return how many tokens the span has kept, over all rows."""
        return 0 if self.valid is None else int(self.valid.sum())
