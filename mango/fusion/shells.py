"""Shells: a source model's own class, pruned to the part that a fused model uses.

A span runs inside its own model's forward pass, so masks, position embeddings and every other argument of its blocks
are made by the code that the blocks were trained with; nothing is rebuilt. What stands before the blocks gives way to
the states that come in, and what stands after them to the identity.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from mango.architectures import ComponentMap
from mango.architectures.handlers import handler_for
from mango.architectures.tasks import CAUSAL, IMAGE_TEXT
from mango.errors import ArchitectureError
from mango.fusion.pruning import pruned, put, without_blocks
from mango.fusion.span_cache import InputsLayer, LayerMaker, SpanCache, keeps_state, layer_makers
from mango.fusion.stand_ins import Passing, PassingBehind, Same, Zeros


class StatesAlone(BaseModelOutputWithPoolingAndCrossAttentions):
    """States that a base model returns, and nothing else, whatever it is asked for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _drop_before(base: nn.Module, parts: ComponentMap, kept: tuple[str, ...] = ()) -> None:
    for path in parts.before:
        if path in kept:
            continue
        module = base.get_submodule(path)
        put(base, path, Zeros(module.embedding_dim) if isinstance(module, nn.Embedding) else Same())


CACHE_NAMES = ("past_key_values", "cache_params")
"""What models call the argument that their cache is given as."""


def accepted(model: nn.Module, parts: ComponentMap) -> frozenset[str]:
    """Return the names of the arguments that a base model takes, or hands on to the part of it with the blocks.

    Args:
        model: the base model.
        parts: where it keeps its parts.
    """
    parameters = inspect.signature(model.forward).parameters
    names = frozenset(parameters)
    inner = parts.stacks[0].root.removeprefix(f"{parts.base_prefix}.") if parts.stacks else ""
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if parts.task != CAUSAL or not hands_on or not inner or inner == parts.base_prefix:
        return names
    return names | frozenset(inspect.signature(model.get_submodule(inner).forward).parameters)


def rereads(base: nn.Module, parts: ComponentMap) -> bool:
    """Tell whether spans of a causal model have no cache that carries them, and read all their tokens in each step.

    Args:
        base: its base model.
        parts: where it keeps its parts.
    """
    return accepted(base, parts).isdisjoint(CACHE_NAMES) or handler_for(parts.model_type).rereads()


