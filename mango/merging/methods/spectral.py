"""Merging the singular vectors of differences: TSV, Iso-C and Iso-CTS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import ConfigDict, Field

from mango.config import Frozen
from mango.merging.registry import merge_method


class SpectralParams(Frozen):
    """What every method has that merges singular vectors."""

    model_config = ConfigDict(populate_by_name=True)

    lambda_: float = Field(1.0, alias="lambda", description="scale of the merged difference")


class TsvParams(SpectralParams):
    """Parameters of ``tsv``."""

    rank_share: float | None = Field(
        None, gt=0, le=1, description="share of each model's singular vectors that is kept; one over their number"
    )


class IsoCParams(SpectralParams):
    """Parameters of ``iso_c``."""


class IsoCtsParams(SpectralParams):
    """Parameters of ``iso_cts``."""

    common_space: float = Field(0.8, ge=0, le=1, description="share of the rank that the sum of differences gives")


def orthogonal_factor(matrix: torch.Tensor) -> torch.Tensor:
    """Return the matrix of orthonormal columns (or rows) nearest to a float64 matrix: U V' of its SVD."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    factor: torch.Tensor = u @ v
    return factor


def _changes(tensors: Sequence[torch.Tensor], base: torch.Tensor) -> list[torch.Tensor]:
    start = base.double()
    return [tensor.double() - start for tensor in tensors]


def _result(base: torch.Tensor, merged: torch.Tensor, lambda_: float, dtype: torch.dtype | None) -> torch.Tensor:
    return base.double().add(merged.view(base.shape), alpha=lambda_).to(dtype or base.dtype)


def _is_matrix(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 2 and tensor.numel() > 0


@merge_method("tsv", TsvParams, base="reference")
def tsv(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    rank_share: float | None = None,
    lambda_: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus decorrelated task singular vectors, computed in float64.

    Of each difference's SVD the first ``rank_share`` of the components are kept (rounded down, but at least one).
    The left vectors of all models side by side are replaced by the nearest orthonormal ones, the right ones too, and
    the components are put together with their singular values. A difference that is no matrix is averaged.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        rank_share: share of components kept of each; by default one over the number of models.
        lambda_: scale of the merged difference.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Gargiulo et al., "Task Singular Vectors" (2024), arXiv:2412.00081, algorithm 1 (TSV-Merge).
    """
    changes = _changes(tensors, base)
    if not _is_matrix(base):
        return _result(base, torch.stack(changes).mean(0), lambda_, dtype)
    full = min(base.shape)
    rank = max(1, int(full * (rank_share if rank_share is not None else 1 / len(tensors)) + 1e-9))
    lefts, values, rights = [], [], []
    for change in changes:
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        lefts.append(u[:, :rank])
        values.append(s[:rank])
        rights.append(v[:rank])
    left, right = orthogonal_factor(torch.cat(lefts, 1)), orthogonal_factor(torch.cat(rights, 0))
    return _result(base, left * torch.cat(values) @ right, lambda_, dtype)


@merge_method("iso_c", IsoCParams, base="reference")
def iso_c(
    tensors: Sequence[torch.Tensor], *, base: torch.Tensor, lambda_: float = 1.0, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return the base plus the sum of differences with all its singular values made equal, computed in float64.

    Each singular value is replaced by the mean of all. A difference that is no matrix is averaged.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        lambda_: scale of the merged difference.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Marczak et al., "No Task Left Behind" (2025), arXiv:2502.04959, algorithm 1.
    """
    changes = _changes(tensors, base)
    total = torch.stack(changes).sum(0)
    if not _is_matrix(base):
        return _result(base, total / len(tensors), lambda_, dtype)
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    return _result(base, (u @ v).mul_(s.mean()), lambda_, dtype)


@merge_method("iso_cts", IsoCtsParams, base="reference")
def iso_cts(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    common_space: float = 0.8,
    lambda_: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus equal amounts of common and task-specific directions, computed in float64.

    The first singular vectors of the sum of the differences span the common space. What each difference has beyond
    it gives its own first vectors, as many for each model as fit: the rank that ``common_space`` leaves, divided by
    the number of models and rounded to whole vectors, the rest going to the common space. Left and right vectors are
    made orthonormal, and every direction gets the mean of all their singular values. A difference that is no matrix
    is averaged.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        common_space: share of the rank for the common space.
        lambda_: scale of the merged difference.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Marczak et al., "No Task Left Behind" (2025), arXiv:2502.04959, algorithm 2.
    """
    changes = _changes(tensors, base)
    total = torch.stack(changes).sum(0)
    if not _is_matrix(base):
        return _result(base, total / len(tensors), lambda_, dtype)
    full = min(base.shape)
    own = round((full - int(full * common_space)) / len(tensors))
    own = min(own, full // len(tensors))
    common = full - own * len(tensors)
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    left, lefts, values, rights = u[:, :common], [u[:, :common]], [s[:common]], [v[:common]]
    for change in changes if own else ():
        u, s, v = torch.linalg.svd(change - left @ (left.T @ change), full_matrices=False)
        lefts.append(u[:, :own])
        values.append(s[:own])
        rights.append(v[:own])
    directions = orthogonal_factor(torch.cat(lefts, 1)) @ orthogonal_factor(torch.cat(rights, 0))
    return _result(base, directions.mul_(torch.cat(values).mean()), lambda_, dtype)
