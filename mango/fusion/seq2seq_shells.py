"""Shells of encoder-decoder models: the whole encoder, spans of the decoder, and the decoder's norm and head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import MoeModelOutputWithPast

from mango.architectures import ComponentMap, Stack
from mango.architectures.handlers import handler_for
from mango.errors import ArchitectureError
from mango.fusion.encoder_shells import Bypass, Holder, enter_behind
from mango.fusion.pruning import pruned, put
from mango.fusion.shells import Body, Tail
from mango.fusion.span_cache import SpanCache


@dataclass(frozen=True)
class Context:
    """What a decoder reads beside its own tokens.

    Args:
        states: what the encoder of the same model made of the source text, ``[rows, source length, width]``.
        mask: which tokens of the source are real, ``[rows, source length]``.
    """

    states: Tensor
    mask: Tensor


def stack_parts(parts: ComponentMap, role: str) -> ComponentMap:
    """Return the map of an encoder-decoder model with one of its two stacks as the main one.

    Args:
        parts: the map of the whole model.
        role: ``encoder`` or ``decoder``.

    Raises:
        ArchitectureError: the model has no such stack, or several.
    """
    found: list[Stack] = [stack for stack in parts.stacks if stack.role == role]
    if len(found) != 1 or not found[0].root:
        has = ", ".join(other.role for other in parts.stacks)
        raise ArchitectureError(
            f"{parts.architecture}: wanted one stack of blocks that is its {role}, found {has}: it is no "
            "encoder-decoder model of text, so it cannot be fused with such models"
        )
    (stack,) = found
    if any(other.root == stack.root for other in parts.stacks if other is not stack):
        raise ArchitectureError(
            f"{parts.architecture}: its encoder and decoder run in one forward pass of {stack.root!r}, so neither runs "
            "without the other; it cannot be fused"
        )
    return replace(
        parts,
        base_prefix=stack.root,
        blocks=stack.path.removeprefix(f"{stack.root}."),
        num_blocks=stack.num_blocks,
        width=stack.width,
        before=stack.before,
        after=stack.after,
    )


class SourceEncoder(nn.Module):
    """The encoder of a source model, whole.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
    """

    def __init__(self, config: PretrainedConfig, parts: ComponentMap) -> None:
        super().__init__()
        own = stack_parts(parts, "encoder")
        self.base = pruned(config, own, 0, own.num_blocks).get_submodule(own.base_prefix)
        self.width = own.width
        self.base.requires_grad_(False)
        self.base.train(False)

    def train(self, mode: bool = True) -> SourceEncoder:
        """Do nothing: the encoder stays in evaluation mode."""
        self.training = mode
        return self

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the encoder's states ``[rows, length, width]`` of token ids ``[rows, length]``."""
        out = self.base(input_ids=input_ids, attention_mask=mask.long())
        return out.last_hidden_state  # type: ignore[no-any-return]


class _Shifted(Cache):
    """A cache whose first layers, of blocks that a span does not have, stay empty."""

    def __init__(self, num_blocks: int, first: int) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(first + num_blocks)])
        self.first = first

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of a layer that the span has."""
        return super().get_seq_length(max(layer_idx, self.first))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return length and offset of the keys of a layer that the span has."""
        return super().get_mask_sizes(query_length, max(layer_idx, self.first))


class _DecoderCache(EncoderDecoderCache):
    """Keys and values of a span of a decoder: of its own tokens, and of the source."""

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at these indices, in that order."""
        self.self_attention_cache.batch_select_indices(indices)
        self.cross_attention_cache.batch_select_indices(indices)


class _Past(Cache):
    """Says how many tokens came before, and holds nothing."""

    def __init__(self, length: int) -> None:
        super().__init__(layers=[])
        self.length = length
        self.self_attention_cache = self
        self.cross_attention_cache = Cache(layers=[])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return that number."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the length of keys with the new tokens, and no offset."""
        return self.length + query_length, 0


