"""One forward pass of a fused model that reads whole rows at once: encoders, of text or of images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mango.errors import ConfigError, IncompatibleBlocksError
from mango.fusion.expert import FusedExpert
from mango.fusion.output import Routing
from mango.fusion.pooling import Pool
from mango.fusion.routers import Decision, Router, Selection, choose
from mango.fusion.shells import Body
from mango.fusion.step import Flow

if TYPE_CHECKING:
    from mango.fusion.core import MolPreTrainedModel

ROW_POOLS = ("prompt", "window", "segment")
"""Kinds of pooling that have a meaning where a token may look ahead."""


def check_row_router(router: Router, name: str, task: str, *, once: bool) -> None:
    """Refuse a router that cannot decide on whole rows.

    Args:
        router: the router.
        name: its ``router.type``.
        task: what the model is for.
        once: whether there has to be one decision a row.

    Raises:
        ConfigError: it remembers earlier tokens, or decides for each token where a row wants one decision.
    """
    kind = router.pool.kind
    if kind not in ROW_POOLS:
        raise ConfigError(
            f"router.{name}.pooling: {kind!r} pools what stands before a token, and in a model for {task} tokens see "
            f"all of their row. Known there: {', '.join(ROW_POOLS)}"
        )
    chosen, predicted = "what was chosen for the token before", "what was predicted of the tokens before"
    remembering = (
        ("switch", router.switch is not None, chosen),
        ("stickiness", bool(router.hard_selection.stickiness), chosen),
        ("posterior", router.posterior, predicted),
    )
    for option, given, what in remembering:
        if given:
            raise ConfigError(
                f"router.{name}.{option}: it goes on from {what}, and a model for {task} chooses among experts once a "
                "row, whose tokens all see each other; leave it out"
            )
    if once and router.selection.k is None and kind != "prompt":
        raise ConfigError(
            f"router.{name}: it weighs experts for each token, and a model for {task} wants one decision a row; use "
            "router.type simple, or topk, which chooses the experts that run on the row"
        )


class RowStep(Flow):
    """One forward pass over whole rows.

    Every token sees the whole row, so a choice of some experts is made once a row, and they process all of it.

    Args:
        model: the model.
        selection: how rows choose.
        inputs: the models' main input, ``[rows, ...]``.
        mask: which tokens are real, ``[rows, length]``.
    """

    def __init__(self, model: MolPreTrainedModel, selection: Selection, inputs: Tensor, mask: Tensor) -> None:
        super().__init__(model, selection)
        self.inputs = inputs
        self.mask = mask
        self._rows: Tensor | None = None

    def decide(self, position: int, states: Tensor, present: Tensor) -> Tensor:
        """Pool each row, and choose for its tokens softly, or once for all of them."""
        router = self._router(position)
        self._rows = None
        if router is None:
            if self.sparse:
                self._rows = present.any(1, keepdim=True)
            return present.unsqueeze(-1).float()
        decision = self.decision(router, states, present)
        if decision.selected is not None:
            self._rows = (decision.selected & present.unsqueeze(-1)).any(1)
        real = present.unsqueeze(-1)
        names = tuple(self.model.layout.experts[expert].name for expert, _ in self.model._entering[position])
        weights = decision.weights * real
        self.routing.append(
            Routing(
                position=position,
                experts=names,
                log_probs=decision.log_probs.masked_fill(~real, 0.0),
                weights=weights,
                pooled=(decision.pooled * real).detach(),
                present=present,
                log_total=decision.log_total * present,
            )
        )
        return weights

    def decision(self, router: Router, states: Tensor, present: Tensor) -> Decision:
        """Return what a router decides on the tokens of whole rows."""
        return decide_rows(router, self.selection, states, present)

    def process(self, position: int, states: Tensor) -> list[Tensor]:
        """Run every span on all rows, or on those that chose it."""
        outputs: list[Tensor] = []
        for place, (expert, index) in enumerate(self.model._entering[position]):
            fused = self._expert(expert)
            key = (expert, index)
            rows = None if self._rows is None else self._rows[:, place].nonzero().squeeze(1)
            if rows is None or len(rows) == len(states):
                found = self.run_span(key, fused, states, None)
                self._counts[key] = self._counted(key, self.mask, found, states)
                outputs.append(found)
                continue
            body = fused.bodies[index]
            assert isinstance(body, Body)
            if len(rows):
                found = self.run_span(key, fused, states, rows)
                self._counts[key] = self._counted(key, self.mask[rows], found, states)
                outputs.append(states.new_zeros(len(states), *found.shape[1:]).index_copy(0, rows, found))
            else:
                self._counts[key] = 0
                outputs.append(states.new_zeros(*states.shape[:2], body.width))
        return outputs

    def _counted(self, key: tuple[int, int], mask: Tensor, found: Tensor, states: Tensor) -> Tensor | int:
        """Return the number of tokens that a span processed, which may be more or fewer than the trunk's of a row."""
        if found.shape[1] == states.shape[1]:
            return mask[:, -states.shape[1] :].sum()
        expert = self.model.layout.experts[key[0]]
        if self._expert(key[0]).own_tail and key[1] == 0 and len(expert.spans) == 1:
            return found.shape[0] * found.shape[1]
        raise IncompatibleBlocksError(
            f"expert {expert.name!r} makes {found.shape[1]} tokens of a row, the trunk {states.shape[1]}: between cuts "
            "they cannot be mixed; give it cut: whole and edges: own, or a model of the same image and patch size"
        )

    def run_span(self, key: tuple[int, int], fused: FusedExpert, states: Tensor, rows: Tensor | None) -> Tensor:
        """Run a span on some rows of the incoming states, or on all."""
        body = fused.bodies[key[1]]
        assert isinstance(body, Body)
        inputs, mask = self.inputs, self.mask
        if rows is not None:
            inputs, mask, states = inputs[rows], mask[rows], states[rows]
        return body(inputs if body.front else fused.enter(key[1], states), mask, mask, None)  # type: ignore[no-any-return]


