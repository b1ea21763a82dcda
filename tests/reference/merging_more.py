"""More merge methods in float64 NumPy, written from the papers; nothing shared with the library."""

from __future__ import annotations

import itertools

import numpy as np

from tests.reference.merging import LD, Array, count_of, masked, order, vectors


def sce(base: Array, models: list[Array], select_topk: float) -> Array:
    """FuseChat, arXiv:2408.07990, section 3.2: select by variance, calculate weights by squares, erase minorities."""
    taus = vectors(base, models)
    if select_topk < 1:
        # n^2 Var = sum of squared differences of all pairs, which is exact for short significands, so that ties are
        variance = sum(((a - b) ** 2 for a, b in itertools.combinations(taus, 2)), np.zeros_like(taus[0]))
        count = count_of(select_topk, int(np.count_nonzero(variance)))
        taus = [masked(tau, order(variance)[:count]) for tau in taus]
    squares = [(tau**2).sum() for tau in taus]
    total = sum(squares)
    eta = [s / total if total else LD(1) / len(taus) for s in squares]
    sign = np.sign(sum(taus))
    sign = np.where(np.abs(sum(taus)) <= LD(2.0**-50) * sum(np.abs(t) for t in taus), LD(0), sign)
    top, bottom = np.zeros_like(taus[0]), np.zeros_like(taus[0])
    for tau, weight in zip(taus, eta, strict=True):
        agrees = tau * sign > 0
        top = top + np.where(agrees, weight * tau, LD(0))
        bottom = bottom + np.where(agrees, weight, LD(0))
    return (base.astype(LD) + top / np.where(bottom == 0, LD(1), bottom)).astype(np.float64)


def model_stock(base: Array, models: list[Array], filter_wise: bool = False) -> Array:
    """Model Stock, arXiv:2403.19522: t = N cos / (1 + (N - 1) cos), w = t w_avg + (1 - t) w_0."""
    n = len(models)
    shape = base.shape
    rows = base.reshape(-1, shape[-1]) if filter_wise and base.ndim > 1 else base.reshape(1, -1)
    taus = [tau.reshape(rows.shape) for tau in vectors(base, models)]
    result = rows.astype(LD).copy()
    for r in range(len(rows)):
        cosines = []
        for a, b in itertools.combinations([tau[r] for tau in taus], 2):
            lengths = np.sqrt((a @ a) * (b @ b))
            cosines.append(np.clip(a @ b / lengths, -1, 1) if lengths else LD(0))
        cos = sum(cosines) / len(cosines)
        below = 1 + (n - 1) * cos
        t = n * cos / below if abs(below) >= 1e-6 else LD(0)
        result[r] = rows[r] + t * sum(tau[r] for tau in taus) / n
    return result.reshape(shape).astype(np.float64)


def ram(base: Array, models: list[Array], epsilon: float, r: float = 0.0, alpha: float = 0.0) -> Array:
    """RAM(+), arXiv:2601.13572: unique elements scaled by 1 + r clip(rho, 0, alpha), shared ones averaged."""
    taus = vectors(base, models)
    masks = [np.abs(tau) > epsilon for tau in taus]
    counts = sum(mask.astype(int) for mask in masks)
    new = base.astype(LD).copy()
    for tau, mask in zip(taus, masks, strict=True):
        unique, shared = mask & (counts == 1), mask & (counts > 1)
        rho = shared.sum() / max(unique.sum(), 1e-12)
        new = new + np.where(unique, tau * (1 + LD(r) * LD(min(rho, alpha))), LD(0))
        new = new + np.where(shared, tau / np.maximum(counts, 1), LD(0))
    return new.astype(np.float64)


def nearswap(base: Array, other: Array, t: float) -> Array:
    """Model card of QuartetAnemoi-70B-t0.0001: the weight of the other is min(1, t / |difference|)."""
    tau = other.astype(LD) - base.astype(LD)
    size = np.abs(tau)
    weight = np.where(size > t, LD(t) / np.where(size == 0, LD(1), size), LD(1))
    return (base.astype(LD) + weight * tau).astype(np.float64)


def arcee_fusion(base: Array, other: Array) -> Array:
    """|difference| times the KL divergence of the rows' softmax, fused where it reaches median + 1.5 IQR."""
    if not base.size:
        return base.astype(np.float64)

    def softmax(x: Array) -> Array:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) + LD(1e-8)

    b, o = np.atleast_1d(base).astype(LD), np.atleast_1d(other).astype(LD)
    p, q = softmax(o), softmax(b)
    importance = (np.abs(o - b) * np.maximum((p * np.log(p / q) - p + q).sum(-1, keepdims=True), 0)).ravel()
    ordered = np.sort(importance)
    q1, q2, q3 = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    fused = (importance >= q2 + LD(1.5) * (q3 - q1)).reshape(b.shape)
    return np.where(fused, o, b).reshape(base.shape).astype(np.float64)


def magmax(base: Array, models: list[Array], scale: float) -> Array:
    """MagMax, arXiv:2407.06322: the task vector's element of largest magnitude."""
    taus = np.stack(vectors(base, models))
    # of opposite ones the positive: sort by value first, then take the first of the largest magnitude
    taus = -np.sort(-taus, axis=0)
    chosen = np.take_along_axis(taus, np.argmax(np.abs(taus), axis=0)[None], axis=0)[0]
    return (base.astype(LD) + LD(scale) * chosen).astype(np.float64)


