"""Weights of heads from shares and from what each predicted, in float64 loops, from the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def weights(
    shares: Floats, told: Floats, *, scale: float, switch: float, trust_shares: float, trust_belief: float
) -> Floats:
    """Return the weight of each head for each token of one row.

    Args:
        shares: the routers' share of each head, ``[length, heads]``.
        told: log-probability that each head gave to each token, ``[length, heads]``; 0 for the first.
        scale: weight of what a token says.
        switch: probability that the best head changes between two tokens.
        trust_shares: exponent of the shares.
        trust_belief: exponent of what adds up.
    """
    length, heads = shares.shape
    belief = [1.0 / heads] * heads
    out = np.empty((length, heads))
    for token in range(length):
        best = max(told[token])
        moved = [
            np.exp(scale * (told[token][head] - best)) * ((1 - switch) * belief[head] + switch / heads)
            for head in range(heads)
        ]
        belief = [value / sum(moved) for value in moved]
        pooled = [shares[token][head] ** trust_shares * belief[head] ** trust_belief for head in range(heads)]
        out[token] = [value / sum(pooled) for value in pooled]
    return out
