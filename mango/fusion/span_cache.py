"""What the blocks of a span keep between steps: layers of the kinds that their own model's cache would have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
    get_layer_types_and_kwargs,
)

LayerMaker = Callable[[], Any]


class _Nothing:
    """Stands for the layer of a block that is not in the span; newer releases of transformers have such a class too."""

    supports_early_init = False
    is_compileable = is_croppable = is_initialized = True
    is_sliding = False
    keys = values = None

    def reset(self) -> None:
        """Do nothing, as the others do."""

    def crop(self, tokens_to_remove: int) -> None: ...
    def reorder_cache(self, beam_idx: Tensor) -> None: ...
    def batch_repeat_interleave(self, repeats: int) -> None: ...
    def batch_select_indices(self, indices: Tensor) -> None: ...


class InputsLayer(_Nothing):
    """Keeps what a span was given, ``[rows, length, ...]``: the span reads all of it again in each step."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None

    def update(self, inputs: Tensor) -> Tensor:
        """Add new inputs, and return all."""
        self.inputs = inputs if self.inputs is None else torch.cat([self.inputs, inputs], 1)
        return self.inputs


class SpanCache(Cache):
    """What a span's blocks keep.

    Blocks keep their true index, so layers that hold nothing stand for those before the first.

    Args:
        layers: one for each block of the span, or the same number for each.
        first: number of layers before them.
    """

    def __init__(self, layers: Sequence[Any], first: int) -> None:
        before: list[Any] = [_Nothing() for _ in range(first)]
        super().__init__(layers=[*before, *layers])
        self.first = first
        self.columns = 0
        self.positions: Tensor | None = None

    @property
    def own(self) -> list[Any]:
        """The layers of the span's blocks."""
        return list(self.layers[self.first :])

    def note(self, position_ids: Tensor) -> None:
        """Note that tokens at these positions (``[rows, length]``) have been added to every layer."""
        self.columns += position_ids.shape[1]
        before = [] if self.positions is None else [self.positions]
        self.positions = torch.cat([*before, position_ids], 1)

    def key_positions(self, position_ids: Tensor) -> Tensor:
        """Return the positions of the cached tokens and of new ones, ``[rows, cached + length]``."""
        return position_ids if self.positions is None else torch.cat([self.positions, position_ids], 1)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at these indices, in that order."""
        super().batch_select_indices(indices)
        if self.positions is not None:
            self.positions = self.positions.index_select(0, indices)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that a layer has seen, one with keys of its own even while it is being filled."""
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        return layer.get_seq_length() if isinstance(layer, DynamicLayer) and layer.is_initialized else self.columns

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the length of keys with the new tokens, and their offset: every layer keeps all."""
        return self.columns + query_length, 0


def layer_makers(config: PretrainedConfig, num_blocks: int, start: int, stop: int) -> tuple[list[LayerMaker], int]:
    """Return what makes the cache layers of a span, and how many layers stand before them.

    Layers with a window keep all keys, since a window counts what a row has processed, and rows are packed anew.

    Args:
        config: configuration of the source model.
        num_blocks: number of its blocks.
        start: the span's first block.
        stop: the block after its last.
    """
    text = config.get_text_config(decoder=True)
    kinds, given = get_layer_types_and_kwargs(text)
    # In older releases (transformers 5.17) one mapping holds the arguments of all layers.
    arguments: list[dict[str, Any]] = [given] * len(kinds) if isinstance(given, dict) else given
    if len(kinds) < num_blocks or len(kinds) % num_blocks:
        return [DynamicLayer] * (stop - start), start
    each = len(kinds) // num_blocks
    chosen = range(each * start, each * stop)
    return [_maker(kinds[i], arguments[i]) for i in chosen], each * start


def _maker(kind: str, arguments: dict[str, Any]) -> LayerMaker:
    known: type = DYNAMIC_LAYER_TYPE_MAPPING.get(kind, DynamicLayer)
    if issubclass(known, LinearAttentionCacheLayerMixin):
        both = issubclass(known, DynamicLayer)
        number = arguments.get("number_of_states", 1)
        return partial(LinearAttentionAndFullAttentionLayer if both else LinearAttentionLayer, number_of_states=number)
    # Layers with a window of their own kind are left to the check of a span with its cache.
    holds_all = issubclass(known, CacheLayerMixin) and not issubclass(known, DynamicSlidingWindowLayer)
    return known if holds_all else DynamicLayer


def keeps_state(makers: Sequence[LayerMaker]) -> bool:
    """Tell whether one of the layers keeps a state that every token changes, padding among them."""
    return any(isinstance(make(), LinearAttentionCacheLayerMixin) for make in makers)


def keeps_state_alone(makers: Sequence[LayerMaker]) -> bool:
    """Tell whether every one of the layers keeps such a state and no keys beside it."""
    return all(type(make()) is LinearAttentionLayer for make in makers)
