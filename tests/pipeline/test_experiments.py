"""What runs, what does not, and what experiments leave to compare."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mango.checkpoints import verify
from mango.tracking import TrackingSettings, promote
from mango.tracking.store import experiment_id, open_store
from tests.pipeline.project import LATER, STAGES, dvc, environment, git, ran, read_json

ROUTERS = ("simple", "token", "topk")


@pytest.mark.slow
def test_the_second_run_does_nothing(finished: Path) -> None:
    start_s = time.perf_counter()
    done = dvc(finished, "repro")
    took_s = time.perf_counter() - start_s
    assert (done.returncode, ran(done)) == (0, [])
    assert took_s < 6  # one second on a quiet machine; two are promised
    for name in ("blocks", "merged", "fused", "controls", "package"):
        verify(finished / "models" / name)
    assert [read_json(finished / "reports" / f"{name}.json")["run_id"] for name in STAGES] == [None] * len(STAGES)
    assert git(finished, "status", "--short") == ""


@pytest.mark.slow
def test_a_fresh_clone_with_the_lock_file_runs_everything_again(finished: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(finished), str(clone))
    done = dvc(clone, "repro", "--dry", "extract-blocks", "merge")
    assert (done.returncode, sorted(ran(done))) == (0, sorted(STAGES[:2])), done.stderr  # neither needs the other


@pytest.mark.slow
def test_another_method_of_merging_is_one_assignment(finished: Path) -> None:
    done = dvc(finished, "exp", "run", "merge", "-S", "merge.method=ties", "-S", "merge.models=[code]")
    assert (done.returncode, ran(done)) == (0, ["merge"]), done.stderr
    resolved = (finished / "models" / "merged" / "main" / "mango_merge.yaml").read_text()
    assert "merge_method: ties" in resolved
    assert "density: 0.2" in resolved  # of the section in params.yaml


@pytest.mark.slow
def test_tasks_of_the_harness_are_one_assignment(finished: Path) -> None:
    tasks = "evaluate.lm_eval.tasks=[examples/lm_eval/corpus_perplexity.yaml]"
    done = dvc(finished, "exp", "run", "evaluate", "-S", tasks)
    assert (done.returncode, ran(done)) == (0, ["evaluate"]), done.stderr
    found = read_json(finished / "reports" / "evaluation.json")["lm_eval"]
    assert found["tasks"] == [{"task": "corpus_perplexity", "samples": 2, "num_fewshot": 0, "group": False}]
    scores = {row["system"]: row["value"] for row in found["scores"] if row["metric"] == "bits_per_byte"}
    assert scores.keys() >= {"trunk", "best_single", "expert_code", "merge_main", "fused_soft", "fused_hard"}
    metrics = read_json(finished / "reports" / "evaluate.json")
    assert metrics["fused_hard.lm_eval.corpus_perplexity.bits_per_byte"] == pytest.approx(scores["fused_hard"])
    assert "<h2>Tasks</h2>" in (finished / "reports" / "report.html").read_text()


def rows(root: Path) -> dict[str, dict[str, str]]:
    """Return what ``dvc exp show`` prints of each finished experiment."""
    done = dvc(root, "exp", "show", "--csv", tracking=True)
    assert done.returncode == 0, done.stderr
    return {row["Experiment"]: row for row in csv.DictReader(io.StringIO(done.stdout)) if row["Experiment"]}


@pytest.mark.slow
def test_a_grid_of_routers_and_seeds_can_be_compared(finished: Path, migrated_database: Path) -> None:
    shutil.copy(migrated_database, finished / "mlflow.db")
    grid = ["-S", f"router.type={','.join(ROUTERS)}", "-S", "seed=0,1"]
    done = dvc(finished, "exp", "run", "--queue", *grid, tracking=True)
    assert done.returncode == 0, done.stderr
    done = dvc(finished, "exp", "run", "--run-all", tracking=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr

    shown = rows(finished)
    assert sorted((row["router.type"], row["seed"]) for row in shown.values()) == [
        (router, seed) for router in ROUTERS for seed in "01"
    ]
    for name, row in shown.items():
        assert row["State"] == "Success"
        assert all(float(row[column]) > 0 for column in ("fused_soft.pure_mean", "fused_hard.switching", "metric"))
        part = re.search(rf"Reproducing experiment '{name}'\n(.*?)(?=Reproducing experiment|\Z)", said, re.DOTALL)
        assert part is not None
        same = (row["router.type"], row["seed"]) == ("token", "0")
        assert re.findall(r"Running stage '([\w-]+)'", part[1]) == ([] if same else LATER)

    command = [sys.executable, "-c", "from mango.cli.app import main; main(['sync'])"]
    synced = subprocess.run(command, cwd=finished, env=environment(tracking=True), capture_output=True, text=True)
    assert synced.returncode == 0, synced.stderr
    settings = TrackingSettings(root=finished)
    client = open_store(settings)
    runs = client.search_runs([experiment_id(client, settings)], "tags.`mango.stage` = 'evaluate'", max_results=100)
    evaluated = {run.info.run_id: run.data for run in runs}
    made = [row for row in shown.values() if row["reports/evaluate.json:run_id"]]  # the fixture ran without tracking
    assert len(made) == 5
    for row in made:
        data = evaluated[row["reports/evaluate.json:run_id"]]
        assert data.params["seed"] == row["seed"]
        assert data.metrics["fused_soft.pure_mean"] == pytest.approx(float(row["fused_soft.pure_mean"]))

    result = promote(None, finished / "models" / "package", settings=settings)
    assert (result.name, result.version, result.champion) == ("tiny-mango", 1, 1)
