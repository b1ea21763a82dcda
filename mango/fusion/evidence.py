"""What a router remembers from token to token: evidence that adds up, and a choice that sticks.

Both are recurrences along a run of tokens, computed in parallel by doubling: what holds of the last ``2n`` tokens is
put together from what holds of the last ``n`` and of the ``n`` before them. On a processor evidence is added up in turn
instead. A token's value depends on no later token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEAST_EVIDENCE = -60.0
"""Scores further than this below the best of their token count as this much, so that no expert is ever ruled out."""


def filtered(scores: Tensor, valid: Tensor, switch: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Return the posterior of a hidden Markov model whose state is the best expert.

    ``p_t(e) ~ exp(scores_t(e)) * ((1 - switch) p_{t-1}(e) + switch / experts)``: scores are evidence that adds up, and
    is forgotten at the rate at which the best expert is expected to change.

    Args:
        scores: evidence of each token for each expert, in nats up to a constant, ``[rows, length, experts]``.
        valid: which of them are tokens, ``[rows, length]``; others pass on what came before them.
        switch: probability that the best expert changes between two tokens, a scalar in (0, 1).
        before: log-probabilities after the tokens before, float64 ``[rows, experts]``.

    Returns:
        Log-probabilities, float32 ``[rows, length, experts]``, and those after the last token, float64
        ``[rows, experts]``.

    Source: the forward algorithm of Rabiner, "A Tutorial on Hidden Markov Models" (1989), eq. 19 to 20; the prefix
    products are those of Hillis and Steele, "Data Parallel Algorithms" (1986).
    """
    if not scores.shape[1]:
        return scores.float(), before
    scores = scores.double()
    likelihood = (scores - scores.max(-1, keepdim=True).values).clamp(min=LEAST_EVIDENCE).exp()
    pass_on = _in_turn if scores.device.type == "cpu" else _by_doubling
    log_probs = pass_on(likelihood, valid, switch.double(), before.exp()).log()
    log_probs = log_probs - log_probs.logsumexp(-1, keepdim=True)
    return log_probs.float(), log_probs[:, -1].detach()


def _by_doubling(likelihood: Tensor, valid: Tensor, switch: Tensor, before: Tensor) -> Tensor:
    """Return the posteriors by prefix products of matrices: few and large operations, for accelerators."""
    length, experts = likelihood.shape[1:]
    identity = torch.eye(experts, dtype=torch.float64, device=likelihood.device)
    transition = (1 - switch) * identity + switch / experts
    step = torch.where(valid[..., None, None], transition * likelihood.unsqueeze(-2), identity)
    reach = 1
    while reach < length:
        joined = step[:, :-reach] @ step[:, reach:]
        joined = joined / joined.detach().amax((-2, -1), keepdim=True)
        step = torch.cat([step[:, :reach], joined], 1)
        reach *= 2
    return (before[:, None, None, :] @ step).squeeze(-2)


def _in_turn(likelihood: Tensor, valid: Tensor, switch: Tensor, before: Tensor) -> Tensor:
    """Return the posteriors token by token: the least work, for processors."""
    return _InTurn.apply(likelihood, valid, switch, before)  # type: ignore[no-any-return]


class _InTurn(torch.autograd.Function):
    """The forward algorithm, with its gradient in one pass back instead of one through every small operation."""

    @staticmethod
    def forward(ctx: Any, likelihood: Tensor, valid: Tensor, switch: Tensor, before: Tensor) -> Tensor:
        """Return the posteriors."""
        stay, share = 1 - switch, switch / likelihood.shape[-1]
        every = bool(valid.all())
        belief, found = before, []
        for evidence, real in zip(likelihood.unbind(1), valid.unsqueeze(-1).unbind(1), strict=True):
            moved = (stay * belief + share * belief.sum(-1, keepdim=True)).mul_(evidence)
            moved.div_(moved.sum(-1, keepdim=True))
            belief = moved if every else torch.where(real, moved, belief)
            found.append(belief)
        out = torch.stack(found, 1)
        ctx.save_for_backward(likelihood, valid, switch, before, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        """Return the gradients by likelihood, switch and the belief before."""
        likelihood, valid, switch, before, out = ctx.saved_tensors
        stay, share = 1 - switch, switch / likelihood.shape[-1]
        earlier = torch.cat([before.unsqueeze(1), out[:, :-1]], 1)
        mass = earlier.sum(-1, keepdim=True)
        predicted = stay * earlier + share * mass
        scale = (predicted * likelihood).sum(-1, keepdim=True)
        ratio = likelihood / scale
        carried, found = torch.zeros_like(before), []
        backwards = [part.unbind(1)[::-1] for part in (grads[0], out, ratio, valid.unsqueeze(-1))]
        for grad, belief, gain, real in zip(*backwards, strict=True):
            grad = grad + carried
            centred = grad - (grad * belief).sum(-1, keepdim=True)
            centred = torch.where(real, centred, 0.0)
            found.append(centred)
            inward = centred * gain
            moved = stay * inward + share * inward.sum(-1, keepdim=True)
            carried = torch.where(real, moved, grad)
        centred = torch.stack(found[::-1], 1)
        by_switch = (centred * ratio * (mass / likelihood.shape[-1] - earlier)).sum()
        return centred * predicted / scale, None, by_switch, carried


def sticky(log_probs: Tensor, valid: Tensor, margin: float, before: Tensor) -> tuple[Tensor, Tensor]:
    """Return the choice of each token when it stays as it was unless another expert is better by a margin.

    Args:
        log_probs: shape ``[rows, length, experts]``.
        valid: which of them are tokens, ``[rows, length]``; others pass on what came before them.
        margin: nats by which another expert must be more probable than the chosen one.
        before: the choice of the last token before, int64 ``[rows]``; the number of experts stands for none.

    Returns:
        Choices, int64 ``[rows, length]``, and that of the last token, ``[rows]``.
    """
    rows, length, experts = log_probs.shape
    if not length:
        return torch.zeros(rows, 0, dtype=torch.long, device=log_probs.device), before
    bonus = torch.nn.functional.pad(margin * torch.eye(experts, device=log_probs.device), (0, 0, 0, 1))
    scored = log_probs.detach().unsqueeze(-2) + bonus  # [rows, length, chosen before, experts]
    # Ties go to the expert that is listed first.
    following = torch.sort(scored, dim=-1, descending=True, stable=True).indices[..., 0]
    stays = torch.arange(experts + 1, device=log_probs.device)
    following = torch.where(valid.unsqueeze(-1), following, stays)
    reach = 1
    while reach < length:
        # After a token that was chosen before comes what follows from its choice.
        joined = following[:, reach:].gather(-1, following[:, :-reach])
        following = torch.cat([following[:, :reach], joined], 1)
        reach *= 2
    chosen = following.gather(-1, before.view(-1, 1, 1).expand(-1, length, 1)).squeeze(-1)
    return chosen, chosen[:, -1]
