"""Going from the base towards the average of fine-tuned models, as far as their angles say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from pydantic import Field

from mango.config import Frozen
from mango.merging.registry import merge_method
from mango.tensors.pieces import last_rows, row_pieces
from mango.tensors.spread import Spread
from mango.tensors.sums import row_products, scalar_products, weighted_sum


class ModelStockParams(Frozen):
    """Parameters of ``model_stock``."""

    filter_wise: bool = Field(False, description="measure angles for each row of a matrix, not for the whole of it")


def _ratios(products: torch.Tensor) -> torch.Tensor:
    """Return how far to go, from the scalar products ``[..., n, n]`` of n differences; shape ``[...]``."""
    count = products.shape[-1]
    norms = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    lengths = norms.unsqueeze(-1) * norms.unsqueeze(-2)
    cosines = torch.where(lengths > 0, products / torch.where(lengths > 0, lengths, 1.0), 0.0).clamp(-1.0, 1.0)
    pairs = list(itertools.combinations(range(count), 2))
    cosine = torch.stack([cosines[..., i, j] for i, j in pairs]).mean(0)
    divisor = 1 + (count - 1) * cosine
    singular = divisor.abs() < 1e-6
    return torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, divisor))


def _measure(tensors: Sequence[torch.Tensor], *, base: torch.Tensor, filter_wise: bool) -> dict[str, Spread]:
    if not filter_wise or base.dim() < 2:
        return {"ratios": Spread(_ratios(scalar_products(tensors, base)).reshape(1), 1)}
    found = [torch.empty(0, dtype=torch.float64, device=base.device)]
    for *parts, start in row_pieces([last_rows(tensor) for tensor in (*tensors, base)]):
        changes = [part.double() - start.double() for part in parts]
        products = torch.stack([torch.stack([row_products(a, b) for b in changes], -1) for a in changes], -2)
        found.append(_ratios(products))
    return {"ratios": Spread(torch.cat(found), base.shape[-1])}


@merge_method("model_stock", ModelStockParams, base="reference", min_models=2, measure=_measure, elementwise=True)
def model_stock(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    filter_wise: bool = False,
    ratios: Spread | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return ``t * mean + (1 - t) * base``, with t from the angles between the differences; computed in float64.

    With c the mean cosine between the differences from the base over all pairs of the n models,
    ``t = n c / (1 + (n - 1) c)``. A pair with a zero difference counts as orthogonal; where the divisor is below 1e-6
    the models pull in opposite directions, and the base stays.

    Args:
        tensors: at least two floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        filter_wise: measure the angles for each vector along the last dimension.
        ratios: t for the whole tensors, when these are pieces; measured here by default.
        first_position: flat position of the first element in the whole tensor.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Jang et al., "Model Stock" (2024), arXiv:2403.19522, equation 4 and its form for n models.
    """
    if ratios is None:
        ratios = _measure(tensors, base=base, filter_wise=filter_wise)["ratios"]
    flat = [tensor.reshape(-1) for tensor in (base, *tensors)]
    ratio = ratios.at(first_position, len(flat[0])).to(base.device)
    coefficients = [1.0 - ratio, *[ratio / len(tensors)] * len(tensors)]
    return weighted_sum(flat, coefficients, dtype or base.dtype).view(base.shape)
