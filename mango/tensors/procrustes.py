"""Orthogonal Procrustes from streamed moments."""

from __future__ import annotations

import torch
from torch import Tensor

from mango.tensors.ridge import RidgeFit


class ProcrustesFit(RidgeFit):
    """Fits ``y = x @ rotation + shift`` with an orthogonal matrix from pairs that come batch by batch.

    Unlike ridge regression it changes no length and no angle, so nothing that the states hold is lost, and few pairs
    are enough.

    Args:
        width_in: width of x.
        width_out: width of y, the same.
        ridge: has no part in it; it is here so that both fits are made alike.
        device: where the moments lie.

    Raises:
        ValueError: the widths differ.

    Source: Schoenemann, "A generalized solution of the orthogonal Procrustes problem" (1966), eq. 1.9, of centred
        pairs.
    """

    def __init__(self, width_in: int, width_out: int, *, ridge: float, device: torch.device | str = "cpu") -> None:
        if width_in != width_out:
            raise ValueError(f"a rotation maps equal widths, not {width_in} to {width_out}")
        super().__init__(width_in, width_out, ridge=ridge, device=device)

    def _solution(self) -> Tensor:
        """Return ``[rotation; shift]``."""
        width = self.gram.shape[0] - 1
        mean_x, mean_y = self.gram[width, :width] / self.count, self.total / self.count
        left, _, right = torch.linalg.svd(self.cross[:width] - self.count * torch.outer(mean_x, mean_y))
        rotation = left @ right
        return torch.cat([rotation, (mean_y - mean_x @ rotation).unsqueeze(0)])
