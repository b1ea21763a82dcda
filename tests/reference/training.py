"""Losses of routers, ridge regression and the best expert of a token, in float64 NumPy, from their equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(scores: Floats) -> Floats:
    """Return probabilities over the last axis."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def balance(probs: Floats, load: Floats | None = None) -> float:
    """Return ``E sum_e f_e P_e`` of probabilities ``[tokens, experts]``."""
    experts = probs.shape[1]
    if load is None:
        load = np.array([np.mean([row.argmax() == e for row in probs]) for e in range(experts)])
    return float(experts * sum(load[e] * probs[:, e].mean() for e in range(experts)))


def entropy(probs: Floats) -> float:
    """Return ``E[H(p)] - H(E[p])``."""

    def of(p: Floats) -> float:
        return -sum(float(x) * float(np.log(x)) for x in p if x > 0)

    return float(np.mean([of(row) for row in probs])) - of(probs.mean(0))


def supervision(probs: Floats, targets: Sequence[int]) -> float:
    """Return the mean of ``-log p[target]`` over tokens whose target is not -100."""
    return float(np.mean([-np.log(row[t]) for row, t in zip(probs, targets, strict=True) if t != -100]))


def gradient(of: Callable[[Floats], float], at: Floats, step: float = 1e-5) -> Floats:
    """Return the gradient of a scalar function by central differences."""
    out = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[place] += step
        down[place] -= step
        out[place] = (of(up) - of(down)) / (2 * step)
    return out


def ridge(x: Floats, y: Floats, strength: float) -> tuple[Floats, Floats, float]:
    """Return weight, bias and R squared of the fit that minimises ``|y - xW - b|^2 + lambda |W|^2``.

    Lambda is `strength` times the mean of the diagonal of X'X. Solved as least squares on rows that stand for the
    penalty, not by the normal equations.
    """
    width = x.shape[1]
    penalty = np.sqrt(strength * np.mean((x**2).sum(0)))
    rows = np.block([[x, np.ones((len(x), 1))], [penalty * np.eye(width), np.zeros((width, 1))]])
    solution = np.linalg.lstsq(rows, np.vstack([y, np.zeros((width, y.shape[1]))]), rcond=None)[0]
    residual = y - x @ solution[:width] - solution[width]
    fit = 1 - (residual**2).sum() / ((y - y.mean(0)) ** 2).sum()
    return solution[:width], solution[width], float(fit)


def best_expert(losses: Floats, window: int) -> NDArray[Any]:
    """Return the model with the lowest mean loss in the `window` predictions around each; the last is repeated."""
    models, rows, length = losses.shape
    best = np.zeros((rows, length + 1), dtype=int)
    for row in range(rows):
        for t in range(length):
            left = (min(window, length) - 1) // 2
            near = range(max(0, t - left), min(length, t - left + min(window, length)))
            best[row, t] = int(np.argmin([np.mean([losses[m, row, i] for i in near]) for m in range(models)]))
        best[row, length] = best[row, length - 1]
    return best
