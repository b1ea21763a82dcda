"""What a person sees: every parameter with its origin, and the fused model beside its baselines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mango.cli import app
from mango.errors import EvaluationError
from stages.summary import ORDER, summary

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "evaluation" / "example.json"


def mango(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        app.main(arguments)
    return int(stop.value.code or 0)


@pytest.fixture(autouse=True)
def at_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "examples"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    monkeypatch.chdir(tmp_path)


def test_config_names_the_origin_of_every_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANGO_PARAM__router__topk__k", "2")
    assert mango("config", "--json", "--set", "seed=7") == 0
    shown = json.loads(capsys.readouterr().out)["parameters"]
    assert shown["seed"] == {"value": 7, "origin": "--set seed"}
    assert shown["router.topk.k"] == {"value": 2, "origin": "environment MANGO_PARAM__router__topk__k"}
    assert shown["gates.corpus.max_text_chars"]["origin"] == "default"
    assert shown["models.base.source"]["origin"].startswith("params.yaml:")


def test_config_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("config") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["MANGO_DEVICE", "auto"] in rows
    assert any(row[:1] == ["package.name"] and row[-1] == '"mango-tiny"' for row in rows)


def test_config_of_a_wrong_file_lists_every_problem(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("params.yaml").read_text().replace("type: token", "type: tokn").replace("seed: 0", "seed: -1")
    Path("params.yaml").write_text(text)
    assert mango("config") == 2
    seed, router = capsys.readouterr().err.splitlines()
    assert seed.endswith("seed: -1: must be greater than or equal to 0")
    assert "router.type: unknown router 'tokn'; did you mean 'token'?" in router


def test_data_verify_lists_the_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("data", "verify", str(ROOT / "data" / "corpus")) == 0
    shown = capsys.readouterr()
    assert "r-cran-janeaustenr" in shown.out
    assert "every source holds the text that provenance.json says" in shown.err


def test_the_summary_lists_fused_before_baselines_and_says_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    Path("reports").mkdir()
    shutil.copy(EXAMPLE, "reports/evaluation.json")
    summary()
    lines = capsys.readouterr().out.splitlines()
    systems = {s["label"]: s for s in json.loads(EXAMPLE.read_text())["systems"]}
    listed = [
        next(name for name in sorted(systems, key=len, reverse=True) if line.startswith(name))
        for line in lines[2 : 2 + len(systems)]
    ]
    kinds = [systems[name]["kind"] for name in listed]
    assert sorted(listed) == sorted(systems)
    assert kinds == sorted(kinds, key=ORDER.index)
    assert kinds[0] == "fused"
    assert any("mango why models:/mango-tiny@champion" in line for line in lines)


def test_without_an_evaluation_the_summary_says_what_to_run() -> None:
    with pytest.raises(EvaluationError, match=r"reports/evaluation\.json: cannot be read .* run `dvc repro` first"):
        summary()
