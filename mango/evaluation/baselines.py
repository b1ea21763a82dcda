"""What a user would do with whole models instead: ensembles, routing by prompt, and oracles.

All of them follow from the loss of each model on each token, ``[models, sequences, length - 1]`` in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ensemble_uniform(losses: Tensor) -> Tensor:
    """Return the losses of the mean of the models' distributions, ``[sequences, length - 1]``."""
    return math.log(len(losses)) - torch.logsumexp(-losses.double(), 0)


def ensemble_posterior(losses: Tensor) -> Tensor:
    """Return the losses of the Bayesian mixture: weights are each model's probability of what came before.

    Args:
        losses: ``[models, sequences, length - 1]``.

    Returns:
        ``[sequences, length - 1]``.
    """
    log_probs = -losses.double()
    before = torch.nn.functional.pad(log_probs.cumsum(-1), (1, 0))[..., :-1]
    weights = torch.log_softmax(before, 0)
    return -torch.logsumexp(weights + log_probs, 0)


def ensemble_window(losses: Tensor, window: int) -> Tensor:
    """Return the losses of the mixture whose weights rest on the last `window` tokens only.

    It forgets, so that it can follow text that switches domain.

    Args:
        losses: ``[models, sequences, length - 1]``.
        window: tokens that weights rest on.

    Returns:
        ``[sequences, length - 1]``.
    """
    log_probs = -losses.double()
    total = torch.nn.functional.pad(log_probs.cumsum(-1), (1, 0))
    place = torch.arange(losses.shape[-1])
    before = total[..., place] - total[..., (place - window).clamp(min=0)]
    return -torch.logsumexp(torch.log_softmax(before, 0) + log_probs, 0)


def by_prompt(losses: Tensor, prompt: int) -> Tensor:
    """Return the losses of routing whole sequences: the model that predicts the prompt best predicts the rest.

    The first model stands in for the prompt itself.

    Args:
        losses: ``[models, sequences, length - 1]``.
        prompt: tokens of the prompt.

    Returns:
        ``[sequences, length - 1]``.
    """
    known = min(max(prompt - 1, 1), losses.shape[-1])
    best = losses[..., :known].sum(-1).argmin(0)
    rows = torch.arange(losses.shape[1])
    chosen = losses[best, rows].clone()
    chosen[:, :known] = losses[0, :, :known]
    return chosen


def by_prompt_cost(num_models: int, length: int, prompt: int) -> float:
    """Return tokens that whole-model routing processes for each token: every model reads the prompt."""
    prompt = min(prompt, length)
    return (num_models * prompt + length - prompt) / length


def oracle_sequence(losses: Tensor) -> Tensor:
    """Return the losses of the best model of each sequence, chosen with hindsight."""
    best = losses.sum(-1).argmin(0)
    return losses[best, torch.arange(losses.shape[1])]


def oracle_segment(losses: Tensor, segment: int) -> Tensor:
    """Return the losses of the best model of each segment of `segment` tokens, chosen with hindsight."""
    chosen: list[Tensor] = []
    # Entry t predicts token t + 1, so the first segment has one entry fewer.
    start = 0
    for stop in range(segment - 1, losses.shape[-1] + segment, segment):
        part = losses[..., start:stop]
        if part.shape[-1]:
            chosen.append(oracle_sequence(part))
        start = stop
    return torch.cat(chosen, -1)
