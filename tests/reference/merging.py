"""Merge methods in float64 NumPy, written from the papers; slow, whole tensors, nothing shared with the library."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def linear(models: list[Array], weights: list[float], normalize: bool = True) -> Array:
    """Model soups, arXiv:2203.05482: theta = sum_i w_i theta_i, with the weights made to sum to one."""
    w = np.asarray(weights, dtype=np.longdouble)
    if normalize:
        w = w / w.sum()
    return np.tensordot(w, np.stack(models).astype(np.longdouble), axes=1).astype(np.float64)


def task_arithmetic(base: Array, models: list[Array], weights: list[float], scale: float) -> Array:
    """arXiv:2212.04089, section 2: tau_t = theta_t - theta_pre; theta_new = theta_pre + lambda sum_t w_t tau_t."""
    origin = base.astype(np.longdouble)
    vectors = [model.astype(np.longdouble) - origin for model in models]
    new = sum((np.longdouble(w) * tau for w, tau in zip(weights, vectors, strict=True)), np.zeros_like(origin))
    return (origin + np.longdouble(scale) * new).astype(np.float64)


def slerp(first: Array, second: Array, t: float) -> Array:
    """Shoemake 1985: sin((1 - t) w) / sin(w) p + sin(t w) / sin(w) q; colinear vectors are interpolated linearly."""
    p, q = first.astype(np.longdouble).ravel(), second.astype(np.longdouble).ravel()
    if not p.any() or not q.any():
        omega = 0.0
    else:
        u, v = p / np.sqrt(p @ p), q / np.sqrt(q @ q)
        cosine = u @ v
        perpendicular = v - cosine * u
        omega = float(np.arctan2(np.sqrt(perpendicular @ perpendicular), cosine))
    if omega < 1e-4 or omega > np.pi - 1e-4:
        result = (1 - t) * p + t * q
    else:
        result = (np.sin((1 - t) * omega) * p + np.sin(t * omega) * q) / np.sin(omega)
    return result.astype(np.float64).reshape(first.shape)


def ties_kept(tau: Array, density: float) -> Array:
    """Which elements trimming keeps: the largest magnitudes, the first of equal ones, at least one."""
    flat = np.abs(tau.ravel())
    count = min(flat.size, max(1, int(np.floor(density * flat.size + 0.5))))
    order = np.argsort(-flat, kind="stable")
    mask = np.zeros(flat.size, dtype=bool)
    mask[order[:count]] = True
    return mask.reshape(tau.shape)


def ties(
    base: Array, models: list[Array], weights: list[float], densities: list[float], scale: float, normalize: bool = True
) -> Array:
    """TIES, arXiv:2306.01708, algorithm 1, with weighted task vectors.

    The elected sign is sgn(sum_t w_t tau_t); the disjoint mean of an element goes over the models of that sign.
    """
    vectors = [model.astype(np.float64) - base.astype(np.float64) for model in models]
    trimmed = [np.where(ties_kept(tau, k), tau, 0.0) for tau, k in zip(vectors, densities, strict=True)]
    new = base.astype(np.float64).copy()
    for index in np.ndindex(base.shape):
        values = [np.longdouble(w) * np.longdouble(tau[index]) for w, tau in zip(weights, trimmed, strict=True)]
        total = sum(values)
        if abs(total) <= np.longdouble(2.0**-50) * sum(map(abs, values)):
            continue
        chosen = [(value, w) for value, w in zip(values, weights, strict=True) if value * total > 0]
        merged = sum(value for value, _ in chosen)
        if normalize:
            merged = merged / sum(np.longdouble(w) for _, w in chosen)
        new[index] = np.float64(np.longdouble(base[index]) + np.longdouble(scale) * merged)
    return new
