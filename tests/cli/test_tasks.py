"""``mango lm-eval``: a fused model beside an ordinary one, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mango.checkpoints import copy_tokenizer
from mango.cli import app
from mango.evaluation import LmEvalParams
from mango.evaluation.harness import Harness
from tests.training.toys import build, make_job, make_store, make_tokenizer, save_corpus, save_sources, stir

TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    store = make_store(save_sources(root), root / "blocks")
    model = stir(build(make_job(save_corpus(root / "corpus"), experts=("sister",)), store))
    model.save_pretrained(root / "fused")
    copy_tokenizer(root / "base", root / "fused")
    (root / "data.jsonl").write_text('{"text": "12 345 67"}\n{"text": "ab cde fg h ij"}\n')
    (root / "own.yaml").write_text(TASK.replace("DATA", str(root / "data.jsonl")))
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            app.main(["lm-eval", *map(str, arguments)])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return command


def test_models_stand_side_by_side(run: Callable[..., tuple[int, str, str]], root: Path) -> None:
    from mango.checkpoints import open_model

    task, fused, plain = root / "own.yaml", root / "fused", root / "base"
    code, out, _ = run(fused, plain, "-t", task, "--limit", 1, "--json", "--out", root / "scores.json")
    assert code == 0
    found = json.loads(out)
    assert found == json.loads((root / "scores.json").read_text())
    assert found["tasks"] == [{"task": "own", "samples": 1, "num_fewshot": 0, "group": False}]
    harness = Harness(LmEvalParams(tasks=(str(task),), limit=1), seed=0, tokenizer=plain)
    wanted = {str(folder): harness.run(open_model(folder), make_tokenizer()).scores[0] for folder in (fused, plain)}
    assert {row["system"]: row["value"] for row in found["scores"]} == {n: s.value for n, s in wanted.items()}

    code, out, said = run(fused, plain, "-t", task, "--limit", 1)
    assert code == 0
    assert out.splitlines()[0].split() == ["task", "metric", str(fused), str(plain)]
    assert out.splitlines()[2].split() == ["own", "bits_per_byte", *(score.shown for score in wanted.values())]
    assert f"{fused}: own bits_per_byte" in said


def test_a_fused_model_routes_as_it_is_told(run: Callable[..., tuple[int, str, str]], root: Path) -> None:
    values = []
    for mode in ("soft", "hard"):
        code, out, _ = run(root / "fused", root / "base", "-t", root / "own.yaml", "--routing", mode, "--json")
        assert code == 0
        values.append([score["value"] for score in json.loads(out)["scores"]])
    assert values[0][0] != values[1][0]
    assert values[0][1] == values[1][1]  # an ordinary model has nothing to route


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("base", ("-t", "gone.yaml"), "gone.yaml: there is no such task file or folder"),
        ("base", ("-t", ","), "--tasks: names no task"),
        ("base", ("-t", "own.yaml", "--routing", "soft"), "no fused model, and nothing to route"),
        ("fused", ("-t", "own.yaml", "--routing", "loud"), "routing 'loud' is unknown. Known: soft, hard"),
        ("base", ("-t", "own.yaml", "--metadata", "{"), "--metadata: is no JSON"),
        ("base", ("-t", "own.yaml", "--out", "corpus"), "--out: corpus is a folder; name a file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    run: Callable[..., tuple[int, str, str]], root: Path, model: str, options: tuple[str, ...], words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(root)
    code, out, said = run(root / model, *options)
    assert (code, out) == (2, "")
    assert words in said
    assert "own bits_per_byte" not in said  # it was said before a model was scored


def test_scores_that_cannot_be_written_are_shown(run: Callable[..., tuple[int, str, str]], root: Path) -> None:
    code, out, said = run(root / "base", "-t", root / "own.yaml", "--limit", 1, "--out", root / "own.yaml" / "x.json")
    assert code == 2
    assert "bits_per_byte" in out
    assert "cannot write" in said
