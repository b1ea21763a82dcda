"""``mango verify``: what it says of a sound folder, and exit code 2 with every problem of a broken one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from mango.blocks import extract
from mango.checkpoints import ModelSource
from mango.cli.app import main
from tests.blocks.families import save_model


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["verify", *arguments])
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.out, printed.err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def test_a_sound_model_and_a_sound_block_store(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(model))
    assert code == 0
    for what in ("hashes", "files", "headers", "configuration", "tensors", "values", "tokenizer"):
        assert what in out
    extract({"a": ModelSource(source=str(model))}, tmp_path / "store", "copy")
    code, out, _ = run(capsys, str(tmp_path / "store"), "--json")
    found = json.loads(out)
    assert (code, found["kind"], found["ok"]) == (0, "block store", True)
    assert any(check["what"] == "block 0 of a" for check in found["checks"])


def test_every_problem_is_listed_with_its_file(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(model / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name][0] = torch.nan
    tensors["stranger"] = torch.ones(1)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    (model / "notes.txt").write_bytes(b"\x80\x04\x95" + bytes(20))
    (model / "chat_template.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    code, out, err = run(capsys, str(model), "--json")
    assert code == 2
    found = json.loads(out)
    assert {check["what"] for check in found["checks"] if check["problem"]} >= {"files", "tensors", "values"}
    assert "notes.txt: is of the kind pickle" in err
    assert "surplus stranger" in err
    assert f"tensor {name!r} holds" in err
    assert "chat_template.jinja" in err


def test_a_folder_of_something_else_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, str(tmp_path))
    assert code == 2
    assert "is no package, model, block store" in err


@pytest.mark.parametrize(
    "build",
    [
        lambda: ViTForImageClassification(
            ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4)
        ),
        lambda: T5ForConditionalGeneration(
            T5Config(d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, vocab_size=16, decoder_start_token_id=0)
        ),
        lambda: BertForMaskedLM(
            BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=16)
        ),
    ],
    ids=["vit", "t5", "bert"],
)
def test_models_that_are_not_causal_are_checked_as_what_they_are(
    build: Callable[[], PreTrainedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    build().save_pretrained(folder)
    code, _, err = run(capsys, str(folder))
    assert code == 0, err
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    code, _, err = run(capsys, str(folder))
    assert code == 2
    assert name in err
