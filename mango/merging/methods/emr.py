"""Elect a unified difference, and what is needed to get every single model back from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import ConfigDict, Field

from mango.config import Frozen
from mango.merging.methods.consensus import elected_signs
from mango.merging.registry import merge_method


class EmrParams(Frozen):
    """Parameters of ``emr``."""

    model_config = ConfigDict(populate_by_name=True)

    lambda_: float = Field(1.0, alias="lambda", description="scale of the unified difference")


@dataclass(frozen=True)
class EmrParts:
    """A unified difference, and each model's way back from it.

    Attributes:
        unified: float64, of the shape of the tensors.
        masks: for each model, bool of the same shape: where its difference has the unified sign.
        rescalers: for each model, the factor that gives its masked unified difference its own sum of magnitudes.
    """

    unified: torch.Tensor
    masks: tuple[torch.Tensor, ...]
    rescalers: tuple[float, ...]

    def restore(self, index: int, base: torch.Tensor) -> torch.Tensor:
        """Return the approximation of one model, ``base + rescaler * mask * unified``, in the type of the base."""
        change = self.unified * self.masks[index] * self.rescalers[index]
        return (base.double() + change).to(base.dtype)


def _changes(tensors: Sequence[torch.Tensor], base: torch.Tensor) -> list[torch.Tensor]:
    start = base.double()
    return [tensor.double() - start for tensor in tensors]


def unify(changes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the elected difference: the sign of the sum, and the largest magnitude of those that have it.

    Args:
        changes: float64 differences of one shape.

    Returns:
        float64 of that shape; 0 where the sum is zero up to rounding.

    Source:
        Huang et al., "EMR-Merging" (2024), arXiv:2405.17461, section 3.2 (elect).
    """
    signs = elected_signs(changes)
    largest = torch.zeros_like(signs)
    for change in changes:
        largest = torch.maximum(largest, change * signs)
    return largest.mul_(signs)


def emr_parts(tensors: Sequence[torch.Tensor], base: torch.Tensor) -> EmrParts:
    """Return the unified difference with each model's mask and rescaler.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.

    Returns:
        What `EmrParts.restore` makes the models from, at one bit for each element and model beside one difference.

    Source:
        Huang et al., "EMR-Merging" (2024), arXiv:2405.17461, section 3.2 (mask, rescale).
    """
    changes = _changes(tensors, base)
    unified = unify(changes)
    masks, rescalers = [], []
    for change in changes:
        mask = change * unified > 0
        masks.append(mask)
        kept = float((unified * mask).abs().sum())
        rescalers.append(float(change.abs().sum()) / kept if kept else 1.0)
    return EmrParts(unified, tuple(masks), tuple(rescalers))


@merge_method("emr", EmrParams, base="reference", elementwise=True)
def emr(
    tensors: Sequence[torch.Tensor], *, base: torch.Tensor, lambda_: float = 1.0, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return the base plus the unified difference of EMR-Merging, computed in float64.

    Its sign is that of the sum of the differences, its magnitude the largest of those that have this sign. The masks
    and rescalers by which the method gets each model back are no part of one merged checkpoint: `emr_parts` makes
    them, and stores one bit for each element and model.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        lambda_: scale of the unified difference.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Huang et al., "EMR-Merging" (2024), arXiv:2405.17461, section 3.2 (elect).
    """
    return base.double().add(unify(_changes(tensors, base)), alpha=lambda_).to(dtype or base.dtype)
