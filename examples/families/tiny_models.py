"""Tiny random models as folders, and models put together again from a block store: what the examples share."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel

from mango.architectures import build_class
from mango.blocks import BlockStore


def write_model(model: PreTrainedModel, folder: Path, *, tokens: int = 64) -> Path:
    """Write a model as transformers does, with a tokenizer of so many tokens, and return its folder."""
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    vocabulary = {f"t{number}": number for number in range(tokens)}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def put_together(store: BlockStore, name: str, blocks_of: dict[int, str] | None = None) -> PreTrainedModel:
    """Return a model built from a store: its own edges, and its own blocks or those of others.

    Args:
        store: the store.
        name: the model that gives edges and configuration.
        blocks_of: for each block that is to be another model's, the name of that model.
    """
    parts, config = store.model(name).architecture, store.config(name)
    found = build_class(config, parts.task)
    assert found is not None
    model: PreTrainedModel = found[0]._from_config(found[1])
    model.load_state_dict(store.edge_tensors(name), strict=False)
    stack = model.get_submodule(parts.blocks_path)
    for index in range(parts.num_blocks):
        setattr(stack, str(index), store.load_block((blocks_of or {}).get(index, name), index))
    return model.eval()
