"""What a fused model keeps between the steps of a generation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mango.errors import ConfigError
from mango.fusion.routers import Selection
from mango.fusion.runs import align_right
from mango.fusion.shells import Body, SpanCache


@dataclass
class PositionMemory:
    """The last tokens that entered a fused position, for each row packed to the right.

    Args:
        states: incoming states, ``[rows, kept, width]``.
        ids: their token ids, ``[rows, kept]``.
        position_ids: their true positions, ``[rows, kept]``.
        valid: which columns hold a token, ``[rows, kept]``.
        routed: which expert each was routed to, ``[rows, kept, experts]``.
        processed: which expert has processed it, ``[rows, kept, experts]``.
        seen: tokens that have entered so far, ``[rows]``.
        prompt_sum: float64 sum of the states that a prompt pool has read, ``[rows, width]``.
        belief: float64 log-probabilities of the experts after the last token, ``[rows, experts]``.
        choice: the expert of the last token, ``[rows]``; before any, the number of experts.
    """

    states: Tensor
    ids: Tensor
    position_ids: Tensor
    valid: Tensor
    routed: Tensor
    processed: Tensor
    seen: Tensor
    prompt_sum: Tensor
    belief: Tensor
    choice: Tensor

    @classmethod
    def empty(cls, states: Tensor, num_experts: int, position_ids: Tensor) -> PositionMemory:
        """Return a memory of nothing for rows like those of `states` (``[rows, length, width]``)."""
        rows, _, width = states.shape
        none = torch.zeros(rows, 0, dtype=torch.long, device=states.device)
        flags = torch.zeros(rows, 0, num_experts, dtype=torch.bool, device=states.device)
        return cls(
            states[:, :0],
            none,
            position_ids[:, :0],
            none.bool(),
            flags,
            flags,
            torch.zeros(rows, dtype=torch.long, device=states.device),
            torch.zeros(rows, width, dtype=torch.float64, device=states.device),
            torch.full((rows, num_experts), -math.log(num_experts), dtype=torch.float64, device=states.device),
            torch.full((rows,), num_experts, device=states.device),
        )

    def keep(self, number: int) -> PositionMemory:
        """Return the memory of the last `number` tokens of each row, from one whose rows are single runs."""
        order, valid = align_right(self.valid)
        order, valid = order[:, -number:] if number else order[:, :0], valid[:, -number:] if number else valid[:, :0]

        def take(values: Tensor) -> Tensor:
            index = order.view(*order.shape, *(1,) * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
            return values.gather(1, index)

        return PositionMemory(
            take(self.states),
            take(self.ids),
            take(self.position_ids),
            valid,
            take(self.routed),
            take(self.processed),
            self.seen,
            self.prompt_sum,
            self.belief,
            self.choice,
        )

    def select(self, rows: Tensor) -> PositionMemory:
        """Return the memory of the rows at these indices, in that order."""
        return PositionMemory(**{f.name: getattr(self, f.name).index_select(0, rows) for f in fields(self)})


@dataclass
class SpanMemory:
    """Keys and values of one span, for each row those of the tokens that it processed, packed to the right."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    valid: Tensor | None = None

    def load(self, body: Body, rows: Tensor) -> tuple[SpanCache, Tensor | None]:
        """Return a cache that holds these rows, and which of its columns are tokens (None when there is none)."""
        cache = body.new_cache()
        if self.valid is None:
            return cache, None
        valid = self.valid.index_select(0, rows)
        longest = int(valid.sum(1).max())
        if longest == 0:
            return cache, None
        first = valid.shape[1] - longest
        layers: list[Any] = cache.layers
        for layer, keys, values in zip(layers, self.keys, self.values, strict=True):
            layer.update(keys.index_select(0, rows)[:, :, first:], values.index_select(0, rows)[:, :, first:])
        return cache, valid[:, first:]

    def store(self, cache: SpanCache, valid: Tensor, rows: Tensor, num_rows: int) -> None:
        """Take back the rows of a cache whose columns marked in `valid` are tokens."""
        order, packed = align_right(valid)
        moved = order.shape[1] != valid.shape[1] or not bool(valid.all())
        old_valid = self.valid
        old_length = 0 if old_valid is None else old_valid.shape[1]
        every = len(rows) == num_rows
        if every:
            length = packed.shape[1]
            self.valid = packed
        else:
            kept = torch.ones(num_rows, dtype=torch.bool, device=rows.device).index_fill(0, rows, False)
            others = 0 if old_valid is None else int(old_valid[kept].sum(1).max())
            length = max(packed.shape[1], others)
            base = packed.new_zeros(num_rows, length)
            if old_valid is not None:
                shared = min(length, old_length)
                base[:, length - shared :] = old_valid[:, old_length - shared :]
            base[rows] = torch.nn.functional.pad(packed, (length - packed.shape[1], 0))
            self.valid = base
        for kind in ("keys", "values"):
            olds: list[Tensor] = getattr(self, kind)
            news: list[Tensor] = []
            for number, layer in enumerate(cache.layers):
                new: Tensor = getattr(layer, kind)
                if moved:
                    new = new.gather(2, order[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3]))
                if not every:
                    base = new.new_zeros(num_rows, new.shape[1], length, new.shape[3])
                    if old_valid is not None:
                        shared = min(length, old_length)
                        base[:, :, length - shared :] = olds[number][:, :, old_length - shared :]
                    base[rows] = torch.nn.functional.pad(new, (0, 0, length - new.shape[2], 0))
                    new = base
                news.append(new)
            setattr(self, kind, news)

    def select(self, rows: Tensor) -> None:
        """Keep the rows at these indices, in that order."""
        if self.valid is not None:
            self.valid = self.valid.index_select(0, rows)
            self.keys = [keys.index_select(0, rows) for keys in self.keys]
            self.values = [values.index_select(0, rows) for values in self.values]

    def num_tokens(self) -> int:
        """Return how many tokens the span holds keys of, over all rows."""
        return 0 if self.valid is None else int(self.valid.sum())