class Body(GradientCheckpointingLayer):
    """A span of a source model's blocks, run by the model's own forward pass.

    A span that rereads keeps its inputs as its cache: a step runs the span on all of them, and returns the new ones.

    A packed span is given no padding between tokens: one of its blocks keeps a state that padding would change, or
    its tokens are placed by what its handler makes of their positions. An even span is also given only rows whose
    tokens stand at the same distances from each other.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
        start: its first block.
        stop: the block after its last.
        front: whether it starts from token ids, through the source model's own embedding.
    """

    whole = False
    """Whether a front keeps all that stands before the blocks, and not only what token ids go through."""

    def __init__(self, config: PretrainedConfig, parts: ComponentMap, start: int, stop: int, *, front: bool) -> None:
        super().__init__()
        if front and start:
            raise ArchitectureError(f"a span that starts at block {start} cannot start from token ids")
        base = pruned(config, parts, start, stop, whole=front and self.whole).get_submodule(parts.base_prefix)
        if not front:
            if _reads_ids(base, parts):
                raise ArchitectureError(
                    f"{parts.architecture}: its blocks are given what it looks up by token ids beside the stream, so "
                    "only a span that starts at its own embedding (edges: own, from block 0) can be fused"
                )
            self.drop_before(base, parts)
        for path in parts.after:
            module = base.get_submodule(path)
            framing = front and path in parts.before
            put(base, path, PassingBehind(module, base) if framing else Passing(module))
        self.base: PreTrainedModel = base  # type: ignore[assignment]
        self.front = front
        self.start = start
        self.width = parts.width
        self.num_blocks = stop - start
        self._blocks_path = parts.blocks
        self._incoming: Tensor | None = None
        handler = handler_for(parts.model_type)
        self.packed, self.even, self.rereads = False, False, False
        self._accepted = accepted(base, parts)
        self._makers: list[LayerMaker]
        if parts.task == IMAGE_TEXT:
            self._makers, self._skipped = layer_makers(config, parts.num_blocks, start, stop)
            self.packed = keeps_state(self._makers)
        if parts.task == CAUSAL:
            self._makers, self._skipped = layer_makers(config, parts.num_blocks, start, stop)
            self.even = handler.places_rows_alike()
            self.rereads = rereads(base, parts)
            if self.rereads:
                self._makers, self._skipped = [InputsLayer], 0
            self.packed = self.rereads or keeps_state(self._makers) or handler.places_keys() or self.even
        self._singly = handler.steps_singly()
        self._key_positions: Tensor | None = None
        if handler.places_keys():
            self._handler = handler
            for block in base.get_submodule(parts.blocks).children():
                block.register_forward_pre_hook(self._place, with_kwargs=True)
        first = base.get_submodule(parts.blocks).get_submodule("0")
        if not front:
            first.register_forward_pre_hook(self._inject, with_kwargs=True)
        self.frozen()

    def drop_before(self, base: nn.Module, parts: ComponentMap) -> None:
        """Let nothing run before the blocks."""
        _drop_before(base, parts)

    def _inject(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        incoming, self._incoming = self._incoming, None
        if incoming is None:  # a block that runs several times
            return args, kwargs
        if args:
            return (incoming, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": incoming}

    def _place(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._key_positions is not None
        return args, self._handler.placed(kwargs, self._key_positions)

    def frozen(self) -> None:
        """Keep every weight as it is, and dropout off; gradients still flow through."""
        self.base.requires_grad_(False)
        self.base.train(False)

    def train(self, mode: bool = True) -> Body:
        """Set whether gradient checkpointing applies; the blocks themselves stay in evaluation mode."""
        self.training = mode
        self.base.train(False)
        return self

    def entrance(self, ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return what the source model hands to its first block; only for a front.

        Args:
            ids: token ids, ``[rows, length]``.
            position_ids: true positions, ``[rows, length]``.

        Returns:
            States ``[rows, length, width]``.
        """
        placed = {"position_ids": position_ids} if "position_ids" in self._accepted else {}
        out = self.without_blocks()(input_ids=ids, use_cache=False, **placed)
        return out.last_hidden_state  # type: ignore[no-any-return]

    def without_blocks(self) -> nn.Module:
        """Return the source model with everything but its blocks."""
        return without_blocks(self.base, self._blocks_path)

    def new_cache(self) -> SpanCache:
        """Return an empty cache for this span."""
        return SpanCache([make() for make in self._makers], self._skipped)

    def forward(self, inputs: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: SpanCache | None) -> Tensor:
        """Run the span.

        Args:
            inputs: token ids ``[rows, length]`` for a front, states ``[rows, length, width]`` otherwise.
            attention_mask: which of the cached and new tokens are real, ``[rows, cached + length]``.
            position_ids: true positions, ``[rows, length]``.
            cache: the span's cache, to which the new tokens are added.

        Returns:
            States that leave the last block, ``[rows, length, width]``.
        """
        if self.rereads and cache is not None:
            places = cache.key_positions(position_ids)
            out = self.forward(cache.own[0].update(inputs), attention_mask, places, None)
            cache.note(position_ids)
            return out[:, -inputs.shape[1] :]
        name = "input_ids" if self.front else "inputs_embeds"
        return self.through(name, inputs, None if self.front else inputs, attention_mask, position_ids, cache)

    def positions(self, position_ids: Tensor) -> Tensor:
        """Return positions as the model takes them.

        Args:
            position_ids: ``[rows, length]``.
        """
        return position_ids

    def through(
        self,
        input_name: str,
        given: Tensor,
        incoming: Tensor | None,
        attention_mask: Any,
        position_ids: Tensor,
        cache: SpanCache | None,
    ) -> Tensor:
        """Run the source model's own forward pass, and return what leaves the last block.

        Args:
            input_name: the argument that it is given its input as.
            given: that input.
            incoming: what its first block is given instead, if anything.
            attention_mask: what it is given as a mask.
            position_ids: see :meth:`positions`.
            cache: the span's cache, to which the new tokens are added.
        """
        new = given.shape[1]
        if self._singly and cache is not None and cache.columns and new > 1:
            first = attention_mask.shape[1] - new + 1
            steps = [(slice(i, i + 1), attention_mask[:, : first + i]) for i in range(new)]
            outs = [
                self.through(
                    input_name,
                    given[:, at],
                    None if incoming is None else incoming[:, at],
                    mask,
                    position_ids[:, at],
                    cache,
                )
                for at, mask in steps
            ]
            return torch.cat(outs, 1)
        arguments: dict[str, Any] = {input_name: given, "attention_mask": attention_mask}
        if "position_ids" in self._accepted:
            arguments["position_ids"] = self.positions(position_ids)
        name = next((name for name in CACHE_NAMES if name in self._accepted), None)
        if name is not None:
            arguments[name] = cache
        if name == "cache_params":  # a model of states alone is told of new tokens only
            arguments["attention_mask"] = attention_mask[:, -new:]
        self._incoming = None if incoming is None else incoming.contiguous()  # blocks view what their model made
        self._key_positions = self.positions(position_ids if cache is None else cache.key_positions(position_ids))
        try:
            out = self.base(**arguments, use_cache=cache is not None)
        finally:
            self._incoming = self._key_positions = None
        if cache is not None:
            cache.note(position_ids)
        return out.last_hidden_state  # type: ignore[no-any-return]


def _reads_ids(base: nn.Module, parts: ComponentMap) -> bool:
    """Tell whether blocks are given something beside the stream that is looked up by token ids."""
    main = parts.embeddings.removeprefix(f"{parts.base_prefix}.")
    others = [path for path in parts.before if path != main]
    return handler_for(parts.model_type).keeps_ids() and bool(others)


class _Behind:
    """What a base model does behind its blocks: its modules there, one after the other.

    Args:
        base: the base model.
        paths: of these modules.
    """

    def __init__(self, base: nn.Module, paths: tuple[str, ...]) -> None:
        self.base = base
        self.paths = paths

    def __call__(self, *, inputs_embeds: Tensor, **kwargs: Any) -> StatesAlone:
        for path in self.paths:
            inputs_embeds = self.base.get_submodule(path)(inputs_embeds)
        return StatesAlone(last_hidden_state=inputs_embeds)


class Tail(nn.Module):
    """A source model's final norm and head, run by its own forward pass without blocks.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
    """

    def __init__(self, config: PretrainedConfig, parts: ComponentMap) -> None:
        super().__init__()
        if parts.head is None:
            raise ArchitectureError(f"{parts.architecture}: it has no output projection")
        model = pruned(config, parts, 0, 0)
        base = model.get_submodule(parts.base_prefix)
        _drop_before(base, parts, kept=parts.after)
        self.model = model
        self._accepted = accepted(base, parts)
        if _reads_ids(base, parts):
            base.forward = _Behind(base, parts.after)
        self.head_path: str | None = parts.head
        self._incoming: Tensor | None = None
        first = base.get_submodule(parts.after[0]) if parts.after else model.get_submodule(parts.head)
        first.register_forward_pre_hook(self._inject)
        self.frozen()

    def _inject(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (self._incoming, *args[1:])

    def frozen(self) -> None:
        """Keep every weight as it is."""
        self.model.requires_grad_(False)
        self.model.train(False)

    def train(self, mode: bool = True) -> Tail:
        """Do nothing: norm and head stay in evaluation mode."""
        self.training = mode
        return self

    def forward(self, states: Tensor) -> Tensor:
        """Return logits ``[tokens, vocabulary]`` of states ``[tokens, width]``."""
        self._incoming = states.unsqueeze(1)
        try:
            # One token a row: no mask is built, and every row is a matrix row for the head.
            positions = torch.zeros(1, 1, dtype=torch.long, device=states.device)
            placed = {"position_ids": positions} if "position_ids" in self._accepted else {}
            out = self.model(inputs_embeds=self._incoming, use_cache=False, **placed)
        finally:
            self._incoming = None
        return out.logits.squeeze(1)  # type: ignore[no-any-return]
