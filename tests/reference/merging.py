"""Merge methods in float64 NumPy, written from the papers; slow, whole tensors, nothing shared with the library."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
LD = np.longdouble


def vectors(base: Array, models: list[Array]) -> list[Array]:
    """tau_t = theta_t - theta_pre, in extended precision."""
    return [model.astype(LD) - base.astype(LD) for model in models]


def linear(models: list[Array], weights: list[float], normalize: bool = True) -> Array:
    """Model soups, arXiv:2203.05482: theta = sum_i w_i theta_i, with the weights made to sum to one."""
    w = np.asarray(weights, dtype=LD)
    if normalize:
        w = w / w.sum()
    return np.tensordot(w, np.stack(models).astype(LD), axes=1).astype(np.float64)


def task_arithmetic(
    base: Array, models: list[Array], weights: list[float], scale: float, normalize: bool = False
) -> Array:
    """arXiv:2212.04089, section 2: tau_t = theta_t - theta_pre; theta_new = theta_pre + lambda sum_t w_t tau_t."""
    return join(base, vectors(base, models), weights, scale, normalize, elect=False)


def slerp(first: Array, second: Array, t: float) -> Array:
    """Shoemake 1985: sin((1 - t) w) / sin(w) p + sin(t w) / sin(w) q; colinear vectors are interpolated linearly."""
    p, q = first.astype(LD).ravel(), second.astype(LD).ravel()
    omega = 0.0 if not p.any() or not q.any() else angle(p, q)
    return arc(p, q, omega, t).astype(np.float64).reshape(first.shape)


def angle(p: Array, q: Array) -> float:
    u, v = p / np.sqrt(p @ p), q / np.sqrt(q @ q)
    cosine = u @ v
    perpendicular = v - cosine * u
    return float(np.arctan2(np.sqrt(perpendicular @ perpendicular), cosine))


def arc(p: Array, q: Array, omega: float, t: float) -> Array:
    if omega < 1e-4 or omega > np.pi - 1e-4:
        return (1 - t) * p + t * q
    return (np.sin((1 - t) * omega) * p + np.sin(t * omega) * q) / np.sin(omega)


def nuslerp(
    base: Array | None, models: list[Array], weights: list[float], flatten: bool = True, along_first: bool = False
) -> Array:
    """Shoemake 1985 at t = w2 / (w1 + w2), for each vector; a zero vector is orthogonal to every other."""
    origin = np.zeros(models[0].shape, dtype=LD) if base is None else base.astype(LD)
    if not origin.size:
        return origin.astype(np.float64)
    p, q = (model.astype(LD) - origin for model in models)
    t = LD(weights[1]) / (LD(weights[0]) + LD(weights[1]))
    if flatten or p.ndim < 2:
        p, q = p.reshape(1, -1), q.reshape(1, -1)
        shape, axis = p.shape, -1
    else:
        axis = 0 if along_first else -1
        p, q = np.moveaxis(p, axis, -1), np.moveaxis(q, axis, -1)
        shape = p.shape
    rows = []
    for u, v in zip(p.reshape(-1, shape[-1]), q.reshape(-1, shape[-1]), strict=True):
        omega = np.pi / 2 if not u.any() or not v.any() else angle(u, v)
        rows.append(arc(u, v, omega, t))
    result = np.array(rows).reshape(shape)
    if not flatten and origin.ndim >= 2:
        result = np.moveaxis(result, -1, axis)
    return (origin + result.reshape(origin.shape)).astype(np.float64)


def multislerp(base: Array | None, models: list[Array], weights: list[float], eps: float = 1e-8) -> Array:
    """Barycentric interpolation in the tangent plane at the weighted mean direction, and the exponential map back."""
    origin = np.zeros(models[0].shape, dtype=LD) if base is None else base.astype(LD)
    x = [(model.astype(LD) - origin).ravel() for model in models]
    w = np.asarray(weights, dtype=LD) / np.asarray(weights, dtype=LD).sum()
    norms = [np.sqrt(v @ v) for v in x]
    u = [v / (n + LD(eps)) for v, n in zip(x, norms, strict=True)]
    mean = sum(a * v for a, v in zip(w, u, strict=True))
    length = np.sqrt(mean @ mean)
    if length < eps:  # no direction is the mean one
        result = sum(a * v for a, v in zip(w, x, strict=True))
    else:
        pole = mean / length
        tangent = sum(a * (v - (v @ pole) * pole) for a, v in zip(w, u, strict=True))
        size = np.sqrt(tangent @ tangent) + LD(1e-30)
        point = np.cos(size) * pole + np.sin(size) / size * tangent
        result = point * sum(a * n for a, n in zip(w, norms, strict=True))
    return (origin + result.reshape(origin.shape)).astype(np.float64)


def karcher(models: list[Array], max_iter: int = 10, tol: float = 1e-5) -> Array:
    """arXiv:2603.04972: Riemannian gradient steps m <- exp_m(mean log_m(u_i)) on the unit sphere, at the mean norm."""
    x = [model.astype(LD).ravel() for model in models]
    norms = [np.sqrt(v @ v) for v in x]
    u = [v / n for v, n in zip(x, norms, strict=True) if n > 0]
    if not u:
        return np.zeros(models[0].shape)
    mean = sum(u) / LD(len(u))
    length = np.sqrt(mean @ mean)
    mean = u[0] if length < tol else mean / length
    for _ in range(max_iter):
        step = np.zeros_like(mean)
        for v in u:
            theta = np.arccos(np.clip(v @ mean, LD(-1), LD(1)))
            if v @ mean < 1e-12 - 1:  # opposite: the logarithm has no direction
                continue
            ratio = theta / np.sin(theta) if np.sin(theta) > 1e-9 else LD(1)
            step = step + ratio * (v - (v @ mean) * mean) / LD(len(u))
        size = np.sqrt(step @ step)
        if size < tol or size == 0:
            break
        mean = np.cos(size) * mean + np.sin(size) * step / size
        mean = mean / np.sqrt(mean @ mean)
    return (mean * (sum(norms) / LD(len(norms)))).astype(np.float64).reshape(models[0].shape)


def order(tau: Array) -> Array:
    """Positions by falling magnitude; of equal ones the first counts as larger."""
    return np.argsort(-np.abs(tau.ravel()), kind="stable")


def count_of(density: float, size: int) -> int:
    return min(size, max(1, int(np.floor(density * size + 1e-9)))) if density > 0 and size else 0


def masked(tau: Array, positions: Array) -> Array:
    mask = np.zeros(tau.size, dtype=bool)
    mask[positions] = True
    return np.where(mask.reshape(tau.shape), tau, LD(0))


def rescaled(tau: Array, kept: Array) -> Array:
    after = np.abs(kept).sum()
    return kept * (np.abs(tau).sum() / after) if after else kept


def join(base: Array, changes: list[Array], weights: list[float], scale: float, normalize: bool, elect: bool) -> Array:
    """theta_pre + lambda tau_m: the weighted sum of task vectors, or the disjoint mean of TIES (algorithm 1).

    With election the sign is sgn(sum_t w_t tau_t), and the models of that sign are summed and divided by their
    weights.
    """
    origin = base.astype(LD)
    parts = [LD(w) * tau for w, tau in zip(weights, changes, strict=True)]
    if not elect:
        divisor = LD(sum(LD(w) for w in weights)) if normalize else LD(1)
        return (origin + LD(scale) * sum(parts) / divisor).astype(np.float64)
    total, size = sum(parts), sum(np.abs(part) for part in parts)
    sign = np.where(np.abs(total) <= LD(2.0**-50) * size, LD(0), np.sign(total))
    merged, divisor = np.zeros_like(origin), np.zeros_like(origin)
    for part, w in zip(parts, weights, strict=True):
        agrees = part * sign > 0
        merged = merged + np.where(agrees, part, LD(0))
        divisor = divisor + np.where(agrees, LD(w), LD(0))
    if normalize:
        merged = merged / np.where(divisor == 0, LD(1), divisor)
    return (origin + LD(scale) * merged).astype(np.float64)


def ties(
    base: Array,
    models: list[Array],
    weights: list[float],
    densities: list[float],
    scale: float,
    normalize: bool = True,
    rescale: bool = False,
) -> Array:
    """TIES, arXiv:2306.01708, algorithm 1: trim to the largest, elect, disjoint mean."""
    changes = []
    for tau, density in zip(vectors(base, models), densities, strict=True):
        kept = masked(tau, order(tau)[: count_of(density, tau.size)])
        changes.append(rescaled(tau, kept) if rescale else kept)
    return join(base, changes, weights, scale, normalize, elect=True)


def breadcrumbs(
    base: Array,
    models: list[Array],
    weights: list[float],
    densities: list[float],
    gammas: list[float],
    scale: float,
    elect: bool,
    normalize: bool = False,
    rescale: bool = False,
) -> Array:
    """Model Breadcrumbs, arXiv:2312.06795: mask out the largest gamma and the smallest of each task vector."""
    changes = []
    for tau, density, gamma in zip(vectors(base, models), densities, gammas, strict=True):
        count = count_of(density, tau.size)
        top = min(int(gamma * tau.size), tau.size - count)
        kept = masked(tau, order(tau)[top : top + count])
        changes.append(rescaled(tau, kept) if rescale else kept)
    return join(base, changes, weights, scale, normalize, elect)


def thinned(
    base: Array,
    models: list[Array],
    weights: list[float],
    kept: list[Array],
    chances: list[Array],
    scale: float,
    elect: bool,
    normalize: bool,
    rescale: bool = True,
) -> Array:
    """DARE, arXiv:2311.03099, and DELLA, arXiv:2406.11617: delta m / p, with masks and probabilities given."""
    changes = []
    for tau, mask, chance in zip(vectors(base, models), kept, chances, strict=True):
        thin = np.where(mask, tau, LD(0))
        changes.append(np.where(mask, thin / np.where(mask, chance, 1).astype(LD), LD(0)) if rescale else thin)
    return join(base, changes, weights, scale, normalize, elect)


def della_chances(tau: Array, density: float, epsilon: float) -> Array:
    """DELLA, section 3: within a row, p grows linearly with the rank of the magnitude, from p - e to p + e."""
    if tau.ndim > 2:  # rows lie along the second dimension
        return np.moveaxis(
            della_chances(np.moveaxis(tau, 1, -1).reshape(-1, tau.shape[1]), density, epsilon).reshape(
                np.moveaxis(tau, 1, -1).shape
            ),
            -1,
            1,
        )
    rows = tau.reshape(1, -1) if tau.ndim < 2 else tau
    chances = np.full(rows.shape, density)
    for row, chance in zip(rows, chances, strict=True):
        n = len(row)
        ranks = np.empty(n)
        ranks[np.argsort(np.abs(row), kind="stable")] = np.arange(n)
        if n > 1:
            chance[:] = density - epsilon + 2 * epsilon * ranks / (n - 1)
    return chances.reshape(tau.shape)
