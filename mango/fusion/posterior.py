"""What the experts' own predictions of the tokens so far say of who should predict the next one.

A router sees hidden states. Where every expert reads every token there is more to go by: how probable each of them
found the tokens that came. An expert whose predictions were right is believed, as in a posterior-weighted ensemble of
whole models, and a belief is forgotten at the rate at which the best expert changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from mango.fusion.evidence import filtered
from mango.fusion.mixing import Group

START_SWITCH = 0.01
"""Probability, before it is fitted, that the best expert changes between two tokens."""
START_SCALE = 0.5
"""Weight, before it is fitted, of what a token says; neighbouring tokens say the same thing again."""

Wanted = Literal["losses", "logits", "none"]


@dataclass
class HeadMemory:
    """What a posterior keeps between the steps of a generation.

    Args:
        groups: for each head, what ends in it of the last column.
        present: whether the last column is a token, ``[rows]``.
        belief: float64 log-probabilities of the heads after it, ``[rows, heads]``.
    """

    groups: tuple[Group, ...]
    present: Tensor
    belief: Tensor

    def select(self, rows: Tensor) -> HeadMemory:
        """Return the memory of the rows at these indices, in that order."""
        groups = tuple(group.select(rows) for group in self.groups)
        return HeadMemory(groups, self.present.index_select(0, rows), self.belief.index_select(0, rows))


class HeadPosterior(nn.Module):
    """Weights of heads from the routers' and from how probable each head found the tokens so far.

    ``b_t(e) ~ p_e(x_t | x_<t)^scale ((1 - switch) b_{t-1}(e) + switch / E)`` gathers evidence, and head `e` predicts
    the token after t with the weight ``w_t(e) ~ m_t(e)^u b_t(e)^v``, where `m` is the routers' share. The four numbers
    are fitted on calibration text once the routers have started. Training goes by the routers' shares alone, so that
    routers also learn where a hard choice, which cannot know these predictions, depends on them.

    Args:
        num_heads: heads whose distributions are mixed.

    Source: the domain posterior of Gururangan et al., "DEMix Layers" (2108.05036), with the forgetting of a hidden
    Markov model (Rabiner, "A Tutorial on Hidden Markov Models", 1989, eq. 19 to 20); the product of both opinions is a
    logarithmic pool (Genest and Zidek, "Combining Probability Distributions", 1986).
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.trust = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.theta = nn.Parameter(torch.zeros(()), requires_grad=False)

    def start_weights(self, std: float) -> None:
        """Give the parameters their values before they are fitted."""
        init.constant_(self.trust, 0.5)
        init.constant_(self.log_scale, math.log(START_SCALE))
        init.constant_(self.theta, math.log(START_SWITCH / (1 - START_SWITCH)))

    def switch(self) -> Tensor:
        """Return the probability that the best head changes between two tokens, a scalar."""
        return torch.sigmoid(self.theta.float()).clamp(1e-6, 1 - 1e-6)

    def log_weights(
        self, mass: Tensor, evidence: Tensor, valid: Tensor, belief: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the log-weights of the heads, float32 ``[rows, length, heads]``, and the belief after the last token.

        Args:
            mass: the routers' share of each head, ``[rows, length, heads]``.
            evidence: log-probability that each head gave to each token, ``[rows, length, heads]``; 0 where there was no
                token before.
            valid: which of them are tokens, ``[rows, length]``.
            belief: float64 log-probabilities after the tokens before, ``[rows, heads]``; even without.
        """
        if belief is None:
            shape = (mass.shape[0], self.num_heads)
            belief = torch.full(shape, -math.log(self.num_heads), dtype=torch.float64, device=mass.device)
        scores = self.log_scale.float().exp() * evidence.float()
        gathered, belief = filtered(scores, valid, self.switch(), belief)
        shares = mass.float().clamp(min=torch.finfo(torch.float32).tiny).log()
        trust = self.trust.float()
        return torch.log_softmax(trust[0] * shares + trust[1] * gathered, -1), belief

    def weigh(
        self,
        groups: Sequence[Group],
        ids: Tensor,
        present: Tensor,
        counted: Tensor,
        memory: HeadMemory | None,
        wanted: Wanted,
    ) -> tuple[list[Group], HeadMemory]:
        """Return the groups with new shares, and what to keep for the tokens that follow.

        Args:
            groups: what ends in each head, all tokens in each.
            ids: token ids, ``[rows, length]``.
            present: which of them are tokens, ``[rows, length]``.
            counted: which of them are evidence: tokens that the one before predicts, ``[rows, length]``.
            memory: what was kept of the tokens before; None at the beginning.
            wanted: what is asked of the heads next, and so kept of what they say now: the ``losses`` of `ids`, the
                ``logits`` of all tokens, or neither.
        """
        following = torch.nn.functional.pad(ids[:, 1:], (0, 1))
        counted = counted.clone()
        counted[:, 0] &= False if memory is None else memory.present
        asked = [_ask(group, following, wanted) for group in groups]
        told = []
        for place, group in enumerate(asked):
            assert group.next_losses is not None
            before = group.next_losses.detach()[:, :-1]
            first = before.new_zeros(len(ids), 1) if memory is None else memory.groups[place].losses(ids[:, :1])
            told.append((-torch.cat([first, before], 1)).masked_fill(~counted, 0.0))
        mass = torch.stack([group.mass for group in groups], -1)
        belief = None if memory is None else memory.belief
        weights, belief = self.log_weights(mass, torch.stack(told, -1), present, belief)
        shares = (weights.exp() * present.unsqueeze(-1)).unbind(-1)
        if wanted != "losses":
            asked = [replace(group, next_losses=None) for group in asked]
        weighed = [replace(group, mass=share) for group, share in zip(asked, shares, strict=True)]
        last = tuple(
            replace(group.last(1), mass=group.mass[:, -1:].detach(), states=group.states[:, -1:].detach())
            for group in groups
        )
        return weighed, HeadMemory(last, present[:, -1], belief)


def _ask(group: Group, following: Tensor, wanted: Wanted) -> Group:
    """Return a group that knows what its head loses on the tokens that follow, and whatever else is wanted."""
    if wanted == "none":
        return replace(group, next_losses=group.losses(following))
    logits = group.logits()
    losses = torch.nn.functional.cross_entropy(logits.float(), following.flatten(), reduction="none")
    return replace(group, said=logits if wanted == "logits" else None, next_losses=losses.view(following.shape))
