"""Fused encoder-decoder models: the source text chooses, and each decoder reads what its own encoder made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from mango.errors import ConfigError
from mango.fusion.cache import FusedCache
from mango.fusion.core import MolPreTrainedModel, MolRowModel
from mango.fusion.encoders import at_targets, refuse_inputs
from mango.fusion.expert import FusedExpert, Shells
from mango.fusion.generation import FusedGeneration
from mango.fusion.mixing import IGNORED, mix_logits
from mango.fusion.output import MolOutput, Routing
from mango.fusion.routers import Decision, Router, Selection
from mango.fusion.rows import RowStep, check_row_router, decide_rows
from mango.fusion.seq2seq_shells import Context, DecoderBody, DecoderTail, SourceEncoder


@dataclass
class EncodedSource(ModelOutput):
    """What the encoders made of the source text.

    Args:
        last_hidden_state: states of the trunk's encoder, ``[rows, length, width]``.
        others: states of the other experts' encoders, side by side, ``[rows, length, sum of their widths]``; zero on
            rows that do not choose an expert.
    """

    last_hidden_state: Tensor | None = None
    others: Tensor | None = None


class Seq2SeqStep(RowStep):
    """One forward pass of the fused decoder.

    Args:
        model: the model.
        selection: how rows choose.
        inputs: ids of the new tokens, ``[rows, length]``.
        mask: which of the cached and new tokens are real, ``[rows, cached + length]``.
        contexts: for each expert what its encoder made of the source.
        cache: what came before, which grows by the new tokens; or None.
    """

    def __init__(
        self,
        model: MolPreTrainedModel,
        selection: Selection,
        inputs: Tensor,
        mask: Tensor,
        contexts: list[Context],
        cache: FusedCache | None,
    ) -> None:
        super().__init__(model, selection, inputs, mask)
        self.contexts = contexts
        self.cache = cache

    def decision(self, router: Router, states: Tensor, present: Tensor) -> Decision:
        """Decide by the trunk's states of the source, for all tokens alike."""
        return by_source(router, self.selection, self.contexts[0], states.shape[1])

    def run_span(self, key: tuple[int, int], fused: FusedExpert, states: Tensor, rows: Tensor | None) -> Tensor:
        """Run a span of a decoder on some rows, with its cache and its own encoder's states."""
        expert, index = key
        body = fused.bodies[index]
        assert isinstance(body, DecoderBody)
        inputs, mask, context = self.inputs, self.mask, self.contexts[expert]
        if rows is not None:
            inputs, mask, states = inputs[rows], mask[rows], states[rows]
            context = Context(context.states[rows], context.mask[rows])
        cache = None
        if self.cache is not None:
            cache = self.cache.dense_spans.setdefault(key, body.new_cache())
            if rows is not None:
                self.cache.span_rows[key] = rows
        return body(inputs if body.front else fused.enter(index, states), mask, None, cache, context)  # type: ignore[no-any-return]


def by_source(router: Router, selection: Selection, source: Context, length: int) -> Decision:
    """Return what a router decides of the source, for so many tokens of the target.

    Args:
        router: the router.
        selection: how rows choose.
        source: the trunk's states of the source text.
        length: tokens of the target.
    """
    found = decide_rows(router, selection, source.states, source.mask)

    def spread(values: Tensor) -> Tensor:
        return values[:, :1].expand(-1, length, *values.shape[2:])

    return replace(
        found,
        log_probs=spread(found.log_probs),
        weights=spread(found.weights),
        selected=None if found.selected is None else spread(found.selected),
        pooled=spread(found.pooled),
        log_total=spread((found.log_total * source.mask).sum(1, keepdim=True) / source.mask.sum(1, keepdim=True)),
    )


