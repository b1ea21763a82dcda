"""Fused models that read whole rows at once: masked language models and sentence embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mango.errors import ConfigError
from mango.fusion.core import MolRowModel
from mango.fusion.encoder_shells import EncoderBody, EncoderTail, NormTail
from mango.fusion.expert import Shells
from mango.fusion.mixing import IGNORED, Group, mix_logits, mix_losses
from mango.fusion.output import EncoderOutput, MolOutput, Routing
from mango.fusion.routers import Router
from mango.fusion.rows import RowStep, check_row_router


class MolEncoder(MolRowModel):
    """A fused model of encoders; a subclass adds a head.

    Experts are mixed as in a causal model, but tokens see all of their row. So the pools of a router look ahead too,
    and a hard choice is made once a row: its best experts process all of it, and no other does.

    Args:
        config: the configuration.
    """

    shells = Shells(EncoderBody, EncoderTail)
    one_answer_a_row = False
    """Whether the head reads one answer off a row, for which the router has to decide once a row."""

    def _check_router(self, router: Router) -> None:
        check_row_router(router, self.config.router["type"], self.config.task, once=self.one_answer_a_row)

    @property
    def front(self) -> EncoderBody:
        """The trunk's first span, which starts from the model's own input."""
        body = self._anchor.bodies[0]
        assert isinstance(body, EncoderBody)
        return body

    def _run(self, inputs: Tensor, attention_mask: Tensor | None) -> tuple[list[Group], RowStep]:
        states = self.front.entrance(inputs)
        mask = self._mask(states, attention_mask)
        step = RowStep(self, self._selection(), inputs, mask)
        return step.run(states, mask), step

    def _mask(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        shape = states.shape[:2]
        if attention_mask is None:
            return torch.ones(shape, dtype=torch.bool, device=states.device)
        if attention_mask.shape != shape:
            raise ConfigError(f"attention_mask has shape {list(attention_mask.shape)}, wanted {list(shape)}")
        return attention_mask.to(device=states.device, dtype=torch.bool)

    @torch.no_grad()
    def routing_at(self, position: int, **inputs: Tensor) -> Routing:
        """Return what the router of a position decides, without running anything behind it.

        Args:
            position: a position with a choice.
            inputs: what the model's forward pass takes; labels are not looked at.
        """
        main = inputs[self.main_input_name]
        states = self.front.entrance(main)
        mask = self._mask(states, inputs.get("attention_mask"))
        step = RowStep(self, self._selection(), main, mask)
        step.run(states, mask, until=position)
        return step.routing[-1]


class MolForMaskedLM(MolEncoder):
    """A fused masked language model: experts are encoders, and their heads are mixed as distributions.

    Args:
        config: the configuration.
    """

    task = "masked-lm"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        losses_only: bool = False,
        **kwargs: Any,
    ) -> MolOutput:
        """Run the fused model.

        Args:
            input_ids: token ids, ``[rows, length]``, some of them masked.
            attention_mask: which tokens are real, ``[rows, length]``; all without.
            labels: the token of each place that is to be found, ``[rows, length]``; -100 where none is.
            losses_only: with labels, return losses and no logits, at less work and memory.
            kwargs: ``num_items_in_batch``, by which the loss is divided in place of the number of labels.

        Returns:
            Loss, logits ``[rows, length, vocabulary]``, and what was routed where.

        Raises:
            ConfigError: the inputs are of a kind that a fused model cannot take.
        """
        as_tuple = refuse_inputs(kwargs)
        if input_ids is None:
            raise ConfigError("a fused model takes input_ids, not inputs_embeds: every expert has its own embedding")
        groups, step = self._run(input_ids, attention_mask)
        hard = self._selection().k == 1
        routing, counts = tuple(step.routing), step.counts(input_ids.device)
        if losses_only and labels is None:
            raise ConfigError("losses_only: there are no labels")
        logits = None if losses_only else mix_logits(groups, hard=hard)
        loss = losses = None
        if labels is not None:
            targets = labels.masked_fill(~step.mask, IGNORED)
            losses = at_targets(groups, targets, hard=hard)
            loss = losses.sum() / kwargs.get("num_items_in_batch", (targets != IGNORED).sum().clamp(min=1))
        output = MolOutput(loss, logits, None, routing, counts, losses)
        return output.to_tuple() if as_tuple else output  # type: ignore[return-value]


class MolForSentenceEmbedding(MolEncoder):
    """A fused encoder that gives each text one vector: the mean of its tokens' states, of length one.

    All experts end in the trunk's space, through adapters, since vectors of different models cannot be compared. It is
    trained to find, among the texts of a batch, the one that belongs to each.

    Args:
        config: the configuration.
    """

    task = "sentence-embedding"
    shells = Shells(EncoderBody, NormTail, headed=False)
    one_answer_a_row = True

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        losses_only: bool = False,
        **kwargs: Any,
    ) -> EncoderOutput:
        """Run the fused model.

        Args:
            input_ids: token ids, ``[rows, length]``; or pairs of texts that belong together, ``[pairs, 2, length]``.
            attention_mask: which tokens are real, of the same shape; all without.
            labels: with pairs, gives the loss: anything that is not -100 marks a pair that counts, ``[pairs]``.
            losses_only: kept for the trainer; the embeddings are always returned.
            kwargs: ``num_items_in_batch``, by which the loss is divided in place of the number of pairs.

        Returns:
            Loss, states ``[rows, length, width]``, embeddings ``[rows, width]``, and what was routed where.

        Raises:
            ConfigError: the inputs are of a kind that a fused model cannot take.

        Source of the loss: van den Oord et al., "Representation Learning with Contrastive Predictive Coding"
        (1807.03748), eq. 4, in both directions.
        """
        as_tuple = refuse_inputs(kwargs)
        if input_ids is None:
            raise ConfigError("a fused model takes input_ids, not inputs_embeds: every expert has its own embedding")
        pairs = input_ids.ndim == 3
        if labels is not None and not pairs:
            raise ConfigError(f"labels: wanted input_ids of pairs, [pairs, 2, length], not {list(input_ids.shape)}")
        rows = input_ids.flatten(0, 1) if pairs else input_ids
        if attention_mask is not None and pairs:
            attention_mask = attention_mask.flatten(0, 1)
        groups, step = self._run(rows, attention_mask)
        (group,) = groups  # all end in the trunk
        states = group.tail(group.states)
        embeddings = mean_embedding(states, step.mask)
        loss = losses = None
        if labels is not None:
            losses = pair_losses(embeddings[0::2], embeddings[1::2]).masked_fill(labels == IGNORED, 0.0)
            loss = losses.sum() / kwargs.get("num_items_in_batch", (labels != IGNORED).sum().clamp(min=1))
        output = EncoderOutput(loss, states, embeddings, tuple(step.routing), step.counts(rows.device), losses)
        return output.to_tuple() if as_tuple else output  # type: ignore[return-value]

    @torch.no_grad()
    def routing_at(self, position: int, **inputs: Tensor) -> Routing:
        """Return what the router of a position decides, without running anything behind it; see the base class."""
        flat = {n: v.flatten(0, 1) if v.ndim == 3 else v for n, v in inputs.items() if n != "labels"}
        return super().routing_at(position, **flat)


TEMPERATURE = 0.05
"""Of the softmax over cosines in the loss of sentence embeddings."""


def mean_embedding(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the real tokens' states, of length one, float32 ``[rows, width]``.

    Args:
        states: ``[rows, length, width]``.
        mask: which tokens are real, ``[rows, length]``.
    """
    weights = mask.unsqueeze(-1).float()
    mean = (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
    return normalize(mean, dim=-1)


def pair_losses(left: Tensor, right: Tensor) -> Tensor:
    """Return the cross-entropy of finding each vector's partner in the batch, the mean of both ways, ``[pairs]``.

    Args:
        left: vectors of length one, ``[pairs, width]``.
        right: their partners, ``[pairs, width]``.
    """
    scores = left @ right.T / TEMPERATURE
    own = torch.arange(len(left), device=left.device)
    there = cross_entropy(scores, own, reduction="none")
    return (there + cross_entropy(scores.T, own, reduction="none")) / 2


def at_targets(groups: list[Group], targets: Tensor, *, hard: bool) -> Tensor:
    """Return the losses of the mixture where there is a target, ``[rows, length]``; heads run nowhere else.

    Args:
        groups: what ends in each head.
        targets: the token of each place, ``[rows, length]``; -100 where none is wanted.
        hard: whether each token has exactly one group.
    """
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    losses = torch.zeros(targets.shape, device=targets.device)
    if not len(rows):
        return losses + sum(group.states.sum() * 0 for group in groups)
    picked = [
        replace(group, mass=group.mass[rows, columns].unsqueeze(0), states=group.states[rows, columns].unsqueeze(0))
        for group in groups
    ]
    found = mix_losses(picked, targets[rows, columns].unsqueeze(0), hard=hard)
    return losses.index_put((rows, columns), found[0])


def refuse_inputs(kwargs: dict[str, Any]) -> bool:
    """Refuse what no fused model takes or returns, and tell whether a tuple is wanted.

    Args:
        kwargs: further arguments of a forward pass; those that are looked at here are taken out.

    Raises:
        ConfigError: one of them is asked for.
    """
    if kwargs.pop("inputs_embeds", None) is not None:
        raise ConfigError("a fused model takes input_ids, not inputs_embeds: every expert has its own embedding")
    for name in ("output_attentions", "output_hidden_states"):
        if kwargs.pop(name, False):
            raise ConfigError(f"{name}: a fused model has several residual streams and does not return them")
    return kwargs.pop("return_dict", None) is False
