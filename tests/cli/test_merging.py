"""``mango merge``: plans, several documents, errors, and the alias ``mol-merge``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import typer

from mango.cli.app import load_command, run
from mango.cli.merging import _size
from tests.merging.conftest import save_tokenizer, tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        tiny_llama(seed).bfloat16().save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name)
    (tmp_path / "a" / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    return tmp_path


def written(folder: Path, name: str, **changes: object) -> str:
    models = [{"model": str(folder / part), "parameters": {"weight": 1.0}} for part in "ab"]
    path = folder / name
    path.write_text(json.dumps({"merge_method": "linear", "models": models, **changes}))
    return str(path)


def merge(*arguments: str) -> int:
    return run(load_command("merge"), arguments, "mango merge")


def test_a_plan_tells_what_will_happen_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    path = written(folder, "merge.yml")
    assert merge(path, str(folder / "out"), "--plan", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(folder.rglob("*")) == sorted([*before, Path(path)])
    assert facts["num_tensors"] == len(facts["tensors"]) == 29
    assert facts["disk_bytes"] == facts["num_bytes"] == 2 * facts["num_parameters"]
    assert facts["vocabularies"] == {str(folder / name): 64 for name in "ab"}
    assert facts["licences"] == {str(folder / "a"): "apache-2.0", str(folder / "b"): None}
    assert facts["tied"] is True
    assert facts["seconds"] > 0
    assert 3 * 10**7 < facts["memory_bytes"] < 6 * 10**7  # a weighted sum needs no torch
    assert facts["tensors"][0]["shape"] == [64, 16]
    assert merge(path, str(folder / "out"), "--plan") == 0
    shown = capsys.readouterr().out
    assert "apache-2.0" in shown
    assert "model.layers.2.mlp.up_proj.weight" in shown
    other = written(folder, "other.yml", merge_method="ties", base_model=str(folder / "a"), parameters={"density": 0.5})
    assert merge(other, str(folder / "out"), "--plan", "--json") == 0
    assert json.loads(capsys.readouterr().out)["memory_bytes"] > 10**8


def test_what_is_wrong_is_said_before_anything_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(folder, "wrong.yml", paramters={}, dtype="bfloat17")
    for plan in ([], ["--plan"]):
        assert merge(path, str(folder / "out"), *plan) == 2
        said = capsys.readouterr().err
        assert "paramters: unknown key; did you mean 'parameters'?" in said
        assert "'bfloat17' is not" in said
    missing = written(folder, "missing.yml", base_model=str(folder / "nothing"))
    assert merge(missing, str(folder / "out"), "--plan") == 2
    assert "no such model folder" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_several_documents_make_several_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = written(folder, "one.yml"), written(folder, "two.yml", dtype="float32")
    assert merge(one, two, str(folder / "out"), "--json", "--threads", "1", "--max-shard-size", "4K") == 0
    reports = json.loads(capsys.readouterr().out)
    assert [Path(report["out"]).name for report in reports] == ["one", "two"]
    assert len(list((folder / "out" / "one").glob("model-*.safetensors"))) > 2
    assert json.loads((folder / "out" / "two" / "config.json").read_text())["dtype"] == "float32"
    broken = written(folder, "broken.yml", base_model=str(folder / "nothing"))
    assert merge(one, broken, str(folder / "other")) == 2
    assert not (folder / "other").exists()


@pytest.mark.parametrize(("text", "size"), [("5G", 5 * 10**9), ("1.5M", 1_500_000), ("4kb", 4000), ("77", 77)])
def test_sizes(text: str, size: int) -> None:
    assert _size(text) == size


@pytest.mark.parametrize("text", ["", "G", "0", "-1", "5X"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no size"):
        _size(text)


def test_a_device_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(folder, "merge.yml")
    assert merge(path, str(folder / "out"), "--device", "cuda:77") == 2
    assert "'cuda:77' is not there" in capsys.readouterr().err
    assert merge(path, str(folder / "out"), "--device", "meta") == 2
    assert "does not compute" in capsys.readouterr().err


def test_the_alias_is_installed() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["mol-merge"] == "mango.cli.merging:merge_alone"
