"""One forward pass of a fused model: tokens flow from cut to cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mango.fusion.bridge import Bridge, BridgedGroup, Reading, RowReading, read, read_on
from mango.fusion.cache import FusedCache, PositionMemory
from mango.fusion.expert import FusedExpert
from mango.fusion.layout import Span
from mango.fusion.mixing import Contribution, Group, mix_states
from mango.fusion.output import Routing
from mango.fusion.position import Arrival, arrive, num_reread, run_sparse, to_process
from mango.fusion.routers import Router, Selection
from mango.fusion.shells import Body, Tail
from mango.fusion.span_memory import SpanMemory

if TYPE_CHECKING:
    from mango.fusion.core import MolPreTrainedModel

LEAST_SHARE = 1e-30
"""With soft routing every token goes through every span, however small its share, since others attend to it."""


class Flow(ABC):
    """One forward pass: the course of tokens from cut to cut, the same in every kind of model.

    A subclass says how tokens choose at a position and how its experts run on them.

    Args:
        model: the model.
        selection: how tokens choose.
    """

    def __init__(self, model: MolPreTrainedModel, selection: Selection) -> None:
        self.model = model
        self.selection = selection
        # A guest across a bridge reads all of a text, and is told by what the trunk says of each token.
        self.sparse = selection.k is not None and not any(expert.bridged for expert in model.layout.experts)
        self.routing: list[Routing] = []
        self._counts: dict[tuple[int, int], Tensor | int] = {}

    @abstractmethod
    def decide(self, position: int, states: Tensor, present: Tensor) -> Tensor:
        """Let tokens in at a position and return their weights, ``[rows, length, experts]``.

        Args:
            position: number of the position.
            states: incoming states, ``[rows, length, width]``.
            present: which of them enter here, ``[rows, length]``.
        """

    @abstractmethod
    def process(self, position: int, states: Tensor) -> list[Tensor]:
        """Run the spans that are entered at a position, and return what leaves each of them.

        Args:
            position: number of the position.
            states: incoming states, ``[rows, length, width]``.
        """

    def counts(self, device: torch.device) -> Tensor:
        """Return the number of tokens that each span processed."""
        return torch.stack([torch.as_tensor(self._counts[key], device=device) for key in self.model.spans])

    def _span(self, expert: int, index: int) -> Span:
        return self.model.layout.experts[expert].spans[index]

    def _expert(self, number: int) -> FusedExpert:
        expert = self.model.experts[number]
        assert isinstance(expert, FusedExpert)
        return expert

    def _router(self, position: int) -> Router | None:
        router = self.model.routers[str(position)] if len(self.model._entering[position]) > 1 else None
        assert router is None or isinstance(router, Router)
        return router

    def run(self, states: Tensor, present: Tensor, *, until: int | None = None) -> list[Group]:
        """Take states from the trunk's embedding to the last cut; return what ends in each head.

        With `until`, stop when the router of that position has decided; nothing is returned.
        """
        layout = self.model.layout
        last = layout.num_positions
        long_spans = any(span.exit - span.enter > 1 for expert in layout.experts for span in expert.spans)
        leaving: dict[int, list[Contribution]] = {}
        # The share of each token that stands at a cut, and is not with an expert that spans several positions.
        free = torch.ones(present.shape, device=states.device) if long_spans else None
        real = present
        for position in range(last):
            weights = self.decide(position, states, present)
            if position == until:
                return []
            outputs = self.process(position, states)
            for place, ((expert, index), out) in enumerate(zip(self.model._entering[position], outputs, strict=True)):
                mass = weights[..., place]
                if free is not None:
                    mass = mass * free if self.sparse else (mass * free).clamp(min=LEAST_SHARE)
                contribution = Contribution(expert, index, mass, out)
                leaving.setdefault(self._span(expert, index).exit, []).append(contribution)
            if position + 1 == last:
                break
            here = leaving.pop(position + 1)
            states = self._mix(here, states, normalise=free is not None)
            if free is not None:
                free = torch.stack([contribution.mass for contribution in here]).sum(0)
                if self.sparse:
                    present = real & (free > 0)
        return self._groups(leaving[last])

    def _mix(self, contributions: list[Contribution], before: Tensor, *, normalise: bool) -> Tensor:
        single = self.selection.k == 1
        return mix_states(contributions, self._leave, before, normalise=normalise, straight_through=single)

    def _leave(self, contribution: Contribution) -> Tensor:
        return self._expert(contribution.expert).leave(contribution.span, contribution.states)

    def _groups(self, contributions: list[Contribution]) -> list[Group]:
        """Group what leaves the last cut by the head that it ends in."""
        by_head: dict[int, list[Contribution]] = {}
        for contribution in contributions:
            head = contribution.expert if self._expert(contribution.expert).own_tail else 0
            by_head.setdefault(head, []).append(contribution)
        groups: list[Group] = []
        for head, members in sorted(by_head.items()):
            tail = self._expert(head).tail
            assert isinstance(tail, Tail)
            if len(members) == 1 and members[0].expert == head:
                groups.append(Group(tail, members[0].mass, members[0].states, self.sparse))
                continue
            mass = torch.stack([member.mass for member in members]).sum(0)
            mixed = self._mix(members, members[0].states, normalise=True)
            groups.append(Group(tail, mass, mixed, self.sparse))
        return groups


class Step(Flow):
    """One forward pass of tokens that see what stands before them, and nothing behind.

    Args:
        model: the model.
        selection: how tokens choose.
        input_ids: ids of the new tokens, ``[rows, length]``.
        mask: which of the cached and new tokens are real, ``[rows, cached + length]``.
        position_ids: true positions of the new tokens, ``[rows, length]``.
        cache: what came before, which grows by the new tokens; or None.
    """

    def __init__(
        self,
        model: MolPreTrainedModel,
        selection: Selection,
        input_ids: Tensor,
        mask: Tensor,
        position_ids: Tensor,
        cache: FusedCache | None,
    ) -> None:
        super().__init__(model, selection)
        self.ids = input_ids
        self.mask = mask
        self.position_ids = position_ids
        self.cache = cache
        self._arrived: Arrival | None = None
        self._readings: dict[int, Reading] = {}

    def read(self, body: Body, ids: Tensor, states: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Return what a span is made its inputs of: token ids for a front, states for others.

        Args:
            body: the span.
            ids: token ids, ``[rows, length]``.
            states: states of the trunk, ``[rows, length, width]``.
            position_ids: true positions, ``[rows, length]``.
        """
        return (ids,) if body.front else (states,)

    def enter(self, fused: FusedExpert, index: int, *read: Tensor) -> Tensor:
        """Return the inputs of a span.

        Args:
            fused: the expert.
            index: which of its spans.
            read: of some tokens, what :meth:`read` returned.
        """
        return fused.enter(index, read[0])

    def mask_of(self, expert: int) -> Tensor:
        """Return which tokens an expert's spans see, where it processes all of them: the real ones.

        Args:
            expert: number of the expert.
        """
        return self.mask

    def decide(self, position: int, states: Tensor, present: Tensor) -> Tensor:
        """Let tokens in behind those that are kept from before, pool, and choose."""
        arrived = self._arrived = self._arrive(position, states, present)
        if arrived.decision is None:
            return present.unsqueeze(-1).float()
        return self.routing[-1].weights

    def _arrive(self, position: int, states: Tensor, present: Tensor) -> Arrival:
        entering = self.model._entering[position]
        router = self._router(position)
        memory = None if self.cache is None else self.cache.positions.get(position)
        if memory is None:
            memory = PositionMemory.empty(states, len(entering), self.position_ids)
        arrived = arrive(
            router, self.selection, states, self.ids, self.position_ids, present, memory, align=self.cache is None
        )
        if arrived.decision is not None:
            self.routing.append(
                Routing(
                    position,
                    tuple(self.model.layout.experts[expert].name for expert, _ in entering),
                    arrived.new.put(arrived.decision.log_probs.masked_fill(~arrived.new.valid.unsqueeze(-1), 0.0)),
                    arrived.new.put(arrived.decision.weights * arrived.new.valid.unsqueeze(-1)),
                    arrived.new.put(arrived.decision.pooled.detach()),
                    present,
                    arrived.new.put(arrived.decision.log_total * arrived.new.valid),
                )
            )
        return arrived

    def _memory(self, key: tuple[int, int]) -> SpanMemory | None:
        return None if self.cache is None else self.cache.spans.setdefault(key, SpanMemory())

    def _across(self, expert: int, bridge: Bridge, body: Body) -> Tensor:
        """Let a guest read the text in its own tokens; return zeros, since its states stand beside no tokens here."""
        real = self.mask[:, -self.ids.shape[1] :]
        rows = [ids[own].tolist() for ids, own in zip(self.ids, real, strict=True)]
        if self.cache is None:
            reading = read(bridge, body, rows)
        else:
            before = self.cache.bridges.get(expert) or [RowReading()] * len(rows)
            reading = read_on(bridge, body, rows, before)
            self.cache.bridges[expert] = reading.rows
        self._readings[expert] = reading
        self._counts[expert, 0] = reading.num_read
        return reading.states.new_zeros(*self.ids.shape, 1)

    def _groups(self, contributions: list[Contribution]) -> list[Group]:
        """Let guests across a bridge speak of the trunk's tokens."""
        groups = super()._groups(contributions)
        real = self.mask[:, -self.ids.shape[1] :]
        for expert, reading in self._readings.items():
            fused = self._expert(expert)
            assert fused.bridge is not None
            place = next(number for number, group in enumerate(groups) if group.tail is fused.tail)
            groups[place] = BridgedGroup.across(groups[place], fused.bridge, groups[0], reading, real)
        return groups

    def process(self, position: int, states: Tensor) -> list[Tensor]:
        """Run every span on all tokens, or sparsely on those that are routed to it, after catching up."""
        arrived = self._arrived
        assert arrived is not None
        entering = self.model._entering[position]
        outputs: list[Tensor] = []
        due = to_process(arrived, self.selection.catch_up) if self.sparse else None
        for place, (expert, index) in enumerate(entering):
            fused = self._expert(expert)
            body = fused.bodies[index]
            assert isinstance(body, Body)
            key = (expert, index)
            if fused.bridge is not None:
                outputs.append(self._across(expert, fused.bridge, body))
                continue
            if due is None and body.packed:
                real = self.mask[:, -self.ids.shape[1] :]
                read = self.read(body, self.ids, states, self.position_ids)
                enter, own = partial(self.enter, fused, index), self._memory(key)
                self._counts[key] = real.sum() + num_reread(body, real, own)
                outputs.append(run_sparse(body, enter, read, self.position_ids, real, own))
                continue
            if due is None:
                inputs = self.enter(fused, index, *self.read(body, self.ids, states, self.position_ids))
                span_cache = None
                if self.cache is not None:
                    span_cache = self.cache.dense_spans.setdefault(key, body.new_cache())
                outputs.append(body(inputs, self.mask_of(expert), self.position_ids, span_cache))
                self._counts[key] = self.mask[:, -self.ids.shape[1] :].sum()
                continue
            memory = arrived.memory
            read = self.read(body, memory.ids, memory.states, memory.position_ids)
            picked, enter = due[..., place], partial(self.enter, fused, index)
            own = self._memory(key)
            self._counts[key] = picked.sum() + num_reread(body, picked, own)
            out = run_sparse(body, enter, read, memory.position_ids, picked, own)
            outputs.append(arrived.new.put(out[:, arrived.num_kept :]))
        if self.cache is not None:
            router = self._router(position)
            history = 0 if router is None else router.pool.history
            kept = max(history, self.selection.catch_up, 1) if self.sparse else history
            self.cache.positions[position] = arrived.memory.keep(kept)
        return outputs
