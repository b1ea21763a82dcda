"""How alike two sets of states are: centred kernel alignment, and what a closed-form map makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from mango.tensors.procrustes import ProcrustesFit
from mango.tensors.ridge import RidgeFit


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear centred kernel alignment of paired states, from 0 to 1.

    It does not change when either side is rotated or scaled, and widths may differ.

    Args:
        x: shape ``[pairs, width]``.
        y: shape ``[pairs, another width]``.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited" (1905.00414), eq. 5.
    """
    a, b = (side.double() - side.double().mean(0) for side in (x, y))
    own = torch.linalg.matrix_norm(a.T @ a) * torch.linalg.matrix_norm(b.T @ b)
    shared = torch.linalg.matrix_norm(b.T @ a).square()
    return float(shared / own) if float(own) > 0 else 0.0


def held_out_fit(x: Tensor, y: Tensor, *, kind: str, ridge: float) -> float:
    """Return R squared of a closed-form map from x to y on the second half of the pairs, fitted on the first.

    Args:
        x: shape ``[pairs, width_in]``.
        y: shape ``[pairs, width_out]``.
        kind: ``identity`` fits nothing and takes x for y; ``procrustes`` is a rotation and a shift; ``ridge`` any
            affine map. The first two want equal widths.
        ridge: strength of the ridge.

    Returns:
        1 where every y is met; 0 where the mean of y would do as well; below that where it would do better.
    """
    half = len(x) // 2
    known, asked = slice(0, half), slice(half, None)
    said = x[asked].double()
    if kind != "identity":
        make = ProcrustesFit if kind == "procrustes" else RidgeFit
        fit = make(x.shape[1], y.shape[1], ridge=ridge, device=x.device)
        fit.add(x[known], y[known])
        weight, bias, _ = fit.solve()
        said = said @ weight + bias
    wanted = y[asked].double()
    spread = (wanted - wanted.mean(0)).square().sum()
    return 1.0 - float((wanted - said).square().sum() / spread) if float(spread) > 0 else 1.0
