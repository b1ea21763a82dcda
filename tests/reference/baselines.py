"""What whole models reach together, token by token in float64 Python, from the definitions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def mixture(losses: Floats, weights: Floats) -> float:
    """Return the loss of one token under a mixture, from each model's loss and weight."""
    return -math.log(sum(float(w) * math.exp(-float(x)) for w, x in zip(weights, losses, strict=True)))


def uniform(losses: Floats) -> Floats:
    """Return the losses of the mean distribution of ``[models, rows, length]``."""
    models, rows, length = losses.shape
    even = np.full(models, 1 / models)
    return np.array([[mixture(losses[:, r, t], even) for t in range(length)] for r in range(rows)])


def posterior(losses: Floats, window: int | None = None) -> Floats:
    """Return the losses of the Bayesian mixture from a uniform prior, by updating it token by token.

    With a window, evidence is that of the last `window` tokens.
    """
    models, rows, length = losses.shape
    out = np.zeros((rows, length))
    for r in range(rows):
        for t in range(length):
            belief = np.full(models, 1 / models)
            for past in range(0 if window is None else max(0, t - window), t):
                belief = belief * np.exp(-losses[:, r, past])
                belief = belief / belief.sum()
            out[r, t] = mixture(losses[:, r, t], belief)
    return out


def by_prompt(losses: Floats, prompt: int) -> Floats:
    """Return the losses of the model that predicts tokens 1 to ``prompt - 1`` best; of model 0 on those."""
    models, rows, length = losses.shape
    out = np.zeros((rows, length))
    known = min(max(prompt - 1, 1), length)
    for r in range(rows):
        best = min(range(models), key=lambda m: float(losses[m, r, :known].sum()))
        for t in range(length):
            out[r, t] = losses[0 if t < known else best, r, t]
    return out


def oracle(losses: Floats, segment: int) -> Floats:
    """Return the losses of the best model of each segment of tokens; entry t is token t + 1."""
    models, rows, length = losses.shape
    out = np.zeros((rows, length))
    for r in range(rows):
        for t in range(length):
            same = [i for i in range(length) if (i + 1) // segment == (t + 1) // segment]
            best = min(range(models), key=lambda m: float(sum(losses[m, r, i] for i in same)))
            out[r, t] = losses[best, r, t]
    return out
