"""Tracking settings: where they come from and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from mango.errors import ConfigError
from mango.tracking import TrackingSettings


def test_defaults_lie_in_the_nearest_repository(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    found = TrackingSettings.from_environment({}, tmp_path / "a" / "b")
    assert found.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert found.database == tmp_path / "mlflow.db"
    assert found.local_artifacts == tmp_path / "mlartifacts"
    assert (found.experiment, found.enabled, found.backend) == ("mango", True, "sqlite")


def test_without_a_repository_the_start_is_the_root(tmp_path: Path) -> None:
    assert TrackingSettings.from_environment({}, tmp_path).root == tmp_path


def test_dvc_root_wins_over_the_copy_that_an_experiment_runs_in(tmp_path: Path) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "copy"
    (copy / ".dvc").mkdir(parents=True)
    assert TrackingSettings.from_environment({"DVC_ROOT": str(tmp_path)}, copy).root == tmp_path


def test_relative_places_are_anchored_on_the_root(tmp_path: Path) -> None:
    environ = {
        "DVC_ROOT": str(tmp_path),
        "MLFLOW_TRACKING_URI": "sqlite:///runs/all.db",
        "MANGO_ARTIFACT_ROOT": "files",
        "MANGO_EXPERIMENT": "other",
        "MANGO_LOCK_TIMEOUT_S": "3.5",
    }
    found = TrackingSettings.from_environment(environ, tmp_path)
    assert found.database == tmp_path / "runs" / "all.db"
    assert found.artifact_uri == (tmp_path / "files").as_uri()
    assert (found.experiment, found.lock_timeout_s) == ("other", 3.5)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_postgresql_addresses_name_psycopg_3(tmp_path: Path, scheme: str) -> None:
    found = TrackingSettings(root=tmp_path, uri=f"{scheme}://me:hunter2@db:5433/runs")
    assert found.uri == "postgresql+psycopg://me:hunter2@db:5433/runs"
    assert (found.backend, found.database) == ("postgresql", None)
    assert found.safe_uri == "postgresql+psycopg://***@db:5433/runs"
    assert "hunter2" not in repr(found)


def test_s3_artifacts_are_not_local(tmp_path: Path) -> None:
    environ = {"MANGO_ARTIFACT_ROOT": "s3://bucket/mango/", "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9000"}
    found = TrackingSettings.from_environment(environ, tmp_path)
    assert found.local_artifacts is None
    assert found.artifact_uri == "s3://bucket/mango"
    assert found.s3_endpoint_url == "http://127.0.0.1:9000"


def test_tracking_can_be_switched_off(tmp_path: Path) -> None:
    assert not TrackingSettings.from_environment({"MANGO_TRACKING": "off"}, tmp_path).enabled
    assert TrackingSettings.from_environment({"MANGO_TRACKING": ""}, tmp_path).enabled


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MANGO_TRACKING", "no", "MANGO_TRACKING: found 'no', wanted 'on' or 'off'"),
        ("MLFLOW_TRACKING_URI", "./mlruns", "MLFLOW_TRACKING_URI: found './mlruns', wanted sqlite:///FILE"),
        ("MLFLOW_TRACKING_URI", "mysql://me:pw@db/x", r"found 'mysql://\*\*\*@db/x'"),
        ("MLFLOW_TRACKING_URI", "sqlite:///:memory:", "names no database file"),
        ("MANGO_ARTIFACT_ROOT", "ftp://host/x", "MANGO_ARTIFACT_ROOT: found 'ftp://host/x'"),
        ("MANGO_LOCK_TIMEOUT_S", "-1", "MANGO_LOCK_TIMEOUT_S: "),
        ("MANGO_PARENT_RUN", "main", "MANGO_PARENT_RUN: 'main' is no MLflow run id"),
    ],
)
def test_wrong_values_name_their_variable(tmp_path: Path, variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrackingSettings.from_environment({variable: value}, tmp_path)


def test_all_wrong_values_are_reported_at_once(tmp_path: Path) -> None:
    environ = {"MANGO_PARENT_RUN": "x", "MANGO_LOCK_TIMEOUT_S": "soon"}
    with pytest.raises(ConfigError, match=r"MANGO_PARENT_RUN.*MANGO_LOCK_TIMEOUT_S"):
        TrackingSettings.from_environment(environ, tmp_path)
