"""The store is migrated once, under a lock, and never half."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings, migrate
from mango.tracking.store import experiment_id, open_store

OPEN = "import sys; from mango.tracking import TrackingSettings as T, migrate as m; m(T(root=sys.argv[1]))"


def versions(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]


@pytest.mark.slow
def test_processes_that_open_a_fresh_store_together_all_succeed(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", OPEN, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len(versions(tmp_path / "mlflow.db")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.migrate.lock"]


@pytest.mark.slow
def test_a_killed_migration_leaves_nothing_that_looks_like_a_store(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OPEN, str(tmp_path)], start_new_session=True) as process:
        building = tmp_path / "mlflow.db.new"
        deadline = time.monotonic() + 60
        while not building.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "mlflow.db").exists()
    migrate(TrackingSettings(root=tmp_path))
    assert len(versions(tmp_path / "mlflow.db")) == 1
    assert not building.exists()


def test_a_current_store_is_left_as_it_is(settings: TrackingSettings) -> None:
    before = settings.database.read_bytes()
    migrate(settings)
    start = time.process_time()
    migrate(settings)
    assert time.process_time() - start < 1.0
    assert settings.database.read_bytes() == before


def test_opening_changes_no_logging(settings: TrackingSettings) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    open_store(settings)
    assert (root.level, list(root.handlers)) == before


@pytest.mark.slow
def test_an_older_store_is_copied_and_upgraded(settings: TrackingSettings) -> None:
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    (newest,) = versions(settings.database)
    command.downgrade(_get_alembic_config(settings.uri), "-1")
    (older,) = versions(settings.database)
    assert older != newest
    migrate(settings)
    assert versions(settings.database) == [newest]
    assert versions(settings.database.with_name(f"mlflow.db.{older}.bak")) == [older]


def test_a_store_of_a_newer_mlflow_is_refused(settings: TrackingSettings) -> None:
    with closing(sqlite3.connect(settings.database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'feedfacefeed'")
    with pytest.raises(RegistryError, match=r"schema feedfacefeed is newer than the installed mlflow knows"):
        migrate(settings)


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("notes, " * 100)
    with pytest.raises(RegistryError, match=r"mlflow\.db: cannot be read as SQLite"):
        migrate(TrackingSettings(root=tmp_path))
    assert (tmp_path / "mlflow.db").read_text().startswith("notes")


def test_another_database_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        connection.execute("CREATE TABLE runs (id INTEGER)")
    with pytest.raises(RegistryError, match="is no complete MLflow database; move it away"):
        migrate(TrackingSettings(root=tmp_path))


def test_switched_off_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="tracking is off"):
        open_store(TrackingSettings(root=tmp_path, enabled=False))
    assert list(tmp_path.iterdir()) == []


def test_the_experiment_keeps_its_artifacts_where_the_settings_say(
    settings: TrackingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow would freeze the current folder
    client = open_store(settings)
    found = client.get_experiment(experiment_id(client, settings))
    assert found.artifact_location == (settings.root / "mlartifacts" / "runs").as_uri()
    assert experiment_id(client, settings) == found.experiment_id


def test_a_moved_store_is_noticed(settings: TrackingSettings, tmp_path: Path) -> None:
    experiment_id(open_store(settings), settings)
    moved = tmp_path / "moved"
    shutil.copytree(settings.root, moved)
    there = TrackingSettings(root=moved)
    with pytest.raises(
        RegistryError, match=r"keeps its artifacts in file://.*root/mlartifacts/runs, found the settings"
    ):
        experiment_id(open_store(there), there)


def test_a_deleted_experiment_is_not_brought_back_silently(settings: TrackingSettings) -> None:
    client = open_store(settings)
    client.delete_experiment(experiment_id(client, settings))
    with pytest.raises(RegistryError, match="experiment 'mango' was deleted; restore it with"):
        experiment_id(client, settings)
