"""What guests across a bridge lose on the trunk's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mango.fusion.bridge.group import BridgedGroup
from mango.fusion.routers import Selection

if TYPE_CHECKING:
    from mango.fusion.modeling import MolForCausalLM


@torch.no_grad()
def bridged_losses(model: MolForCausalLM, input_ids: Tensor, *, batch_size: int) -> dict[str, Tensor]:
    """Return the loss of each guest across a bridge on each of the trunk's tokens, told in these, by source.

    Args:
        model: the fused model.
        input_ids: tokens of the trunk, ``[rows, length]``.
        batch_size: rows a forward pass.

    Returns:
        float32 ``[rows, length - 1]`` nats on the CPU; entry t is the loss of token t + 1.
    """
    guests = {
        id(fused.tail): expert.source
        for expert, fused in zip(model.layout.experts, model.experts, strict=True)
        if expert.bridged
    }
    found: dict[str, list[Tensor]] = {name: [] for name in guests.values()}
    if not guests:
        return {}
    for some in input_ids.split(batch_size):
        ids = some.to(model.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        step, states = model._start(Selection(), ids, mask, positions, None, {})
        for group in step.run(states, mask):
            if isinstance(group, BridgedGroup):
                told = group.logits().view(*ids.shape, -1)[:, :-1]
                lost = -told.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
                found[guests[id(group.tail)]].append(lost.cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}
