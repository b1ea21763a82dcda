"""Finding the k-th largest value in one pass, between two values that a sample suggests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

_DEVIATIONS = 4  # standard deviations of a sample's rank on each side

Count: TypeAlias = "int | torch.Tensor"
"""How many there are; on an accelerator a tensor, which is waited for when it is needed."""


@dataclass(frozen=True)
class Found:
    """A threshold.

    Attributes:
        threshold: the k-th largest value.
        num_ties: how many of the values equal to it are among the k largest.
        ties_by_piece: how many values equal to it there are in each piece.
    """

    threshold: float
    num_ties: int
    ties_by_piece: Sequence[int]


@dataclass
class Bracket:
    """Two values between which the k-th largest is thought to be, and what was seen of them.

    Attributes:
        low: the lower one; minus infinity where nothing is known.
        high: the higher one.
        room: how many values between them are expected; more cost another copy.
        with_ends: count what equals one of the two as well, since many values do.
    """

    low: float
    high: float
    room: int = 1 << 16
    with_ends: bool = False
    _over: list[Count] = field(default_factory=list)  # above the lower value or, with ends, above the higher one
    _at_high: list[Count] = field(default_factory=list)
    _inside: list[int] = field(default_factory=list)
    _at_low: list[Count] = field(default_factory=list)

    def __post_init__(self) -> None:
        # One buffer for all that is gathered: many small ones between the pieces' own would scatter memory.
        self._gathered = np.empty(self.room)
        self._num_gathered = 0

    @classmethod
    def around(cls, sample: npt.NDArray[np.float64], num_below: int, size: int) -> Bracket:
        """Return the values of a sorted sample that very likely stand on both sides of a rank.

        Args:
            sample: sorted values; NaN last, as NumPy sorts it.
            num_below: values of the whole that are smaller than the one looked for.
            size: values of the whole.
        """
        share, num = num_below / size, len(sample)
        margin = _DEVIATIONS * math.sqrt(num * share * (1 - share)) + 2
        first, last = math.floor(num * share - margin), math.ceil(num * share + margin)
        low = float(sample[first]) if first >= 0 else -math.inf
        high = float(sample[last]) if last < num else math.inf
        some = sample[max(0, first - 1) : first + 2], sample[last - 1 : last + 2]
        has_ties = any(len(ends) != len(np.unique(ends)) for ends in some)
        return cls(low, high, min(size, math.ceil(2.5 * margin / num * size)), has_ties)

    def look_at(self, piece: torch.Tensor) -> None:
        """Count what is above and at the two values in a flat float64 piece, and gather what is between."""
        values: Any = piece.numpy() if piece.device.type == "cpu" else piece  # NumPy compares faster
        over = values > self.low
        inside = over & (values < self.high)
        self._gather(_on_host(values[inside]))
        if not self.with_ends:
            self._over.append(_num_true(over))
            return
        self._over.append(_num_true(values > self.high))
        self._at_high.append(_num_true(values == self.high))
        self._at_low.append(_num_true(values == self.low) if self.low != self.high else 0)

    def look_at_once(self, pieces: Sequence[Sequence[torch.Tensor]]) -> None:
        """Count and gather as `look_at` does for every piece of a tensor, in one pass of a kernel over each.

        Args:
            pieces: one or two floating point tensors each, whose magnitudes or whose difference's it looks at.
        """
        from mango.tensors.counting_kernel import count_piece

        device = pieces[0][0].device
        ends = torch.tensor([self.low, self.high], dtype=torch.float64).to(device)
        while True:
            counts = torch.zeros(len(pieces), 4, dtype=torch.int64, device=device)
            total = torch.zeros(1, dtype=torch.int64, device=device)
            gathered = torch.empty(self.room, dtype=torch.float64, device=device)
            for parts, count in zip(pieces, counts, strict=True):
                count_piece(parts, ends, count, total, gathered)
            if (size := int(total)) <= self.room:
                break
            self.room = size  # more than expected, so that it is known now
        self.with_ends = True
        inside, above, at_high, at_low = counts.T.tolist()
        self._gathered, self._num_gathered, self._inside = gathered[:size].cpu().numpy(), size, inside
        self._over, self._at_high = above, at_high
        self._at_low = at_low if self.low != self.high else [0] * len(pieces)

    def find(self, count: int) -> Found | None:
        """Return the ``count``-th largest value, or None where it is not within the bracket."""
        at_high, at_low = [int(some) for some in self._at_high], [int(some) for some in self._at_low]
        above = sum(map(int, self._over)) - (0 if self.with_ends else sum(self._inside))
        rank = count - above  # from the larger end of the bracket, counted from 1
        if rank <= 0:
            return None
        if rank <= sum(at_high):
            return Found(self.high, rank, at_high)
        rank -= sum(at_high)
        inside = self._gathered[: self._num_gathered]
        if rank <= len(inside):
            ordered = np.partition(inside, len(inside) - rank)
            threshold = float(ordered[-rank])
            num_ties = rank - int(np.count_nonzero(ordered[len(inside) - rank :] > threshold))
            parts = np.split(inside, np.cumsum(self._inside)[:-1])
            return Found(threshold, num_ties, [int(np.count_nonzero(part == threshold)) for part in parts])
        rank -= len(inside)
        return Found(self.low, rank, at_low) if rank <= sum(at_low) else None

    def _gather(self, values: npt.NDArray[np.float64]) -> None:
        end = self._num_gathered + len(values)
        if end > len(self._gathered):
            larger = np.empty(max(end, 2 * len(self._gathered)))
            larger[: self._num_gathered] = self._gathered[: self._num_gathered]
            self._gathered = larger
        self._gathered[self._num_gathered : end] = values
        self._num_gathered = end
        self._inside.append(len(values))


def _num_true(mask: npt.NDArray[np.bool_] | torch.Tensor) -> Count:
    return mask.sum() if isinstance(mask, torch.Tensor) else int(np.count_nonzero(mask))


def _on_host(values: npt.NDArray[np.float64] | torch.Tensor) -> npt.NDArray[np.float64]:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values
