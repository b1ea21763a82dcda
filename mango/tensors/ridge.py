"""Ridge regression from streamed Gram matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from mango.errors import TrainingError


class RidgeFit:
    """Fits ``y = x @ weight + bias`` in closed form from pairs that come batch by batch.

    ``[weight; bias] = (X'X + lambda I)^-1 X'Y`` with X widened by a column of ones. Gram matrices are float64; lambda
    is `ridge` times the mean of the diagonal of ``X'X``, and the bias is not penalised.

    Args:
        width_in: width of x.
        width_out: width of y.
        ridge: strength relative to the mean of the diagonal.
        device: where the Gram matrices lie.

    Source: Hoerl and Kennard, "Ridge Regression" (1970), eq. 2.1.
    """

    def __init__(self, width_in: int, width_out: int, *, ridge: float, device: torch.device | str = "cpu") -> None:
        self.ridge = ridge
        self.gram = torch.zeros(width_in + 1, width_in + 1, dtype=torch.float64, device=device)
        self.cross = torch.zeros(width_in + 1, width_out, dtype=torch.float64, device=device)
        self.total = torch.zeros(width_out, dtype=torch.float64, device=device)
        self.squares = torch.zeros((), dtype=torch.float64, device=device)
        self.count = 0

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor) -> None:
        """Add pairs, ``x`` of shape ``[pairs, width_in]`` and ``y`` of shape ``[pairs, width_out]``."""
        wide = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64, device=x.device)], 1)
        target = y.double()
        self.gram += wide.T @ wide
        self.cross += wide.T @ target
        self.total += target.sum(0)
        self.squares += target.square().sum()
        self.count += len(x)

    @torch.no_grad()
    def solve(self) -> tuple[Tensor, Tensor, float]:
        """Return weight ``[width_in, width_out]``, bias ``[width_out]`` (float64), and R squared on the pairs.

        Raises:
            TrainingError: there are no pairs, or they hold no numbers.
        """
        width = self.gram.shape[0] - 1
        if self.count == 0 or not bool(torch.isfinite(self.gram).all() & torch.isfinite(self.cross).all()):
            raise TrainingError(f"ridge start of an adapter: {self.count} pairs of finite activations; wanted some")
        solution = self._solution()
        residual = self.squares - 2 * (solution * self.cross).sum() + (solution * (self.gram @ solution)).sum()
        spread = self.squares - self.total.square().sum() / self.count
        fit = 1.0 - float(residual / spread) if float(spread) > 0 else 1.0
        return solution[:width], solution[width], fit

    def _solution(self) -> Tensor:
        """Return ``[weight; bias]``."""
        width = self.gram.shape[0] - 1
        penalty = torch.zeros_like(self.gram)
        penalty.diagonal()[:width] = self.ridge * self.gram.diagonal()[:width].mean()
        solution: Tensor = torch.linalg.solve(self.gram + penalty, self.cross)
        return solution
