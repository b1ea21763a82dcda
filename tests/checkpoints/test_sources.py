from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from pydantic import ValidationError

from mango.checkpoints import Checkpoint, ModelSource, resolve, verify
from mango.checkpoints.gguf_heads import header_end
from mango.errors import CheckpointError


def test_a_model_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(ModelSource(source=str(tmp_path))) == tmp_path


@pytest.mark.parametrize("source", ["models/tiny/nothing-here", "/no/such/folder", "./nothing", "model.gguf"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(source: str) -> None:
    with pytest.raises(CheckpointError, match="no such model folder or file; check the path"):
        resolve(ModelSource(source=source))


def test_a_hub_id_that_cannot_be_had_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = ModelSource(source="nobody/nothing", revision="main")
    with pytest.raises(CheckpointError, match=r"nobody/nothing: .* at revision 'main' could be had from the Hub"):
        resolve(source, tmp_path)


def test_sources_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        resolve(ModelSource(source=str(tmp_path)))
    with pytest.raises(CheckpointError, match="a local folder has no revision"):
        resolve(ModelSource(source=str(tmp_path), revision="v1"))
    with pytest.raises(CheckpointError, match="lies outside"):
        resolve(ModelSource(source=str(tmp_path), gguf_file="../x.gguf"))
    with pytest.raises(CheckpointError, match="no such GGUF file"):
        resolve(ModelSource(source=str(tmp_path), gguf_file="x.gguf"))
    (tmp_path / "x.gguf").write_bytes(b"nope")
    with pytest.raises(CheckpointError, match=r"x\.gguf: does not start as a GGUF file does"):
        resolve(ModelSource(source=str(tmp_path), gguf_file="x.gguf"), tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file; a model folder"):
        resolve(ModelSource(source=str(tmp_path / "file")))
    with pytest.raises(ValidationError, match="gguf_file"):
        ModelSource(source="x", gguf_file="x.bin")


def gguf_llama(file: Path, leave_out: str = "", inner: int = 64) -> dict[str, torch.Tensor]:
    """Write a Llama of two blocks as GGUF; return its weights by their names in transformers."""
    width, heads, tokens = 32, 4, ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(61))]
    writer = GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *([6] * 61)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    generator = np.random.default_rng(0)
    kept = {}

    def add(name: str, theirs: str, *shape: int) -> None:
        array = generator.normal(size=shape).astype(np.float16)
        if name == leave_out:
            return
        writer.add_tensor(name, array)
        kept[theirs] = torch.from_numpy(array)

    add("token_embd.weight", "model.embed_tokens.weight", len(tokens), width)
    add("output.weight", "lm_head.weight", len(tokens), width)
    add("output_norm.weight", "model.norm.weight", width)
    for i in range(2):
        ours, theirs = f"blk.{i}", f"model.layers.{i}"
        add(f"{ours}.attn_norm.weight", f"{theirs}.input_layernorm.weight", width)
        add(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight", width)
        add(f"{ours}.attn_v.weight", f"{theirs}.self_attn.v_proj.weight", width, width)
        add(f"{ours}.attn_output.weight", f"{theirs}.self_attn.o_proj.weight", width, width)
        add(f"{ours}.ffn_gate.weight", f"{theirs}.mlp.gate_proj.weight", inner, width)
        add(f"{ours}.ffn_up.weight", f"{theirs}.mlp.up_proj.weight", inner, width)
        add(f"{ours}.ffn_down.weight", f"{theirs}.mlp.down_proj.weight", width, inner)
        for part in "qk":
            array = generator.normal(size=(width, width)).astype(np.float16)
            kept[f"{theirs}.self_attn.{part}_proj.weight"] = torch.from_numpy(array)
            # the format keeps the two halves of each rotary pair beside each other
            pairs = array.reshape(heads, 2, width // heads // 2, width).swapaxes(1, 2).reshape(width, width)
            writer.add_tensor(f"{ours}.attn_{part}.weight", pairs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def test_a_gguf_file_is_converted_once(tmp_path: Path) -> None:
    weights = gguf_llama(tmp_path / "tiny.gguf")
    folder = resolve(ModelSource(source=str(tmp_path / "tiny.gguf")), tmp_path / "cache")
    verify(folder)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.names() == sorted(weights)
    for name, tensor in weights.items():
        assert torch.equal(checkpoint.tensor(name), tensor), name
    assert "quantization_config" not in checkpoint.config()
    assert (folder / "tokenizer.json").is_file()
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    again = resolve(ModelSource(source=str(tmp_path), gguf_file="tiny.gguf"), tmp_path / "cache")
    assert again == folder
    assert (again / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_gguf_file_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf_llama(tmp_path / "tiny.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install gguf"):
        resolve(ModelSource(source=str(tmp_path / "tiny.gguf")), tmp_path / "cache")


def test_a_damaged_gguf_file_leaves_nothing(tmp_path: Path) -> None:
    gguf_llama(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="transformers cannot read this GGUF file"):
        resolve(ModelSource(source=str(tmp_path / "tiny.gguf")), tmp_path / "cache")
    assert [p for p in (tmp_path / "cache" / "gguf").iterdir() if p.is_dir()] == []


def test_a_gguf_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    gguf_llama(tmp_path / "tiny.gguf", leave_out="blk.1.attn_v.weight")
    with pytest.raises(CheckpointError, match=r"not those of LlamaForCausalLM \(first: .*v_proj\.weight\)"):
        resolve(ModelSource(source=str(tmp_path / "tiny.gguf")), tmp_path / "cache")


def test_where_the_header_of_a_gguf_file_ends(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    gguf_llama(file)
    whole = file.read_bytes()
    end = header_end(whole)
    start = min(int(tensor.data_offset) for tensor in GGUFReader(file).tensors)
    assert end is not None
    assert start - 32 < end <= start  # weights begin at the next multiple of 32
    assert header_end(whole[:end]) == end
    assert all(header_end(whole[:length]) is None for length in (4, 9, 24, 100, end // 2, end - 1))
    with pytest.raises(CheckpointError, match="type 77"):
        header_end(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"x" + struct.pack("<I", 77))
