"""Whether the trunk of a fused model sees what its source model sees: compared on a small image among a few tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mango.architectures import InputMaker
from mango.architectures.meta import MODEL_FAILURES
from mango.errors import ArchitectureError
from mango.fusion.cache import FusedCache
from mango.fusion.comparison import UnfitError, compare
from mango.fusion.image_shells import TextBody, places_of
from mango.fusion.image_text import MolForImageTextToText
from mango.fusion.routers import Selection
from mango.fusion.shells import Tail

BEFORE, BEHIND = 2, 4
"""Tokens of text in front of the image, and behind it."""
_TYPES = ("token_type_ids", "mm_token_type_ids")
_BESIDE = ("image_grid_thw", "grid_thw", "image_sizes", "spatial_shapes", "pixel_attention_mask", "image_merge_sizes")
_TILES = (1, 2, 3, 5)
"""In how many pieces an image may be given."""


def image_inputs(source: PreTrainedModel, *, rows: int = 1) -> dict[str, Tensor]:
    """Return text with one image a row, as a model that reads images takes it; made without its processor.

    Args:
        source: the whole model.
        rows: number of rows.

    Raises:
        UnfitError: no image can be made for it.
    """
    problems: list[BaseException | str] = []
    for inputs in _tries(source, rows):
        if isinstance(inputs, BaseException):
            problems.append(inputs)
            continue
        try:
            seen = source(**inputs).logits[:, -1]
            pixels = inputs["pixel_values"]
            other = source(**{**inputs, "pixel_values": pixels.flip(-1) + 1}).logits[:, -1]
        except MODEL_FAILURES as error:
            problems.append(error)
            continue
        if not seen.equal(other):
            return inputs
        problems.append("it does not notice another image")
    raise UnfitError(
        f"no image could be made on which {type(source).__name__} is compared: {_why_no_image(source, problems)}"
    )


def _why_no_image(source: PreTrainedModel, problems: list[BaseException | str]) -> str:
    base: Any = getattr(source, "model", source)
    if not hasattr(base, "get_image_features"):
        return "it has no get_image_features, which tells how many tokens an image takes"
    given = ("self", "pixel_values", *_BESIDE)
    unknown = [n for n, p in _parameters(base).items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    unknown = [name for name in unknown if name not in given]
    if unknown:
        return f"it reads {', '.join(unknown)} beside pixel_values, and what these hold is not known"
    first = problems[0]
    told = " ".join(str(first).split()) or "no message"
    if isinstance(first, str):
        return told
    return (
        "images of the size, in the tiles and in the patches that its configuration names do not fit it "
        f"({type(first).__name__}: {told})"
    )


def _tries(source: PreTrainedModel, rows: int) -> Iterator[dict[str, Tensor] | BaseException]:
    base: Any = getattr(source, "model", source)
    if not hasattr(base, "get_image_features"):
        return
    takes = dict(inspect.signature(base.forward).parameters)
    maker = InputMaker(source, batch=rows, length=BEFORE + BEHIND)
    text = maker.make("input_ids")
    place = places_of(source.config)
    image = getattr(source.config, "image_token_id", None)
    image = place[0] if image is None else image
    for shape, sized, tiles in product(range(3), (False, True), _TILES):
        if tiles > 1 and shape != 1:
            continue
        try:
            media = _media(source, maker, takes | _parameters(base), shape, rows, sized=sized, tiles=tiles)
            features = base.get_image_features(**{n: v for n, v in media.items() if n in _parameters(base)})
        except MODEL_FAILURES as error:
            yield error
            continue
        number = _count(features)
        if not number or number % rows:
            yield TypeError(f"it makes {number} tokens of {rows} images")
            continue
        ids = torch.cat([text[:, :BEFORE], torch.full((rows, number // rows), image), text[:, BEFORE:]], 1)
        types = {name: (ids == image).long() for name in _TYPES if name in takes}
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media, **types}


def _parameters(base: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(base.get_image_features).parameters)


def _media(
    source: PreTrainedModel, maker: InputMaker, takes: Any, shape: int, rows: int, *, sized: bool, tiles: int
) -> dict[str, Tensor]:
    beside: dict[str, Tensor] = {}
    if "image_grid_thw" in takes:  # patches in a row, as many as the grid has
        pixels = maker._patch_rows(flat=shape != 1).to(source.dtype)
        beside["image_grid_thw"] = maker.make("image_grid_thw").repeat(rows, 1)
        if "image_merge_sizes" in takes:
            beside["image_merge_sizes"] = maker.make("image_merge_sizes").repeat(rows)
        return {"pixel_values": pixels.repeat(rows, *(1,) * (pixels.ndim - 1)), **beside}
    pixels = maker.make("pixel_values", shape).to(source.dtype)
    if pixels.ndim == 5:
        pixels = pixels[:, :1].repeat(1, tiles, 1, 1, 1)
    if sized and "image_sizes" in takes and pixels.ndim >= 4:
        beside["image_sizes"] = torch.tensor([list(pixels.shape[-2:])] * rows)
    for name in _BESIDE:
        if name in takes and takes[name].default is inspect.Parameter.empty and name not in beside:
            whole = name == "pixel_attention_mask" and pixels.ndim == 5
            beside[name] = (
                torch.ones(*pixels.shape[:2], *pixels.shape[3:], dtype=torch.bool) if whole else maker.make(name)
            )
    return {"pixel_values": pixels, **beside}


def _count(features: Any) -> int:
    found = getattr(features, "pooler_output", features)
    if isinstance(found, tuple | list):
        return sum(_count(part) for part in found)
    if not isinstance(found, Tensor) or found.ndim < 2:
        return 0
    return int(found.numel() // found.shape[-1])


def check_images(model: MolForImageTextToText, source: PreTrainedModel) -> None:
    """Run the trunk's own spans on text with an image, at once and in two steps, and compare with the source model.

    Args:
        model: the fused model, on the CPU.
        source: the whole source model of its trunk.

    Raises:
        ArchitectureError: they differ.
        UnfitError: no image can be made for it.
    """
    inputs = image_inputs(source)
    wanted = source(**inputs).logits
    for given, logits in ((inputs, wanted), ({"input_ids": inputs["input_ids"][:, -BEHIND:]}, None)):
        _refuse_foresight(source, given, logits, model.layout.experts[0].source)
    every = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    name = model.layout.experts[0].source
    found = _run(model, inputs, None, every)
    what = f"{name!r}: the blocks of its language model, with an image"
    compare(found, wanted, every, f"{what},")
    # The last token behind a cache, as the source model itself decodes it: in some, a prompt sees all of itself.
    first = {n: v[:, :-1] if n in ("input_ids", "attention_mask", *_TYPES) else v for n, v in inputs.items()}
    last = {"input_ids": inputs["input_ids"][:, -1:]}
    begun = source(**first, use_cache=True)
    wanted = torch.cat([begun.logits, source(**last, past_key_values=begun.past_key_values, use_cache=True).logits], 1)
    cache, spans = FusedCache(), dict[int, Any]()
    steps = [_run(model, first, cache, every[:, :-1], spans), _run(model, last, cache, every, spans)]
    compare(
        torch.cat(steps, 1), wanted, every, f"{name!r}: the blocks of its language model, with an image and a cache,"
    )


def _refuse_foresight(source: PreTrainedModel, inputs: dict[str, Tensor], logits: Tensor | None, name: str) -> None:
    """Refuse a model whose text sees the text behind it: its losses would tell what it has seen."""
    wanted = source(**inputs).logits if logits is None else logits
    other = inputs["input_ids"].clone()
    other[:, -1] = other[:, -2]
    if other.equal(inputs["input_ids"]):
        other[:, -1] = inputs["input_ids"][:, 0]
    moved = (source(**{**inputs, "input_ids": other}).logits - wanted)[:, :-1].abs().max()
    if float(moved) > 1e-4 * float(wanted.abs().max()):
        raise ArchitectureError(
            f"{name!r} ({type(source).__name__}): a token of its prompt sees those behind it, so it predicts no text "
            "and decodes something else with a cache than without; it cannot be the trunk of a model that reads images"
        )


def _run(
    model: MolForImageTextToText,
    inputs: dict[str, Tensor],
    cache: FusedCache | None,
    mask: Tensor,
    spans: dict[int, Any] | None = None,
) -> Tensor:
    """Return the logits of the trunk alone."""
    ids = inputs["input_ids"]
    more = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    positions = (mask.long().cumsum(1) - 1)[:, -ids.shape[1] :]
    step, states = model._start(Selection(), ids, mask, positions, cache, more)
    for number, body in enumerate(model._anchor.bodies):
        assert isinstance(body, TextBody)
        own = None if spans is None else spans.setdefault(number, body.new_cache())
        states = body(states, step.mask_of(0), step.position_ids, own)
    tail = model._anchor.tail
    assert isinstance(tail, Tail)
    logits: Tensor = tail(states.flatten(0, 1))
    return logits.view(*states.shape[:2], -1)
