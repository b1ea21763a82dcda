"""Setting elements to zero, at the speed of NumPy on a CPU, where its masks are faster than those of torch."""

from __future__ import annotations

import numpy as np
import torch


def keep_only(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Multiply a contiguous tensor with a mask in place, so that a NaN stays one wherever it is.

    Args:
        values: float64 of any shape.
        mask: bool of the same shape.

    Returns:
        The same tensor.
    """
    if values.device.type != "cpu":
        return values.mul_(mask)
    array = values.numpy()
    with np.errstate(invalid="ignore"):  # infinity times zero is the NaN that is wanted
        np.multiply(array, mask.numpy(), out=array)
    return values
