"""Causal pools of a row of states, in float64 NumPy, one token at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def window(states: Array, size: int) -> Array:
    """Return the mean of the last `size` states at each token, those there are so far."""
    return np.stack([states[max(0, t + 1 - size) : t + 1].mean(0) for t in range(len(states))])


def prompt(states: Array, size: int) -> Array:
    """Return the running mean of the first `size` states, which then stays."""
    return np.stack([states[: min(t + 1, size)].mean(0) for t in range(len(states))])


def segment(states: Array, size: int) -> Array:
    """Return the mean of the segment before the token's own; in the first segment, the running mean."""
    pools = []
    for t in range(len(states)):
        start = (t // size) * size
        pools.append(states[: t + 1].mean(0) if start == 0 else states[start - size : start].mean(0))
    return np.stack(pools)


def windows(states: Array, sizes: tuple[int, ...]) -> Array:
    """Return the windows of all sizes, side by side."""
    return np.concatenate([window(states, size) for size in sizes], -1)
