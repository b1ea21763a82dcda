"""The source models behind a block store, whole."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from mango.blocks.store import BlockStore
from mango.checkpoints import Checkpoint


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
        CheckpointError: its folder is gone, or a shard in it is missing or cut off.
        UnknownNameError: the store has no such model.
    """
    folder = store.tokenizer_folder(name)
    Checkpoint.open(folder)  # says in one line which shard is missing or cut off
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.to(device)  # type: ignore[arg-type]
    model.train(False)
    return model
