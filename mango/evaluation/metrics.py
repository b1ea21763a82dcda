"""Losses on sequences, as bits per byte and nats per token, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mango.errors import EvaluationError


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error over sequences."""

    value: float
    error: float


def ratio(numerators: Tensor, denominators: Tensor) -> Estimate:
    """Return the ratio of two sums over sequences, and its standard error by the delta method.

    Args:
        numerators: one number a sequence.
        denominators: one number a sequence.

    Raises:
        EvaluationError: the denominators sum to zero, or a numerator is no number.

    Source: Cochran, "Sampling Techniques" (1977), eq. 6.9.
    """
    top, bottom = numerators.double(), denominators.double()
    total = float(bottom.sum())
    value = float(top.sum()) / total if total else math.nan
    if not math.isfinite(value):
        raise EvaluationError(f"a loss over {len(top)} sequences is {value}: a system gave no finite probabilities")
    count = len(top)
    if count < 2:
        return Estimate(value, 0.0)
    deviation = (top - value * bottom).square().sum() * count / (count - 1)
    return Estimate(value, math.sqrt(float(deviation)) / total)


def bits_per_byte(losses: Tensor, num_bytes: Tensor) -> Estimate:
    """Return bits per byte of text.

    Args:
        losses: nats of each predicted token, ``[sequences, length - 1]``.
        num_bytes: bytes that each token stands for, ``[sequences, length]``; the first is not predicted.
    """
    return ratio(losses.double().sum(1) / math.log(2), num_bytes[:, 1:].sum(1))


def nats_per_token(losses: Tensor) -> Estimate:
    """Return nats per predicted token of losses ``[sequences, length - 1]``."""
    total = losses.double().sum(1)
    return ratio(total, total.new_full(total.shape, losses.shape[1]))


def mean_of(estimates: Mapping[str, Estimate]) -> Estimate:
    """Return the mean of independent estimates."""
    number = len(estimates)
    value = sum(e.value for e in estimates.values()) / number
    return Estimate(value, math.sqrt(sum(e.error**2 for e in estimates.values())) / number)


def gap_closed(trunk: float, oracle: float, value: float) -> float | None:
    """Return the share of the gap from trunk to oracle that a value closes; None when there is no gap."""
    gap = trunk - oracle
    return (trunk - value) / gap if gap > 0 else None
