"""Joining differences from a base: their weighted sum, or the disjoint mean of those that agree in sign."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import ConfigDict, Field

from mango.config import Frozen
from mango.merging.methods.weights import change_total
from mango.tensors.work import TensorWork, work_on

Merged = TypeVar("Merged")

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


@dataclass(frozen=True)
class Chance:
    """Which elements of a difference are kept at random.

    Attributes:
        seed: of the model in this tensor.
        first: flat position of the first element in the whole tensor.
        probability: of keeping an element; 1 keeps all.
    """

    seed: int
    first: int
    probability: float


def add_changes(
    start: Merged,
    changes: Iterable[Any],
    *,
    weight: Sequence[float],
    method: str,
    elect: bool,
    normalize: bool,
    lambda_: float,
    dtype: torch.dtype | str,
    scales: Sequence[float] | None = None,
    chances: Sequence[Chance] | None = None,
) -> Merged:
    """Return the base plus the joined differences from it.

    Without election this is their weighted sum. With it, the sign of each element is that of the weighted sum, and
    the weighted differences of that sign are summed. Where the sum is zero no sign is elected, and nothing is added.

    Args:
        start: the base, float64; left alone. A tensor, or an array.
        changes: float64 differences from it, of its shape, one asked for at a time; they are used up.
        weight: one weight for each.
        method: name of the method, for messages.
        elect: whether signs are elected.
        normalize: divide by the sum of the weights, with election by that of the models that agree.
        lambda_: scale of what is added.
        dtype: type of the result: of torch for tensors, by its safetensors name for arrays.
        scales: what each difference is multiplied with beside its weight; 1 by default.
        chances: which elements of each are kept; all by default.

    Returns:
        Of the shape of the base, rounded once: a tensor, or an array of stored elements.

    Raises:
        MergeError: the weights to divide by sum to zero.
        NotFiniteError: an element of an array is not finite in its type.
    """
    factors = list(weight) if scales is None else [w * s for w, s in zip(weight, scales, strict=True)]
    chosen: Sequence[Chance | None] = chances or [None] * len(factors)
    with work_on(start) as work:
        if not elect:
            scale = lambda_ / (change_total(method, weight) if normalize else 1.0)
            result = work.fill(work.like(start), start)
            spare = work.like(start)
            for change, factor, chance in zip(changes, factors, chosen, strict=True):
                work.add(result, _pull(work, change, factor * scale, chance, spare, change), out=result)
        else:
            sides = _Sides(work, start, normalize)
            for change, w, factor, chance in zip(changes, weight, factors, chosen, strict=True):
                sides.add(change, w, factor, chance)
            elected = sides.elected()
            if lambda_ != 1.0:
                work.multiply(elected, lambda_, out=elected)
            result = work.add(start, elected, out=elected)
        merged: Merged = work.stored(result, dtype)
        return merged


def elected_signs(changes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sign of the sum of float64 tensors, 0 where it is zero up to rounding; shape of one of them."""
    with TensorWork() as work:
        sides, used = _Sides(work, changes[0], normalize=False), work.like(changes[0])
        for change in changes:
            sides.add(used.copy_(change), 1.0, 1.0, None)
        return torch.sign(sides.elected())


def _pull(work: Any, change: Any, factor: float, chance: Chance | None, spare: Any, out: Any) -> Any:
    """Return a difference times a factor, where chance keeps it."""
    if chance is None or chance.probability >= 1.0:
        return work.multiply(change, factor, out=out)
    drawn = {"seed": chance.seed, "first": chance.first, "probability": chance.probability}
    return work.keep_random(change, factor, spare=spare, out=out, **drawn)


class _Sides:
    """How far each element is pulled, and the weights of what pulls it up and of what pulls it down.

    Of pulls that sum to ``s`` and whose magnitudes sum to ``m``, those up sum to ``(m + s) / 2`` and those down to
    ``(m - s) / 2``: the larger side is ``(m + |s|) / 2``, and its sign that of ``s``. Written without comparisons and
    selections, which are many times slower than arithmetic.
    """

    def __init__(self, work: Any, start: Any, normalize: bool) -> None:
        self._work = work
        self._total, self._size, self._spare = (work.like(start) for _ in range(3))
        self._other = work.like(start)
        self._weights = (work.like(start), work.like(start)) if normalize else None  # of those up, of those down
        self._given: list[float] = []

    def add(self, change: Any, weight: float, factor: float, chance: Chance | None) -> None:
        """Add a difference, which is used up, times a factor; its weight is what is divided by."""
        work, is_first = self._work, not self._given
        self._given.append(weight)
        fused = chance is None and not is_first  # one pass less; what arrays are merged by has chances
        target = self._total if is_first else change
        pull = change if fused else _pull(work, change, factor, chance, self._spare, target)
        if self._weights is not None:
            signs = work.sign(pull, out=self._spare)
            if fused and factor <= 0:
                work.multiply(signs, -1.0 if factor else 0.0, out=signs)
            up = work.at_least(signs, 0.0, out=self._other)
            for total, side in zip(self._weights, (up, work.subtract(up, signs, out=signs)), strict=True):
                if is_first:
                    work.multiply(side, weight, out=total)
                else:
                    work.add_multiple(total, side, weight)
        if is_first:
            work.absolute(pull, out=self._size)
        elif fused:
            work.add_multiple(self._total, pull, factor)
            work.add_multiple(self._size, work.absolute(pull, out=self._spare), abs(factor))
        else:
            work.add(self._total, pull, out=self._total)
            work.add(self._size, work.absolute(pull, out=pull), out=self._size)

    def elected(self) -> Any:
        """Return the sum of the larger side, or the mean over it; zero where no sign is elected. It uses them up."""
        if not self._given:
            raise AssertionError("no difference was added")
        work, total, size = self._work, self._total, self._size
        length = work.absolute(total, out=self._other)
        larger = work.add(length, size, out=self._spare)  # twice as much; NaN stays NaN
        limits = work.multiply(size, ROUNDING, out=size)
        if self._weights is None:
            signed = work.copysign(larger, total, out=larger)
        else:
            signs = work.sign(total, out=total)
            divisor = work.choose(work.at_least(signs, 0.0, out=work.like(signs)), *self._weights)
            if min(self._given) < 0:  # those that agree may cancel out; their sum is left undivided then
                work.ones_below(divisor, 1e-12 * sum(map(abs, self._given)))
            else:
                work.at_least(divisor, 1e-300, out=divisor)  # where no model agrees, which leaves zero
            signed = work.multiply(work.divide(larger, divisor, out=larger), signs, out=larger)
        return work.keep_above(work.multiply(signed, 0.5, out=signed), length, limits, total)
