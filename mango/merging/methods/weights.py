"""The weights of models, and what their sum may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mango.errors import MergeError

ROUNDING = 1e-12
"""A sum of weights this small beside the sum of their magnitudes is zero."""


def weight_total(method: str, weight: Sequence[float]) -> float:
    """Return the sum of weights that a method is to divide by.

    Args:
        method: name of the method, for the message.
        weight: one weight for each model.

    Returns:
        The sum, correctly rounded.

    Raises:
        MergeError: it is zero.
    """
    total = math.fsum(weight)
    if abs(total) <= ROUNDING * sum(map(abs, weight)):
        raise MergeError(
            f"{method}: the weights {list(weight)} sum to zero, which nothing can be divided by; change them, or "
            f"switch normalisation off"
        )
    return total


def change_total(method: str, weight: Sequence[float]) -> float:
    """Return the sum of weights that a sum of differences from a base is to be divided by.

    Args:
        method: name of the method, for the message.
        weight: one weight for each model.

    Returns:
        As `weight_total`, but 1 where all weights are zero: nothing is added to the base then, whatever the divisor.

    Raises:
        MergeError: weights that are not zero cancel out.
    """
    return weight_total(method, weight) if any(weight) else 1.0
