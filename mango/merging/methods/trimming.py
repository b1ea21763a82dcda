"""Keeping the elements of each difference that changed most, with or without the outliers among them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mango.tensors.kernels import Change
from mango.tensors.pieces import pieces
from mango.tensors.scratch import Scratch
from mango.tensors.selection import Kept, keep_largest, num_kept


@dataclass(frozen=True)
class Trim:
    """What is kept of one model's difference from the base.

    Attributes:
        kept: the largest magnitudes, outliers included; None where everything is kept.
        outliers: those of them that are dropped after all; None where none is.
        scale: what the rest is multiplied with.
    """

    kept: Kept | None
    outliers: Kept | None = None
    scale: float = 1.0

    def apply(self, change: torch.Tensor, first_position: int) -> torch.Tensor:
        """Set to zero what is not kept of a flat float64 piece, in place, and scale the rest.

        Args:
            change: a piece of the difference.
            first_position: flat position of its first element in the whole tensor.

        Returns:
            The same piece.
        """
        if self.kept is not None:
            self.kept.apply(change, first_position)
        if self.outliers is not None:
            change.sub_(self.outliers.apply(change.clone(), first_position))
        return change if self.scale == 1.0 else change.mul_(self.scale)

    def as_change(self, weight: float, first_position: int, num_elements: int) -> Change:
        """Return it as a kernel takes it for a piece; there must be no outliers.

        Args:
            weight: of the model.
            first_position: flat position of the piece's first element in the whole tensor.
            num_elements: how many it has.
        """
        assert self.outliers is None, "no kernel drops outliers"
        limits = (0, -1.0, -1.0) if self.kept is None else self.kept.limits(first_position, num_elements)
        return Change(weight, *limits, self.scale)


def measure_trims(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    density: Sequence[float],
    gamma: Sequence[float] | None,
    rescale: bool,
) -> tuple[Trim, ...]:
    """Choose what is kept of the differences of whole tensors from their base.

    Args:
        tensors: floating point tensors of one shape.
        base: what is subtracted from each, of the same shape.
        density: share of each that is kept: its number of elements times this, rounded down, but at least one
            unless the share is 0.
        gamma: share of each whose magnitudes are largest and that is dropped first, rounded down; where both
            do not fit, density goes first. None drops nothing.
        rescale: scale what is kept so that the sum of magnitudes is that of all.

    Returns:
        The choice for each, in their order. Of equal magnitudes, the first in the tensor count as larger.
    """
    size = base.numel()
    trims = []
    for i, (tensor, share) in enumerate(zip(tensors, density, strict=True)):
        count = num_kept(share, size)
        num_outliers = 0 if gamma is None else min(math.floor(gamma[i] * size), size - count)
        wanted = [n for n in (count + num_outliers, num_outliers) if 0 < n < size]
        chosen = dict(zip(wanted, keep_largest([tensor, base], wanted), strict=True))
        kept = None if count + num_outliers == size else chosen.get(count + num_outliers, Kept(math.inf, -1))
        trim = Trim(kept if count else Kept(math.inf, -1), chosen.get(num_outliers))
        trims.append(_rescaled(trim, tensor, base) if rescale else trim)
    return tuple(trims)


def trimmed(
    tensors: Sequence[torch.Tensor],
    start: torch.Tensor,
    trims: Sequence[Trim],
    first_position: int,
    buffers: Scratch,
) -> Iterator[torch.Tensor]:
    """Yield what is kept of the differences of pieces from their base, each in a buffer that the next one takes over.

    Args:
        tensors: floating point pieces of one shape.
        start: that of the base, flat float64.
        trims: what is kept of each.
        first_position: flat position of their first element in the whole tensors.
        buffers: where the differences are made.

    Yields:
        A flat float64 piece for each model, to be used up before the next one is asked for.
    """
    change = buffers.like(start)
    for tensor, trim in zip(tensors, trims, strict=True):
        yield trim.apply(change.copy_(tensor.reshape(-1)).sub_(start), first_position)


def _rescaled(trim: Trim, tensor: torch.Tensor, base: torch.Tensor) -> Trim:
    before = after = 0.0
    position = 0
    for part, start in pieces((tensor, base)):
        change = part.double() - start.double()
        before += float(change.abs().sum())
        after += float(trim.apply(change, position).abs_().sum())
        position += len(change)
    return Trim(trim.kept, trim.outliers, before / after if after > 0 else 1.0)
