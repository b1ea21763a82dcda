"""Taking from a second model only the elements whose change matters most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mango.config import Frozen
from mango.merging.registry import merge_method
from mango.tensors.pieces import last_rows, row_pieces
from mango.tensors.selection import keep_largest
from mango.tensors.spread import Spread

_FLOOR = 1e-8  # added to the probabilities of a row
_SORTED = 1 << 16  # elements of a tensor that is sorted as a whole


class ArceeFusionParams(Frozen):
    """``arcee_fusion`` has no parameters."""


@dataclass(frozen=True)
class Importance:
    """From which importance on elements are taken.

    Attributes:
        divergences: float64, one for each row of the tensor.
        threshold: the smallest importance that is taken.
    """

    divergences: Spread
    threshold: float

    def of(self, parts: Sequence[torch.Tensor], first: int, step: int) -> torch.Tensor:
        """Return the importance of flat elements at positions ``first``, ``first + step``, ..."""
        change = parts[1].double().sub(parts[0].double()).abs_()
        return change.mul_(self.divergences.at(first, len(change), step))


def _divergences(base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence of each row's softmax from that of the base, float64 of shape [rows]."""
    found = [torch.empty(0, dtype=torch.float64, device=base.device)]
    for start, part in row_pieces([last_rows(base), last_rows(other)]):
        p = torch.softmax(part.double(), -1).add_(_FLOOR)
        q = torch.softmax(start.double(), -1).add_(_FLOOR)
        # p and q have one sum, so that subtracting p and adding q changes nothing but the rounding error
        found.append((p * torch.log(p / q) - p + q).sum(-1).clamp_(min=0.0))
    return torch.cat(found)


def _measure(tensors: Sequence[torch.Tensor], **_: object) -> dict[str, Importance]:
    base, other = tensors
    size = base.numel()
    importance = Importance(Spread(_divergences(base, other), base.shape[-1] if base.dim() else 1), 0.0)
    if not size:
        return {"importance": importance}
    ranks = [int(share * (size - 1)) for share in (0.25, 0.5, 0.75)]  # from the smallest, counted from 0
    if size <= _SORTED:
        ordered = importance.of([base.reshape(-1), other.reshape(-1)], 0, 1).sort().values
        lower, middle, upper = (float(ordered[rank]) for rank in ranks)
    else:
        kept = keep_largest([base, other], [size - rank for rank in ranks], importance.of)
        lower, middle, upper = (choice.threshold for choice in kept)
    return {"importance": Importance(importance.divergences, middle + 1.5 * (upper - lower))}


@merge_method("arcee_fusion", ArceeFusionParams, base="start", num_models=2, measure=_measure, elementwise=True)
def arcee_fusion(
    tensors: Sequence[torch.Tensor],
    *,
    importance: Importance | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the first tensor with the most important elements of the second, computed in float64.

    The importance of an element is the magnitude of its change times the Kullback-Leibler divergence between the
    softmax of its row (along the last dimension) in both tensors, each probability raised by 1e-8. What is at least
    the median plus 1.5 interquartile ranges is taken. The quartiles are exact, element ``floor(q (n - 1))`` of all n
    in order.

    Args:
        tensors: two floating point tensors of one shape: the base and the other.
        importance: that of the whole tensors, when these are pieces; measured here by default.
        first_position: flat position of the first element in the whole tensor.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Arcee AI, "Arcee Fusion" (2025), as mergekit describes it.
    """
    if importance is None:
        importance = _measure(tensors)["importance"]
    base, other = (tensor.reshape(-1) for tensor in tensors)
    values = importance.of([base, other], first_position, 1)
    change = other.double().sub(base.double())
    change.mul_((values < importance.threshold).logical_not_())  # a NaN is taken, so that it shows
    return change.add_(base.double()).view(tensors[0].shape).to(dtype or base.dtype)
