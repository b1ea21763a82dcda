"""Dropping elements of each difference at random, the small ones of a row more often than the large ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mango.errors import MergeError
from mango.merging.methods.consensus import SparseParams, add_changes
from mango.merging.registry import merge_method
from mango.tensors.pieces import row_pieces
from mango.tensors.randomness import uniform


class DellaParams(SparseParams):
    """Parameters of ``della``."""

    density: float = Field(1.0, ge=0, le=1, description="mean probability with which an element is kept")
    epsilon: float = Field(
        0.15, ge=0, lt=1, description="smallest and largest of a row are kept with density - epsilon and + epsilon"
    )
    normalize: bool = Field(True, description="divide by the weights of the models that agree with the sign")
    rescale: bool = Field(True, description="divide what is kept by its probability, so that the mean is unchanged")


class DellaLinearParams(DellaParams):
    """Parameters of ``della_linear``."""

    normalize: bool = Field(False, description="divide by the sum of the weights")


@merge_method(
    "della",
    DellaParams,
    base="reference",
    per_model=("weight", "density", "epsilon"),
    required=("weight",),
    random=True,
)
def della(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    seeds: Sequence[int] | None = None,
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus what differences agree on that are thinned by magnitude, computed in float64.

    In each row of a difference, the element of rank r by magnitude (0 the smallest, n - 1 the largest; of equal ones
    the first is smaller) is kept with the probability ``density - epsilon + 2 epsilon r / (n - 1)``, and divided by
    it; the only element of a row with the probability ``density``. Then signs are elected and those that agree
    averaged, as in TIES. Whether an element is kept is a function of the model's seed and its position, given its
    probability.

    The rows of a tensor of one dimension are the whole of it; of more than two, its vectors along the second. The
    paper's epsilon, the whole span of the probabilities, is twice this one.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        weight: one weight for each.
        density: mean probability of keeping an element of each; 0 keeps nothing and 1 everything.
        epsilon: half the span of the probabilities of each; density - epsilon and density + epsilon lie between 0
            and 1.
        seeds: one for each, by default 0, 1, ...
        normalize: divide by the weights of the models that agree.
        rescale: divide what is kept by its probability.
        lambda_: scale of the merged difference.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Raises:
        MergeError: a probability would lie outside of 0 to 1.

    Source:
        Deep et al., "DELLA-Merging" (2024), arXiv:2406.11617, section 3.
    """
    return _merge(
        tensors, base, "della", True, weight, density, epsilon, seeds, normalize, rescale, lambda_, dtype or base.dtype
    )


@merge_method(
    "della_linear",
    DellaLinearParams,
    base="reference",
    per_model=("weight", "density", "epsilon"),
    required=("weight",),
    random=True,
)
def della_linear(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    seeds: Sequence[int] | None = None,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus the weighted sum of differences thinned by magnitude: `della` without election.

    Args:
        tensors: as in `della`.
        base: as in `della`.
        weight: as in `della`.
        density: as in `della`.
        epsilon: as in `della`.
        seeds: as in `della`.
        normalize: divide by the sum of the weights.
        rescale: as in `della`.
        lambda_: as in `della`.
        dtype: as in `della`.

    Returns:
        A tensor of the shape of the base, rounded once.

    Raises:
        MergeError: a probability would lie outside of 0 to 1, or the weights to divide by sum to zero.

    Source:
        arXiv:2406.11617, section 3.
    """
    return _merge(
        tensors,
        base,
        "della_linear",
        False,
        weight,
        density,
        epsilon,
        seeds,
        normalize,
        rescale,
        lambda_,
        dtype or base.dtype,
    )


def keep_probabilities(rows: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Return the probability of keeping each element of some rows, by its magnitude's rank in its row.

    Args:
        rows: float64 of shape [rows, columns].
        density: mean of a row's probabilities.
        epsilon: half their span.

    Returns:
        float64 of the same shape.
    """
    columns = rows.shape[1]
    if columns < 2:
        return torch.full_like(rows, density)
    order = rows.abs().argsort(dim=1, stable=True)
    ladder = torch.arange(columns, dtype=torch.float64, device=rows.device)
    ladder = ladder.mul_(2 * epsilon / (columns - 1)).add_(density - epsilon)
    return torch.empty_like(rows).scatter_(1, order, ladder.expand_as(rows))


def _merge(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    method: str,
    elect: bool,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    seeds: Sequence[int] | None,
    normalize: bool,
    rescale: bool,
    lambda_: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    for share, span in zip(density, epsilon, strict=True):
        if 0 < share < 1 and not (share - span > 0 and share + span < 1):
            raise MergeError(
                f"{method}: density {share} and epsilon {span} make probabilities from {share - span:g} to "
                f"{share + span:g}; wanted them between 0 and 1: take a smaller epsilon"
            )
    moved = base.dim() > 2
    matrices = [_rows(tensor) for tensor in (*tensors, base)]
    result = torch.empty(matrices[0].shape, dtype=dtype, device=base.device)
    position = row = 0
    for parts in row_pieces(matrices):
        start = parts.pop().double()
        changes = []
        for part, share, span, seed in zip(parts, density, epsilon, seeds or range(len(tensors)), strict=True):
            change = part.double() - start
            if share <= 0:
                change.mul_(0.0)
            elif share < 1:
                chance = keep_probabilities(change, share, span)
                drawn = uniform(seed, position, change.numel(), change.device).view(change.shape)
                change.mul_(drawn < chance)
                if rescale:
                    change.div_(chance)
            changes.append(change)
        result[row : row + len(start)] = add_changes(
            start,
            changes,
            weight=weight,
            method=method,
            elect=elect,
            normalize=normalize,
            lambda_=lambda_,
            dtype=dtype,
        )
        position += start.numel()
        row += len(start)
    if not moved:
        return result.view(base.shape)
    return result.view(base.transpose(1, -1).shape).transpose(1, -1).contiguous()


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() < 2:
        return tensor.reshape(1, -1)
    return tensor.transpose(1, -1).reshape(-1, tensor.shape[1])
