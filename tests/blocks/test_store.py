from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource, verify
from mango.errors import CheckpointError, IntegrityError, UnknownNameError
from tests.blocks.families import config_of, save_model


def source(folder: Path) -> ModelSource:
    return ModelSource(source=str(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path, folder: Path) -> BlockStore:
    return extract({"m": source(folder)}, tmp_path / "store", "reference", hashed=True)


def flip_byte(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


def test_tensors_are_those_of_the_file(folder: Path, store: BlockStore) -> None:
    stored = load_file(folder / "model.safetensors")
    found = {
        f"model.layers.{index}.{name}": tensor
        for index in range(3)
        for name, tensor in store.block_tensors("m", index).items()
    }
    found |= store.edge_tensors("m")
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], stored[name]) for name in stored)


def test_reference_mode_writes_no_weights_and_points_into_the_source(tmp_path: Path, store: BlockStore) -> None:
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["MANIFEST.json", "manifest.json"]
    tensor = store.block("m", 1).tensors[0]
    assert tensor.file == str(tmp_path / "source" / "model.safetensors")
    raw = Path(tensor.file).read_bytes()[tensor.start : tensor.end]
    name = tensor.name.removeprefix("model.layers.1.")
    assert raw == store.block_tensors("m", 1)[name].numpy().tobytes()


def test_copy_mode_needs_its_source_no_more(tmp_path: Path, folder: Path) -> None:
    wanted = load_file(folder / "model.safetensors")
    extract({"m": source(folder)}, tmp_path / "store", "copy")
    shutil.rmtree(folder)
    (tmp_path / "store").rename(tmp_path / "moved")
    verify(tmp_path / "moved")
    store = BlockStore.open(tmp_path / "moved")
    assert torch.equal(store.edge_tensors("m")["model.norm.weight"], wanted["model.norm.weight"])
    assert len(AutoTokenizer.from_pretrained(store.tokenizer_folder("m"))) == 64
    # What was copied is a model folder of its own.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "moved" / "m")
    assert torch.equal(model.model.layers[2].mlp.up_proj.weight, wanted["model.layers.2.mlp.up_proj.weight"])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_hashes_do_not_depend_on_where_a_block_lies(tmp_path: Path, family: str) -> None:
    single = save_model(tmp_path / "single", family)
    sharded = save_model(tmp_path / "sharded", family, sharded=True)
    other = save_model(tmp_path / "other", family, seed=1)
    models = {"a": source(single), "b": source(sharded), "c": source(other)}
    store = extract(models, tmp_path / "reference", "reference", hashed=True)
    copied = extract({"a": source(single)}, tmp_path / "copy", "copy")
    hashes = {name: [block.sha256 for block in store.model(name).blocks] for name in "abc"}
    assert hashes["a"] == hashes["b"] == [block.sha256 for block in copied.model("a").blocks]
    assert len({*hashes["a"], *hashes["c"]}) == 6
    assert store.model("a").edges_sha256 == copied.model("a").edges_sha256 != store.model("c").edges_sha256


def test_paths_of_the_project_are_relative_so_that_it_can_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    save_model(project / "models" / "m")
    monkeypatch.chdir(project)
    extract({"m": ModelSource(source="models/m")}, Path("models/blocks"), "reference")
    project.rename(tmp_path / "elsewhere")
    store = BlockStore.open(tmp_path / "elsewhere" / "models" / "blocks")
    assert store.model("m").folder == "../m"
    assert store.block_tensors("m", 0)["mlp.up_proj.weight"].shape == (48, 32)
    assert store.tokenizer_folder("m") == tmp_path / "elsewhere" / "models" / "m"


def test_each_reader_has_bytes_of_its_own(store: BlockStore) -> None:
    first = store.block_tensors("m", 0)["mlp.up_proj.weight"]
    kept = first.clone()
    first.zero_()
    assert torch.equal(store.block_tensors("m", 0)["mlp.up_proj.weight"], kept)
    assert torch.equal(BlockStore.open(store.folder).block_tensors("m", 0)["mlp.up_proj.weight"], kept)


def test_loaded_blocks_do_not_share_parameters_and_are_in_evaluation_mode(store: BlockStore) -> None:
    first, second = store.load_block("m", 1), store.load_block("m", 1)
    assert not first.training
    assert first.self_attn.layer_idx == 1
    with torch.no_grad():
        first.mlp.up_proj.weight.zero_()
    assert second.mlp.up_proj.weight.abs().sum() > 0
    assert [parameter.device.type for parameter in first.parameters()] == ["cpu"] * len(list(first.parameters()))


