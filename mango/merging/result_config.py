"""The ``config.json`` of a merged model: that of the lead, with what the merge changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mango.errors import MergeError
from mango.merging.document import MergeDocument
from mango.merging.inputs import Input
from mango.merging.layers import Cut
from mango.merging.names import count_keys, module_of
from mango.tensors import floating_name, torch_name

_DROPPED = ("_name_or_path", "quantization_config")


def result_config(
    document: MergeDocument,
    inputs: Mapping[str, Input],
    put_together: Mapping[str, Cut],
    num_rows: int | None,
    tied: bool,
) -> dict[str, Any]:
    """Return the content of the output's ``config.json``.

    Args:
        document: what is merged.
        inputs: the models, the lead first.
        put_together: the stacks that slices put together, whose length changes.
        num_rows: rows of the embedding, where the vocabulary is a new one.
        tied: whether the output's head is its embedding.

    Raises:
        MergeError: no entry of the configuration is the number of blocks of a stack that slices change.
    """
    lead = next(iter(inputs.values()))
    config = copy.deepcopy({key: value for key, value in lead.config.items() if key not in _DROPPED})
    if not config:
        return config
    for stack, cut in put_together.items():
        _set_blocks(config, lead, inputs, stack, cut)
    if lead.tied and not tied:
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), dict) and "tie_word_embeddings" in config["text_config"]:
            config["text_config"]["tie_word_embeddings"] = False
    if num_rows is not None:
        place = config
        if "vocab_size" not in config and isinstance(config.get("text_config"), dict):
            place = config["text_config"]
        place["vocab_size"] = num_rows
        if place is config and isinstance(config.get("text_config"), dict) and "vocab_size" in config["text_config"]:
            config["text_config"]["vocab_size"] = num_rows
    word = document.out_dtype or document.dtype
    if word is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = torch_name(floating_name(word))
    return config


def _set_blocks(config: dict[str, Any], lead: Input, inputs: Mapping[str, Input], stack: str, cut: Cut) -> None:
    before, after = lead.stacks[stack], len(cut.blocks)
    kind = module_of(f"{stack}.0.x")
    paths = [path for path, value in count_keys(lead.config) if value == before]
    paths.sort(key=lambda path: _distance(path, kind))
    if not paths:
        raise MergeError(f"{lead.place}: no entry of config.json is the {before} blocks of {stack}: slices need one")
    path = paths[0]
    section = config
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = after
    for key, value in list(section.items()):  # lists with an entry for each block: layer_types and the like
        if isinstance(value, list) and len(value) == before and "layer" in key:
            section[key] = [_entry(inputs[model], (*path[:-1], key), block) for model, block in cut.blocks]


def _entry(model: Input, path: tuple[str, ...], block: int) -> Any:
    value: Any = model.config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, list) or block >= len(value):
        raise MergeError(f"model {model.key!r}: config.json has no {'.'.join(path)} for block {block}")
    return value[block]


def _distance(path: tuple[str, ...], kind: str) -> int:
    """Return how far the path of a number of blocks is from the words of a part of the model; ties keep their order."""
    text = ".".join(path)
    wanted = {"vision_tower": "vision", "encoder": "encoder", "decoder": "decoder", "text_decoder": "text"}.get(
        kind, ""
    )
    others = {"vision", "encoder", "decoder", "audio"} - {wanted}
    return (0 if wanted and wanted in text else 1) + 2 * any(word in text for word in others)