class FusedCache(Cache):
    """The cache of a fused model.

    With soft routing each span holds every token, padding included, as its own model would. With sparse routing a
    span holds the tokens that it processed and no others. Where whole rows choose, `span_rows` says which rows a span
    of `dense_spans` holds; all without. Behind images the trunk may count its positions from another number on than
    that of the tokens: `offsets` is the difference, ``[rows]``.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.mask: Tensor | None = None
        self.offsets: Tensor | None = None
        self.selection: Selection | None = None
        self.positions: dict[int, PositionMemory] = {}
        self.spans: dict[tuple[int, int], SpanMemory] = {}
        self.dense_spans: dict[tuple[int, int], SpanCache] = {}
        self.span_rows: dict[tuple[int, int], Tensor] = {}

    @property
    def sparse(self) -> bool:
        """Whether tokens are routed sparsely."""
        return self.selection is not None and self.selection.k is not None

    def begin(self, selection: Selection) -> None:
        """Note how tokens are routed; it must stay as it is.

        Raises:
            ConfigError: earlier tokens were routed in another way.
        """
        if self.selection is not None and self.selection != selection:
            raise ConfigError(
                f"past_key_values: the cache was filled with another routing, {self.selection}, and cannot go on with "
                f"{selection}; start a new cache"
            )
        self.selection = selection

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns, padding included, that the model has seen."""
        return 0 if self.mask is None else self.mask.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no longest length."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the length of keys with the new tokens, and their offset."""
        return self.get_seq_length() + query_length, 0

    @property
    def is_compileable(self) -> bool:
        """False: shapes change with what tokens choose."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether any token was seen."""
        return self.mask is not None

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows of the beams that live on."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.mask is not None:
            rows = torch.arange(self.mask.shape[0], device=self.mask.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at these indices, in that order."""
        if self.mask is None:
            return
        rows, num_rows = indices.to(self.mask.device), self.mask.shape[0]
        self.mask = self.mask.index_select(0, rows)
        self.offsets = None if self.offsets is None else self.offsets.index_select(0, rows)
        self.positions = {p: memory.select(rows) for p, memory in self.positions.items()}
        for span in self.spans.values():
            span.select(rows)
        for key, cache in self.dense_spans.items():
            own = rows
            if key in self.span_rows:
                place = torch.full((num_rows,), -1, device=rows.device)
                place[self.span_rows[key]] = torch.arange(len(self.span_rows[key]), device=rows.device)
                own = place[rows]
                self.span_rows[key] = (own >= 0).nonzero().squeeze(1)
                own = own[own >= 0]
            cache.batch_select_indices(own)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: a router's memory cannot be rolled back.

        Raises:
            ConfigError: always, unless nothing is to be removed.
        """
        if tokens_to_remove:
            raise ConfigError(
                "past_key_values: the cache of a fused model cannot be shortened, so assisted generation and prompt "
                "look-up cannot run on it; generate without them"
            )

    def num_cached_tokens(self) -> dict[tuple[int, int], int]:
        """Return, for each (expert, span), the number of tokens whose keys it holds, over all rows."""
        if self.sparse:
            return {key: span.num_tokens() for key, span in sorted(self.spans.items())}
        columns = 0 if self.mask is None else int(self.mask.numel())
        return dict.fromkeys(sorted(self.dense_spans), columns)
