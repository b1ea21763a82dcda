"""GGUF files in a merge: planned by their headers, converted when weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mango.checkpoints import Checkpoint, ModelSource, resolve, sha256_file
from mango.checkpoints.gguf_outline import outline_gguf
from mango.errors import CheckpointError, MergeError
from mango.merging import merge, plan
from mango.tensors import dtype_name
from tests.checkpoints.test_sources import gguf_llama


def linear(*names: str) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": n} for n in names], "parameters": {"weight": 1.0}}


@pytest.fixture
def refuse_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("mango.checkpoints.gguf.sha256_file", refuse)
    monkeypatch.setattr("mango.checkpoints.gguf._convert", refuse)


@pytest.mark.usefixtures("refuse_weights")
def test_a_plan_reads_headers_alone(tmp_path: Path) -> None:
    gguf_llama(tmp_path / "tiny.gguf")
    source = str(tmp_path / "tiny.gguf")
    for models in ({"m": ModelSource(source=source)}, {"m": ModelSource(source=str(tmp_path), gguf_file="tiny.gguf")}):
        planned = plan(linear("m"), models, cache=tmp_path / "cache")
        assert planned.unread
        assert planned.num_parameters > 20_000
        assert planned.vocabulary is not None
    (entry,) = (path for path in (tmp_path / "cache" / "gguf").iterdir() if path.is_dir())
    assert not list(entry.glob("*.safetensors"))
    with pytest.raises(MergeError, match=r"nothing\.gguf"):
        plan(linear(str(tmp_path / "nothing.gguf")), cache=tmp_path / "cache")


def test_the_headers_tell_what_the_conversion_makes(tmp_path: Path) -> None:
    gguf_llama(tmp_path / "tiny.gguf")
    folder, outline = outline_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")
    converted = resolve(ModelSource(source=str(tmp_path / "tiny.gguf")), tmp_path / "cache")
    opened = Checkpoint.open(converted)
    assert outline == {
        name: (dtype_name(opened.tensor(name).dtype), tuple(opened.tensor(name).shape)) for name in opened.names()
    }
    told, made = (json.loads((place / "config.json").read_text()) for place in (folder, converted))
    assert told == made
    for path in folder.glob("tokenizer*"):
        assert sha256_file(path) == sha256_file(converted / path.name)


def test_a_merge_is_that_of_the_converted_file(tmp_path: Path) -> None:
    gguf_llama(tmp_path / "tiny.gguf")
    converted = resolve(ModelSource(source=str(tmp_path / "tiny.gguf")), tmp_path / "cache")
    document = {**linear("m"), "dtype": "float32"}
    merge(document, tmp_path / "one", {"m": str(tmp_path / "tiny.gguf")}, cache=tmp_path / "cache")
    merge(document, tmp_path / "two", {"m": str(converted)})
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert sha256_file(tmp_path / "one" / name) == sha256_file(tmp_path / "two" / name)


def test_what_is_no_gguf_file_is_told_in_the_plan(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nope" * 10)
    with pytest.raises(MergeError, match=r"x\.gguf: does not start as a GGUF file does"):
        plan(linear(str(tmp_path / "x.gguf")), cache=tmp_path / "cache")
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match=r"y\.gguf: transformers cannot read this GGUF file"):
        outline_gguf(tmp_path / "y.gguf", tmp_path / "cache")