def emr(base: Array, models: list[Array], scale: float) -> Array:
    """EMR-Merging, arXiv:2405.17461: sgn(sum tau) times the largest magnitude among those of that sign."""
    taus = vectors(base, models)
    total = sum(taus)
    sign = np.where(np.abs(total) <= LD(2.0**-50) * sum(np.abs(t) for t in taus), LD(0), np.sign(total))
    largest = np.max(np.stack([np.where(tau * sign > 0, np.abs(tau), LD(0)) for tau in taus]), axis=0)
    return (base.astype(LD) + LD(scale) * sign * largest).astype(np.float64)


def tsv(base: Array, models: list[Array], scale: float, rank_share: float | None = None) -> Array:
    """TSV-Merge, arXiv:2412.00081, algorithm 1, with the Procrustes solution by the polar factor (A A')^-1/2 A."""
    taus = [tau.astype(np.float64) for tau in vectors(base, models)]
    if base.ndim != 2 or not base.size:
        return base + scale * sum(taus) / len(taus)
    k = max(1, int(min(base.shape) * (rank_share or 1 / len(taus)) + 1e-9))
    svds = [np.linalg.svd(tau, full_matrices=False) for tau in taus]
    left = np.hstack([u[:, :k] for u, _, _ in svds])
    right = np.vstack([v[:k] for _, _, v in svds])
    sigma = np.diag(np.concatenate([s[:k] for _, s, _ in svds]))
    return base + scale * polar(left) @ sigma @ polar(right.T).T


def polar(a: Array) -> Array:
    """The orthonormal factor of a tall matrix: A (A'A)^-1/2, singular directions filled up by the SVD."""
    u, _, v = np.linalg.svd(a, full_matrices=False)
    return u @ v


def iso_c(base: Array, models: list[Array], scale: float) -> Array:
    """Iso-C, arXiv:2502.04959, algorithm 1: the sum of task matrices with a flat spectrum."""
    total = sum(tau.astype(np.float64) for tau in vectors(base, models))
    if base.ndim != 2 or not base.size:
        return base + scale * total / len(models)
    u, s, v = np.linalg.svd(total, full_matrices=False)
    return base + scale * s.mean() * (u @ v)


def iso_cts(base: Array, models: list[Array], scale: float, common_space: float) -> Array:
    """Iso-CTS, arXiv:2502.04959, algorithm 2: the last directions of the sum replaced by task-specific ones."""
    taus = [tau.astype(np.float64) for tau in vectors(base, models)]
    total = sum(taus)
    if base.ndim != 2 or not base.size:
        return base + scale * total / len(taus)
    full = min(base.shape)
    own = min(round((full - int(full * common_space)) / len(taus)), full // len(taus))
    common = full - own * len(taus)
    u, s, v = np.linalg.svd(total, full_matrices=False)
    u, s, v = u[:, :common], s[:common], v[:common]
    projector = np.eye(base.shape[0]) - u @ u.T
    for tau in taus if own else []:
        a, b, c = np.linalg.svd(projector @ tau, full_matrices=False)
        u, s, v = np.hstack([u, a[:, :own]]), np.concatenate([s, b[:own]]), np.vstack([v, c[:own]])
    return base + scale * s.mean() * polar(u) @ polar(v.T).T


def fisher(models: list[Array], fishers: list[Array], weights: list[float]) -> Array:
    """arXiv:2111.09832, equation 4: sum w F theta / sum w F, the weighted mean where all F are zero."""
    parts = [LD(w) * f.astype(LD) for w, f in zip(weights, fishers, strict=True)]
    total = sum(parts)
    mean = sum(LD(w) * m.astype(LD) for w, m in zip(weights, models, strict=True)) / sum(LD(w) for w in weights)
    merged = sum(part * m.astype(LD) for part, m in zip(parts, models, strict=True))
    return np.where(total == 0, mean, merged / np.where(total == 0, LD(1), total)).astype(np.float64)


def regmean(models: list[Array], inputs: list[Array], reduction: float) -> Array:
    """arXiv:2212.09849, equation 2, by least squares on the inputs themselves.

    Shrinking the Gram matrix off its diagonal is the same as adding rows to the inputs: sqrt(a) X below
    sqrt(1 - a) diag(|x_j|).
    """
    rows, targets = [], []
    for model, x in zip(models, inputs, strict=True):
        wide = np.vstack([np.sqrt(reduction) * x, np.sqrt(1 - reduction) * np.diag(np.sqrt((x**2).sum(0)))])
        rows.append(wide)
        targets.append(wide @ model.T)
    return np.linalg.lstsq(np.vstack(rows), np.vstack(targets), rcond=None)[0].T


def adamerging(
    base: Array, models: list[Array], coefficients: list[float], density: list[float] | None = None
) -> Array:
    """AdaMerging(++), arXiv:2310.02575, section 3.2: theta_pre + sum_k lambda_k Phi(tau_k).

    Phi is the identity, or, with densities, what TIES (2306.01708, algorithm 1, steps 1 and 2) leaves of each.
    """
    taus = vectors(base, models)
    if density is not None:
        taus = [masked(tau, order(tau)[: count_of(share, tau.size)]) for tau, share in zip(taus, density, strict=True)]
        total = sum(taus)
        sign = np.where(np.abs(total) <= LD(2.0**-50) * sum(np.abs(t) for t in taus), LD(0), np.sign(total))
        taus = [np.where(np.sign(tau) == sign, tau, LD(0)) for tau in taus]
    return (base.astype(LD) + sum(LD(c) * tau for c, tau in zip(coefficients, taus, strict=True))).astype(np.float64)
