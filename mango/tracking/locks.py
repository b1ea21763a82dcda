"""One lock for each purpose: a file lock beside SQLite, an advisory lock inside PostgreSQL."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mango.errors import RegistryError
from mango.tracking.settings import TrackingSettings

Purpose = Literal["migrate", "pipeline", "promote"]


@contextmanager
def store_lock(settings: TrackingSettings, purpose: Purpose) -> Iterator[None]:
    """Hold the lock that every process sharing this store takes for ``purpose``.

    Raises:
        RegistryError: another process held it for longer than ``settings.lock_timeout_s``, or the store is a tracking
            server, which offers no lock.
    """
    if settings.backend == "postgresql":
        with _advisory_lock(settings, purpose):
            yield
        return
    if settings.database is None:
        raise RegistryError(
            f"{settings.safe_uri}: a tracking server has no lock, so aliases could be overwritten by a worse model; "
            "set MLFLOW_TRACKING_URI to its database (postgresql://... or sqlite:///...)"
        )
    with _file_lock(settings.database.with_name(f"{settings.database.name}.{purpose}.lock"), settings, purpose):
        yield


@contextmanager
def machine_lock(settings: TrackingSettings, purpose: Purpose) -> Iterator[None]:
    """Hold a lock among the processes of this machine, whatever kind of store they share.

    Raises:
        RegistryError: another process held it for longer than ``settings.lock_timeout_s``.
    """
    if settings.database is not None:
        path = settings.database.with_name(f"{settings.database.name}.{purpose}.lock")
    else:
        digest = hashlib.sha256(settings.uri.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"mango-{os.getuid()}-{digest}.{purpose}.lock"
    with _file_lock(path, settings, purpose):
        yield


@contextmanager
def _file_lock(path: Path, settings: TrackingSettings, purpose: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path, timeout=settings.lock_timeout_s).acquire()
    except Timeout as error:
        raise _too_long(settings, purpose, str(path)) from error
    with lock:
        yield


@contextmanager
def _advisory_lock(settings: TrackingSettings, purpose: str) -> Iterator[None]:
    import psycopg

    key = int.from_bytes(hashlib.sha256(f"mango:{purpose}".encode()).digest()[:8], "big", signed=True)
    try:
        connection = psycopg.connect(settings.uri.replace("+psycopg", "", 1), autocommit=True)
    except psycopg.OperationalError as error:
        raise RegistryError(f"{settings.safe_uri}: cannot connect: {str(error).strip().splitlines()[0]}") from error
    with connection:  # closing the connection frees the lock, also when this process is killed
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{settings.lock_timeout_s * 1000:.0f}ms"])
        try:
            connection.execute("SELECT pg_advisory_lock(%s)", [key])
        except psycopg.errors.LockNotAvailable as error:
            raise _too_long(settings, purpose, settings.safe_uri) from error
        yield


def _too_long(settings: TrackingSettings, purpose: str, where: str) -> RegistryError:
    return RegistryError(
        f"{where}: another process has held the {purpose} lock for {settings.lock_timeout_s:g} s; wait for it to end, "
        "or raise MANGO_LOCK_TIMEOUT_S"
    )
