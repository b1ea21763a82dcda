"""Shells of models that read images among their tokens, and of the experts of text beside them.

The trunk's own forward pass puts what it sees in the place of tokens. It is run without its blocks, and what it hands
to its language model is recorded: the stream, positions, and a mask where image tokens see each other. Spans of the
trunk are run on exactly that. Experts of text start from their own embedding, and where an image stands from the
trunk's stream, through an adapter.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from mango.architectures import ComponentMap
from mango.errors import ArchitectureError
from mango.fusion.shells import Body
from mango.fusion.span_cache import SpanCache

_OF_TEXT = frozenset(
    {"self", "input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels", "use_cache",
     "output_attentions", "output_hidden_states", "return_dict", "cache_position", "logits_to_keep",
     "mm_encoder_outputs", "encoder_outputs", "rope_deltas"}
)  # fmt: skip
"""Arguments of a forward pass that are no images and say nothing of any."""
_PLACES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index", "audio_token_id")


@dataclass(frozen=True)
class Read:
    """What a model that reads images hands to its first block.

    Args:
        states: the stream, ``[rows, length, width]``.
        position_ids: its own positions, ``[rows, length, kinds]``; None where those of text hold.
        mask: what its language model is given as a mask; None where the mask of text holds.
    """

    states: Tensor
    position_ids: Tensor | None
    mask: Any


class TextBody(Body):
    """A span that always gets states: those of the trunk, or those that its own embedding makes of text.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
        start: its first block.
        stop: the block after its last.
        front: whether it has its own embedding.
    """

    def __init__(self, config: PretrainedConfig, parts: ComponentMap, start: int, stop: int, *, front: bool) -> None:
        super().__init__(config, parts, start, stop, front=front)
        if front:
            self.base.get_submodule(parts.blocks).get_submodule("0").register_forward_pre_hook(
                self._inject, with_kwargs=True
            )

    def positions(self, position_ids: Tensor) -> Tensor:
        """Return positions as the model takes them.

        Args:
            position_ids: ``[rows, length]``, or behind those of text the trunk's own, ``[rows, length, 1 + kinds]``.
        """
        return position_ids if position_ids.ndim == 2 else position_ids[..., 0]

    def forward(self, inputs: Tensor, attention_mask: Any, position_ids: Tensor, cache: SpanCache | None) -> Tensor:
        """Run the span.

        Args:
            inputs: states ``[rows, length, width]``; or token ids ``[rows, length]`` for a front.
            attention_mask: which of the cached and new tokens are real, or what the trunk has as a mask.
            position_ids: see :meth:`positions`.
            cache: the span's cache, to which the new tokens are added.

        Returns:
            States that leave the last block, ``[rows, length, width]``.
        """
        if not inputs.is_floating_point():
            inputs = self.entrance(inputs, self.positions(position_ids))
        given = inputs
        if self.front:  # what stands before the blocks still runs, on something of the width of an embedding
            table: Any = self.base.get_input_embeddings()
            given = inputs.new_zeros(*inputs.shape[:2], table.embedding_dim)
        return self.through("inputs_embeds", given, inputs, attention_mask, position_ids, cache)


class HostBody(TextBody):
    """A span of the language model of a model that reads images; the first one reads them.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
        start: its first block.
        stop: the block after its last.
        front: whether it reads token ids and images.
    """

    whole = True

    def __init__(self, config: PretrainedConfig, parts: ComponentMap, start: int, stop: int, *, front: bool) -> None:
        super().__init__(config, parts, start, stop, front=front)
        self.media_names: tuple[str, ...] = ()
        self._given: dict[str, Any] | None = None
        root = parts.stacks[0].root
        if not parts.base_prefix or not root.startswith(f"{parts.base_prefix}."):
            raise ArchitectureError(
                f"{parts.architecture}: its blocks are in no language model of their own, so what it makes of images "
                "cannot be told from what it makes of text; it cannot be the trunk of a model that reads images"
            )
        if front:
            self.media_names = tuple(
                name for name in inspect.signature(self.base.forward).parameters
                if name not in _OF_TEXT and not name.startswith("kwargs")
            )  # fmt: skip
            inner = self.base.get_submodule(root.removeprefix(f"{parts.base_prefix}."))
            inner.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._given is not None:
            self._given.update(kwargs)
            if args:
                self._given["input_ids"] = args[0]

    def positions(self, position_ids: Tensor) -> Tensor:
        """Return positions as the model takes them.

        Args:
            position_ids: ``[rows, length]``, or behind those of text the trunk's own, ``[rows, length, 1 + kinds]``.
        """
        return position_ids if position_ids.ndim == 2 else position_ids[..., 1:].permute(2, 0, 1)

    def read(self, ids: Tensor, mask: Tensor, position_ids: Tensor, media: dict[str, Tensor]) -> Read:
        """Return what the model hands to its first block of text and images; only for a front.

        Args:
            ids: token ids, ``[rows, length]``.
            mask: which of them are real, ``[rows, length]``.
            position_ids: positions of text, ``[rows, length]``.
            media: images, and what is said of them, as the model's forward pass takes them.

        Raises:
            ArchitectureError: the model hands more than these to its language model.
        """
        if not media:
            return Read(self.entrance(ids, position_ids), None, None)
        _, seen = self._run(input_ids=ids, attention_mask=mask.long(), **media)
        own = seen.get("position_ids")
        own = own if isinstance(own, Tensor) and own.ndim == 3 else None
        # Once more as text with the same stream: what differs then is due to the images.
        states, plain = self._run(
            inputs_embeds=seen["inputs_embeds"],
            attention_mask=mask.long(),
            position_ids=position_ids if own is None else own,
        )
        more = sorted(n for n, v in seen.items() if v is not None and plain.get(n) is None and n not in _OF_TEXT)
        if more:
            raise ArchitectureError(
                f"{type(self.base).__name__} gives {', '.join(more)} to its blocks beside the stream when it sees an "
                "image, which spans on their own do not get: it cannot be the trunk of a model that reads images"
            )
        wanted = seen.get("attention_mask")
        same = _equal(wanted, plain.get("attention_mask"))
        return Read(states, None if own is None else own.permute(1, 2, 0), None if same else wanted)

    def _run(self, **arguments: Any) -> tuple[Tensor, dict[str, Any]]:
        given: dict[str, Any] = {}
        self._given = given
        try:
            out = self.without_blocks()(**arguments, use_cache=False)
        finally:
            self._given = None
        return out.last_hidden_state, given


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and bool(left.eq(right).all())
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[name], right[name]) for name in left)
    return left is right


def places_of(config: PretrainedConfig) -> tuple[int, ...]:
    """Return the ids of the tokens in whose places a model puts what it sees.

    Args:
        config: its configuration.

    Raises:
        ArchitectureError: it names none.
    """
    found = {getattr(config, name, None) for name in _PLACES}
    ids = tuple(sorted(value for value in found if isinstance(value, int)))
    if not ids:
        raise ArchitectureError(
            f"model type {config.model_type!r}: its configuration names no token in whose place an image stands "
            f"({', '.join(_PLACES[:2])}), so guests could not tell images from text"
        )
    return ids


def is_place(ids: Tensor, places: tuple[int, ...]) -> Tensor:
    """Return where something else than text stands, bool of the shape of `ids`.

    Args:
        ids: token ids.
        places: from :func:`places_of`.
    """
    return torch.isin(ids, torch.tensor(places, device=ids.device))
