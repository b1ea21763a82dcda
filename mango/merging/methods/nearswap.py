"""Going towards another model as far as a fixed distance, element by element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mango.config import Frozen
from mango.merging.registry import merge_method


class NearswapParams(Frozen):
    """Parameters of ``nearswap``."""

    t: float = Field(0.001, ge=0, description="how far each element may go, in the units of the weights")


@merge_method("nearswap", NearswapParams, base="start", required=("t",), num_models=2, elementwise=True)
def nearswap(tensors: Sequence[torch.Tensor], *, t: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return the first tensor moved towards the second by at most ``t`` in each element, computed in float64.

    The weight of the second is ``min(1, t / |b - a|)``, which is ``a + clamp(b - a, -t, t)``: elements that are
    nearer than t are swapped, the others go t of the way.

    Args:
        tensors: two floating point tensors of one shape, a and b.
        t: largest distance.
        dtype: type of the result; that of the first tensor by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        alchemonaut, "QuartetAnemoi-70B-t0.0001" (2024), model card.
    """
    start = tensors[0].double()
    return (tensors[1].double() - start).clamp_(-t, t).add_(start).to(dtype or tensors[0].dtype)
