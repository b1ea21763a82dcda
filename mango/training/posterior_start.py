"""Starting a posterior: how far heads are weighed by what they predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from mango.fusion import MolForCausalLM
from mango.training.starts import minimise

STEPS = 60
LEARNING_RATE = 0.1
"""How its few numbers are fitted."""
MOST_ROWS = 64
"""Rows of calibration text that are read, evenly spread over it: four numbers do not want more."""
ROWS = 16
"""Of them, on which a step is taken."""


def start_posterior(model: MolForCausalLM, input_ids: Tensor, *, batch_size: int) -> float | None:
    """Fit how far heads are weighed by what they predicted, to the loss of their mixture; the routers are started.

    Args:
        model: the fused model; its posterior changes in place.
        input_ids: calibration text, ``[rows, length]``.
        batch_size: sequences a forward pass.

    Returns:
        By how many nats a token the mixture loses less than with the routers' weights alone; None where the model has
        no posterior.
    """
    posterior = model.posterior
    if posterior is None:
        return None
    number = min(MOST_ROWS, len(input_ids))
    some = torch.arange(number) * len(input_ids) // number
    mass, lost = model.heads_at(input_ids[some], batch_size=batch_size)
    told = torch.nn.functional.pad(-lost[:, :-1], (0, 0, 1, 0))  # what a token says of a head is known from it on
    valid = torch.ones(mass.shape[:2], dtype=torch.bool, device=mass.device)

    def of_mixture(rows: Tensor) -> Tensor:
        weights, _ = posterior.log_weights(mass[rows], told[rows], valid[rows])
        return -torch.logsumexp(weights - lost[rows], -1)[:, :-1].mean()

    def turn(step: int) -> Tensor:
        size = min(ROWS, len(mass))
        return (torch.arange(size, device=mass.device) + step * size) % len(mass)

    posterior.requires_grad_(True)
    minimise(list(posterior.parameters()), lambda step: of_mixture(turn(step)), STEPS, LEARNING_RATE)
    posterior.requires_grad_(False)
    with torch.no_grad():
        every = torch.arange(len(mass), device=mass.device)
        shares = mass.clamp(min=torch.finfo(mass.dtype).tiny).log()
        before = -torch.logsumexp(torch.log_softmax(shares, -1) - lost, -1)[:, :-1].mean()
        return float(before - of_mixture(every))
