"""What a fused model keeps between the steps of a generation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mango.errors import ConfigError
from mango.fusion.bridge.running import RowReading
from mango.fusion.posterior import HeadMemory
from mango.fusion.routers import Selection
from mango.fusion.runs import align_right
from mango.fusion.span_cache import SpanCache
from mango.fusion.span_memory import SpanMemory


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


class FusedCache(Cache):
    """The cache of a fused model.

    With soft routing each span holds every token, padding included, as its own model would. With sparse routing a span
    holds the tokens that it processed and no others, and so does at all times one that is packed (see
    :class:`~mango.fusion.shells.Body`). Where whole rows choose, `span_rows` says which rows a span of `dense_spans`
    holds; all without. `heads` is what a posterior keeps of the tokens so far. Behind images the trunk may count its
    positions from another number on than that of the tokens: `offsets` is the difference, ``[rows]``. `bridges` has
    what a guest with a tokenizer of its own keeps of each row.
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
        self.heads: HeadMemory | None = None
        self.bridges: dict[int, list[RowReading]] = {}

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
        self.heads = None if self.heads is None else self.heads.select(rows)
        for span in self.spans.values():
            span.select(rows)
        self.bridges = {expert: [kept[row] for row in rows.tolist()] for expert, kept in self.bridges.items()}
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
        columns = 0 if self.mask is None else int(self.mask.numel())
        held = {key: span.num_tokens() for key, span in self.spans.items()}
        held |= {(expert, 0): sum(len(row.tokens) for row in kept) for expert, kept in self.bridges.items()}
        return dict(sorted((held | dict.fromkeys(self.dense_spans, columns)).items()))