class DecoderBody(Body):
    """A span of a decoder's blocks, which read the states of their own model's encoder.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
        start: its first block.
        stop: the block after its last.
        front: whether it starts from token ids.
    """

    holder: Holder

    def __init__(self, config: PretrainedConfig, parts: ComponentMap, start: int, stop: int, *, front: bool) -> None:
        self.__dict__["holder"] = Holder()  # before modules can be set
        own = stack_parts(parts, "decoder")
        super().__init__(config, own, start, stop, front=front)
        if start:
            first = pruned(config, own, 0, 1).get_submodule(parts.blocks_path).get_submodule("0")
            handler_for(parts.model_type).lend(first, self.base.get_submodule(own.blocks).get_submodule("0"))
            self.frozen()

    def drop_before(self, base: nn.Module, parts: ComponentMap) -> None:
        """Let the states that come in stand for what runs before the blocks."""
        for path in parts.before:
            put(base, path, Bypass(self.holder, base.get_submodule(path), handler_for(parts.model_type)))

    def new_cache(self) -> Any:
        """Return an empty cache of the span's own keys and values, and of those that it makes of the encoder's."""
        return _DecoderCache(_Shifted(self.num_blocks, self.start), _Shifted(self.num_blocks, self.start))

    def entrance_after(self, ids: Tensor, past: int, context: Context) -> Tensor:
        """Return what the decoder hands to its first block; only for a front.

        Args:
            ids: ids of the new tokens, ``[rows, length]``.
            past: tokens that came before.
            context: what the encoder made of the source.
        """
        out = self.without_blocks()(
            input_ids=ids,
            past_key_values=_Past(past),
            encoder_hidden_states=context.states,
            encoder_attention_mask=context.mask.long(),
            use_cache=False,
        )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def forward(
        self,
        inputs: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        cache: SpanCache | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Run the span.

        Args:
            inputs: token ids ``[rows, length]`` for a front, states ``[rows, length, width]`` otherwise.
            attention_mask: which of the cached and new tokens are real, ``[rows, cached + length]``.
            position_ids: not used: decoders count their tokens.
            cache: from :meth:`new_cache`; the new tokens are added to it.
            context: what the encoder of the same model made of the source.

        Returns:
            States that leave the last block, ``[rows, length, width]``.
        """
        assert context is not None
        self.holder.states = self._incoming = None if self.front else inputs
        try:
            out = self.base(
                **{"input_ids" if self.front else "inputs_embeds": inputs},
                attention_mask=attention_mask,
                encoder_hidden_states=context.states,
                encoder_attention_mask=context.mask.long(),
                past_key_values=cache,
                use_cache=cache is not None,
            )
        finally:
            self.holder.states = self._incoming = None
        return out.last_hidden_state  # type: ignore[no-any-return]


class DecoderTail(Tail):
    """A decoder's final norm and head, run by the model's own forward pass without encoder and blocks.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
    """

    def __init__(self, config: PretrainedConfig, parts: ComponentMap) -> None:
        nn.Module.__init__(self)
        if parts.head is None:
            raise ArchitectureError(f"{parts.architecture}: it has no output projection")
        own = stack_parts(parts, "decoder")
        model = pruned(config, own, 0, 0)
        self.holder = Holder()
        base = model.get_submodule(own.base_prefix)
        for path in own.before:
            put(base, path, Bypass(self.holder, base.get_submodule(path), handler_for(parts.model_type)))
        enter_behind(base, own, self.holder)
        encoder = stack_parts(parts, "encoder").base_prefix
        put(model, encoder, Bypass(self.holder, model.get_submodule(encoder), handler_for(parts.model_type)))
        inside = parts.embeddings.startswith(f"{encoder}.")
        if not inside and parts.embeddings != parts.head:
            table = model.get_submodule(parts.embeddings)
            put(model, parts.embeddings, table if isinstance(table, Bypass) else nn.Identity())
        self.model = model
        self.width = own.width
        self.head_path = parts.head
        self.frozen()

    def forward(self, states: Tensor) -> Tensor:
        """Return logits ``[tokens, vocabulary]`` of states ``[tokens, width]``."""
        self.holder.states = states.unsqueeze(1)
        encoded = states.new_zeros(len(states), 1, self.width)
        try:
            out = self.model(
                decoder_inputs_embeds=self.holder.states,
                encoder_outputs=MoeModelOutputWithPast(last_hidden_state=encoded),
                use_cache=False,
            )
        finally:
            self.holder.states = None
        return out.logits.squeeze(1)  # type: ignore[no-any-return]
