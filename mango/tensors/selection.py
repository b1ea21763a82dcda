"""Choosing the elements of largest magnitude, exactly and with little memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from mango.tensors.brackets import Bracket, Found
from mango.tensors.kernels import can_fuse
from mango.tensors.pieces import piece_elements, pieces, wide_piece_elements
from mango.tensors.scratch import Scratch

_KEY_BITS = 48  # of the 64; what is left orders non-negative doubles into at most 2**15 bins
_NUM_BINS = 1 << 16
_SAMPLES = 1 << 15  # at least, and one element of
_SAMPLED = 256
_SMALL = 1 << 16  # elements of a tensor that is sorted as a whole

Magnitude: TypeAlias = "Callable[[list[torch.Tensor], int, int], torch.Tensor]"
"""``magnitude(parts, first, step)``: the flat float64 magnitudes, none negative, of the elements at the flat positions
``first``, ``first + step``, ... of the tensors that the parts are of."""


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
        """Return which elements are kept. A NaN is not among them: multiply with the mask, and it stays.

        Args:
            magnitudes: float64 of shape [n], a piece of the tensor that the choice was made on.
            first_position: flat position of the piece's first element in the tensor.

        Returns:
            bool of shape [n].
        """
        late = min(max(self.last_tie + 1 - first_position, 0), len(magnitudes))
        if magnitudes.device.type != "cpu":
            kept = magnitudes >= self.threshold
            kept[late:] &= magnitudes[late:] > self.threshold
            return kept
        array = magnitudes.numpy()
        found = np.empty(len(array), dtype=bool)
        np.greater_equal(array[:late], self.threshold, out=found[:late])
        np.greater(array[late:], self.threshold, out=found[late:])
        return torch.from_numpy(found)

    def apply(self, values: torch.Tensor, first_position: int = 0) -> torch.Tensor:
        """Set to zero, in place, what is not kept of values whose magnitudes the choice was made on.

        Args:
            values: float64 of shape [n], a piece of the tensor.
            first_position: flat position of its first element in the tensor.

        Returns:
            The same piece; NaN and infinity stay, so that damage does not disappear.
        """
        late, most_early, most_late = self.limits(first_position, len(values))
        for part, most in ((values[:late], most_early), (values[late:], most_late)):
            if len(part):  # what is at most that becomes zero
                torch.hardshrink(part, most, out=part)
        return values

    def limits(self, first_position: int, num_elements: int) -> tuple[int, float, float]:
        """Return what tells the elements of a piece that become zero.

        Args:
            first_position: flat position of its first element in the tensor.
            num_elements: how many it has.

        Returns:
            How many of its elements come no later than the last tie that is kept; the largest magnitude that becomes
            zero among them, and among those behind them.
        """
        below = min(self.threshold, sys.float_info.max)
        early = min(max(self.last_tie + 1 - first_position, 0), num_elements)
        return early, math.nextafter(below, -math.inf), below


def num_kept(density: float, num_elements: int) -> int:
    """Return how many of ``num_elements`` a density keeps: rounded down, but at least one of any.

    Args:
        density: share to keep, 0 to 1.
        num_elements: size of the tensor.

    Returns:
        ``density * num_elements`` rounded down, where a product that misses a whole number by a rounding error of
        float64 is that number; 1 where that is 0 and neither the density nor the size is; 0 for a density of 0.
    """
    if density <= 0 or num_elements == 0:
        return 0
    return min(num_elements, max(1, math.floor(density * num_elements * (1 + 2.0**-51))))


def _difference(parts: list[torch.Tensor], buffers: Scratch) -> torch.Tensor:
    """Return the magnitudes of a tensor, or of the difference of two, in a buffer."""
    wide = buffers.double(parts[0])
    return wide.abs_() if len(parts) == 1 else wide.sub_(buffers.double(parts[1])).abs_()


def keep_largest(
    tensors: Sequence[torch.Tensor], counts: Sequence[int], magnitude: Magnitude | None = None
) -> list[Kept]:
    """Choose the elements of largest magnitude, for one or several counts; ties go to the first positions.

    A sample of the tensor tells between which values each threshold lies. One pass counts what is above them and
    gathers what is between; where a sample misleads, two passes over all values settle it.

    Args:
        tensors: what the magnitudes are made of, of one shape.
        counts: how many elements to keep.
        magnitude: how they are made; by default the absolute value of one tensor or of the difference of two.

    Returns:
        The choice for each count; its mask keeps exactly that many elements when no magnitude is NaN.
    """
    view = _Magnitudes(tensors, magnitude)
    size = view.size
    inner = sorted({count for count in counts if 0 < count < size})
    found = dict(zip(inner, view.choose(inner), strict=True)) if inner else {}
    whole, nothing = Kept(0.0, size), Kept(math.inf, -1)
    return [found.get(count) or (whole if count >= size else nothing) for count in counts]


class _Magnitudes:
    """A tensor's magnitudes, computed anew whenever they are looked at."""

    def __init__(self, tensors: Sequence[torch.Tensor], magnitude: Magnitude | None) -> None:
        self._flat = [tensor.reshape(-1) for tensor in tensors]
        self._magnitude = magnitude
        self.size = self._flat[0].numel()
        self._step = wide_piece_elements() if self._flat[0].device.type == "cpu" else piece_elements(self._flat[0])

    def _pieces(self) -> Iterator[torch.Tensor]:
        """Yield the magnitudes of each piece, good until the next one is asked for."""
        for i, parts in enumerate(pieces(self._flat, self._step)):
            with Scratch() as buffers:
                yield self._of(parts, i * self._step, 1, buffers)

    def _of(self, parts: list[torch.Tensor], first: int, step: int, buffers: Scratch) -> torch.Tensor:
        return _difference(parts, buffers) if self._magnitude is None else self._magnitude(parts, first, step)

    def choose(self, counts: Sequence[int]) -> list[Kept]:
        """Return the choice for counts that are over 0 and below the size."""
        brackets = self._brackets(counts)
        if self._magnitude is None and can_fuse(*self._flat):
            for bracket in brackets:
                bracket.look_at_once(list(pieces(self._flat, self._step)))
        else:
            for piece in self._pieces():
                for bracket in brackets:
                    bracket.look_at(piece)
        return [
            self._kept(bracket.find(count) or self._by_bins(count))
            for bracket, count in zip(brackets, counts, strict=True)
        ]

    def _brackets(self, counts: Sequence[int]) -> list[Bracket]:
        if self.size <= _SMALL:
            return [Bracket(-math.inf, math.inf) for _ in counts]
        step = min(self.size // _SAMPLES, _SAMPLED) | 1  # odd, so that it does not fall into step with the rows
        with Scratch() as buffers:
            values = self._of([tensor[::step] for tensor in self._flat], 0, step, buffers)
            sample = (values if values.is_cpu else values.sort().values.cpu()).numpy()
            if values.is_cpu:
                sample.sort()
            return [Bracket.around(sample, self.size - count, self.size) for count in counts]

    def _kept(self, found: Found) -> Kept:
        """Find the last element that is kept among those equal to the threshold."""
        left = found.num_ties
        for index, ties in enumerate(found.ties_by_piece):
            if left <= ties:
                if left == ties and not any(found.ties_by_piece[index + 1 :]):
                    return Kept(found.threshold, self.size)
                first = index * self._step
                with Scratch() as buffers:
                    parts = [tensor[first : first + self._step] for tensor in self._flat]
                    places = (self._of(parts, first, 1, buffers) == found.threshold).nonzero().view(-1)
                return Kept(found.threshold, index * self._step + int(places[left - 1]))
            left -= ties
        raise AssertionError("the magnitudes changed between two looks at them")

    def _by_bins(self, count: int) -> Found:
        """Find a threshold by its leading bits, then among the values that share them; NaN counts as largest."""
        counts = torch.zeros(_NUM_BINS, dtype=torch.int64)
        for piece in self._pieces():
            counts += torch.bincount(_bins(piece), minlength=_NUM_BINS).cpu()
        at_least = counts.flip(0).cumsum(0).flip(0)  # elements in each bin and all above it
        threshold_bin = int((at_least >= count).nonzero()[-1])
        rank = count - int(at_least[threshold_bin] - counts[threshold_bin])  # from the largest, counted from 1
        gathered = np.empty(int(counts[threshold_bin]))  # at once: growing it would scatter memory
        end = 0
        for piece in self._pieces():
            inside = piece[_bins(piece) == threshold_bin].cpu().numpy()
            gathered[end : end + len(inside)] = inside
            end += len(inside)
        threshold = float(np.partition(gathered, len(gathered) - rank)[len(gathered) - rank])
        num_ties = rank - int(np.count_nonzero(gathered > threshold))
        return Found(threshold, num_ties, [int((piece == threshold).sum()) for piece in self._pieces()])


def _bins(piece: torch.Tensor) -> torch.Tensor:
    """Return the leading bits of non-negative doubles, which are in the order of their values."""
    return piece.view(torch.int64) >> _KEY_BITS
