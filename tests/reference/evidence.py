"""What a router remembers from token to token, one token at a time, in float64 NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def filtered(scores: Array, switch: float, before: Array | None = None) -> Array:
    """Return the probabilities of a hidden Markov model with these emissions, ``[tokens, experts]``."""
    count = scores.shape[1]
    belief = np.full(count, 1 / count) if before is None else before
    out = []
    for score in scores:
        belief = ((1 - switch) * belief + switch / count) * np.exp(np.maximum(score - score.max(), -60))
        belief = belief / belief.sum()
        out.append(belief)
    return np.stack(out)


def sticky(log_probs: Array, margin: float, before: int | None = None) -> list[int]:
    """Return choices that stay as they are unless another is better by more than the margin."""
    out = []
    for token in log_probs:
        best = int(token.argmax())
        if before is not None:
            with_bonus = token.copy()
            with_bonus[before] += margin
            best = int(with_bonus.argmax())
        out.append(best)
        before = best
    return out


def within_mass(probabilities: list[float], k: int, mass: float) -> list[int]:
    """Return the most probable experts, `k` at most, until they have the mass."""
    order = sorted(range(len(probabilities)), key=lambda e: -probabilities[e])[:k]
    chosen = [order[0]]
    while len(chosen) < len(order) and mass < 1 and sum(probabilities[e] for e in chosen) < mass:
        chosen.append(order[len(chosen)])
    return chosen if mass < 1 else order
