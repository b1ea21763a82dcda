"""Where runs and registered models go: settings, not parameters, because they change no result."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from mango.config import Frozen
from mango.errors import ConfigError
from mango.redaction import redact_text

_SQLITE = "sqlite:///"
_POSTGRES = re.compile(r"^postgres(?:ql)?(?:\+psycopg[23]?)?://")
_KNOWN = "sqlite:///FILE, postgresql://USER@HOST/DATABASE or http(s)://HOST"
_VARIABLES = {
    "uri": "MLFLOW_TRACKING_URI",
    "artifact_root": "MANGO_ARTIFACT_ROOT",
    "experiment": "MANGO_EXPERIMENT",
    "parent_run": "MANGO_PARENT_RUN",
    "s3_endpoint_url": "MLFLOW_S3_ENDPOINT_URL",
    "lock_timeout_s": "MANGO_LOCK_TIMEOUT_S",
    "trusted_key": "MANGO_TRUSTED_KEY",
}


def find_root(environ: Mapping[str, str], start: Path) -> Path:
    """Return the folder that the tracking database is anchored on.

    ``DVC_ROOT`` comes first: under ``dvc exp run --temp`` and in the queue it stays the original repository while the
    working folder is a copy, so all experiments share one database. Then the nearest folder above ``start`` that holds
    ``.dvc`` or ``.git``, then ``start`` itself.
    """
    if environ.get("DVC_ROOT"):
        return Path(environ["DVC_ROOT"]).resolve()
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir() or (folder / ".git").exists():
            return folder
    return start


class TrackingSettings(Frozen):
    """Tracking address, artifact store and experiment name.

    Args:
        root: folder that relative addresses are anchored on.
        uri: ``sqlite:///FILE``, ``postgresql://...`` (psycopg 3 is named for you) or a tracking server's ``http(s)://``;
            empty means ``<root>/mlflow.db``.
        artifact_root: local folder, ``file://`` or ``s3://`` address; empty means ``<root>/mlartifacts``.
        experiment: MLflow experiment that the runs belong to.
        enabled: false switches every run off; the registry then refuses to work.
        parent_run: id of an existing run under which stage runs are put, instead of the one that is found.
        s3_endpoint_url: endpoint of an S3 service other than Amazon's.
        lock_timeout_s: how long to wait for another process that migrates, starts a run or promotes, in seconds.
        trusted_key: public key (PEM); the registry then takes and gives out only packages that its owner signed.

    Raises:
        ConfigError: from `from_environment`, naming the variable that is wrong.
    """

    root: Path
    uri: str = Field(default="", repr=False, validate_default=True)
    artifact_root: str = Field(default="", validate_default=True)
    experiment: str = Field(default="mango", min_length=1, max_length=250)
    enabled: bool = True
    parent_run: str | None = None
    s3_endpoint_url: str | None = None
    lock_timeout_s: float = Field(default=120.0, gt=0)
    trusted_key: Path | None = None

    @field_validator("root")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.resolve()

    @field_validator("uri")
    @classmethod
    def _anchor_uri(cls, value: str, info: ValidationInfo) -> str:
        return _tracking_uri(value, info.data.get("root", Path()))

    @field_validator("artifact_root")
    @classmethod
    def _anchor_artifacts(cls, value: str, info: ValidationInfo) -> str:
        return _artifact_root(value, info.data.get("root", Path()))

    @field_validator("trusted_key")
    @classmethod
    def _anchor_key(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return None if value is None else info.data.get("root", Path()) / value.expanduser()

    @field_validator("parent_run")
    @classmethod
    def _run_id(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{32}", value):
            raise ValueError(f"{value!r} is no MLflow run id (32 hexadecimal digits)")
        return value

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, start: Path | None = None) -> Self:
        """Return the settings that the environment asks for, and defaults for the rest.

        Args:
            environ: variables to read; the process's own when None. ``MANGO_TRACKING=off`` switches runs off.
            start: folder that the search for the root starts from; the current one when None.

        Raises:
            ConfigError: a variable holds something unusable; all of them are reported at once.
        """
        environ = os.environ if environ is None else environ
        switch = environ.get("MANGO_TRACKING", "").strip().lower() or "on"
        if switch not in {"on", "off"}:
            raise ConfigError(f"MANGO_TRACKING: found {switch!r}, wanted 'on' or 'off'")
        values = {field: environ[name] for field, name in _VARIABLES.items() if environ.get(name)}
        root = find_root(environ, start or Path.cwd())
        try:
            return cls.model_validate({"root": root, "enabled": switch == "on", **values})
        except ValidationError as error:
            problems = [
                f"{_VARIABLES.get(str(p['loc'][0]), p['loc'][0]) if p['loc'] else 'tracking'}: "
                + p["msg"].removeprefix("Value error, ")
                for p in error.errors()
            ]
            raise ConfigError("; ".join(problems)) from error

    @property
    def backend(self) -> Literal["sqlite", "postgresql", "server"]:
        """What kind of store the address names."""
        if self.uri.startswith(_SQLITE):
            return "sqlite"
        return "postgresql" if self.uri.startswith("postgresql") else "server"

    @property
    def safe_uri(self) -> str:
        """The tracking address without credentials, fit for messages."""
        return redact_text(self.uri)

    @property
    def database(self) -> Path | None:
        """The SQLite file, or None for another kind of store."""
        return Path(self.uri.removeprefix(_SQLITE)) if self.backend == "sqlite" else None

    @property
    def local_artifacts(self) -> Path | None:
        """The artifact folder on this machine, or None when artifacts live elsewhere."""
        return None if "://" in self.artifact_root else Path(self.artifact_root)

    @property
    def artifact_uri(self) -> str:
        """The artifact root as an address."""
        return self.artifact_root if self.local_artifacts is None else Path(self.artifact_root).as_uri()


def _tracking_uri(uri: str, root: Path) -> str:
    if not uri:
        return f"{_SQLITE}{root / 'mlflow.db'}"
    if uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE)
        if not path or path.startswith(":memory:") or "?" in path:
            raise ValueError(f"{uri!r} names no database file; wanted {_KNOWN}")
        return f"{_SQLITE}{root / path}"
    if _POSTGRES.match(uri):
        return _POSTGRES.sub("postgresql+psycopg://", uri)
    if re.match(r"^https?://", uri):
        return uri
    raise ValueError(f"found {redact_text(uri)!r}, wanted {_KNOWN}")


def _artifact_root(location: str, root: Path) -> str:
    if not location:
        return str(root / "mlartifacts")
    if location.startswith("s3://"):
        return location.rstrip("/")
    location = location.removeprefix("file://")
    if "://" in location:
        raise ValueError(f"found {redact_text(location)!r}, wanted a folder, file:///FOLDER or s3://BUCKET/PREFIX")
    return str((root / location).resolve())