class MolForSeq2SeqLM(MolRowModel, FusedGeneration, GenerationMixin):  # type: ignore[misc]  # another cache
    """A fused encoder-decoder model.

    Positions lie in the decoder. Each expert has its own encoder, whole, and the cross-attention of its spans reads
    what that made of the source, as it was trained to. A router decides once a text, from the trunk's states of the
    source; with `k`, encoders and spans of the experts that are not chosen do not run on it.

    Args:
        config: the configuration.
    """

    task = "seq2seq-lm"
    shells = Shells(DecoderBody, DecoderTail, encoder=SourceEncoder)

    def _check_router(self, router: Router) -> None:
        check_row_router(router, self.config.router["type"], self.config.task, once=True)

    @property
    def front(self) -> DecoderBody:
        """The trunk's first span, which starts from the decoder's token ids."""
        body = self._anchor.bodies[0]
        assert isinstance(body, DecoderBody)
        return body

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return what encodes a source text for all experts.

        Args:
            modality: there is one alone.
        """
        return _Encoders(self)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> EncodedSource:
        """Run the encoders: the trunk's, and those of the experts that rows choose.

        Args:
            input_ids: the source text, ``[rows, length]``.
            attention_mask: which tokens are real, of the same shape; all without.
        """
        mask = _real(input_ids, attention_mask)
        states = self._encoder(0)(input_ids, mask)
        chosen = self._chosen(Context(states, mask))
        others: list[Tensor] = []
        for number in range(1, len(self.experts)):
            encoder = self._encoder(number)
            rows = None if chosen is None else chosen[:, number].nonzero().squeeze(1)
            if rows is None or len(rows) == len(states):
                others.append(encoder(input_ids, mask))
                continue
            found = states.new_zeros(*states.shape[:2], encoder.width)
            if len(rows):
                found = found.index_copy(0, rows, encoder(input_ids[rows], mask[rows]))
            others.append(found)
        return EncodedSource(states, torch.cat(others, -1) if others else states[..., :0])

    def _chosen(self, source: Context) -> Tensor | None:
        """Return which experts each row needs somewhere, ``[rows, experts]``; None for all."""
        selection = self._selection()
        if selection.k is None:
            return None
        chosen = torch.zeros(len(source.states), len(self.experts), dtype=torch.bool, device=source.states.device)
        for position, entering in enumerate(self._entering):
            router = self.routers[str(position)] if len(entering) > 1 else None
            if not isinstance(router, Router):
                continue
            selected = by_source(router, selection, source, 1).selected
            assert selected is not None
            for place, (expert, _) in enumerate(entering):
                chosen[:, expert] |= selected[:, 0, place]
        return chosen

    def _encoder(self, number: int) -> SourceEncoder:
        expert = self.experts[number]
        assert isinstance(expert, FusedExpert)
        assert expert.encoder is not None
        return expert.encoder

    def _contexts(self, encoded: Any, mask: Tensor) -> list[Context]:
        states, others = encoded[0], encoded[1]
        widths = [self._encoder(number).width for number in range(1, len(self.experts))]
        return [Context(part, mask) for part in (states, *torch.split(others, widths, -1))]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        losses_only: bool = False,
        **kwargs: Any,
    ) -> MolOutput:
        """Run the fused model.

        Args:
            input_ids: the source text, ``[rows, source length]``; not needed with `encoder_outputs`.
            attention_mask: which of its tokens are real; all without.
            decoder_input_ids: the target so far, ``[rows, length]``; made from the labels without.
            decoder_attention_mask: which of the cached and new tokens of the target are real; all without.
            encoder_outputs: from :meth:`encode`.
            past_key_values: a :class:`FusedCache` that holds what came before.
            labels: the token at each place of the target, ``[rows, length]``; -100 where none counts.
            use_cache: whether to return a cache.
            losses_only: with labels, return losses and no logits, at less work and memory.
            kwargs: ``num_items_in_batch``, by which the loss is divided in place of the number of labels.

        Returns:
            Loss, logits ``[rows, length, vocabulary]``, cache, and what was routed where.

        Raises:
            ConfigError: the inputs are of a kind that a fused model cannot take.
        """
        as_tuple = refuse_inputs(kwargs)
        if encoder_outputs is None:
            if input_ids is None:
                raise ConfigError("a fused model takes input_ids, or encoder_outputs that its own encode() made")
            encoder_outputs = self.encode(input_ids, attention_mask)
        if decoder_input_ids is None:
            if labels is None:
                raise ConfigError("decoder_input_ids: there are none, and no labels to make them from")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        selection = self._selection()
        contexts = self._contexts(encoder_outputs, _real(encoder_outputs[0][..., 0], attention_mask))
        cache = self.fused_cache(past_key_values, use_cache and labels is None)
        if cache is not None:
            cache.begin(selection)
        past = 0 if cache is None else cache.get_seq_length()
        mask = self._target_mask(decoder_attention_mask, decoder_input_ids, cache)
        present = mask[:, past:]
        step = Seq2SeqStep(self, selection, decoder_input_ids, mask, contexts, cache)
        groups = step.run(self.front.entrance_after(decoder_input_ids, past, contexts[0]), present)
        if cache is not None:
            cache.mask = mask
        hard = selection.k == 1
        logits = None if losses_only else mix_logits(groups, hard=hard)
        loss = losses = None
        if labels is not None:
            targets = labels.masked_fill(~present, IGNORED)
            losses = at_targets(groups, targets, hard=hard)
            loss = losses.sum() / kwargs.get("num_items_in_batch", (targets != IGNORED).sum().clamp(min=1))
        elif losses_only:
            raise ConfigError("losses_only: there are no labels")
        output = MolOutput(loss, logits, cache, tuple(step.routing), step.counts(mask.device), losses)
        return output.to_tuple() if as_tuple else output  # type: ignore[return-value]

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Return labels moved by one place, behind the token that starts a target.

        Args:
            labels: ``[rows, length]``.
        """
        start = self.config.decoder_start_token_id
        if start is None:
            raise ConfigError(
                "config.json: no decoder_start_token_id, which a target starts with; give decoder_input_ids"
            )
        pad = self.config.pad_token_id or 0
        return nn.functional.pad(labels[:, :-1], (1, 0), value=start).masked_fill(
            nn.functional.pad(labels[:, :-1] == IGNORED, (1, 0), value=False), pad
        )

    def _target_mask(self, given: Tensor | None, ids: Tensor, cache: FusedCache | None) -> Tensor:
        past = 0 if cache is None else cache.get_seq_length()
        if given is None:
            new = torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
            return new if cache is None or cache.mask is None else torch.cat([cache.mask, new], 1)
        if given.shape != (ids.shape[0], past + ids.shape[1]):
            raise ConfigError(
                f"decoder_attention_mask has shape {list(given.shape)}, wanted {[ids.shape[0], past + ids.shape[1]]}: "
                "one column for each cached and each new token"
            )
        return given.to(device=ids.device, dtype=torch.bool)

    @torch.no_grad()
    def routing_at(self, position: int, **inputs: Tensor) -> Routing:
        """Return what the router of a position decides of a source text, without running any decoder.

        Args:
            position: a position with a choice.
            inputs: ``input_ids`` and ``attention_mask`` of the source.

        Returns:
            What is decided, of the text as one token, or, where its tokens vote, of each of them.
        """
        mask = _real(inputs["input_ids"], inputs.get("attention_mask"))
        source = Context(self._encoder(0)(inputs["input_ids"], mask), mask)
        router = self.routers[str(position)]
        assert isinstance(router, Router)
        names = tuple(self.layout.experts[expert].name for expert, _ in self._entering[position])
        if router.pool.kind == "prompt":  # all tokens of a text say the same
            found = by_source(router, self._selection(), source, 1)
            present = torch.ones(len(mask), 1, dtype=torch.bool, device=mask.device)
        else:
            found, present = decide_rows(router, self._selection(), source.states, mask), mask
        return Routing(position, names, found.log_probs, found.weights, found.pooled, present, found.log_total)


class _Encoders(nn.Module):
    """The encoders of a fused model as one, for generation."""

    main_input_name = "input_ids"

    def __init__(self, model: MolForSeq2SeqLM) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a part of this one

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> EncodedSource:
        return self.__dict__["model"].encode(input_ids, attention_mask)  # type: ignore[no-any-return]


def _real(like: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    if mask.shape != like.shape[:2]:
        raise ConfigError(f"attention_mask has shape {list(mask.shape)}, wanted {list(like.shape[:2])}")
    return mask.to(device=like.device, dtype=torch.bool)
