"""Opens the tracking store: migrated once, under a lock, before anything else touches it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mango.errors import RegistryError
from mango.redaction import redact_text
from mango.tracking.environment import quieten
from mango.tracking.locks import store_lock
from mango.tracking.settings import TrackingSettings

if TYPE_CHECKING:
    from mlflow import MlflowClient

_UPGRADE = "import os; from mlflow.db import commands; commands.main(['upgrade', os.environ['MANGO_UPGRADE_URI']])"
# Some hundred statements each wait for the disk, most of ten seconds; a file that nobody sees yet need not.
_NO_WAITING = (
    "from sqlalchemy import Engine, event; "
    "event.listen(Engine, 'connect', lambda connection, _: connection.execute('PRAGMA synchronous = OFF')); "
)

_FOR_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # which of its two faces the UI shows


def open_store(settings: TrackingSettings) -> MlflowClient:
    """Return a client of a store whose schema is current.

    Raises:
        RegistryError: tracking is off, the store cannot be reached, migration failed, or a newer mlflow wrote it.
    """
    if not settings.enabled:
        raise RegistryError("tracking is off (MANGO_TRACKING=off): the registry and runs need it on")
    quieten(settings)
    migrate(settings)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=settings.uri, registry_uri=settings.uri)


def migrate(settings: TrackingSettings) -> None:
    """Create the store's tables, or bring them up to date; returns at once when they are.

    Two processes that open a fresh store at the same time break it for good, so this runs under a lock. A fresh SQLite
    file is built beside its place and takes it by one rename: nobody sees it half made. An older file is copied
    before it is upgraded.

    Raises:
        RegistryError: the migration failed, or the store was written by a newer mlflow.
    """
    quieten(settings)
    if settings.backend == "server":
        return
    with store_lock(settings, "migrate"):
        found = _schema_version(settings)
        known = _known_versions()
        if found == known[0]:
            return
        if found is not None and found not in known:
            raise RegistryError(
                f"{settings.safe_uri}: its schema {found} is newer than the installed mlflow knows; upgrade mlflow"
            )
        if settings.database is None:
            _upgrade(settings, settings.uri)
        elif settings.database.exists() and found is not None:
            shutil.copy2(settings.database, settings.database.with_name(f"{settings.database.name}.{found}.bak"))
            _upgrade(settings, settings.uri)
        elif settings.database.exists() and settings.database.stat().st_size:
            raise RegistryError(f"{settings.database}: is no complete MLflow database; move it away, it is then remade")
        else:
            _create(settings, settings.database)


def experiment_id(client: MlflowClient, settings: TrackingSettings) -> str:
    """Return the id of the configured experiment, created with its artifact location if it is new.

    MLflow freezes an experiment's location when it is first used, to the folder that the process happens to be in, so
    it is always given.

    Raises:
        RegistryError: the experiment was deleted, or keeps its artifacts elsewhere.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        try:
            return str(
                client.create_experiment(settings.experiment, artifact_location=_location(settings), tags=_FOR_TRAINING)
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(settings.experiment)  # another process was faster
        assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        raise RegistryError(
            f"experiment {settings.experiment!r} was deleted; restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}` or set MANGO_EXPERIMENT"
        )
    wanted = _location(settings)
    if wanted is not None and experiment.artifact_location != wanted:
        raise RegistryError(
            f"experiment {settings.experiment!r} keeps its artifacts in {experiment.artifact_location}, found the "
            f"settings to say {wanted}: the folder was moved or MANGO_ARTIFACT_ROOT changed; change it back, or start "
            "another experiment with MANGO_EXPERIMENT"
        )
    return str(experiment.experiment_id)


def _location(settings: TrackingSettings) -> str | None:
    """Where runs keep artifacts; a tracking server decides that for itself."""
    return None if settings.backend == "server" else f"{settings.artifact_uri}/runs"


@lru_cache
def _known_versions() -> tuple[str, ...]:
    """Return the schema versions that the installed mlflow knows, newest first."""
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return tuple(script.revision for script in scripts.walk_revisions())


def _schema_version(settings: TrackingSettings) -> str | None:
    """Return the store's schema version, or None when it has none yet."""
    if settings.database is not None:
        if not settings.database.exists():
            return None
        try:
            with closing(sqlite3.connect(f"{settings.database.as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
                tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
                rows = connection.execute("SELECT version_num FROM alembic_version").fetchall() if tables else []
        except sqlite3.DatabaseError as error:
            raise RegistryError(f"{settings.database}: cannot be read as SQLite: {error}") from error
        return str(rows[0][0]) if rows else None
    import psycopg

    with psycopg.connect(settings.uri.replace("+psycopg", "", 1), autocommit=True) as postgres:
        if postgres.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
            return None
        row = postgres.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _create(settings: TrackingSettings, database: Path) -> None:
    database.parent.mkdir(parents=True, exist_ok=True)
    database.unlink(missing_ok=True)  # only an empty file can be here
    building = database.with_name(f"{database.name}.new")
    try:
        building.unlink(missing_ok=True)  # left by a killed process: we hold the lock
        _upgrade(settings, f"sqlite:///{building}", _NO_WAITING + _UPGRADE)
        with building.open("rb") as file:
            os.fsync(file.fileno())
        building.rename(database)
    finally:
        for leftover in (building, building.with_name(f"{building.name}-journal")):
            leftover.unlink(missing_ok=True)


def _upgrade(settings: TrackingSettings, uri: str, program: str = _UPGRADE) -> None:
    """Run ``mlflow db upgrade`` in a process of its own: it reconfigures logging and prints.

    The address travels in the environment, since command lines are readable by everyone on the machine.
    """
    environ = {**os.environ, "MANGO_UPGRADE_URI": uri}
    quieten(settings, environ)
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise RegistryError(f"{settings.safe_uri}: migration failed: {redact_text(last)}")
