"""``mango merge``: names from a parameter file, a plan without work, a checkpoint, an error that leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mango.cli import app

DOCUMENT = """
merge_method: linear
models:
  - model: first
    parameters: {weight: 1.0}
  - model: second
    parameters: {weight: 1.0}
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    tokenizer = Path(__file__).parents[2] / "models" / "tiny" / "base"
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            Path(name, file).write_bytes((tokenizer / file).read_bytes())
    Path("params.yaml").write_text("seed: 1\nmodels:\n  first: {source: one}\n  second: {source: two}\n")
    Path("merge.yaml").write_text(DOCUMENT)
    return tmp_path


def mango(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        app.main(arguments)
    return int(stop.value.code or 0)


def test_a_plan_writes_nothing(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("merge", "merge.yaml", "out", "--models", "params.yaml", "--plan", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["models"] == {"first": "one", "second": "two"}
    assert planned["num_parameters"] == 32 * 16 * 2 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16
    assert not Path("out").exists()


def test_a_merge_is_the_mean(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("merge", "merge.yaml", "out", "--models", "params.yaml") == 0
    shown = capsys.readouterr().out
    assert "first (one), second (two)" in shown
    one, two, mean = (LlamaForCausalLM.from_pretrained(name).lm_head.weight for name in ("one", "two", "out"))
    torch.testing.assert_close(mean, (one + two) / 2, rtol=1e-6, atol=1e-7)  # rounded once to float32


def test_each_name_that_is_nowhere_is_one_error_line(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("merge", "merge.yaml", "out") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: model 'first': first: there is no such folder")
    assert second.startswith("error: model 'second': second: there is no such folder")
    assert not Path("out").exists()


def test_a_wrong_model_section_names_its_line(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text("models:\n  first: {sorce: one}\n")
    assert mango("merge", "merge.yaml", "out", "--models", "params.yaml") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: params.yaml:2 models.first.sorce: unknown key; did you mean 'source'? "
        "Known here: gguf_file, revision, source",
        "error: params.yaml:2 models.first.source: is missing: give it a value",
    ]
