"""Experiments that came whole from DVC's cache get a run, once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings, sync
from mango.tracking.store import experiment_id, open_store

pytestmark = pytest.mark.slow

STAGE = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, os.environ["CHECKOUT"])
from mango.tracking import TrackingSettings, stage_run
seed = int(Path("params.yaml").read_text().split()[1])
with stage_run("train", settings=TrackingSettings.from_environment(), params={"seed": seed}) as run:
    run.log_metrics({"loss": 2.0})
    run.log_headline({"gap": 0.5 + seed})
Path("train.json").write_text(json.dumps({"run_id": run.run_id, "gap": 0.5 + seed}))
"""
PIPELINE = """
stages:
  train:
    cmd: {python} train.py
    deps: [train.py]
    params: [seed]
    metrics: [train.json]
"""


@pytest.fixture
def repository(tmp_path: Path, migrated_database: Path) -> Path:
    """Give a git and DVC repository with one stage and a tracking store."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copyfile(migrated_database, folder / "mlflow.db")
    (folder / "train.py").write_text(STAGE)
    (folder / "params.yaml").write_text("seed: 0\n")
    (folder / "dvc.yaml").write_text(PIPELINE.format(python=sys.executable))
    (folder / ".gitignore").write_text("/mlflow.db*\n/mlartifacts\n/train.json\n")
    for words in (["init", "-q"], ["config", "user.name", "Test"], ["config", "user.email", "test@localhost"]):
        call(folder, "git", *words)
    dvc(folder, "init", "-q")
    commit(folder)
    return folder


def call(folder: Path, *command: str) -> None:
    environ = {
        **os.environ,
        "CHECKOUT": str(Path(__file__).parents[2]),
        "DVC_NO_ANALYTICS": "true",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
    }
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dvc(folder: Path, *words: str) -> None:
    call(folder, sys.executable, "-m", "dvc", *words)


def commit(folder: Path) -> None:
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-q", "-m", "change")


def parents(settings: TrackingSettings) -> dict[str, Any]:
    client = open_store(settings)
    found = client.search_runs([experiment_id(client, settings)], "tags.`mango.kind` = 'pipeline'")
    return {run.data.tags.get("mango.exp_name", "repro"): run for run in found}


def test_only_the_cached_experiment_is_given_a_run(repository: Path, migrated_database: Path) -> None:
    settings = TrackingSettings(root=repository)
    dvc(repository, "repro", "-q")
    commit(repository)
    dvc(repository, "exp", "run", "-q", "--temp", "-n", "one", "-S", "seed=1")  # in a copy, yet in the same store
    dvc(repository, "exp", "run", "-q", "-n", "zero", "-S", "seed=0")  # the cache has it: no process starts
    before = parents(settings)
    assert sorted(before) == ["one", "repro"]

    (made,) = sync(settings=settings)
    after = parents(settings)
    assert sorted(after) == ["one", "repro", "zero"]
    run = after["zero"]
    assert (made.name, made.run_id) == ("zero", run.info.run_id)
    assert (run.info.run_name, run.info.status) == ("zero", "FINISHED")
    assert run.data.params == before["repro"].data.params == {"seed": "0"}
    assert run.data.metrics == before["repro"].data.metrics == {"gap": 0.5}  # the headline, not the loss
    client = open_store(settings)
    source = client.get_run(run.data.tags["mango.cached.train"])
    assert source.data.tags["mlflow.parentRunId"] == before["repro"].info.run_id
    assert made.cached == {"train": source.info.run_id}
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
    assert sync(settings=settings) == []

    # A clone has the results but not the store that their runs are in.
    shutil.copyfile(migrated_database, repository / "mlflow.db-of-a-clone")
    clone = TrackingSettings(root=repository, uri="sqlite:///mlflow.db-of-a-clone")
    assert sorted(run.name for run in sync(settings=clone)) == sorted(["one", "zero", *head(repository)])
    assert parents(clone)["one"].data.params == {"seed": "1"}


def head(folder: Path) -> list[str]:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    return [f"repro-{done.stdout[:7]}"]


def test_outside_a_dvc_repository_it_says_so(settings: TrackingSettings) -> None:
    with pytest.raises(RegistryError, match="`dvc exp show` failed: "):
        sync(settings=settings)
