"""A model opened by its headers, with every tensor under the name that it has in the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mango.architectures import ComponentMap, build_meta, describe
from mango.blocks import read_config
from mango.checkpoints import Checkpoint, ModelSource, resolve
from mango.checkpoints import open_model as open_checked
from mango.errors import CheckpointError
from mango.merging.adapters import adapted, find_adapter
from mango.merging.references import parse_reference
from mango.merging.tensor_sources import Stored, TensorSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    def load(self, device: torch.device | str = "cpu") -> PreTrainedModel:
        """Load the whole model, its adapter added, in the type that it is stored in, ready to be run."""
        model = open_checked(self.folder)
        if self.adapter is not None:
            state = model.state_dict(keep_vars=True)
            with torch.no_grad():
                for name in self.tensors:
                    state[name].copy_(self.tensor(name))
        torch.nn.Module.to(model, device)
        model.train(False)
        return model

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
    config = checkpoint.config()
    if config.get("quantization_config") is not None:
        raise CheckpointError(f"{folder}: its weights are quantised; dequantise them into an ordinary checkpoint first")
    known = read_config(config, str(folder / "config.json"))
    parts = describe(known)
    tensors = _named(checkpoint, build_meta(known).state_dict(keep_vars=True), parts)
    adapter = None
    if parsed.lora is not None:
        adapter = find_adapter(parsed.lora, parsed.lora_revision, cache)
        tensors = adapted(tensors, adapter)
    return OpenedModel(reference, source, folder, adapter, config, parts, tensors)


def _named(checkpoint: Checkpoint, wanted: Mapping[str, torch.Tensor], parts: ComponentMap) -> dict[str, TensorSource]:
    """Return each distinct tensor of a model, saved by the model or by its base model alone, by its name there."""
    ties: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        ties.setdefault(id(tensor), []).append(name)
    found: dict[str, TensorSource] = {}
    for names in ties.values():
        both = [(name, name.removeprefix(f"{parts.base_prefix}.")) for name in names]
        stored = [place for pair in both for place in dict.fromkeys(pair) if place in checkpoint]
        if not stored:
            raise CheckpointError(
                f"{checkpoint.folder}: lacks tensor {names[0]!r} that {parts.architecture} needs; the checkpoint is "
                "incomplete or stores this architecture in another layout"
            )
        info = checkpoint.info(stored[0])
        if info.shape != tuple(wanted[names[0]].shape):
            raise CheckpointError(
                f"{info.file}: {stored[0]!r} has shape {list(info.shape)}, but {parts.architecture} of its config.json "
                f"wants {list(wanted[names[0]].shape)}"
            )
        if any(not torch.equal(checkpoint.tensor(stored[0]), checkpoint.tensor(other)) for other in stored[1:]):
            raise CheckpointError(
                f"{checkpoint.folder}: the configuration ties {names[1]!r} to {names[0]!r}, but the checkpoint holds "
                "two different tensors; set tie_word_embeddings to false in its config.json"
            )
        found[names[0]] = Stored.of(checkpoint, info, names[0])
    return found
