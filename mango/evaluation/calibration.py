"""Calibration: whether a model is right about the next token as often as it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BINS = 10


@dataclass
class Guesses:
    """A model's first guess of each next token.

    Args:
        confidence: its probability, float32 ``[guesses]``.
        right: 1 where it was the token that came, 0 elsewhere, float32 ``[guesses]``.
    """

    confidence: Tensor
    right: Tensor

    @classmethod
    def of(cls, parts: Sequence[Guesses]) -> Guesses:
        """Return the guesses of several texts, one after the other."""
        return cls(torch.cat([part.confidence for part in parts]), torch.cat([part.right for part in parts]))


@torch.no_grad()
def losses_and_guesses(
    model: nn.Module, input_ids: Tensor, *, batch_size: int, watch: Callable[[Any, Tensor], None] | None = None
) -> tuple[Tensor, Guesses]:
    """Return the loss of each token given those before it, and a model's first guess of it, from one pass.

    Args:
        model: a causal language model.
        input_ids: ``[rows, length]``, on any device.
        batch_size: rows a forward pass.
        watch: is given the output and the token ids of each forward pass.

    Returns:
        Losses in nats, float32 ``[rows, length - 1]`` on the CPU, and the guesses, row after row.
    """
    device = next(model.parameters()).device
    losses, confidence, right = [], [], []
    for part in torch.split(input_ids, batch_size):
        ids = part.to(device)
        output = model(input_ids=ids)
        logits, following = output.logits[:, :-1].float(), ids[:, 1:]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")
        losses.append(loss.view(following.shape).cpu())
        best = logits.max(-1)
        confidence.append((best.values - torch.logsumexp(logits, -1)).exp().flatten().cpu())
        right.append((best.indices == following).flatten().float().cpu())
        if watch is not None:
            watch(output, ids)
    return torch.cat(losses), Guesses(torch.cat(confidence), torch.cat(right))


def calibration(found: Guesses, bins: int = BINS) -> dict[str, Any]:
    """Return the expected calibration error of guesses, and what it is made of.

    Args:
        found: the guesses.
        bins: bins of equal width over the probability.

    Returns:
        ``error``: the mean over guesses of the difference between how sure a bin is and how often it is right; and
        ``bins``, each with its mean ``confidence``, its ``accuracy`` and its ``share`` of the guesses. Bins without a
        guess are left out.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (1706.04599), eq. 3.
    """
    confidence, right = found.confidence.double(), found.right.double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.bincount(place, minlength=bins).double()
    sure = torch.zeros(bins, dtype=torch.float64).index_add(0, place, confidence)
    hits = torch.zeros(bins, dtype=torch.float64).index_add(0, place, right)
    rows = [
        {"confidence": float(sure[i] / count[i]), "accuracy": float(hits[i] / count[i]),
         "share": float(count[i] / len(place))}
        for i in range(bins)
        if count[i]
    ]  # fmt: skip
    return {"error": float((sure - hits).abs().sum() / len(place)), "bins": rows}
