"""Adding what each model learned, by a coefficient for each model and layer that calibration text can teach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mango.config import Frozen
from mango.merging.methods.consensus import add_changes, elected_signs
from mango.merging.methods.trimming import Trim, measure_trims
from mango.merging.registry import Learned, merge_method
from mango.tensors.sums import weighted_sum


class AdamergingParams(Frozen):
    """Parameters of ``adamerging``."""

    coefficient: float = Field(0.3, description="of each model's difference; learned from calibration text, if given")


class AdamergingPpParams(AdamergingParams):
    """Parameters of ``adamerging_pp``."""

    density: float = Field(0.2, ge=0, le=1, description="share of each difference that is kept")


def _changes(tensors: Sequence[torch.Tensor], base: torch.Tensor, **_: object) -> list[torch.Tensor]:
    start = base.reshape(-1).double()
    return [tensor.reshape(-1).double() - start for tensor in tensors]


def agreeing_changes(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, trims: Sequence[Trim], first_position: int = 0
) -> list[torch.Tensor]:
    """Return trimmed differences from a base without the elements whose sign is not the elected one.

    The sign of each element is that of the plain sum of the trimmed differences; where it is zero nothing is left.

    Args:
        tensors: floating point tensors of one shape.
        base: what is subtracted from each.
        trims: what trimming keeps of each.
        first_position: flat position of the first element in the whole tensor.

    Returns:
        float64, one for each, flat.
    """
    start = base.reshape(-1).double()
    changes = [
        trim.apply(tensor.reshape(-1).double() - start, first_position)
        for tensor, trim in zip(tensors, trims, strict=True)
    ]
    signs = elected_signs(changes)
    return [change.mul_((change.sign() == signs).to(change.dtype)) for change in changes]


def _agreeing(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, *, trims: Sequence[Trim], first_position: int, **_: object
) -> list[torch.Tensor]:
    return agreeing_changes(tensors, base, trims, first_position)


def _measure(
    tensors: Sequence[torch.Tensor], *, base: torch.Tensor, density: Sequence[float], **_: object
) -> dict[str, tuple[Trim, ...]]:
    return {"trims": measure_trims(tensors, base, density=density, gamma=None, rescale=False)}


@merge_method(
    "adamerging",
    AdamergingParams,
    base="reference",
    per_model=("coefficient",),
    elementwise=True,
    learned=Learned("coefficient", _changes),
)
def adamerging(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    coefficient: Sequence[float],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus the sum of the differences from it times their coefficients, computed in float64.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        coefficient: one for each.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning" (2023), arXiv:2310.02575,
        section 3.2.
    """
    return weighted_sum([base, *tensors], [1.0 - sum(coefficient), *coefficient], dtype or base.dtype)


@merge_method(
    "adamerging_pp",
    AdamergingPpParams,
    base="reference",
    per_model=("coefficient", "density"),
    measure=_measure,
    elementwise=True,
    learned=Learned("coefficient", _agreeing),
)
def adamerging_pp(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    coefficient: Sequence[float],
    density: Sequence[float],
    trims: Sequence[Trim] | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus the sum of trimmed, agreeing differences times their coefficients, computed in float64.

    1. Trim: of each difference the ``density`` of largest magnitude is kept (rounded down, but at least one element
       of any; of equal ones the first), the rest becomes zero.
    2. Elect: the sign of each element is that of the sum of the trimmed differences; elements of another sign become
       zero. The coefficients have no part in it.
    3. Add what is left of each, times its coefficient.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        coefficient: one for each.
        density: share of each that is kept, 0 to 1.
        trims: what trimming keeps of the whole tensors, when these are pieces; chosen here by default.
        first_position: flat position of the first element in the whole tensor.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning" (2023), arXiv:2310.02575,
        section 3.2 (AdaMerging++), with steps 1 and 2 of Yadav et al. (2023), arXiv:2306.01708.
    """
    if trims is None:
        trims = _measure(tensors, base=base, density=density)["trims"]
    changes = agreeing_changes(tensors, base, trims, first_position)
    return add_changes(
        base.reshape(-1).double(),
        changes,
        weight=coefficient,
        method="adamerging_pp",
        elect=False,
        normalize=False,
        lambda_=1.0,
        dtype=dtype or base.dtype,
    ).view(base.shape)
