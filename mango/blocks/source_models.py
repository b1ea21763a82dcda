"""The source models behind a block store, whole."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from mango.blocks.store import BlockStore
from mango.checkpoints import open_model


def load_source(
    store: BlockStore, name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Return a source model as it is, in evaluation mode.

    Args:
        store: the store.
        name: name of the model in it.
        dtype: element type of its weights.
        device: where to put it.

    Raises:
        CheckpointError: its folder is gone or cannot be opened; see :func:`mango.checkpoints.open_model`.
        UnknownNameError: the store has no such model.
    """
    model = open_model(store.tokenizer_folder(name), dtype=dtype, task=store.model(name).architecture.task)
    model.to(device)  # type: ignore[arg-type]
    return model
