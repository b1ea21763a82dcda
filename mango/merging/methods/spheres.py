"""Means on the sphere of directions: of several models, or of their differences from a base."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field

from mango.config import Frozen
from mango.merging.methods.weights import weight_total
from mango.merging.registry import merge_method
from mango.tensors.sums import scalar_products, weighted_sum

Coefficients = tuple[float, ...]


class MultislerpParams(Frozen):
    """Parameters of ``multislerp``."""

    weight: float = Field(1.0, description="of each model")
    normalize_weights: bool = Field(True, description="divide the weights by their sum")
    eps: float = Field(1e-8, ge=0, description="added to the lengths that directions are divided by")


class KarcherParams(Frozen):
    """Parameters of ``karcher``."""

    max_iter: int = Field(10, ge=0, description="steps towards the mean, at most")
    tol: float = Field(1e-5, ge=0, description="a step shorter than this, in radians, is the last")


def _multislerp_measure(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor | None,
    weight: Sequence[float],
    normalize_weights: bool,
    eps: float,
) -> dict[str, Coefficients]:
    total = weight_total("multislerp", weight) if normalize_weights else 1.0
    shares = [w / total for w in weight]
    if len(tensors) == 1:
        return {"coefficients": (1.0,)}
    products = scalar_products(tensors, base)
    norms = products.diagonal().sqrt()
    scale = torch.tensor(shares, dtype=torch.float64) / (norms + eps).clamp(min=math.ulp(0.0))
    length = float((scale @ products @ scale).clamp(min=0).sqrt())
    if length < max(eps, 1e-12):
        return {"coefficients": tuple(shares)}
    radius = float(torch.dot(norms, torch.tensor(shares, dtype=torch.float64)))
    return {"coefficients": tuple((scale * (radius / length)).tolist())}


@merge_method(
    "multislerp",
    MultislerpParams,
    base="optional",
    per_model=("weight",),
    required=("weight",),
    measure=_multislerp_measure,
    elementwise=True,
)
def multislerp(
    tensors: Sequence[torch.Tensor],
    *,
    weight: Sequence[float],
    base: torch.Tensor | None = None,
    normalize_weights: bool = True,
    eps: float = 1e-8,
    coefficients: Coefficients | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the weighted mean direction of tensors at their weighted mean length, computed in float64.

    Barycentric interpolation in the plane that touches the sphere at the weighted mean m of the directions
    ``u_i = x_i / (|x_i| + eps)``: each is projected to ``u_i - (u_i . m/|m|) m/|m|``, the projections are summed by
    weight and the sum is brought back to the sphere. The sum is zero, since m is the weighted mean, so that the
    result is ``m / |m|`` times ``sum_i w_i |x_i|``. Where m vanishes no direction is the mean one, and the linear
    mean is taken. A single model is returned as it is. With a base, all vectors begin there.

    Args:
        tensors: floating point tensors of one shape.
        weight: one weight for each.
        base: where the vectors begin, of the same shape; the origin by default.
        normalize_weights: divide the weights by their sum.
        eps: added to the lengths that directions are divided by.
        coefficients: for the whole tensors, when these are pieces; measured here by default.
        first_position: where the piece begins; every element is treated alike, so that nothing depends on it.
        dtype: type of the result; that of the base or the first tensor by default.

    Returns:
        A tensor of that shape, rounded once.

    Raises:
        MergeError: the weights to divide by sum to zero.

    Source:
        Goddard, "Multi-SLERP" (2025), goddard.blog/posts/multislerp-wow-what-a-cool-idea.
    """
    if coefficients is None:
        measured = _multislerp_measure(tensors, base=base, weight=weight, normalize_weights=normalize_weights, eps=eps)
        coefficients = measured["coefficients"]
    return _from_base(tensors, base, coefficients, dtype)


def _karcher_measure(tensors: Sequence[torch.Tensor], *, max_iter: int, tol: float) -> dict[str, Coefficients]:
    count = len(tensors)
    products = scalar_products(tensors)
    norms = products.diagonal().sqrt()
    radius = float(norms.sum()) / count
    present = norms > 0
    num_present = int(present.sum())
    if not num_present:
        return {"coefficients": (0.0,) * count}
    inverse = torch.where(present, 1 / torch.where(present, norms, torch.ones_like(norms)), torch.zeros_like(norms))
    cosines = products * inverse.outer(inverse)  # of the directions u_i; everything below is a sum of these
    share = present.double() / num_present
    place = share.clone()  # the mean as coefficients of the directions
    length = float((place @ cosines @ place).clamp(min=0).sqrt())
    if length < max(tol, 1e-12):
        place = torch.zeros_like(share)
        place[int(present.nonzero()[0])] = 1.0
    else:
        place /= length
    for _ in range(max_iter):
        dots = (cosines @ place).clamp(-1.0, 1.0)
        angles = torch.acos(dots)
        sines = torch.sin(angles)
        ratio = torch.where(dots > 1 - 1e-12, 1.0, angles / torch.where(sines > 0, sines, 1.0))  # to 1 at angle 0
        pull = torch.where(dots < 1e-12 - 1, 0.0, share * ratio)  # what lies opposite pulls nowhere
        step = pull - float(pull @ dots) * place
        size = float((step @ cosines @ step).clamp(min=0).sqrt())
        if size < tol or size == 0.0:
            break
        place = math.cos(size) * place + math.sin(size) / size * step
        place /= float((place @ cosines @ place).sqrt())
    return {"coefficients": tuple((place * inverse * radius).tolist())}


@merge_method("karcher", KarcherParams, base="none", measure=_karcher_measure, elementwise=True)
def karcher(
    tensors: Sequence[torch.Tensor],
    *,
    max_iter: int = 10,
    tol: float = 1e-5,
    coefficients: Coefficients | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the Karcher (Riemannian) mean of the tensors' directions at their mean length, computed in float64.

    The mean is the point of the sphere with the least sum of squared arcs to the directions. From the normalised sum
    of the directions, ``max_iter`` gradient steps ``m <- exp_m(mean_i log_m(u_i))`` are made, fewer when a step is
    shorter than ``tol``. All points lie in the span of the tensors, so that the steps are made on their scalar
    products. Zero tensors have no direction and count in the length only. A direction opposite to the mean pulls
    nowhere; where the directions sum to zero the steps start from the first.

    Args:
        tensors: floating point tensors of one shape.
        max_iter: steps, at most.
        tol: length in radians of a step that is too short to go on.
        coefficients: for the whole tensors, when these are pieces; measured here by default.
        first_position: where the piece begins; every element is treated alike, so that nothing depends on it.
        dtype: type of the result; that of the first tensor by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        arXiv:2603.04972; Karcher, "Riemannian center of mass and mollifier smoothing" (1977).
    """
    if coefficients is None:
        coefficients = _karcher_measure(tensors, max_iter=max_iter, tol=tol)["coefficients"]
    return weighted_sum(tensors, coefficients, dtype or tensors[0].dtype)


def _from_base(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, coefficients: Coefficients, dtype: torch.dtype | None
) -> torch.Tensor:
    if base is None:
        return weighted_sum(tensors, coefficients, dtype or tensors[0].dtype)
    return weighted_sum([base, *tensors], [1.0 - math.fsum(coefficients), *coefficients], dtype or base.dtype)
