"""Joining differences from a base: their weighted sum, or the disjoint mean of those that agree in sign."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from pydantic import ConfigDict, Field

from mango.config import Frozen
from mango.merging.methods.weights import change_total
from mango.tensors.scratch import Scratch

ROUNDING = 2.0**-50
"""A sum this small beside the sum of its magnitudes is rounding noise of float64, and elects no sign."""


class ChangeParams(Frozen):
    """What every method has that adds weighted differences to a base."""

    model_config = ConfigDict(populate_by_name=True)

    weight: float = Field(1.0, description="of each model's difference; a negative one takes away what it learned")
    lambda_: float = Field(1.0, alias="lambda", description="scale of the merged difference")


class SparseParams(ChangeParams):
    """What every method has that keeps a share of each difference."""

    density: float = Field(1.0, ge=0, le=1, description="share of each model's difference that is kept")


def add_changes(
    start: torch.Tensor,
    changes: Iterable[torch.Tensor],
    *,
    weight: Sequence[float],
    method: str,
    elect: bool,
    normalize: bool,
    lambda_: float,
    dtype: torch.dtype,
    scales: Sequence[float] | None = None,
) -> torch.Tensor:
    """Return the base plus the joined differences from it.

    Without election this is their weighted sum. With it, the sign of each element is that of the weighted sum, and
    the weighted differences of that sign are summed. Where the sum is zero no sign is elected, and nothing is added.

    Args:
        start: the base, float64; left alone.
        changes: float64 differences from it, of its shape, one asked for at a time; they are used up.
        weight: one weight for each.
        method: name of the method, for messages.
        elect: whether signs are elected.
        normalize: divide by the sum of the weights, with election by that of the models that agree.
        lambda_: scale of what is added.
        dtype: type of the result.
        scales: what each difference is multiplied with beside its weight; 1 by default.

    Returns:
        A tensor of the shape of the base, rounded once.

    Raises:
        MergeError: the weights to divide by sum to zero.
    """
    factors = list(weight) if scales is None else [w * s for w, s in zip(weight, scales, strict=True)]
    with Scratch() as buffers:
        if not elect:
            scale = lambda_ / (change_total(method, weight) if normalize else 1.0)
            result = buffers.double(start)
            for change, factor in zip(changes, factors, strict=True):
                result.add_(change, alpha=factor * scale)
        else:
            sides = _Sides(buffers, normalize)
            for change, w, factor in zip(changes, weight, factors, strict=True):
                sides.add(change, w, factor)
            elected = sides.elected()
            result = torch.add(start, elected, alpha=lambda_, out=elected)
        return result.to(dtype, copy=True)


def elected_signs(changes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sign of the sum of float64 tensors, 0 where it is zero up to rounding; shape of one of them."""
    with Scratch() as buffers:
        sides, used = _Sides(buffers, normalize=False), buffers.like(changes[0])
        for change in changes:
            sides.add(used.copy_(change), 1.0, 1.0)
        return sides.signs().clone()


class _Sides:
    """How far each element is pulled, and the weights of what pulls it up and of what pulls it down.

    Of pulls that sum to ``s`` and whose magnitudes sum to ``m``, those up sum to ``(m + s) / 2`` and those down to
    ``(m - s) / 2``: the larger side is ``(m + |s|) / 2``, and its sign that of ``s``. Written without comparisons and
    selections, which are many times slower than arithmetic in torch.
    """

    def __init__(self, buffers: Scratch, normalize: bool) -> None:
        self._buffers = buffers
        self._pulls: tuple[torch.Tensor, torch.Tensor] | None = None  # their sum and that of their magnitudes
        self._weights: tuple[torch.Tensor, torch.Tensor] | None = None
        self._spare: torch.Tensor | None = None
        self._normalize = normalize
        self._given: list[float] = []

    def add(self, change: torch.Tensor, weight: float, factor: float) -> None:
        """Add a difference, which is used up, times a factor; its weight is what is divided by."""
        self._given.append(weight)
        spare = self._free(change)
        if self._pulls is None:
            total = torch.mul(change, factor, out=self._buffers.like(change))
            self._pulls = total, torch.abs(total, out=self._buffers.like(change))
        else:
            self._pulls[0].add_(change, alpha=factor)
            self._pulls[1].add_(torch.abs(change, out=spare), alpha=abs(factor))
        if not self._normalize:
            return
        change.sign_()
        if factor <= 0:
            change.neg_() if factor else change.zero_()
        up = torch.clamp(change, min=0.0, out=spare)
        down = torch.sub(up, change, out=change)
        if self._weights is None:
            like = self._buffers.like
            self._weights = torch.mul(up, weight, out=like(up)), torch.mul(down, weight, out=like(down))
        else:
            self._weights[0].add_(up, alpha=weight)
            self._weights[1].add_(down, alpha=weight)

    def signs(self) -> torch.Tensor:
        """Return 1 where the elements are pulled up, -1 where down, 0 where both pulls are equal up to rounding.

        It uses their sum up.
        """
        total, size = self._both()
        length = torch.abs(total, out=self._free(total))
        decided = torch.sub(length, size, alpha=ROUNDING, out=self._buffers.like(total)).clamp_(min=0.0).sign_()
        return total.sign_().mul_(decided)

    def _free(self, like: torch.Tensor) -> torch.Tensor:
        """Return a buffer of a shape that is good until it is asked for again."""
        if self._spare is None:
            self._spare = self._buffers.like(like)
        return self._spare

    def _both(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._pulls is None:
            raise AssertionError("no difference was added")
        return self._pulls

    def elected(self) -> torch.Tensor:
        """Return the sum of the larger side, or the mean over it; zero where no sign is elected. It uses them up."""
        total, size = self._both()
        twice = torch.abs(total, out=self._buffers.like(total)).add_(size)  # NaN stays NaN
        signs = self.signs()
        if self._weights is not None:
            share = torch.clamp(signs, min=0.0, out=self._free(signs))
            divisor = torch.lerp(self._weights[1], self._weights[0], share, out=share)
            if min(self._given) < 0:  # those that agree may cancel out; their sum is left undivided then
                vanishing = divisor.abs() <= 1e-12 * sum(map(abs, self._given))
                divisor.masked_fill_(vanishing, 1.0)
            else:
                divisor.clamp_(min=1e-300)  # where no model agrees, which leaves zero
            twice.div_(divisor)
        return twice.mul_(signs.mul_(0.5))
