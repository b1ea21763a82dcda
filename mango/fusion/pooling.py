"""Causal pooling: what a router sees of the states that have entered a fused position.

Every pool works on *runs*: states ``[rows, length, width]`` of real tokens alone, each row a run of consecutive
tokens that may be padded on either side (``valid``), whose first tokens may be history that was pooled before. A
token's pool depends on no later token, and is the same whether the row came at once or token by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["window", "prompt", "segment", "windows"]


@dataclass(frozen=True)
class Pool:
    """A pooling rule.

    Args:
        kind: ``window``: the mean of the last `size` states; ``prompt``: the running mean of the first `size` states,
            which stays as it is from then on; ``segment``: the mean of the segment of `size` states before the
            token's own, and the running mean in the first segment; ``windows``: windows of all `sizes`, side by side.
        size: number of states; of ``windows``, of the longest one.
        sizes: of ``windows``, the number of states of each.
    """

    kind: Kind
    size: int
    sizes: tuple[int, ...] = ()

    @property
    def parts(self) -> int:
        """How many pools stand side by side."""
        return len(self.sizes) if self.kind == "windows" else 1

    @property
    def history(self) -> int:
        """How many states before a token its pool may need."""
        if self.kind in ("window", "windows"):
            return self.size - 1
        return 2 * self.size - 1 if self.kind == "segment" else 0

    def __call__(self, states: Tensor, valid: Tensor, index: Tensor, prompt_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Pool every token of each run.

        Args:
            states: shape ``[rows, length, width]``.
            valid: which of them are tokens, ``[rows, length]``; one run a row.
            index: each token's number among the tokens of its row, from 0, ``[rows, length]``.
            prompt_sum: for ``prompt``, float64 ``[rows, width]``, the sum of the states that were pooled before.

        Returns:
            The pools, float32 ``[rows, length, parts * width]`` (anything where not valid), and the new `prompt_sum`.
        """
        if self.kind == "windows":
            pools = [Pool("window", size)(states, valid, index, prompt_sum)[0] for size in self.sizes]
            return torch.cat(pools, -1), prompt_sum
        masked = states.double().masked_fill(~valid.unsqueeze(-1), 0.0)
        if self.kind == "prompt":
            counted = masked * (index < self.size).unsqueeze(-1)
            total = prompt_sum.unsqueeze(1) + counted.cumsum(1)
            count = (index + 1).clamp(1, self.size).unsqueeze(-1)
            return (total / count).float(), prompt_sum + counted.sum(1)
        prefix = torch.nn.functional.pad(masked.cumsum(1), (0, 0, 1, 0))  # [rows, length + 1, width], empty sum first
        place = torch.arange(states.shape[1], device=states.device).expand_as(index)
        if self.kind == "window":
            count = (index + 1).clamp(1, self.size)
            stop = place + 1
        else:
            segment = torch.div(index, self.size, rounding_mode="floor")
            first = segment == 0
            count = torch.where(first, index + 1, torch.full_like(index, self.size)).clamp(min=1)
            stop = torch.where(first, place + 1, place - (index - segment * self.size))
        start = (stop - count).clamp(min=0)
        stop = stop.clamp(min=0)
        width = states.shape[-1]
        total = prefix.gather(1, stop.unsqueeze(-1).expand(-1, -1, width)) - prefix.gather(
            1, start.unsqueeze(-1).expand(-1, -1, width)
        )
        return (total / count.unsqueeze(-1)).float(), prompt_sum
