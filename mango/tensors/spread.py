"""A number for each row or column of a tensor, looked up by flat positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Numbers that the elements of a tensor share, in row-major order.

    Attributes:
        values: flat, one for each group of elements.
        repeat: how many elements one after the other share a value; after the last value the first comes again, so
            that rows have their width here, and columns 1.
    """

    values: torch.Tensor
    repeat: int

    def at(self, first: int, count: int, step: int = 1) -> torch.Tensor:
        """Return the values of ``count`` elements at the flat positions ``first``, ``first + step``, ...

        Returns:
            Shape [count]; or [1] where all elements share one value.
        """
        if len(self.values) == 1:
            return self.values
        position = torch.arange(first, first + step * count, step, device=self.values.device)
        return self.values[position.div_(self.repeat, rounding_mode="floor").remainder_(len(self.values))]
