"""The models that go into a merge: found, opened and laid out by their headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mango.checkpoints import Checkpoint, ModelSource, TensorInfo, resolve, tokenizer_sha256
from mango.errors import MangoError, MergeError

if TYPE_CHECKING:
    from mango.architectures import ComponentMap


@dataclass(frozen=True, order=True)
class Place:
    """Where a tensor is in a model, whatever the checkpoint calls its parts.

    Attributes:
        block: index of its block, or -1 outside of the blocks.
        name: its name inside the block, or inside the model without the base model's prefix.
    """

    block: int
    name: str


@dataclass(frozen=True)
class Input:
    """One model of a merge.

    Attributes:
        reference: what the document calls it.
        source: where it is.
        folder: its local folder.
        checkpoint: its weights.
        config: content of its ``config.json``.
        parts: where the architecture keeps its parts.
        layers_key: what ``config.json`` calls the number of blocks.
        tokenizer_sha256: hash of its vocabulary.
        tensors: its tensors by place; a tied model's head is not among them.
        spare_head: the head's own tensor, where the checkpoint of a tied model holds one.
        left_out: names of tensors that the architecture does not read.
    """

    reference: str
    source: ModelSource
    folder: Path
    checkpoint: Checkpoint
    config: dict[str, Any]
    parts: ComponentMap
    layers_key: str
    tokenizer_sha256: str
    tensors: dict[Place, TensorInfo]
    spare_head: TensorInfo | None
    left_out: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """What stands before the names of the base model's tensors in this checkpoint: its prefix, or nothing."""
        prefix = f"{self.parts.base_prefix}."
        return prefix if any(info.name.startswith(prefix) for info in self.tensors.values()) else ""

    def base_name(self, path: str) -> str:
        """Return a path in the causal language model without the base model's prefix."""
        return path.removeprefix(f"{self.parts.base_prefix}.")

    @property
    def embeddings(self) -> Place:
        """Where the input embedding's weight is."""
        return Place(-1, f"{self.base_name(self.parts.embeddings)}.weight")

    @property
    def head(self) -> Place | None:
        """Where the output head's weight is, in a model that is not tied."""
        return None if self.parts.head is None else Place(-1, f"{self.base_name(self.parts.head)}.weight")


def open_inputs(references: tuple[str, ...], models: Mapping[str, ModelSource], cache: Path | None) -> dict[str, Input]:
    """Find and open models; weights stay unread.

    Args:
        references: names from ``models``, folders, or Hub ids with an optional ``@revision``.
        models: where named models are.
        cache: see :func:`mango.checkpoints.resolve`.

    Returns:
        The models by reference, in the same order.

    Raises:
        MergeError: one line for each model that is missing or cannot be read.
    """
    inputs, problems = {}, []
    for reference in references:
        try:
            inputs[reference] = _open(reference, _source(reference, models), cache)
        except MangoError as error:
            problems.append(f"model {reference!r}: {error}")
    if problems:
        raise MergeError("\n".join(problems))
    return inputs


def _source(reference: str, models: Mapping[str, ModelSource]) -> ModelSource:
    if reference in models:
        return models[reference]
    if Path(reference).exists():
        return ModelSource(source=reference)
    if "+" in reference:
        raise MergeError("adapters (model+adapter) are not read: merge the adapter into its model first")
    name, at, revision = reference.partition("@")
    return ModelSource(source=name, revision=revision) if at and revision else ModelSource(source=reference)


def _open(reference: str, source: ModelSource, cache: Path | None) -> Input:
    from transformers import AutoConfig

    from mango.architectures import build_meta, describe

    folder = resolve(source, cache)
    checkpoint = Checkpoint.open(folder)
    raw = checkpoint.config()
    if "quantization_config" in raw:
        raise MergeError(f"{folder}: its weights are quantised; dequantise them into an ordinary checkpoint first")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        raise MergeError(f"{folder}: transformers does not read its config.json ({error})") from error
    parts = describe(config)
    model = build_meta(config)
    own = {_place(name, parts) for name in model.state_dict()}
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()  # meant for names that are not its own
    tensors, left_out = {}, []
    for info in checkpoint.infos():
        place = _place(info.name, parts)
        if place not in own and any(re.search(pattern, info.name) for pattern in ignored):
            left_out.append(info.name)
        else:
            tensors[place] = info
    spare_head = None
    if parts.tied and parts.head is not None:
        spare_head = tensors.pop(Place(-1, f"{parts.head}.weight"), None)
    found = {place.block for place in tensors} - {-1}
    if found != set(range(parts.num_blocks)):
        raise MergeError(f"{folder}: config.json says {parts.num_blocks} blocks, the weights have {len(found)}")
    return Input(
        reference=reference,
        source=source,
        folder=folder,
        checkpoint=checkpoint,
        config=raw,
        parts=parts,
        layers_key=config.attribute_map.get("num_hidden_layers", "num_hidden_layers"),
        tokenizer_sha256=tokenizer_sha256(folder),
        tensors=tensors,
        spare_head=spare_head,
        left_out=tuple(left_out),
    )


def _place(name: str, parts: ComponentMap) -> Place:
    inner = name.removeprefix(f"{parts.base_prefix}.")
    if inner.startswith(f"{parts.blocks}."):
        number, dot, rest = inner.removeprefix(f"{parts.blocks}.").partition(".")
        if dot and number.isdecimal():
            return Place(int(number), rest)
    return Place(-1, inner)
