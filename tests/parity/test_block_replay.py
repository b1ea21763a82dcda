"""A block from the store, given what the block in its model was given, returns the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from mango.architectures import BlockCall, capture_block_calls
from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from tests.blocks.families import FAMILIES, VOCAB, save_model

TOKENS = torch.randint(2, VOCAB, (3, 11), generator=torch.Generator().manual_seed(7))
LEFT_PADDED = torch.ones_like(TOKENS)
LEFT_PADDED[0, :6] = 0
LEFT_PADDED[1, :1] = 0
MASKS = {"no mask": None, "left-padded": LEFT_PADDED, "nothing hidden": torch.ones_like(TOKENS)}


def same_bits(left: Any, right: Any) -> bool:
    """Tell whether two outputs, tensors or tuples that begin with one, hold the same hidden states."""
    left, right = (value if isinstance(value, torch.Tensor) else value[0] for value in (left, right))
    return left.dtype == right.dtype and torch.equal(left, right)


def replay(store: BlockStore, calls: list[BlockCall]) -> list[bool]:
    with torch.no_grad():
        return [
            same_bits(store.load_block("m", index)(*call.args, **call.kwargs), call.output)
            for index, call in enumerate(calls)
        ]


def open_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


@pytest.mark.parametrize("mode", ["reference", "copy"])
@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_blocks_equal_those_of_the_model(
    tmp_path: Path, family: str, dtype: torch.dtype, sharded: bool, mode: Any
) -> None:
    folder = save_model(tmp_path / "source", family, dtype=dtype, sharded=sharded)
    assert len(list(folder.glob("*.safetensors"))) > 1 if sharded else (folder / "model.safetensors").is_file()
    store = extract({"m": ModelSource(source=str(folder))}, tmp_path / "store", mode)
    model = open_model(folder)
    for name, mask in MASKS.items():
        calls = capture_block_calls(model, TOKENS, mask)
        assert [call.output[0].dtype for call in calls] == [dtype] * 3
        assert replay(store, calls) == [True] * 3, name


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_follows_given_positions(tmp_path: Path, family: str) -> None:
    folder = save_model(tmp_path / "source", family)
    store = extract({"m": ModelSource(source=str(folder))}, tmp_path / "store", "reference")
    model = open_model(folder)
    positions = (LEFT_PADDED.cumsum(-1) - 1).clamp(min=0)
    calls = capture_block_calls(model, TOKENS, LEFT_PADDED, positions)
    assert replay(store, calls) == [True] * 3
    # The positions matter, so the captured arguments did carry them.
    assert not same_bits(calls[-1].output, capture_block_calls(model, TOKENS, LEFT_PADDED)[-1].output)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_in_a_row_between_the_edges_give_the_logits(tmp_path: Path, family: str) -> None:
    folder = save_model(tmp_path / "source", family, dtype=torch.bfloat16)
    store = extract({"m": ModelSource(source=str(folder))}, tmp_path / "store", "copy")
    model = open_model(folder)
    calls = capture_block_calls(model, TOKENS, LEFT_PADDED)
    with torch.no_grad():
        wanted = model(input_ids=TOKENS, attention_mask=LEFT_PADDED, use_cache=False).logits
    parts = store.model("m").architecture
    blocks = model.get_submodule(parts.blocks_path)
    for index in range(len(blocks)):
        blocks[index] = store.load_block("m", index)
    edges = store.edge_tensors("m")
    model.load_state_dict(edges, strict=False, assign=True)
    model.tie_weights()
    with torch.no_grad():
        found = model(input_ids=TOKENS, attention_mask=LEFT_PADDED, use_cache=False).logits
    assert torch.equal(found, wanted)
    assert len(calls) == parts.num_blocks
    assert (f"{parts.head}.weight" in edges) != parts.tied


def test_another_block_does_not_replay(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "source")
    store = extract({"m": ModelSource(source=str(folder))}, tmp_path / "store", "reference")
    calls = capture_block_calls(open_model(folder), TOKENS)
    assert not same_bits(store.load_block("m", 1)(*calls[0].args, **calls[0].kwargs), calls[0].output)
