"""Select where models differ most, calculate their weights, erase what disagrees in sign."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field

from mango.config import Frozen
from mango.merging.methods.consensus import elected_signs
from mango.merging.registry import merge_method
from mango.tensors.pieces import pieces
from mango.tensors.selection import Kept, keep_largest, num_kept


class SceParams(Frozen):
    """Parameters of ``sce``."""

    select_topk: float = Field(1.0, ge=0, le=1, description="share of elements, by variance, that is merged")


@dataclass(frozen=True)
class Selected:
    """What is merged, and how the models are weighted.

    Attributes:
        kept: the choice by variance; None where everything is merged.
        shares: a weight for each model; they sum to one.
    """

    kept: Kept | None
    shares: tuple[float, ...]


def variances(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return n squared times the variance between n models of each element, float64, of the shape of the tensors.

    It is the sum of the squared differences of all pairs, which is exact for short significands and does not depend
    on the order of the models then, so that ties are ties.
    """
    wide = [tensor.double() for tensor in tensors]
    result = torch.zeros_like(wide[0])
    for first, second in itertools.combinations(wide, 2):
        apart = first - second
        result.addcmul_(apart, apart)
    return result


def _measure(tensors: Sequence[torch.Tensor], *, base: torch.Tensor, select_topk: float) -> dict[str, Selected]:
    kept = None
    if select_topk < 1:
        varying = sum(int(variances(parts).count_nonzero()) for parts in pieces(tensors))
        count = num_kept(select_topk, varying)
        kept = keep_largest(tensors, [count], lambda parts, _first, _step: variances(parts))[0]
    squares = [0.0] * len(tensors)
    position = 0
    for *parts, start in pieces([*tensors, base]):
        mask = None if kept is None else kept.mask(variances(parts), position)
        for i, part in enumerate(parts):
            change = part.double() - start.double()
            if mask is not None:
                change.mul_(mask)
            squares[i] += float(torch.dot(change, change))
        position += len(start)
    total = sum(squares)
    shares = [square / total for square in squares] if total != 0 else [1 / len(tensors)] * len(tensors)
    return {"selected": Selected(kept, tuple(shares))}


@merge_method("sce", SceParams, base="reference", measure=_measure, elementwise=True)
def sce(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    select_topk: float = 1.0,
    selected: Selected | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus the mean of selected differences that agree in sign, weighted by size, in float64.

    1. Select: the share ``select_topk`` of the elements in which the models differ at all, those of largest variance
       between the models (rounded down, but at least one; of equal ones the first). A share of 1 selects everything.
    2. Calculate: a model's weight is the sum of squares of its selected difference over that of all.
    3. Erase: the sign of an element is that of the sum of the differences; those of the other sign are left out, and
       the others averaged by weight. Where the sum is zero the element stays as it is in the base.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        select_topk: share of the varying elements that is merged, 0 to 1.
        selected: what is selected in the whole tensors, when these are pieces; chosen here by default.
        first_position: flat position of the first element in the whole tensor.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Wan et al., "FuseChat" (2024), arXiv:2408.07990, section 3.2.
    """
    if selected is None:
        selected = _measure(tensors, base=base, select_topk=select_topk)["selected"]
    flat = [tensor.reshape(-1) for tensor in tensors]
    start = base.reshape(-1).double()
    mask = None if selected.kept is None else selected.kept.mask(variances(flat), first_position)
    changes = []
    for tensor in flat:
        change = tensor.double() - start
        changes.append(change if mask is None else change.mul_(mask))
    signs = elected_signs(changes)
    merged, divisor = torch.zeros_like(start), torch.zeros_like(start)
    for change, share in zip(changes, selected.shares, strict=True):
        agreeing = change.mul_(signs).clamp_(min=0.0)  # its magnitude where it has the elected sign, else 0
        merged.add_(agreeing, alpha=share)
        divisor.add_(agreeing.sign_(), alpha=share)
    merged.div_(divisor.clamp_(min=1e-300)).mul_(signs)
    return start.add(merged).view(base.shape).to(dtype or base.dtype)
