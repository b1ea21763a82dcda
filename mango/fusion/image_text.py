"""Fused models that read images and write text: experts of text inside a model that sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mango.errors import ConfigError
from mango.fusion.cache import FusedCache
from mango.fusion.configuration import MolConfig
from mango.fusion.expert import FusedExpert, Shells
from mango.fusion.image_shells import HostBody, TextBody, is_place, places_of
from mango.fusion.mixing import IGNORED
from mango.fusion.modeling import MolForCausalLM
from mango.fusion.routers import Selection
from mango.fusion.shells import Body, Tail
from mango.fusion.step import Step


class MolForImageTextToText(MolForCausalLM):
    """A fused model that reads images: its trunk sees, and experts of text stand in spans of its language model.

    Where an image stands, an expert that starts from its own embedding gets the trunk's states through an adapter,
    which training starts from how the embeddings of both map text. Experts count tokens one by one; the trunk keeps its
    own positions and its own mask of image tokens.

    Args:
        config: the configuration.
    """

    task = "image-text-to-text"
    shells = Shells(TextBody, Tail, host=HostBody)

    def __init__(self, config: MolConfig) -> None:
        super().__init__(config)
        self.places = places_of(config.source_config(self.layout.experts[0].source))

    @property
    def host(self) -> HostBody:
        """The trunk's first span, which reads token ids and images."""
        body = self._anchor.bodies[0]
        assert isinstance(body, HostBody)
        return body

    def _start(
        self,
        selection: Selection,
        input_ids: Tensor,
        mask: Tensor,
        position_ids: Tensor,
        cache: FusedCache | None,
        more: dict[str, Any],
    ) -> tuple[Step, Tensor]:
        if more.pop("mm_encoder_outputs", None) is not None:
            raise ConfigError("mm_encoder_outputs: a fused model takes images as pixels; pass pixel_values")
        media = {name: more.pop(name) for name in self.host.media_names if more.get(name) is not None}
        seen = [name for name, value in media.items() if _holds_images(name, value)]
        past = mask.shape[1] - input_ids.shape[1]
        if past and seen:
            raise ConfigError(f"{', '.join(seen)}: images come with the first tokens of their rows, before a cache is")
        if not seen:  # what is said of images where there are none
            media = {}
        found = self.host.read(input_ids, mask[:, past:], position_ids, media)
        if found.mask is not None and selection.k is not None:
            raise ConfigError(
                "routing: image tokens of this trunk see those that follow them, so the trunk has to process all of "
                "them; route softly (router.type token or simple without k, or set_routing('soft'))"
            )
        positions = self._positions(found.position_ids, position_ids, mask, cache)
        step = ImageStep(self, selection, input_ids, mask, positions, cache, self.places, found.mask)
        return step, found.states

    def _positions(self, own: Tensor | None, text: Tensor, mask: Tensor, cache: FusedCache | None) -> Tensor:
        """Return the positions of text, and behind them the trunk's own where it has any."""
        if own is not None:
            if cache is not None:
                last = own.amax(-1).masked_fill(~mask, -1).amax(1)
                cache.offsets = last - text.masked_fill(~mask, -1).amax(1)
            return torch.cat([text.unsqueeze(-1), own.to(text.dtype)], -1)
        if cache is not None and cache.offsets is not None:
            later = text + cache.offsets.unsqueeze(1)
            return torch.stack([text, *[later] * 3], -1)
        return text

    def _targets(self, labels: Tensor, input_ids: Tensor, present: Tensor) -> Tensor:
        """Return labels without those that do not count, the places of images among them."""
        return super()._targets(labels, input_ids, present).masked_fill(is_place(input_ids, self.places), IGNORED)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Let generation have what the trunk takes of images."""
        others = {name: value for name, value in model_kwargs.items() if name not in self.host.media_names}
        super()._validate_model_kwargs(others)  # type: ignore[misc]  # typed for a protocol of transformers

    def _expand_inputs_for_generation(  # type: ignore[override]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat rows for beams, and with them images that do not come row by row."""
        flat: dict[str, Tensor] = {}
        if expand_size > 1 and input_ids is not None:
            for name in self.host.media_names:
                value = model_kwargs.get(name)
                by_row = isinstance(value, Tensor) and len(value) == len(input_ids)
                if isinstance(value, Tensor) and (not by_row or value.ndim == 2) and value.shape != input_ids.shape:
                    if len(input_ids) > 1:
                        raise ConfigError(
                            f"{name}: images that do not come row by row cannot be repeated for several rows at once; "
                            "generate one row at a time, or without beams"
                        )
                    flat[name] = value.repeat(expand_size, *(1,) * (value.ndim - 1))
                    del model_kwargs[name]
        repeat: Any = super()._expand_inputs_for_generation  # type: ignore[misc]  # typed for a protocol
        ids, out = repeat(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        return ids, {**out, **flat}


def _holds_images(name: str, value: Any) -> bool:
    """Tell whether an argument holds images, and not what is said of them: pixels of any type, or features."""
    return name.startswith("pixel_values") or (isinstance(value, Tensor) and value.is_floating_point())


class ImageStep(Step):
    """One forward pass over text and images.

    Args:
        model: the model.
        selection: how tokens choose.
        input_ids: ids of the new tokens, ``[rows, length]``.
        mask: which of the cached and new tokens are real, ``[rows, cached + length]``.
        position_ids: positions of text, or behind them the trunk's own.
        cache: what came before, or None.
        places: ids in whose places images stand.
        own_mask: the trunk's mask where it has one of its own.
    """

    def __init__(
        self,
        model: MolForImageTextToText,
        selection: Selection,
        input_ids: Tensor,
        mask: Tensor,
        position_ids: Tensor,
        cache: FusedCache | None,
        places: tuple[int, ...],
        own_mask: Any,
    ) -> None:
        super().__init__(model, selection, input_ids, mask, position_ids, cache)
        self.places = places
        self.own_mask = own_mask

    def read(self, body: Body, ids: Tensor, states: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Return all that a span's inputs are made of."""
        return ids, states, position_ids

    def enter(self, fused: FusedExpert, index: int, *read: Tensor) -> Tensor:
        """Return the states that a span starts from: its own embedding of text, and the trunk's of all else."""
        ids, states, position_ids = read
        adapted = fused.enter(index, states)
        body = fused.bodies[index]
        if isinstance(body, HostBody) or not isinstance(body, TextBody) or not body.front:
            return adapted
        seen = is_place(ids, self.places)
        own = body.entrance(ids.masked_fill(seen, 0), body.positions(position_ids))
        return torch.where(seen.unsqueeze(-1), adapted, own)

    def mask_of(self, expert: int) -> Any:
        """Return the trunk's own mask for its spans, where it has one."""
        return self.own_mask if expert == 0 and self.own_mask is not None else self.mask
