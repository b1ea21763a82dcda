"""A model opened by its headers, with every tensor under the name that it has in the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mango.architectures import ComponentMap
from mango.blocks.layout import lay_out
from mango.checkpoints import Checkpoint, ModelSource, resolve
from mango.merging.adapters import adapted, find_adapter
from mango.merging.references import parse_reference
from mango.merging.tensor_sources import Stored, TensorSource


@dataclass(frozen=True)
class OpenedModel:
    """A model whose weights are read when they are asked for.

    Attributes:
        reference: what the user called it.
        source: where it is.
        folder: its local folder.
        adapter: folder of the LoRA adapter that is added to its weights, or None.
        config: content of its ``config.json``.
        parts: where the architecture keeps its parts.
        tensors: each distinct tensor by its name in the model; a tied head is not among them.
    """

    reference: str
    source: ModelSource
    folder: Path
    adapter: Path | None
    config: dict[str, Any]
    parts: ComponentMap
    tensors: dict[str, TensorSource]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor by its name in the model; one that lies in a file is mapped."""
        return self.tensors[name].load()

    @property
    def embeddings(self) -> str:
        """Name of the input embedding's weight."""
        return f"{self.parts.embeddings}.weight"

    @property
    def head(self) -> str | None:
        """Name of the output head's weight where the model has one of its own."""
        return None if self.parts.head is None or self.parts.tied else f"{self.parts.head}.weight"


def open_model(
    reference: str, models: Mapping[str, ModelSource] | None = None, *, cache: Path | None = None
) -> OpenedModel:
    """Find and open a model; only headers are read.

    Args:
        reference: a name from ``models``, a folder, a ``.gguf`` file, or a Hub id with an optional ``@revision``; any
            of them with ``+ADAPTER``, which is added to the weights as they are read.
        models: where named models are.
        cache: see :func:`mango.checkpoints.resolve`.

    Returns:
        The model.

    Raises:
        CheckpointError: it is missing, incomplete, quantised, or cannot be read.
        ArchitectureError: its parts cannot be found.
        MergeError: the reference is malformed, or the adapter does not fit.
    """
    named = models or {}
    parsed = parse_reference(reference, named)
    source = named.get(parsed.model) or ModelSource(source=parsed.model, revision=parsed.revision)
    folder = resolve(source, cache)
    checkpoint = Checkpoint.open(folder)
    layout = lay_out(checkpoint)
    infos = dict(layout.edges)
    for _, block in layout.blocks:
        infos.update(block)
    tensors: dict[str, TensorSource] = {name: Stored.of(checkpoint, info, name) for name, info in infos.items()}
    adapter = None
    if parsed.lora is not None:
        adapter = find_adapter(parsed.lora, parsed.lora_revision, cache)
        tensors = adapted(tensors, adapter)
    return OpenedModel(reference, source, folder, adapter, checkpoint.config(), layout.components, tensors)
