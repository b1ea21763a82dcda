"""What a language model thinks of sequences, token by token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def token_losses(model: nn.Module, input_ids: Tensor, *, batch_size: int) -> Tensor:
    """Return the loss of each token given those before it, in nats.

    Args:
        model: a causal language model.
        input_ids: ``[rows, length]``, on any device.
        batch_size: rows a forward pass.

    Returns:
        float32 ``[rows, length - 1]`` on the CPU; entry t is the loss of token t + 1.
    """
    device = next(model.parameters()).device
    losses: list[Tensor] = []
    for part in input_ids.split(batch_size):
        ids = part.to(device)
        logits = model(input_ids=ids).logits[:, :-1].float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        losses.append(loss.view(len(ids), -1).cpu())
    if not losses:
        return torch.zeros(0, max(input_ids.shape[1] - 1, 0))
    return torch.cat(losses)
