"""What is added to the language-modelling loss. Each part has a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mango.fusion import Routing


def _probabilities(routing: Routing) -> Tensor:
    return routing.log_probs[routing.present].exp()


def balance_loss(routings: Sequence[Routing], global_load: Sequence[Tensor] | None = None) -> Tensor:
    """Return ``E * sum_e f_e P_e``, averaged over positions; 1 when the load is even.

    Args:
        routings: the routing of a batch.
        global_load: for each position, the share of tokens of the whole batch (all devices, all accumulated steps)
            whose best expert is each; without, that of these tokens. It carries no gradient.

    Source: Fedus et al., "Switch Transformers" (2101.03961), eq. 4; on the global batch after 2501.11873.
    """
    losses: list[Tensor] = []
    for place, routing in enumerate(routings):
        probs = _probabilities(routing)
        load = load_of(routing) if global_load is None else global_load[place]
        losses.append(probs.shape[-1] * (load.detach() * probs.mean(0)).sum())
    return torch.stack(losses).mean()


def load_of(routing: Routing) -> Tensor:
    """Return the share of tokens whose most probable expert is each, ``[experts]``."""
    best = routing.log_probs[routing.present].argmax(-1)
    return torch.bincount(best, minlength=routing.log_probs.shape[-1]).float() / max(len(best), 1)


def entropy_loss(routings: Sequence[Routing]) -> Tensor:
    """Return ``E[H(p)] - H(E[p])`` in nats, averaged over positions: low for confident tokens and a spread batch."""
    losses: list[Tensor] = []
    for routing in routings:
        log_probs = routing.log_probs[routing.present]
        probs = log_probs.exp()
        each = -(probs * log_probs).sum(-1).mean()
        mean = probs.mean(0)
        losses.append(each + (mean * mean.clamp(min=1e-12).log()).sum())
    return torch.stack(losses).mean()


def supervision_loss(routings: Sequence[Routing], targets: Tensor, ignore: int = -100) -> Tensor:
    """Return the cross-entropy of routers against the best expert of each token, averaged over positions.

    Args:
        routings: the routing of a batch.
        targets: for each token and position, the number of the best expert that can be entered there,
            ``[rows, length, positions with a choice]``.
        ignore: target of tokens that do not count.
    """
    losses: list[Tensor] = []
    for place, routing in enumerate(routings):
        present = routing.present
        losses.append(
            torch.nn.functional.nll_loss(routing.log_probs[present], targets[..., place][present], ignore_index=ignore)
        )
    return torch.stack(losses).mean()


def z_loss(routings: Sequence[Routing]) -> Tensor:
    """Return the mean square of the log of what the exponentials of a router's scores sum to, averaged over positions.

    It keeps scores from drifting off together, which changes no decision until floating-point numbers get coarse.

    Args:
        routings: the routing of a batch.

    Source: Zoph et al., "ST-MoE" (2202.08906), eq. 5.
    """
    return torch.stack([routing.log_total[routing.present].square().mean() for routing in routings]).mean()
