"""``mango inspect`` and ``mango extract``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mango.blocks import BlockStore
from mango.checkpoints import ModelSource, resolve
from mango.cli import app
from tests.blocks.families import save_model
from tests.checkpoints.test_sources import gguf_llama


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        app.main(arguments)
    return int(stop.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "tiny", dtype=torch.bfloat16)


def test_inspect_shows_parts_and_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(folder)) == 0
    shown = capsys.readouterr().out
    for words in (
        "LlamaForCausalLM (llama)",
        "3 x LlamaDecoderLayer in model.layers, 7,744 parameters each",
        "4 (2 cached), 8 wide",
        "lm_head (tied to the embedding)",
        "64 in model.embed_tokens",
    ):
        assert words in shown


def test_inspect_for_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(folder), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["components"]["blocks"] == "layers"
    assert (found["dtype"], found["stored"]) == ("BF16", True)
    assert found["block_parameters"] == [7744] * 3
    assert found["edge_parameters"] == 64 * 32 + 32
    assert found["num_parameters"] == 3 * 7744 + 64 * 32 + 32
    assert found["weight_bytes"] == 2 * found["num_parameters"]
    assert found["cache_bytes_per_token"] == 3 * 2 * 2 * 8 * 2  # blocks, keys and values, heads, size, bytes


def test_inspect_needs_no_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    assert run("inspect", str(folder), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dtype"], found["stored"]) == ("BF16", False)
    assert found["weight_bytes"] == 2 * found["num_parameters"]


def test_inspect_reads_the_header_of_a_gguf_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    gguf_llama(tmp_path / "tiny.gguf")
    folder = resolve(ModelSource(source=str(tmp_path / "tiny.gguf")), tmp_path / "converted")
    assert run("inspect", str(folder), "--json") == 0
    wanted = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("MANGO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mango.checkpoints.gguf._convert", refuse)
    for _ in range(2):
        assert run("inspect", str(tmp_path / "tiny.gguf"), "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found | {"source": ""} == wanted | {"source": ""}
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_inspect_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(tmp_path)) == 2
    assert f"error: {tmp_path}: holds no config.json, so it is no model folder" in capsys.readouterr().err
    assert run("inspect", "no-such-owner/no-such-model") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: no-such-owner/no-such-model: no folder of that name, and no configuration")


@pytest.mark.parametrize("mode", ["reference", "copy"])
def test_extract(folder: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    assert run("extract", str(folder), f"again={folder}", "--out", str(out), "--mode", mode) == 0
    shown = capsys.readouterr()
    assert [line.split()[:4] for line in shown.out.splitlines()[2:]] == [
        ["again", "3", "LlamaDecoderLayer", "32"],
        ["tiny", "3", "LlamaDecoderLayer", "32"],
    ]
    assert f"{out}: 2 models by {mode}" in shown.err
    store = BlockStore.open(out)
    assert store.models() == ["again", "tiny"]
    assert store.model("tiny").mode == mode


def test_extract_refuses_two_models_of_one_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", str(folder), str(folder), "--out", str(tmp_path / "store")) == 2
    assert "error: " in (text := capsys.readouterr().err)
    assert "a model is already called 'tiny'; give it a name: NAME=" in text
    assert not (tmp_path / "store").exists()


def test_extract_refuses_an_unknown_mode(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("extract", str(folder), "--out", str(tmp_path / "store"), "--mode", "links") == 2
    assert "'links' is not one of 'reference', 'copy'" in capsys.readouterr().err
