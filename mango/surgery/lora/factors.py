"""The two factors of one difference between weights: of least error for their rank, and no larger than asked for."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch

from mango.tensors.svd import leading_svd

_NOISE = 2.0**-22
"""Singular values below this share of the first are what float32 arithmetic leaves, not a difference."""


@dataclass(frozen=True)
class Factors:
    """A difference as ``up @ down``.

    Attributes:
        down: ``[rank, columns]``.
        up: ``[rows, rank]``.
        rank: columns of ``up``; 0 where there is no difference.
        norm: Frobenius norm of the difference.
        error: Frobenius norm of what the factors leave out, after their rounding to their type.
        best_error: the same, had no factor been rounded: what the discarded singular values amount to.
    """

    down: torch.Tensor
    up: torch.Tensor
    rank: int
    norm: float
    error: float
    best_error: float


def factorise(
    difference: torch.Tensor, *, rank: int, energy: float | None, scale: float | None, dtype: torch.dtype, seed: int
) -> Factors:
    """Return the factors of least error for a difference.

    Args:
        difference: ``[rows, columns]``, float32 or float64.
        rank: largest rank.
        energy: with a share, the smallest rank that keeps it of the squared norm.
        scale: what the product will be multiplied by times the rank (an adapter's alpha); None for a product that
            stands for itself.
        dtype: type of the factors.
        seed: of the random sketch.

    Returns:
        The factors; both carry the square root of the singular values, so that neither loses more in rounding.
    """
    total = float(difference.double().square().sum())
    if total == 0.0:
        empty = torch.empty(0, dtype=dtype)
        return Factors(empty.view(0, 0), empty.view(0, 0), 0, 0.0, 0.0, 0.0)
    found = leading_svd(difference, rank, seed=seed)
    squares = found.values.square()
    kept = chosen_rank(squares, total, energy)
    root = found.values[:kept].sqrt()
    factor = 1.0 if scale is None else math.sqrt(kept / scale)
    up = (found.left[:, :kept].double() * root * factor).to(dtype)
    down = (root.unsqueeze(1) * found.right[:kept].double() * factor).to(dtype)
    product = up.to(difference.dtype) @ down.to(difference.dtype)
    left_out = product.mul_(1.0 if scale is None else scale / kept).sub_(difference)
    return Factors(
        down,
        up,
        kept,
        math.sqrt(total),
        float(torch.linalg.vector_norm(left_out, dtype=torch.float64)),
        math.sqrt(max(total - float(squares[:kept].sum()), 0.0)),
    )


def chosen_rank(squares: torch.Tensor, total: float, energy: float | None) -> int:
    """Return how many singular values to keep: at least one, and none that is rounding noise.

    Args:
        squares: squared singular values, largest first.
        total: the squared norm of the whole matrix.
        energy: the share of it that is to be kept; all that are given where it is None.
    """
    real = max(1, int((squares > squares[0] * _NOISE**2).sum()))
    if energy is None:
        return real
    enough = (squares.cumsum(0) >= energy * total * (1 - 1e-12)).nonzero()
    return min(real, int(enough[0]) + 1) if len(enough) else real


def seed_of(name: str, seed: int) -> int:
    """Return a seed of a tensor's own, so that results do not depend on which others are worked on, or when."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
