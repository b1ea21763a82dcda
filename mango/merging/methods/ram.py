"""Summing what single models learned alone and averaging what several learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import ConfigDict, Field

from mango.config import Frozen
from mango.merging.registry import merge_method
from mango.tensors.pieces import pieces


class RamParams(Frozen):
    """Parameters of ``ram``."""

    epsilon: float = Field(1e-5, ge=0, description="a difference counts where its magnitude is larger")


class RamplusTlParams(RamParams):
    """Parameters of ``ramplus_tl``."""

    model_config = ConfigDict(populate_by_name=True)

    r: float = Field(0.1, ge=0, description="how much what a model learned alone is amplified, for each unit of rho")
    alpha: float = Field(0.2, ge=0, description="largest rho that counts")


@merge_method("ram", RamParams, base="reference", elementwise=True)
def ram(
    tensors: Sequence[torch.Tensor], *, base: torch.Tensor, epsilon: float = 1e-5, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return the base plus differences: those of a single model as they are, shared ones averaged; in float64.

    A model contributes to an element where its difference from the base is larger than ``epsilon``. The differences
    of those that do are averaged.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        epsilon: magnitude that a difference must exceed to count.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        "Reinforced Agent Merging" (2026), arXiv:2601.13572.
    """
    return _merge(tensors, base, epsilon, [1.0] * len(tensors), dtype or base.dtype)


def _measure(
    tensors: Sequence[torch.Tensor], *, base: torch.Tensor, r: float, alpha: float, epsilon: float
) -> dict[str, tuple[float, ...]]:
    shared, alone = [0] * len(tensors), [0] * len(tensors)
    for *parts, start in pieces([*tensors, base]):
        masks = [mask for _, mask in _changes(parts, start.double(), epsilon)]
        several = torch.stack(masks).sum(0) > 1
        for i, mask in enumerate(masks):
            num_shared = int((mask & several).sum())
            shared[i] += num_shared
            alone[i] += int(mask.sum()) - num_shared
    rho = [s / a if a else float("inf") if s else 0.0 for s, a in zip(shared, alone, strict=True)]
    return {"amplify": tuple(1.0 + r * min(value, alpha) for value in rho)}


@merge_method("ramplus_tl", RamplusTlParams, base="reference", measure=_measure, elementwise=True)
def ramplus_tl(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    r: float = 0.1,
    alpha: float = 0.2,
    epsilon: float = 1e-5,
    amplify: Sequence[float] | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return what `ram` returns, with what a model learned alone amplified where it shares much; in float64.

    With rho the number of a model's elements that others change too, over that of those that it changes alone, all
    in this tensor, the latter are multiplied with ``1 + r min(rho, alpha)``.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        r: amplification for each unit of rho.
        alpha: largest rho that counts.
        epsilon: magnitude that a difference must exceed to count.
        amplify: the factors for the whole tensors, when these are pieces; measured here by default.
        first_position: where the piece begins; every element is treated alike, so that nothing depends on it.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        "Reinforced Agent Merging" (2026), arXiv:2601.13572, the tensor-local form of RAM+.
    """
    if amplify is None:
        amplify = _measure(tensors, base=base, r=r, alpha=alpha, epsilon=epsilon)["amplify"]
    return _merge(tensors, base, epsilon, amplify, dtype or base.dtype)


def _changes(
    tensors: Sequence[torch.Tensor], start: torch.Tensor, epsilon: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each difference from the base and where it counts; a NaN counts, so that it shows."""
    for tensor in tensors:
        change = tensor.double() - start
        yield change, (change.abs() <= epsilon).logical_not_()


def _merge(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, epsilon: float, amplify: Sequence[float], dtype: torch.dtype
) -> torch.Tensor:
    start = base.double()
    total, amplified, count = torch.zeros_like(start), torch.zeros_like(start), torch.zeros_like(start)
    for (change, mask), factor in zip(_changes(tensors, start, epsilon), amplify, strict=True):
        change.masked_fill_(mask.logical_not(), 0.0)
        total.add_(change)
        amplified.add_(change, alpha=factor)
        count.add_(mask)
    merged = torch.where(count == 1, amplified, total.div_(count.clamp_(min=1.0)))
    return start.add_(merged).to(dtype) if start is not base else start.add(merged).to(dtype)
