"""What a language model thinks of sequences, token by token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.no_grad()
def token_losses(model: nn.Module, input_ids: Tensor, *, batch_size: int) -> Tensor:
    """Return the loss of each token given those before it, in nats.

    A model that has ``token_losses(input_ids)`` is asked for them, since it may know them without the whole
    distribution.

    Args:
        model: a causal language model.
        input_ids: ``[rows, length]``, on any device.
        batch_size: rows a forward pass.

    Returns:
        float32 ``[rows, length - 1]`` on the CPU; entry t is the loss of token t + 1.
    """
    if not len(input_ids):
        return torch.zeros(0, max(input_ids.shape[1] - 1, 0))
    device = next(model.parameters()).device
    losses: list[Tensor] = []
    for part in torch.split(input_ids, batch_size):
        ids = part.to(device)
        if hasattr(model, "token_losses"):
            known: Callable[[Tensor], Tensor] = model.token_losses  # type: ignore[assignment]
            losses.append(known(ids).cpu())
            continue
        logits = model(input_ids=ids).logits[:, :-1].float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        losses.append(loss.view(len(ids), -1).cpu())
    return torch.cat(losses)