def decide_rows(router: Router, selection: Selection, states: Tensor, present: Tensor) -> Decision:
    """Return a router's decision on every token of whole rows.

    Args:
        router: the router; its pool is of :data:`ROW_POOLS`.
        selection: how rows choose; with `k`, each row chooses once, by the mean of its tokens' log-probabilities. A
            router that is used with a few experts weighs them once a row softly too, so that it is trained on the
            decision that it is used for.
        states: ``[rows, length, width]``.
        present: which tokens are real, ``[rows, length]``.

    Returns:
        The decision, every part of it ``[rows, length, ...]``.
    """
    pooled = pool_rows(router.pool, states, present)
    index = present.long().cumsum(1) - 1
    soft = router.decide(pooled, index.clamp(min=0), Selection())
    if selection.k is None and (router.selection.k is None or router.pool.kind == "prompt"):
        return soft
    count = present.sum(1, keepdim=True).clamp(min=1)
    mean = (soft.log_probs * present.unsqueeze(-1)).sum(1) / count
    log_probs = torch.log_softmax(mean, -1)
    length = states.shape[1]

    def spread(values: Tensor) -> Tensor:
        return values.unsqueeze(1).expand(-1, length, *values.shape[1:])

    if selection.k is None:
        return replace(soft, log_probs=spread(log_probs), weights=spread(log_probs.exp()))
    ranking = log_probs.detach()
    if router.balance is not None:
        ranking = ranking + router.balance.bias
    row = choose(log_probs, pooled[:, 0], index[:, 0], replace(selection, frozen_after=0), ranking)
    assert row.selected is not None
    return replace(soft, log_probs=spread(row.log_probs), weights=spread(row.weights), selected=spread(row.selected))


def pool_rows(pool: Pool, states: Tensor, present: Tensor) -> Tensor:
    """Pool every token of rows in which tokens may look ahead.

    ``prompt`` is the mean of the first real states, the same for all tokens of the row; ``window`` the mean of the
    states around the token, and ``segment`` that of the token's own segment.

    Args:
        pool: the rule.
        states: ``[rows, length, width]``.
        present: which tokens are real, ``[rows, length]``; where they are not all on one side, the gaps count as none.

    Returns:
        float32 ``[rows, length, width]``.
    """
    masked = states.double().masked_fill(~present.unsqueeze(-1), 0.0)
    index = present.long().cumsum(1) - 1
    if pool.kind == "prompt":
        counted = present & (index < pool.size)
        total = (masked * counted.unsqueeze(-1)).sum(1, keepdim=True)
        return (total / counted.sum(1).clamp(min=1).view(-1, 1, 1)).float().expand(states.shape)
    place = torch.arange(states.shape[1], device=states.device)
    if pool.kind == "window":
        left = (pool.size - 1) // 2
        near = (place.unsqueeze(0) >= place.unsqueeze(1) - left) & (
            place.unsqueeze(0) <= place.unsqueeze(1) + pool.size // 2
        )
        near = near.expand(len(states), -1, -1)
    else:
        segment = torch.div(index.clamp(min=0), pool.size, rounding_mode="floor")
        near = segment.unsqueeze(1) == segment.unsqueeze(2)
    weights = (near & present.unsqueeze(1)).double()
    return (weights @ masked / weights.sum(-1, keepdim=True).clamp(min=1)).float()
