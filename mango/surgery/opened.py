"""A model opened by its headers, with every tensor under the name that it has in the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mango.architectures import ComponentMap
from mango.blocks.layout import lay_out
from mango.checkpoints import Checkpoint, ModelSource, TensorInfo, resolve


@dataclass(frozen=True)
class OpenedModel:
    """A model whose weights are read when they are asked for.

    Attributes:
        reference: what the user called it.
        source: where it is.
        folder: its local folder.
        checkpoint: its weights.
        config: content of its ``config.json``.
        parts: where the architecture keeps its parts.
        infos: where each distinct tensor lies, by its name in the model; a tied head is not among them.
    """

    reference: str
    source: ModelSource
    folder: Path
    checkpoint: Checkpoint
    config: dict[str, Any]
    parts: ComponentMap
    infos: dict[str, TensorInfo]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor by its name in the model, mapped from its file."""
        return self.checkpoint.tensor(self.infos[name].name)

    @property
    def embeddings(self) -> str:
        """Name of the input embedding's weight."""
        return f"{self.parts.embeddings}.weight"

    @property
    def head(self) -> str | None:
        """Name of the output head's weight where the model has one of its own."""
        return None if self.parts.head is None or self.parts.tied else f"{self.parts.head}.weight"


def source_of(reference: str, models: Mapping[str, ModelSource] | None = None) -> ModelSource:
    """Return where a model is that a document or a command line names.

    Args:
        reference: a name from ``models``, a folder, a ``.gguf`` file, or a Hub id with an optional ``@revision``.
        models: where named models are.
    """
    if models and reference in models:
        return models[reference]
    name, at, revision = reference.partition("@")
    if at and revision and not Path(reference).exists():
        return ModelSource(source=name, revision=revision)
    return ModelSource(source=reference)


def open_model(
    reference: str, models: Mapping[str, ModelSource] | None = None, *, cache: Path | None = None
) -> OpenedModel:
    """Find and open a model; only headers are read.

    Args:
        reference: see `source_of`.
        models: where named models are.
        cache: see :func:`mango.checkpoints.resolve`.

    Returns:
        The model.

    Raises:
        CheckpointError: it is missing, incomplete, quantised, or cannot be read.
        ArchitectureError: its parts cannot be found.
    """
    source = source_of(reference, models)
    folder = resolve(source, cache)
    checkpoint = Checkpoint.open(folder)
    layout = lay_out(checkpoint)
    infos = dict(layout.edges)
    for _, tensors in layout.blocks:
        infos.update(tensors)
    return OpenedModel(reference, source, folder, checkpoint, checkpoint.config(), layout.components, infos)
