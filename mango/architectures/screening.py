"""What a configuration says by itself: models that cannot be extracted are refused before anything heavy is imported.

To import torch and transformers takes seconds and hundreds of MiB; to find that a file describes no model that can be
taken apart should not. Whatever passes here is still checked by building the model without weights.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points, version
from typing import Any

from mango.architectures.outlines import outlines
from mango.architectures.support import support_table
from mango.config import near
from mango.errors import ArchitectureError, CheckpointError

_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
_DEPTH_LISTS = ("depths", "layers_block_type", "layer_types")
_PARTS = ("text_config", "llm_config", "language_config", "decoder", "encoder", "vision_config", "audio_config")
_CROSS = re.compile(
    r"(encoder_attn|EncDecAttention|crossattention|cross_attn)\.(self\.)?(k_proj|v_proj|k|v|key|value)\.weight$"
)
_NO_LIST = "no list of modules runs"


def screen(raw: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration whose model has no blocks, is of an unknown type, or has parts that do not fit.

    Args:
        raw: content of a ``config.json``, checked by :func:`mango.checkpoints.check_configuration`.
        where: the file, for messages.

    Raises:
        ArchitectureError: its model type is unknown, it has no blocks, or its decoder cannot read its encoder.
    """
    model_type = raw.get("model_type")
    _check_type(model_type, where)
    for path, level in _levels(raw, ""):
        for name in _DEPTHS:
            if _is_zero(level.get(name)):
                raise ArchitectureError(
                    f"{where}: {path}{name} is {level[name]}: the model has no blocks, so there is nothing to extract; "
                    "correct its config.json, or take another model"
                )
        for name in _DEPTH_LISTS:
            if level.get(name) == []:
                raise ArchitectureError(
                    f"{where}: {path}{name} is empty: the model has no blocks, so there is nothing to extract; correct "
                    "its config.json, or take another model"
                )
    row = support_table().get(str(model_type))
    if row is not None and _current() and not row.host and row.reason and _NO_LIST in row.reason:
        raise ArchitectureError(f"{where}: models of type {model_type!r} have no blocks: {row.reason}")
    _check_cross_attention(raw, where)


def screen_tensors(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse weights whose cross-attention reads another width than the encoder's stream has.

    Args:
        raw: content of the ``config.json``.
        shapes: extents of the tensors by name.
        where: the model folder, for messages.

    Raises:
        CheckpointError: a projection of the encoder's states has another width.
    """
    own = raw.get("cross_attention_hidden_size")
    width = own if _number(own) else raw.get("d_model")
    if not _number(width):
        return
    for name, shape in sorted(shapes.items()):
        if _CROSS.search(name) and len(shape) == 2 and shape[1] != width:
            raise CheckpointError(
                f"{where}: {name!r} has shape {list(shape)}: its cross-attention reads {shape[1]} numbers a position, "
                f"but the encoder of its config.json gives {width}; the weights and the configuration do not belong "
                "together"
            )


def unknown_type(model_type: object, where: str, known: list[str]) -> ArchitectureError:
    """Return the error for a model type that the installed transformers does not know."""
    hint = near(model_type, known) if isinstance(model_type, str) else ""
    return ArchitectureError(
        f"{where}: model type {model_type!r} is unknown to the installed transformers{hint or ';'} wanted one of its "
        f"{len(known)} types (models that bring their own code are not run)"
    )


def _current() -> bool:
    """Whether the tables that ship with the package are about the installed transformers."""
    return bool(outlines()["transformers"] == version("transformers"))


def _check_type(model_type: object, where: str) -> None:
    known: list[str] = outlines()["known"]
    if model_type in known or model_type == "mol":
        return
    if isinstance(model_type, str) and (not _current() or _registered(model_type)):
        return  # transformers itself is asked later
    raise unknown_type(model_type, where, known)


def _registered(model_type: str) -> bool:
    """Whether a user's code, or a package that is installed beside this one, brings a model type of that name."""
    table = sys.modules.get("transformers.models.auto.configuration_auto")
    if table is not None and model_type in table.CONFIG_MAPPING:
        return True
    return any(point.name == model_type for point in entry_points(group="mango.architectures"))


def _levels(raw: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, raw
    for name in _PARTS:
        if isinstance(raw.get(name), dict):
            yield from _levels(raw[name], f"{path}{name}.")


def _is_zero(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value <= 0


def _check_cross_attention(raw: Mapping[str, Any], where: str) -> None:
    encoder, decoder = raw.get("encoder"), raw.get("decoder")
    if not isinstance(encoder, dict) or not isinstance(decoder, dict):
        return
    width = next((encoder[name] for name in ("hidden_size", "d_model", "n_embd") if _number(encoder.get(name))), None)
    reads = decoder.get("cross_attention_hidden_size")
    if _number(reads) and width is not None and reads != width:
        raise ArchitectureError(
            f"{where}: decoder.cross_attention_hidden_size is {reads}, but the encoder's stream is {width} wide: the "
            f"cross-attention cannot read it; set it to {width}, or take the encoder that the decoder was trained with"
        )
    if decoder.get("add_cross_attention") is False:
        raise ArchitectureError(
            f"{where}: decoder.add_cross_attention is false, so the decoder cannot read the encoder; set it to true, "
            "or take the decoder alone"
        )


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
