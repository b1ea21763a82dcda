"""One parent for each execution of the pipeline, found without writing anything."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings, pipeline, stage_run
from mango.tracking.processes import ProcessIdentity
from mango.tracking.store import experiment_id, open_store

STAGE = """
import os, sys
from mango.tracking import TrackingSettings, stage_run
root, stage, code = sys.argv[1:]
with stage_run(stage, settings=TrackingSettings(root=root), params={"seed": 0, stage: {"rate": 0.1}}) as run:
    run.log_metrics({"loss": 1.0})
    run.log_headline({f"gap_{stage}": 0.9})
    if code != "0":
        raise SystemExit(int(code))
"""


def runs(settings: TrackingSettings) -> tuple[list[Any], list[Any]]:
    client = open_store(settings)
    found = client.search_runs([experiment_id(client, settings)])
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    return [run for run in found if run not in children], children


@pytest.fixture
def dvc(fake_dvc: Path, settings: TrackingSettings) -> Any:
    """Give a function that runs stages below one process called dvc."""

    def run(*stages: tuple[str, int], together: bool = False, **environ: str) -> int:
        commands = [
            shlex.join([sys.executable, "-c", STAGE, str(settings.root), stage, str(code)]) for stage, code in stages
        ]
        if together:
            commands = [" & ".join(commands) + " & wait"]
        return subprocess.run(
            [sys.executable, str(fake_dvc), *commands],
            env={**os.environ, **environ},
            stdout=subprocess.DEVNULL,
            check=False,
        ).returncode

    return run


@pytest.mark.slow
def test_stages_that_start_together_share_one_parent(dvc: Any, settings: TrackingSettings) -> None:
    assert dvc(("merge", 0), ("train", 0), ("evaluate", 0), together=True, DVC_EXP_NAME="dusky-vows") == 0
    (parent,), children = runs(settings)
    assert sorted(run.info.run_name for run in children) == ["evaluate", "merge", "train"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert parent.info.run_name == "dusky-vows"
    assert parent.data.tags["mango.exp_name"] == "dusky-vows"
    assert len(parent.data.tags["mlflow.source.git.commit"]) == 40
    assert parent.data.params == {"seed": "0", "merge.rate": "0.1", "train.rate": "0.1", "evaluate.rate": "0.1"}
    assert parent.data.metrics == {"gap_merge": 0.9, "gap_train": 0.9, "gap_evaluate": 0.9}
    assert {run.info.run_name: run.data.metrics for run in children}["train"] == {"loss": 1.0, "gap_train": 0.9}


@pytest.mark.slow
def test_a_failed_stage_is_not_hidden_by_a_later_one(dvc: Any, settings: TrackingSettings) -> None:
    assert dvc(("train", 3), ("evaluate", 0)) == 3
    (parent,), children = runs(settings)
    assert {run.info.run_name: run.info.status for run in children} == {"train": "FAILED", "evaluate": "FINISHED"}
    assert parent.info.status == "FAILED"
    assert parent.data.tags["mango.failed_stage"] == "train"


def test_each_execution_has_its_own_key(settings: TrackingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    dvc = ProcessIdentity.own()
    keys = {pipeline.pipeline_key(settings, dvc)}
    assert pipeline.pipeline_key(settings, dvc) in keys
    keys.add(pipeline.pipeline_key(settings, ProcessIdentity(dvc.host, dvc.boot, dvc.namespace, dvc.pid, "1")))
    keys.add(pipeline.pipeline_key(settings.model_copy(update={"experiment": "other"}), dvc))
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "f" * 40)
    keys.add(pipeline.pipeline_key(settings, dvc))
    monkeypatch.setenv("DVC_EXP_NAME", "dusky-vows")  # `dvc exp run --run-all` runs many in one process
    keys.add(pipeline.pipeline_key(settings, dvc))
    assert len(keys) == 5


def test_a_given_parent_is_used(settings: TrackingSettings) -> None:
    client = open_store(settings)
    parent = client.create_run(experiment_id(client, settings), run_name="mine").info.run_id
    with stage_run("train", settings=settings.model_copy(update={"parent_run": parent}), params={"seed": 0}) as run:
        pass
    assert run.parent_id == parent
    assert client.get_run(run.run_id).data.tags["mlflow.parentRunId"] == parent
    assert client.get_run(parent).data.params == {"seed": "0"}
    assert client.get_run(parent).info.status == "RUNNING"  # whoever began it ends it


def test_mlflows_own_run_variable_does_not_disturb(settings: TrackingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_store(settings)
    parent, other = (client.create_run(experiment_id(client, settings)).info.run_id for _ in range(2))
    monkeypatch.setenv("MLFLOW_RUN_ID", other)
    with stage_run("train", settings=settings.model_copy(update={"parent_run": parent}), params={}) as run:
        pass
    assert run.run_id != other
    assert run.parent_id == parent


def test_a_given_parent_must_exist(settings: TrackingSettings) -> None:
    with (
        pytest.raises(RegistryError, match=r"MANGO_PARENT_RUN: no run 0{32} in sqlite:///"),
        stage_run("train", settings=settings.model_copy(update={"parent_run": "0" * 32}), params={}),
    ):
        pytest.fail("a run was opened")


def test_the_parents_first_parameters_stay(settings: TrackingSettings) -> None:
    client = open_store(settings)
    parent = client.create_run(experiment_id(client, settings)).info.run_id
    below = settings.model_copy(update={"parent_run": parent})
    for seed in (0, 1):
        with stage_run("train", settings=below, params={"seed": seed}) as run:
            pass
    assert client.get_run(parent).data.params == {"seed": "0"}
    assert client.get_run(run.run_id).data.params == {"seed": "1"}
