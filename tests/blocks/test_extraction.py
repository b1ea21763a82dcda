from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig, MixtralConfig

from mango.blocks import BlockStore, declared_licence, extract
from mango.checkpoints import ModelSource
from mango.errors import ArchitectureError, CheckpointError, ConfigError, IntegrityError
from tests.blocks.families import save_model


def source(folder: Path) -> ModelSource:
    return ModelSource(source=str(folder))


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of a single-file model; None removes one. Dots in names are written as two underscores."""
    tensors = load_file(folder / "model.safetensors")
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "source")


def test_manifest_says_where_a_model_came_from(tmp_path: Path, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    stored = extract({"m": source(folder)}, tmp_path / "store", "reference").model("m")
    assert (stored.source, stored.revision, stored.licence, stored.mode) == (
        str(folder), None, "apache-2.0", "reference",
    )  # fmt: skip
    assert stored.config["model_type"] == "llama"
    assert [block.index for block in stored.blocks] == [0, 1, 2]
    assert {block.class_name for block in stored.blocks} == {"LlamaDecoderLayer"}
    block = stored.blocks[0]
    # q and o: 32 x 32; k and v: 16 x 32; three feed-forward matrices of 48 x 32; two norms
    assert block.num_parameters == 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32
    assert block.num_bytes == 4 * block.num_parameters


def test_checkpoint_of_the_base_model_alone(tmp_path: Path) -> None:
    # Hub checkpoints of GPT-2 have no "transformer." and hold buffers that no model of today reads.
    folder = save_model(tmp_path / "gpt2", "gpt2")
    tensors = load_file(folder / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    for mode in ("reference", "copy"):
        store = extract({"m": source(folder)}, tmp_path / mode, mode)
        found = store.block_tensors("m", 0)
        assert "attn.bias" not in found
        assert torch.equal(found["attn.c_attn.weight"], tensors["transformer.h.0.attn.c_attn.weight"])
        assert "transformer.wpe.weight" in store.edge_tensors("m")


def test_missing_tensor_is_named(tmp_path: Path, folder: Path) -> None:
    rewrite(folder, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(CheckpointError, match=r"lacks tensor 'model\.layers\.1\.mlp\.up_proj\.weight' that Llama"):
        extract({"m": source(folder)}, tmp_path / "store", "reference")


def test_tensor_of_another_shape_is_named(tmp_path: Path, folder: Path) -> None:
    rewrite(folder, model__norm__weight=torch.ones(31))
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' has shape \[31\], but .* wants \[32\]"):
        extract({"m": source(folder)}, tmp_path / "store", "reference")


def test_tied_head_that_differs_is_refused_and_an_equal_copy_is_not(tmp_path: Path, folder: Path) -> None:
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, lm_head__weight=embedding.clone())
    store = extract({"m": source(folder)}, tmp_path / "store", "reference")
    assert "lm_head.weight" not in store.edge_tensors("m")
    rewrite(folder, lm_head__weight=embedding + 1)
    with pytest.raises(CheckpointError, match=r"ties .* two different tensors; set tie_word_embeddings to false"):
        extract({"m": source(folder)}, tmp_path / "store", "reference")


def test_quantised_weights_are_refused(tmp_path: Path, folder: Path) -> None:
    reconfigure(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="the weights are quantised"):
        extract({"m": source(folder)}, tmp_path / "store", "reference")


def test_model_types_that_cannot_be_stored(tmp_path: Path, folder: Path) -> None:
    reconfigure(folder, model_type="llamma")
    with pytest.raises(ArchitectureError, match="model type 'llamma' is unknown to the installed transformers"):
        extract({"m": source(folder)}, tmp_path / "store", "reference")


def test_blocks_without_attention_are_stored(tmp_path: Path) -> None:
    config = MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=64, state_size=4)
    mamba = save_model(tmp_path / "mamba", config=config)
    store = extract({"m": source(mamba)}, tmp_path / "store", "reference")
    assert [block.class_name for block in store.model("m").blocks] == ["MambaBlock", "MambaBlock"]


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "source", sharded=True)
    next(folder.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(IntegrityError, match=r"model-00002-of-\d+\.safetensors: shard is missing"):
        extract({"m": source(folder)}, tmp_path / "store", "reference")


@pytest.mark.parametrize("mode", ["reference", "copy"])
def test_failure_leaves_the_old_store_and_nothing_else(tmp_path: Path, folder: Path, mode: str) -> None:
    out = tmp_path / "models" / "blocks"
    old = extract({"m": source(folder)}, out, mode)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(CheckpointError, match="no such model folder or file"):
        extract({"m": source(folder), "other": source(tmp_path / "nowhere")}, out, mode)
    assert (out / "manifest.json").read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["blocks"]
    assert BlockStore.open(out).manifest == old.manifest


def test_names_become_folders_so_they_are_checked(tmp_path: Path, folder: Path) -> None:
    for name in ("../m", "", ".hidden", "a/b"):
        with pytest.raises(ConfigError, match="wanted a name of letters, digits"):
            extract({name: source(folder)}, tmp_path / "store", "copy")
    with pytest.raises(ConfigError, match="no models given"):
        extract({}, tmp_path / "store", "copy")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, None),
        ("# No front matter\nlicense: mit\n", None),
        ("---\ntags: [a]\n---\n", None),
        ("---\nlicense: mit\n---", "mit"),
        ("---\nlicense: other\r\nlicense_name: x\n---\ntext", "other"),
    ],
)
def test_licence_of_a_model_card(tmp_path: Path, card: str | None, licence: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert declared_licence(tmp_path) == licence


def test_model_card_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(CheckpointError, match=r"README\.md: the model card cannot be read"):
        declared_licence(tmp_path)


@pytest.mark.parametrize("mode", ["reference", "copy"])
def test_experts_that_a_checkpoint_keeps_apart_become_the_models_matrices(tmp_path: Path, mode: str) -> None:
    config = MixtralConfig(
        hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=3, vocab_size=64,
    )  # fmt: skip
    folder = save_model(tmp_path / "moe", config=config)
    assert any("experts.2." in name for name in load_file(folder / "model.safetensors"))
    store = extract({"m": source(folder)}, tmp_path / "store", mode)
    wanted = AutoModelForCausalLM.from_pretrained(folder).model.layers[1].state_dict()
    found = store.block_tensors("m", 1)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert found["mlp.experts.gate_up_proj"].shape == (3, 32, 32)
    files = {tensor.file for tensor in store.block("m", 1).tensors}
    assert len(files) == (2 if mode == "reference" else 1)
