"""Shells of encoder-decoder models: the whole encoder, spans of the decoder, and the decoder's norm and head."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from mango.architectures import ComponentMap, Stack, build_meta
from mango.architectures.handlers import handler_for
from mango.errors import ArchitectureError
from mango.fusion.encoder_shells import Bypass, Holder
from mango.fusion.shells import Body, Tail, pruned, put
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
        raise ArchitectureError(
            f"{parts.architecture}: wanted one {role} of its own, found {len(found)}; it cannot be fused"
        )
    (stack,) = found
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
        out = self.base(input_ids=input_ids, attention_mask=mask)
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
            put(base, path, Bypass(self.holder, base.get_submodule(path)))

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
            encoder_attention_mask=context.mask,
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
                encoder_attention_mask=context.mask,
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
            put(base, path, Bypass(self.holder, base.get_submodule(path)))
        for path in {stack_parts(parts, "encoder").base_prefix, parts.embeddings}:
            if path != parts.head and not isinstance(model.get_submodule(path), Bypass):
                put(model, path, nn.Identity())
        self.model = model
        self.width = own.width
        self.head_path = parts.head
        self.inner_ties = {}
        self.frozen()

    def forward(self, states: Tensor) -> Tensor:
        """Return logits ``[tokens, vocabulary]`` of states ``[tokens, width]``."""
        self.holder.states = states.unsqueeze(1)
        encoded = states.new_zeros(len(states), 1, self.width)
        try:
            out = self.model(
                decoder_inputs_embeds=self.holder.states,
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                use_cache=False,
            )
        finally:
            self.holder.states = None
        return out.logits.squeeze(1)  # type: ignore[no-any-return]


def source_names(fused: nn.Module, parts: ComponentMap, spans: list[tuple[int, int]]) -> dict[str, str]:
    """Return the name in the source model of every tensor that an expert has of it.

    Args:
        fused: the expert, with or without data.
        parts: the map of its source model.
        spans: first block and the one after the last, of each of its spans.
    """
    decoder, encoder = (stack_parts(parts, role).base_prefix for role in ("decoder", "encoder"))
    blocks = stack_parts(parts, "decoder").blocks
    names: dict[str, str] = {}
    for name in fused.state_dict():
        kind, _, rest = name.partition(".")
        if kind == "encoder":
            names[name] = f"{encoder}.{rest.removeprefix('base.')}"
        elif kind == "tail":
            names[name] = rest.removeprefix("model.")
        elif kind == "bodies":
            number, _, inner = rest.partition(".base.")
            if inner.startswith(f"{blocks}."):
                index, _, leaf = inner.removeprefix(f"{blocks}.").partition(".")
                inner = f"{blocks}.{int(index) + spans[int(number)][0]}.{leaf}"
            names[name] = f"{decoder}.{inner}"
    return names


def canonical(config: PretrainedConfig, parts: ComponentMap) -> tuple[dict[str, str], set[str]]:
    """Return the name that each tied tensor of a model really has, and the names of all its tensors.

    Args:
        config: the model's configuration.
        parts: where it keeps its parts.
    """
    model: PreTrainedModel = build_meta(deepcopy(config), parts.task)
    own: dict[str, str] = dict(model.all_tied_weights_keys)
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        own.setdefault(name, first.setdefault(id(tensor), name))
    return own, set(model.state_dict())


def _lent(name: str, known: set[str], parts: ComponentMap) -> str:
    """Return the name of what a block has, or of what the model's first block has lent it."""
    prefix = f"{parts.blocks_path}."
    if name in known or not name.startswith(prefix):
        return name
    return f"{prefix}0.{name.removeprefix(prefix).partition('.')[2]}"


def true_names(
    fused: nn.Module, config: PretrainedConfig, parts: ComponentMap, spans: list[tuple[int, int]]
) -> dict[str, str]:
    """Return the true name in the source model of every tensor that an expert has of it; tied ones have one name.

    Args:
        fused: the expert.
        config: the source model's configuration.
        parts: where it keeps its parts.
        spans: first block and the one after the last, of each of its spans.
    """
    own, known = canonical(config, parts)
    found: dict[str, str] = {}
    for name, source in source_names(fused, parts, spans).items():
        there = _lent(source, known, parts)
        found[name] = own.get(there, there)
    return found


def shared_names(names: dict[str, str]) -> dict[str, str]:
    """Return, of tensors that are one in the source model, all but the first, with the name of the first.

    Args:
        names: from :func:`true_names`.
    """
    first: dict[str, str] = {}
    return {name: first[true] for name, true in names.items() if first.setdefault(true, name) != name}
