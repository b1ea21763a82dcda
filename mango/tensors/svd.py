"""The leading singular values and vectors of a matrix, without its whole decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch

OVERSAMPLE = 16
PASSES = 4


@dataclass(frozen=True)
class LeadingSvd:
    """The leading part of a singular value decomposition, ``left @ diag(values) @ right``.

    Attributes:
        left: orthonormal columns, ``[rows, rank]``.
        values: singular values, largest first, float64 ``[rank]``.
        right: orthonormal rows, ``[rank, columns]``.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def leading_svd(
    matrix: torch.Tensor, rank: int, *, seed: int, oversample: int = OVERSAMPLE, passes: int = PASSES
) -> LeadingSvd:
    """Return the leading singular values and vectors of a matrix.

    A sketch of ``rank + oversample`` random combinations of the columns is multiplied by the matrix and its transpose
    ``passes`` times, orthonormal after each step, and the matrix is decomposed inside of its span. Where the sketch
    would be as large as half of the shorter side, the matrix is decomposed whole, in float64.

    Args:
        matrix: ``[rows, columns]``, floating point.
        rank: how many to return; fewer when a side is shorter.
        seed: of the sketch; the same seed gives the same result.
        oversample: columns of the sketch beyond ``rank``.
        passes: multiplications by the matrix and its transpose.

    Returns:
        The factors; vectors are float32, float64 where the matrix is or where it is decomposed whole.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), algorithm 4.4.
    """
    short = min(matrix.shape)
    rank = min(rank, short)
    width = min(rank + oversample, short)
    if 2 * width >= short:
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        return LeadingSvd(left[:, :rank], values[:rank], right[:rank])
    work = matrix if matrix.dtype == torch.float64 else matrix.float()
    generator = torch.Generator("cpu").manual_seed(seed)
    sketch = torch.randn(work.shape[1], width, generator=generator, dtype=torch.float32).to(work)
    basis = torch.linalg.qr(work @ sketch).Q
    for _ in range(passes):
        other = torch.linalg.qr(work.T @ basis).Q
        basis = torch.linalg.qr(work @ other).Q
    inner_left, values, right = torch.linalg.svd((basis.T @ work).double(), full_matrices=False)
    return LeadingSvd(
        (basis.double() @ inner_left[:, :rank]).to(work.dtype), values[:rank], right[:rank].to(work.dtype)
    )
