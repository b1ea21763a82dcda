"""The fused model: a causal language model whose positions choose among spans of several pretrained models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from mango.errors import ConfigError
from mango.fusion.cache import FusedCache
from mango.fusion.core import MolPreTrainedModel
from mango.fusion.expert import Shells
from mango.fusion.generation import FusedGeneration
from mango.fusion.mixing import IGNORED, mix_logits, mix_losses
from mango.fusion.output import MolOutput, Routing
from mango.fusion.posterior import Wanted
from mango.fusion.routers import Selection
from mango.fusion.shells import Body, Tail
from mango.fusion.step import Step


class MolForCausalLM(MolPreTrainedModel, FusedGeneration, GenerationMixin):  # type: ignore[misc]  # another cache
    """A fused model with a language-modelling head.

    ``h' = sum_e w_e(h) * A_out,e(span_e(A_in,e(h)))`` at each fused position. An expert may span several positions: a
    token that takes it stays with it until it leaves. Experts that start from their own embedding take token ids, and
    experts that end in their own head are mixed as ``log sum_e w_e softmax(head_e(...))``. Experts are frozen; only
    adapters and routers have gradients.

    Args:
        config: the configuration.
    """

    task = "causal-lm"
    shells = Shells(Body, Tail)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: Tensor | None = None,
        losses_only: bool = False,
        **kwargs: Any,
    ) -> MolOutput:
        """Run the fused model.

        Args:
            input_ids: token ids, ``[rows, length]``.
            attention_mask: which tokens are real, ``[rows, cached + length]``; all without.
            position_ids: true positions, ``[rows, length]``; counted over real tokens without.
            past_key_values: a :class:`FusedCache` that holds what came before.
            use_cache: whether to return a cache.
            labels: token ids to predict, ``[rows, length]``; -100 and padding do not count.
            logits_to_keep: with a number, logits of the last so many tokens only.
            inputs_embeds: refused, since every expert has an embedding of its own.
            losses_only: with labels, return losses and no logits, at less work and memory.
            kwargs: passed to the loss function.

        Returns:
            Loss, logits, cache, and what was routed where.

        Raises:
            ConfigError: the inputs are of a kind that a fused model cannot take.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ConfigError("a fused model takes input_ids, not inputs_embeds: every expert has its own embedding")
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.pop(name, False):
                raise ConfigError(f"{name}: a fused model has several residual streams and does not return them")
        as_tuple = kwargs.pop("return_dict", None) is False
        selection = self._selection()
        cache = self.fused_cache(past_key_values, use_cache)
        if cache is not None:
            cache.begin(selection)
        past = 0 if cache is None else cache.get_seq_length()
        mask = self._mask(attention_mask, input_ids, past, cache)
        present = mask[:, past:]
        if position_ids is None:
            position_ids = (mask.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        position_ids = position_ids.expand(input_ids.shape[0], -1)
        step, states = self._start(selection, input_ids, mask, position_ids, cache, kwargs)
        groups = step.run(states, present)
        hard = selection.k == 1 and step.sparse
        targets = None if labels is None else self._targets(labels, input_ids, present)
        keep = logits_to_keep or input_ids.shape[1]
        if self.posterior is not None and selection.k is None and not self.training:
            before = None if cache is None else cache.heads
            wanted: Wanted = "logits" if keep == input_ids.shape[1] else "none"
            if losses_only and targets is not None:
                same = (targets == input_ids) | (targets == IGNORED)
                wanted = "losses" if bool(same.all()) else "none"
            counted = self._targets(input_ids, input_ids, present) != IGNORED
            groups, heads = self.posterior.weigh(groups, input_ids, present, counted, before, wanted)
            if cache is not None:
                cache.heads = heads
        if cache is not None:
            cache.mask = mask
        routing, counts = tuple(step.routing), step.counts(input_ids.device)
        if losses_only:
            if targets is None:
                raise ConfigError("losses_only: there are no labels")
            losses = mix_losses(groups, torch.nn.functional.pad(targets[:, 1:], (0, 1), value=IGNORED), hard=hard)
            total = losses.sum() / kwargs.get("num_items_in_batch", (targets[:, 1:] != IGNORED).sum())
            return MolOutput(total, None, cache, routing, counts, losses[:, :-1])
        logits = mix_logits([group.last(keep) for group in groups], hard=hard)
        loss = None
        if targets is not None:
            loss = self.loss_function(
                logits=logits, labels=targets[:, -keep:], vocab_size=self.config.vocab_size, **kwargs
            )
        output = MolOutput(loss, logits, cache, routing, counts)
        return output.to_tuple() if as_tuple else output  # type: ignore[return-value]

    @torch.no_grad()
    def routing_at(self, input_ids: Tensor, position: int) -> Routing:
        """Return what the router of a position decides, without running anything behind it.

        Args:
            input_ids: token ids, ``[rows, length]``, none of them padding.
            position: a position with a choice.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        step, states = self._start(self._selection(), input_ids, mask, position_ids, None, {})
        step.run(states, mask, until=position)
        return step.routing[-1]

    @torch.no_grad()
    def heads_at(self, input_ids: Tensor, *, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return what the routers give each head, softly, and what each loses on the tokens that follow.

        Args:
            input_ids: token ids, ``[rows, length]``, none of them padding.
            batch_size: rows a forward pass.

        Returns:
            Shares, and losses in nats, float32 ``[rows, length, heads]`` each; those of the last token mean nothing.
        """
        shares, losses = [], []
        for ids in input_ids.to(self.device).split(batch_size):
            mask = torch.ones_like(ids, dtype=torch.bool)
            position_ids = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            step, states = self._start(Selection(), ids, mask, position_ids, None, {})
            groups = step.run(states, mask)
            following = torch.nn.functional.pad(ids[:, 1:], (0, 1))
            shares.append(torch.stack([group.mass.float() for group in groups], -1))
            losses.append(torch.stack([group.losses(following) for group in groups], -1))
        return torch.cat(shares), torch.cat(losses)

    def _start(
        self,
        selection: Selection,
        input_ids: Tensor,
        mask: Tensor,
        position_ids: Tensor,
        cache: FusedCache | None,
        more: dict[str, Any],
    ) -> tuple[Step, Tensor]:
        """Return a step and the states that it starts from; what it takes of further arguments is taken out."""
        front = self._anchor.bodies[0]
        assert isinstance(front, Body)
        step = Step(self, selection, input_ids, mask, position_ids, cache)
        return step, front.entrance(input_ids, position_ids)

    def _targets(self, labels: Tensor, input_ids: Tensor, present: Tensor) -> Tensor:
        """Return labels without those that do not count: padding is not predicted, and nothing is predicted from it."""
        counted = present.clone()
        counted[:, 1:] &= present[:, :-1]
        return labels.masked_fill(~counted, IGNORED)

    def _mask(self, attention_mask: Tensor | None, input_ids: Tensor, past: int, cache: FusedCache | None) -> Tensor:
        rows, length = input_ids.shape
        if cache is not None and cache.mask is not None and cache.mask.shape[0] != rows:
            raise ConfigError(f"past_key_values: the cache holds {cache.mask.shape[0]} rows, but input_ids has {rows}")
        if attention_mask is None:
            mask = torch.ones(rows, length, dtype=torch.bool, device=input_ids.device)
            return mask if cache is None or cache.mask is None else torch.cat([cache.mask, mask], 1)
        if attention_mask.shape != (rows, past + length):
            raise ConfigError(
                f"attention_mask has shape {list(attention_mask.shape)}, wanted {[rows, past + length]}: "
                "one column for each cached and each new token"
            )
        return attention_mask.to(device=input_ids.device, dtype=torch.bool)
