"""Choosing the elements of largest magnitude, exactly and with little memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

_KEY_BITS = 48  # of the 64; what is left orders non-negative doubles into at most 2**15 bins
_NUM_BINS = 1 << 16

Magnitudes = Callable[[], Iterable[torch.Tensor]]
"""Gives a tensor's magnitudes anew at each call: flat float64 pieces, in order, none negative."""


@dataclass(frozen=True)
class Kept:
    """Which elements are kept: those above the threshold, and those equal to it up to a position.

    Attributes:
        threshold: the smallest magnitude kept.
        last_tie: flat position of the last element kept among those equal to the threshold.
    """

    threshold: float
    last_tie: int

    def mask(self, magnitudes: torch.Tensor, first_position: int = 0) -> torch.Tensor:
        """Return which elements are kept. A NaN is kept, so that damage does not disappear.

        Args:
            magnitudes: float64 of shape [n], a piece of the tensor that the choice was made on.
            first_position: flat position of the piece's first element in the tensor.

        Returns:
            bool of shape [n].
        """
        dropped = magnitudes < self.threshold
        late = max(self.last_tie + 1 - first_position, 0)
        if late < len(magnitudes):
            dropped[late:] |= magnitudes[late:] == self.threshold
        return dropped.logical_not_()


def num_kept(density: float, num_elements: int) -> int:
    """Return how many of ``num_elements`` a density keeps: the nearest number, but at least one of any.

    Args:
        density: share to keep, over 0 and up to 1.
        num_elements: size of the tensor.

    Returns:
        ``density * num_elements`` rounded half up; 1 where that is 0 and there are elements.
    """
    return min(num_elements, max(1, math.floor(density * num_elements + 0.5)))


def keep_largest(magnitudes: Magnitudes, count: int, num_elements: int) -> Kept:
    """Choose the ``count`` largest magnitudes of a tensor that is seen in pieces; ties go to the first positions.

    The pieces are gone through two or three times: counted into bins by their leading bits, gathered for the one
    bin that holds the threshold, and, if not all elements equal to it are kept, searched for the last that is.

    Args:
        magnitudes: gives the pieces; they must be the same at each call.
        count: how many to keep.
        num_elements: how many there are in all.

    Returns:
        The choice; its mask keeps exactly ``count`` elements when none is NaN.
    """
    if count >= num_elements:
        return Kept(0.0, num_elements)
    if count <= 0:
        return Kept(math.inf, -1)
    counts = torch.zeros(_NUM_BINS, dtype=torch.int64)
    for piece in magnitudes():
        counts += torch.bincount(_bins(piece), minlength=_NUM_BINS)
    at_least = counts.flip(0).cumsum(0).flip(0)  # elements in each bin and all above it
    threshold_bin = int((at_least >= count).nonzero()[-1])
    above_bin = int(at_least[threshold_bin] - counts[threshold_bin])
    candidates = _gather(magnitudes, threshold_bin, int(counts[threshold_bin]))
    rank = count - above_bin  # of the threshold among the candidates, from the largest, counted from 1
    threshold = float(candidates.kthvalue(len(candidates) - rank + 1).values)
    num_ties = rank - int((candidates > threshold).sum())
    if num_ties == int((candidates == threshold).sum()):
        return Kept(threshold, num_elements)
    position = 0
    for piece in magnitudes():
        ties = (piece == threshold).nonzero().view(-1)
        if len(ties) >= num_ties:
            return Kept(threshold, position + int(ties[num_ties - 1]))
        num_ties -= len(ties)
        position += len(piece)
    raise AssertionError("the pieces changed between two calls")


def _gather(magnitudes: Magnitudes, wanted_bin: int, size: int) -> torch.Tensor:
    """Return the magnitudes of one bin; the space is taken at once, since growing it piece by piece scatters memory."""
    gathered = torch.empty(size, dtype=torch.float64)
    end = 0
    for piece in magnitudes():
        found = piece[_bins(piece) == wanted_bin]
        gathered[end : end + len(found)] = found
        end += len(found)
    return gathered


def _bins(piece: torch.Tensor) -> torch.Tensor:
    """Return the leading bits of non-negative doubles, which are in the order of their values."""
    return piece.view(torch.int64) >> _KEY_BITS
