"""What a stage's run records, and how it ends."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mango.config import Frozen
from mango.errors import RegistryError
from mango.tracking import StageRun, TrackingSettings, stage_run
from mango.tracking.processes import ProcessIdentity
from mango.tracking.reaping import reap
from mango.tracking.store import experiment_id, open_store

WAIT = """
import sys
from mango.tracking import TrackingSettings, stage_run
with stage_run("train", settings=TrackingSettings(root=sys.argv[1]), params={}) as run:
    run.log_metrics({"loss": 1.0})
    print(run.run_id, flush=True)
    input()
"""


def read(settings: TrackingSettings, run_id: str) -> Any:
    return open_store(settings).get_run(run_id)


def test_parameters_tags_and_end(settings: TrackingSettings) -> None:
    params = {"router": {"type": "token"}, "seed": 0, "hub": {"token": "hunter2"}}
    with stage_run("train", settings=settings, params=params) as run:
        run.log_params({"extra": [1, 2]})
        run.set_tags({"note": "see https://me:hunter2@host/x", "api_key": "hunter2"})
        assert read(settings, run.run_id).info.status == "RUNNING"
    found = read(settings, run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "train"
    assert found.data.params == {"router.type": "token", "seed": "0", "hub.token": "***", "extra": "[1, 2]"}
    assert found.data.tags["mango.stage"] == "train"
    assert found.data.tags["mango.kind"] == "pipeline"
    assert "hunter2" not in json.dumps(dict(found.data.tags))
    assert ProcessIdentity.from_tags(found.data.tags) == ProcessIdentity.own()
    assert run.parent_id == run.run_id  # outside a pipeline the run stands alone


def test_a_parameter_model_is_logged_as_its_fields(settings: TrackingSettings) -> None:
    class Params(Frozen):
        rate: float = 1e-4
        place: Path = Path("data")

    with stage_run("train", settings=settings, params={"train": Params()}) as run:
        pass
    assert read(settings, run.run_id).data.params == {"train.rate": "0.0001", "train.place": "data"}


def test_metrics_keep_their_steps_and_arrive_in_batches(settings: TrackingSettings) -> None:
    client = open_store(settings)
    with stage_run("train", settings=settings, params={}) as run:
        for step in range(600):
            run.log_metrics({"loss": step / 2, "lm": float(step)}, step)
            if step == 400:
                assert client.get_metric_history(run.run_id, "loss") == []  # 802 values wait for the thousandth
        assert len(client.get_metric_history(run.run_id, "loss")) == 500
    history = client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, step / 2) for step in range(600)]


def test_a_diverged_loss_is_logged(settings: TrackingSettings) -> None:
    with stage_run("train", settings=settings, params={}) as run:
        run.log_metrics({"loss": math.nan})
    (point,) = open_store(settings).get_metric_history(run.run_id, "loss")
    assert math.isnan(point.value)


@pytest.mark.parametrize("value", ["1.0", None, True])
def test_a_metric_must_be_a_number(settings: TrackingSettings, value: object) -> None:
    with (
        pytest.raises(RegistryError, match=r"metric 'loss': found .*, wanted a number"),
        stage_run("train", settings=settings, params={}) as run,
    ):
        run.log_metrics({"loss": value})


def test_artifacts_and_data_sets(settings: TrackingSettings, tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.png").write_bytes(b"png")
    (tmp_path / "report.html").write_text("<html>")
    with stage_run("evaluate", settings=settings, params={}) as run:
        run.log_artifact(tmp_path / "report.html")
        run.log_artifacts(tmp_path / "plots", "plots")
        run.log_dataset("corpus", Path("data/corpus"), "ab" * 32, "evaluation")
    client = open_store(settings)
    assert [item.path for item in client.list_artifacts(run.run_id)] == ["plots", "report.html"]
    assert [item.path for item in client.list_artifacts(run.run_id, "plots")] == ["plots/loss.png"]
    stored = settings.root / "mlartifacts" / "runs" / run.run_id / "artifacts" / "report.html"
    assert stored.read_text() == "<html>"
    (data,) = client.get_run(run.run_id).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("corpus", ("ab" * 32)[:36])
    assert json.loads(data.dataset.profile) == {"sha256": "ab" * 32}
    assert json.loads(data.dataset.source) == {"uri": "data/corpus"}
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "evaluation")]


def test_a_missing_artifact_is_an_error(settings: TrackingSettings, tmp_path: Path) -> None:
    with (
        pytest.raises(RegistryError, match=r"report\.html: no such file to log"),
        stage_run("evaluate", settings=settings, params={}) as run,
    ):
        run.log_artifact(tmp_path / "report.html")


def test_another_value_for_a_parameter_is_an_error(settings: TrackingSettings) -> None:
    with (
        pytest.raises(RegistryError, match=r"run [0-9a-f]{32}: .*seed"),
        stage_run("train", settings=settings, params={"seed": 0}) as run,
    ):
        run.log_params({"seed": 1})


def fail_after_logging(run: StageRun) -> None:
    run.log_metrics({"loss": 2.0}, 7)
    raise ValueError("no disk at s3://me:hunter2@host")


def test_an_exception_ends_the_run_as_failed_and_keeps_its_metrics(settings: TrackingSettings) -> None:
    with (
        pytest.raises(ValueError, match="no disk"),
        stage_run("train", settings=settings, params={}) as run,
    ):
        fail_after_logging(run)
    found = read(settings, run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.metrics == {"loss": 2.0}
    assert found.data.tags["mango.error"] == "ValueError: no disk at s3://***@host"


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (SystemExit(2), "FAILED"), (SystemExit(0), "FINISHED")]
)
def test_other_ends(settings: TrackingSettings, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), stage_run("train", settings=settings, params={}) as run:
        raise error
    assert read(settings, run.run_id).info.status == status


def test_signal_handlers_are_given_back(settings: TrackingSettings) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stage_run("train", settings=settings, params={}):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_sigterm_closes_the_run_and_sigkill_leaves_it_to_the_next(settings: TrackingSettings) -> None:
    command = [sys.executable, "-c", WAIT, str(settings.root)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asked,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed,
    ):
        asked_id, killed_id = asked.stdout.readline().strip(), killed.stdout.readline().strip()
        asked.send_signal(signal.SIGTERM)
        assert asked.wait(30) == 128 + signal.SIGTERM
        killed.kill()
    found = read(settings, asked_id)
    assert (found.info.status, found.data.metrics) == ("KILLED", {"loss": 1.0})
    assert read(settings, killed_id).info.status == "RUNNING"
    with stage_run("evaluate", settings=settings, params={}) as run:
        found = read(settings, killed_id)
        assert (found.info.status, found.data.tags["mango.reaped"]) == ("KILLED", "true")
        assert read(settings, run.run_id).info.status == "RUNNING"


def test_runs_of_other_machines_and_of_living_processes_are_not_reaped(settings: TrackingSettings) -> None:
    client = open_store(settings)
    experiment = experiment_id(client, settings)
    for tags in ({}, ProcessIdentity.own().tags(), ProcessIdentity("elsewhere", "b", "n", 1, "1").tags()):
        client.create_run(experiment, tags={key: value for key, value in tags.items() if value})
    assert reap(client, experiment) == []


def test_switched_off_a_run_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANGO_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    with stage_run("train", params={"seed": 0}) as run:
        run.log_params({"a": 1})
        run.log_metrics({"loss": 1.0}, 3)
        run.log_headline({"gap": 0.9})
        run.log_artifact(tmp_path / "none")
        run.log_artifacts(tmp_path / "none")
        run.log_dataset("corpus", Path("data"), "ab")
        run.set_tags({"a": "b"})
        run.flush()
        with pytest.raises(RegistryError, match="wanted a number"):
            run.log_metrics({"loss": "1"})
    assert (run.run_id, run.parent_id) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_switched_off_mlflow_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from mango.tracking import TrackingSettings, stage_run\n"
        "with stage_run('a', settings=TrackingSettings(root='.', enabled=False), params={}): pass\n"
        "print('mlflow' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
