"""Finding the k-th largest value in one pass, between two values that a sample suggests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

_DEVIATIONS = 4  # standard deviations of a sample's rank on each side


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
    """

    low: float
    high: float
    _above: int = 0
    _at_high: list[int] = field(default_factory=list)
    _inside: list[npt.NDArray[np.float64]] = field(default_factory=list)
    _at_low: list[int] = field(default_factory=list)

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
        return cls(low, high)

    def look_at(self, piece: torch.Tensor) -> None:
        """Count what is above and at the two values in a flat float64 piece, and gather what is between."""
        if piece.device.type != "cpu":
            self._above += int((piece > self.high).sum())
            self._at_high.append(int((piece == self.high).sum()))
            self._inside.append(piece[(piece > self.low) & (piece < self.high)].cpu().numpy())
            self._at_low.append(int((piece == self.low).sum()))
            return
        array = piece.numpy()
        self._above += int(np.count_nonzero(array > self.high))
        self._at_high.append(int(np.count_nonzero(array == self.high)))
        self._inside.append(array[(array > self.low) & (array < self.high)])
        self._at_low.append(int(np.count_nonzero(array == self.low)) if self.low != self.high else 0)

    def find(self, count: int) -> Found | None:
        """Return the ``count``-th largest value, or None where it is not within the bracket."""
        rank = count - self._above  # from the larger end of the bracket, counted from 1
        if rank <= 0:
            return None
        if rank <= (at_high := sum(self._at_high)):
            return Found(self.high, rank, self._at_high)
        rank -= at_high
        inside = np.concatenate(self._inside)
        if rank <= len(inside):
            inside.partition(len(inside) - rank)
            threshold = float(inside[-rank])
            num_ties = rank - int(np.count_nonzero(inside[len(inside) - rank :] > threshold))
            return Found(threshold, num_ties, [int(np.count_nonzero(part == threshold)) for part in self._inside])
        rank -= len(inside)
        return Found(self.low, rank, self._at_low) if rank <= sum(self._at_low) else None
