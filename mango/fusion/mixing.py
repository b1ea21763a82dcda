"""How what several experts say becomes one state, or one distribution over tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mango.fusion.runs import ALIGNMENT
from mango.fusion.shells import Tail

IGNORED = -100
"""Label of tokens that do not count."""

CHUNK = 1024
"""Tokens at a time whose logits are looked at and not kept."""


@dataclass(frozen=True)
class Contribution:
    """What one expert hands over at a cut.

    Args:
        expert: its number.
        span: the number of the span that ends here.
        mass: its share of each token, ``[rows, length]``.
        states: what leaves the span, ``[rows, length, width of the span]``.
    """

    expert: int
    span: int
    mass: Tensor
    states: Tensor


@dataclass(frozen=True)
class Group:
    """States that end in one head.

    Args:
        tail: final norm and head.
        mass: share of each token, ``[rows, length]``.
        states: ``[rows, length, width]``.
        sparse: whether the head runs on tokens that have a share alone.
        said: what the head says of each token, ``[tokens, vocabulary]``, where it has run already.
        next_losses: losses of the tokens that follow, float32 ``[rows, length]``, where they are known already.
    """

    tail: Tail
    mass: Tensor
    states: Tensor
    sparse: bool = False
    said: Tensor | None = None
    next_losses: Tensor | None = None

    def last(self, number: int) -> Group:
        """Return the group of the last `number` tokens of each row."""
        if number == self.mass.shape[1]:
            return self
        return replace(self, mass=self.mass[:, -number:], states=self.states[:, -number:], said=None, next_losses=None)

    def select(self, rows: Tensor) -> Group:
        """Return the group of the rows at these indices, in that order, without what has been asked of its head."""
        mass, states = self.mass.index_select(0, rows), self.states.index_select(0, rows)
        return replace(self, mass=mass, states=states, said=None, next_losses=None)

    def losses(self, following: Tensor) -> Tensor:
        """Return what the head loses on the token that follows each, float32 ``[rows, length]``, without a gradient.

        Args:
            following: these tokens, ``[rows, length]``.
        """
        return losses_under(self.tail, self.states, following)

    def logits(self) -> Tensor:
        """Return what the head says of each token, ``[tokens, vocabulary]``; zero where it does not run."""
        if self.said is not None:
            return self.said
        states = self.states.flatten(0, 1)
        mass = self.mass.flatten()
        tokens = (mass > 0).nonzero().squeeze(1) if self.sparse else None
        if tokens is None or len(tokens) == len(mass):
            return self.tail(states)  # type: ignore[no-any-return]
        picked = tokens
        least = min(ALIGNMENT, len(mass))
        if len(tokens) < least:
            # A head that gets a few rows only runs in another kernel, whose last bit differs.
            last = tokens[-1:] if len(tokens) else tokens.new_zeros(1)
            picked = torch.cat([tokens, last.expand(least - len(tokens))])
        logits = self.tail(states[picked])[: len(tokens)]
        return logits.new_zeros(len(mass), logits.shape[-1]).index_copy(0, tokens, logits)  # type: ignore[no-any-return]


def mix_states(
    contributions: Sequence[Contribution],
    leave: Callable[[Contribution], Tensor],
    before: Tensor,
    *,
    normalise: bool,
    straight_through: bool = False,
) -> Tensor:
    """Return ``sum_e m_e * A_out,e(states_e)``, over the sum of the masses if `normalise`.

    Args:
        contributions: what leaves at this cut.
        leave: applies the output adapter of a contribution.
        before: the states before; tokens that nothing leaves for keep theirs.
        normalise: whether the masses may sum to less than one.
        straight_through: whether a mass is a choice, so that its gradient is that of a factor and not of a share;
            the share of a single choice is one, whatever its probability.

    Returns:
        States ``[rows, length, width of the trunk]``.
    """
    masses = torch.stack([contribution.mass for contribution in contributions])
    some = torch.ones_like(masses[0], dtype=torch.bool)
    if normalise:
        # In the masses' own precision: a small one may be nothing in that of the states.
        total = masses.sum(0)
        some = total > 0
        masses = masses / (total.detach() if straight_through else total).where(some, 1.0)
    mixed: Tensor | None = None
    for contribution, mass in zip(contributions, masses, strict=True):
        part = leave(contribution)
        part = part * mass.unsqueeze(-1).to(part.dtype)
        mixed = part if mixed is None else mixed + part
    assert mixed is not None
    if not normalise or before.shape != mixed.shape:
        return mixed
    return torch.where(some.unsqueeze(-1), mixed, before)


def mix_logits(groups: Sequence[Group], *, hard: bool) -> Tensor:
    """Return logits of the mixture ``log sum_e m_e softmax(head_e(states_e))``.

    Logits are free up to a constant for each token; the mixture gets the mean of the experts' own, so that experts that
    agree give their own logits back.

    Args:
        groups: what ends in each head.
        hard: whether each token has exactly one group, whose logits it then gets as they are.

    Returns:
        Logits ``[rows, length, vocabulary]``, zero for tokens without any group.
    """
    if len(groups) == 1 and not hard:
        group = groups[0]
        return group.logits().view(*group.states.shape[:2], -1)
    if hard:
        return _pick_logits(groups)
    parts: list[Tensor] = []
    shift: Tensor | None = None
    for group in _with_a_share(groups):
        logits = group.logits().view(*group.states.shape[:2], -1).float()
        scale = torch.logsumexp(logits, -1, keepdim=True)
        mass = group.mass.float().unsqueeze(-1)
        # The smallest normal number stands for a mass of zero: its gradient stays finite.
        parts.append(logits - scale + mass.clamp(min=torch.finfo(torch.float32).tiny).log())
        term = mass * scale
        shift = term if shift is None else shift + term
    assert shift is not None
    return torch.logsumexp(torch.stack(parts), 0) + shift


def _with_a_share(groups: Sequence[Group]) -> Sequence[Group]:
    """Return the groups that some token has a share of; what others would add to a mixture is lost in rounding."""
    return [group for group in groups if not group.sparse or bool((group.mass > 0).any())] or groups[:1]


def _pick_logits(groups: Sequence[Group]) -> Tensor:
    shape = groups[0].mass.shape
    flat: Tensor | None = None
    for group in groups:
        mass = group.mass.flatten()
        tokens = (mass > 0).nonzero().squeeze(1)
        states = group.states.flatten(0, 1)
        if len(tokens) == mass.numel():
            return group.tail(states).view(*shape, -1)  # type: ignore[no-any-return]
        picked = tokens
        least = min(ALIGNMENT, mass.numel())
        if 0 < len(tokens) < least:
            # A head that gets a few rows only runs in another kernel, whose last bit differs.
            picked = torch.cat([tokens, tokens[-1:].expand(least - len(tokens))])
        # The mass is one. It is left out, since how sharp logits are says nothing about which expert is right.
        logits = group.tail(states[picked])[: len(tokens)]
        if flat is None:
            flat = logits.new_zeros(mass.numel(), logits.shape[-1])
        flat = flat.index_copy(0, tokens, logits)
    assert flat is not None
    return flat.view(*shape, -1)


def mix_losses(groups: Sequence[Group], targets: Tensor, *, hard: bool) -> Tensor:
    """Return ``-log sum_e m_e softmax(head_e(states_e))[target]``, without building the mixture over the vocabulary.

    Args:
        groups: what ends in each head.
        targets: the token that each place predicts, ``[rows, length]``; -100 where none is wanted. Groups whose
            `next_losses` are known are not asked again.
        hard: whether each token has exactly one group.

    Returns:
        Losses in nats, float32 ``[rows, length]``; zero where no target is wanted.
    """
    if hard or len(groups) == 1:
        logits = mix_logits(groups, hard=hard)
        return _cross_entropy(logits.flatten(0, 1), targets.flatten()).view(targets.shape)
    parts: list[Tensor] = []
    for group in _with_a_share(groups):
        losses = group.next_losses
        if losses is None:
            losses = _cross_entropy(group.logits(), targets.flatten()).view(targets.shape)
        parts.append(group.mass.float().clamp(min=torch.finfo(torch.float32).tiny).log() - losses)
    mixed = -torch.logsumexp(torch.stack(parts), 0)
    return mixed.masked_fill(targets == IGNORED, 0.0)


def losses_under(tail: Tail, states: Tensor, following: Tensor) -> Tensor:
    """Return what a head loses on the tokens that follow, in nats, without a gradient and in little memory.

    Args:
        tail: final norm and head.
        states: ``[rows, length, width]``.
        following: the token that follows each, ``[rows, length]``.

    Returns:
        float32 ``[rows, length]``.
    """
    with torch.no_grad():
        parts = zip(states.flatten(0, 1).split(CHUNK), following.flatten().split(CHUNK), strict=True)
        return torch.cat([_cross_entropy(tail(some), ids) for some, ids in parts]).view(following.shape)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")