def test_tied_head_is_stored_once(tmp_path: Path, store: BlockStore) -> None:
    assert store.model("m").architecture.tied
    assert sorted(store.edge_tensors("m")) == ["model.embed_tokens.weight", "model.norm.weight"]
    untied = save_model(tmp_path / "untied", "mistral")
    edges = extract({"m": source(untied)}, tmp_path / "second", "reference").edge_tensors("m")
    assert sorted(edges) == ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]


def test_config_makes_the_same_model(folder: Path, store: BlockStore) -> None:
    config = store.config("m")
    assert type(config) is type(config_of("llama"))
    assert config.hidden_size == 32
    assert config.tie_word_embeddings
    config.hidden_size = 1
    assert store.config("m").hidden_size == 32


def test_missing_source_file(folder: Path, store: BlockStore) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing, and block 2 of 'm' lies in it"):
        store.block_tensors("m", 2)
    with pytest.raises(CheckpointError, match=r"missing, and the edges of 'm' lies in it"):
        store.edge_tensors("m")


def test_truncated_source_file(folder: Path, store: BlockStore) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50_000])
    with pytest.raises(
        IntegrityError, match=r"model\.safetensors: block 2 of 'm' needs bytes up to \d+ for .*truncated"
    ):
        store.block_tensors("m", 2)


def test_one_changed_byte_is_found_in_its_block_alone(folder: Path, store: BlockStore) -> None:
    tensor = store.block("m", 1).tensors[3]
    flip_byte(folder / "model.safetensors", tensor.start)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: block 1 of 'm' has SHA-256 .* was extracted"):
        store.load_block("m", 1)
    assert store.load_block("m", 0) is not None
    assert store.load_block("m", 2) is not None
    edge = store.model("m").edges[0]
    flip_byte(folder / "model.safetensors", edge.start)
    with pytest.raises(IntegrityError, match="the edges of 'm' has SHA-256"):
        store.edge_tensors("m")


def test_bytes_are_checked_once_for_each_block(
    folder: Path, store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    from mango.blocks import store as module

    real = module.hash_tensors
    monkeypatch.setattr(module, "hash_tensors", lambda tensors: (hashed.append(len(tensors)), real(tensors))[1])
    for _ in range(3):
        store.block_tensors("m", 0)
        store.edge_tensors("m")
    assert hashed == [9, 2]


def test_unknown_model_and_block(store: BlockStore) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'x'\. Known: m"):
        store.load_block("x", 0)
    for index in (3, -1):
        with pytest.raises(UnknownNameError, match=f"'m' has blocks 0 to 2, none of index {index}"):
            store.load_block("m", index)


def test_folder_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no block store, it has no manifest\.json; run extract-blocks"):
        BlockStore.open(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"format_version": 1}, "format_version: Input should be 2"),
        ({"models": {"m": {}}}, "models.m.source: Field required"),
        ({"surplus": 1}, "surplus: Extra inputs are not permitted"),
    ],
)
def test_manifest_of_another_kind(store: BlockStore, change: dict[str, Any], where: str) -> None:
    file = store.folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(IntegrityError, match=where):
        BlockStore.open(store.folder)


def test_manifest_that_is_no_json(store: BlockStore) -> None:
    (store.folder / "manifest.json").write_text("{")
    with pytest.raises(IntegrityError, match="the document: Invalid JSON"):
        BlockStore.open(store.folder)


def test_unaligned_tensors_are_read(tmp_path: Path, folder: Path) -> None:
    # Another writer may put a byte before the weights, so that no float lies on a multiple of four.
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file, metadata={"format": "pt"})
    text = file.read_bytes()
    length = int.from_bytes(text[:8], "little")
    header = text[8 : 8 + length] + b" " * 3
    file.write_bytes(len(header).to_bytes(8, "little") + header + text[8 + length :])
    store = extract({"m": source(folder)}, tmp_path / "store", "reference")
    assert store.block("m", 0).tensors[0].start % 4 == 3
    wanted = tensors["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(store.block_tensors("m", 0)["mlp.up_proj.weight"], wanted)
