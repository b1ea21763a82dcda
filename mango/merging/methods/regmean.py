"""Merging linear layers so that the merged one gives what each gives on its own inputs, as nearly as it can."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mango.config import Frozen
from mango.errors import MergeError
from mango.merging.registry import merge_method


class RegmeanParams(Frozen):
    """Parameters of ``regmean``."""

    reduction: float = Field(0.9, ge=0, le=1, description="factor of the Gram matrices' elements off the diagonal")


@merge_method("regmean", RegmeanParams, base="none", statistics="grams")
def regmean(
    tensors: Sequence[torch.Tensor],
    *,
    grams: Sequence[torch.Tensor | None],
    reduction: float = 0.9,
    transposed: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the linear layer nearest to all in what it gives, ``(sum_i W_i G_i) (sum_i G_i)^-1``, in float64.

    G_i is the Gram matrix ``X_i' X_i`` of layer i's inputs, its elements off the diagonal times ``reduction``. An
    input that is zero in all texts of all models says nothing about its column, which is averaged; a singular sum is
    solved with the least change of the mean. A tensor without Gram matrices is averaged.

    Args:
        tensors: ``[width_out, width_in]`` floating point matrices of linear layers, or tensors of any shape.
        grams: for each, ``[width_in, width_in]``; or None for all where they are not of linear layers.
        reduction: factor of the elements off the diagonal, 0 to 1.
        transposed: the matrices are stored as ``[width_in, width_out]``, as those of GPT-2 are.
        dtype: type of the result; that of the first tensor by default.

    Returns:
        A tensor of that shape, rounded once.

    Raises:
        MergeError: there are Gram matrices for some of the models only, or they hold no numbers.

    Source:
        Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models" (2022), arXiv:2212.09849,
        equation 2 and section 4.
    """
    if transposed:
        turned = [tensor.T for tensor in tensors]
        return regmean(turned, grams=grams, reduction=reduction, dtype=dtype).T.contiguous()
    known = [gram for gram in grams if gram is not None]
    mean = torch.zeros(tensors[0].shape, dtype=torch.float64, device=tensors[0].device)
    for tensor in tensors:
        mean.add_(tensor.double(), alpha=1 / len(tensors))
    if not known:
        return mean.to(dtype or tensors[0].dtype)
    if len(known) < len(tensors):
        raise MergeError(f"regmean: Gram matrices for {len(known)} of {len(tensors)} models; wanted all or none")
    total = torch.zeros_like(known[0], dtype=torch.float64)
    pull = torch.zeros_like(mean)
    for tensor, gram in zip(tensors, known, strict=True):
        reduced = gram.double() * reduction
        reduced.diagonal().copy_(gram.diagonal())
        total += reduced
        pull += (tensor.double() - mean) @ reduced
    if not bool(torch.isfinite(total).all()):
        raise MergeError("regmean: a Gram matrix has elements that are not finite; calibrate with other text")
    # around the mean, the minimum-norm solution leaves alone what the inputs say nothing about
    values, vectors = torch.linalg.eigh(total)
    significant = values > values.abs().max() * len(values) * 2.0**-50
    inverse = torch.where(significant, 1 / torch.where(significant, values, 1.0), 0.0)
    return mean.add_(pull @ (vectors * inverse) @ vectors.T).to(dtype or tensors[0].dtype)
