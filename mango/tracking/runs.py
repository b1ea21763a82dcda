"""What a pipeline stage logs to: a run, or nothing when tracking is off."""

from __future__ import annotations

import json
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from mango.errors import RegistryError
from mango.redaction import hide_secrets, redact, redact_text
from mango.tracking.values import check_metrics, chunks, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_METRICS_PER_BATCH = 1000
_TEXTS_PER_BATCH = 100
_FLUSH_EVERY_S = 10.0
_LONGEST_DIGEST = 36


class StageRun(ABC):
    """The run of one stage: where its parameters, metrics, files and data sets are logged."""

    run_id: str | None
    """Id of this stage's run; None when tracking is off."""
    parent_id: str | None
    """Id of the pipeline's run; the run's own id outside a pipeline; None when tracking is off."""

    @abstractmethod
    def log_params(self, params: Mapping[str, object] | BaseModel) -> None:
        """Log nested parameters under dotted names, on this run and its parent."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of a step. They are sent in batches: at 1,000 values, every ten seconds, and at the end."""

    @abstractmethod
    def log_headline(self, metrics: Mapping[str, float]) -> None:
        """Log final metrics on this run and on its parent, whose comparison table shows them."""

    @abstractmethod
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, below ``folder``."""

    @abstractmethod
    def log_artifacts(self, path: Path, folder: str | None = None) -> None:
        """Copy what a folder holds into the run's artifacts, below ``folder``."""

    @abstractmethod
    def log_dataset(self, name: str, path: Path, sha256: str, context: str = "input") -> None:
        """Record a data set that the run reads: its name, place, SHA-256 and use."""

    @abstractmethod
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on this run."""

    @abstractmethod
    def flush(self) -> None:
        """Send what waits to be logged."""


class NullRun(StageRun):
    """A run that records nothing: tracking is off."""

    run_id = None
    parent_id = None

    def log_params(self, params: Mapping[str, object] | BaseModel) -> None:
        """Record nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record nothing; wrong values are still an error."""
        check_metrics(metrics)

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        """Record nothing; wrong values are still an error."""
        check_metrics(metrics)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record nothing."""

    def log_artifacts(self, path: Path, folder: str | None = None) -> None:
        """Record nothing."""

    def log_dataset(self, name: str, path: Path, sha256: str, context: str = "input") -> None:
        """Record nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record nothing."""

    def flush(self) -> None:
        """Nothing waits."""


class MlflowRun(StageRun):
    """A run in the tracking store.

    Args:
        client: of an open store.
        run_id: run to log to.
        parent_id: the pipeline's run, or ``run_id`` itself.
    """

    def __init__(self, client: MlflowClient, run_id: str, parent_id: str) -> None:
        self.run_id: str = run_id
        self.parent_id: str = parent_id
        self._client = client
        self._waiting: list[Metric] = []
        self._flushed_at = time.monotonic()

    def log_params(self, params: Mapping[str, object] | BaseModel) -> None:
        """Log nested parameters on this run and its parent.

        Raises:
            RegistryError: this run already holds another value for one of them.
        """
        flat = flatten(params)
        write_params(self._client, self.run_id, flat)
        if self.parent_id != self.run_id:
            # The first stage's value stays when params.yaml is edited while the pipeline runs; each child has its own.
            known = self._client.get_run(self.parent_id).data.params
            write_params(self._client, self.parent_id, {k: v for k, v in flat.items() if k not in known})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of a step, in batches.

        Raises:
            RegistryError: a value is no number.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in check_metrics(metrics).items()]
        if len(self._waiting) >= _METRICS_PER_BATCH or time.monotonic() - self._flushed_at > _FLUSH_EVERY_S:
            self.flush()

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        """Log final metrics on this run and on its parent.

        Raises:
            RegistryError: a value is no number.
        """
        self.log_metrics(metrics)
        if self.parent_id != self.run_id:
            write_metrics(self._client, self.parent_id, metrics)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts; secrets in a text are hidden in the copy.

        Raises:
            RegistryError: there is no such file.
        """
        if not path.is_file():
            raise RegistryError(f"{path}: no such file to log; log it after it is written")
        with _without_secrets(path) as fit:
            self._client.log_artifact(self.run_id, str(fit), folder)

    def log_artifacts(self, path: Path, folder: str | None = None) -> None:
        """Copy what a folder holds into the run's artifacts; secrets in texts are hidden in the copies.

        Raises:
            RegistryError: there is no such folder.
        """
        if not path.is_dir():
            raise RegistryError(f"{path}: no such folder to log; log it after it is written")
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            below = file.parent.relative_to(path).as_posix()
            self.log_artifact(file, "/".join(part for part in (folder, below) if part and part != ".") or None)

    def log_dataset(self, name: str, path: Path, sha256: str, context: str = "input") -> None:
        """Record a data set that the run reads.

        Args:
            name: what people call it.
            path: where it is, relative to the repository where possible, so that equal data is one data set.
            sha256: of its content; MLflow's digest is its first 36 digits, the profile holds all of it.
            context: what the run uses it for (``training``, ``evaluation``).
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=sha256[:_LONGEST_DIGEST],
            source_type="local",
            source=json.dumps({"uri": redact_text(path.as_posix())}),
            profile=json.dumps({"sha256": sha256}),
        )
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on this run, with secrets redacted."""
        write_tags(self._client, self.run_id, tags)

    def flush(self) -> None:
        """Send the metrics that wait."""
        waiting, self._waiting = self._waiting, []
        self._flushed_at = time.monotonic()
        for batch in chunks(waiting, _METRICS_PER_BATCH):
            self._client.log_batch(self.run_id, metrics=batch)


@contextmanager
def _without_secrets(path: Path) -> Iterator[Path]:
    """Give the file itself, or for as long as the context lasts a copy in which the secrets of a text are hidden."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:  # no text
        yield path
        return
    hidden = hide_secrets(text)
    if hidden == text:
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, path.name)
        copy.write_bytes(hidden.encode())
        yield copy


def write_params(client: MlflowClient, run_id: str, flat: Mapping[str, str]) -> None:
    """Log flat, redacted parameters in batches.

    Raises:
        RegistryError: the run already holds another value for one of them.
    """
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    for batch in chunks([Param(name, value) for name, value in flat.items()], _TEXTS_PER_BATCH):
        try:
            client.log_batch(run_id, params=batch)
        except MlflowException as error:
            raise RegistryError(f"run {run_id}: {redact_text(str(error)).splitlines()[0]}") from error


def write_metrics(client: MlflowClient, run_id: str, metrics: Mapping[str, float]) -> None:
    """Log final metrics in batches."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values = [Metric(name, value, now, 0) for name, value in check_metrics(metrics).items()]
    for batch in chunks(values, _METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=batch)


def write_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags in batches, with secrets redacted."""
    from mlflow.entities import RunTag

    for batch in chunks([RunTag(name, redact(name, value)) for name, value in tags.items()], _TEXTS_PER_BATCH):
        client.log_batch(run_id, tags=batch)
