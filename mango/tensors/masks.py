"""Asking where elements are, at the speed of NumPy on a CPU: its comparisons are several times faster than torch's."""

from __future__ import annotations

import numpy as np
import torch


def positions_of(values: torch.Tensor, value: float) -> torch.Tensor:
    """Return the positions, int64 and in order, of the elements of a flat tensor that equal ``value``."""
    if values.device.type != "cpu":
        return (values == value).nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(values.numpy() == value))


def positions_between(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return the positions, int64 and in order, of the elements of a flat tensor from ``low`` to ``high``."""
    if values.device.type != "cpu":
        return ((values >= low) & (values <= high)).nonzero().view(-1)
    array = values.numpy()
    return torch.from_numpy(np.flatnonzero((array >= low) & (array <= high)))


def count_above(values: torch.Tensor, value: float) -> int:
    """Return how many elements of a tensor are larger than ``value``."""
    if values.device.type != "cpu":
        return int((values > value).sum())
    return int(np.count_nonzero(values.numpy() > value))
