"""Gives a run to what DVC restored from its cache: no process ran, so nothing else could have made one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mango.errors import RegistryError
from mango.redaction import redact, redact_text
from mango.tracking.environment import quieten
from mango.tracking.locks import machine_lock
from mango.tracking.reaping import reap
from mango.tracking.runs import write_metrics, write_params
from mango.tracking.settings import TrackingSettings
from mango.tracking.store import experiment_id, open_store
from mango.tracking.values import flatten, numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_UNFINISHED = {"Queued", "Running", "Failed"}


@dataclass(frozen=True)
class SyncedRun:
    """A run that was made for a cached experiment or commit.

    Args:
        run_id: the new run.
        name: of the experiment, or the first digits of the commit.
        revision: git revision that holds the results.
        cached: stage to the run that produced its cached outputs.
    """

    run_id: str
    name: str
    revision: str
    cached: dict[str, str]

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class _Result:
    """What DVC knows of one finished experiment (``name`` is set) or of a commit."""

    name: str
    revision: str
    baseline: str
    params: dict[str, Any]
    metrics: dict[str, dict[str, Any]]


def sync(*, settings: TrackingSettings | None = None) -> list[SyncedRun]:
    """Give a run to every finished DVC experiment, and to the current commit, that has none.

    When all stages come from DVC's cache no process starts, hence no run, and the experiment would be missing from the
    MLflow comparison. The run made here has the experiment's parameters, the headline metrics of the runs that
    produced the cached outputs (the metrics files name them under ``run_id``) and links to them as tags
    ``mango.cached.STAGE``. Changes that are not committed get none. Runs left open by processes that are gone are
    closed on the way.

    Returns:
        the runs that were made; empty when all have one.

    Raises:
        RegistryError: tracking is off, or DVC cannot list its experiments.
    """
    settings = TrackingSettings.from_environment() if settings is None else settings
    client = open_store(settings)
    experiment = experiment_id(client, settings)
    reap(client, experiment)
    results = list(_results(_exp_show(settings)))
    made = []
    with machine_lock(settings, "pipeline"):
        for result in results:
            sources = _sources(client, result)
            if not _has_run(client, experiment, result, sources):
                made.append(_make_run(client, experiment, result, sources))
    return made


def _exp_show(settings: TrackingSettings) -> list[dict[str, Any]]:
    environ = dict(os.environ)
    quieten(settings, environ)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--json"],
        cwd=settings.root,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise RegistryError(f"{settings.root}: `dvc exp show` failed: {redact_text(last)}")
    shown: list[dict[str, Any]] = json.loads(done.stdout)
    return shown


def _results(shown: list[dict[str, Any]]) -> Iterator[_Result]:
    for commit in shown:
        if commit["rev"] == "workspace" or not commit.get("data"):
            continue
        head = commit["rev"]
        if commit["data"].get("metrics"):
            yield _result("", head, commit["data"])
        for branch in commit.get("experiments") or ():
            state = (branch.get("executor") or {}).get("state")
            newest = branch["revs"][0]
            if state not in _UNFINISHED and newest.get("data"):
                yield _result(branch.get("name") or newest.get("name") or "", head, newest["data"])


def _result(name: str, baseline: str, data: Mapping[str, Any]) -> _Result:
    params: dict[str, Any] = {}
    for content in (data.get("params") or {}).values():
        params.update(content.get("data") or {})
    files = {path: content.get("data") for path, content in (data.get("metrics") or {}).items()}
    metrics = {path: content for path, content in files.items() if isinstance(content, dict)}
    return _Result(name, data["rev"], baseline, params, metrics)


@dataclass(frozen=True)
class _Source:
    """The run that made one cached stage, and its parent; both None if they are in another machine's store."""

    stage: str
    run_id: str
    run: Run | None
    parent: Run | None


def _sources(client: MlflowClient, result: _Result) -> list[_Source]:
    from mlflow.exceptions import MlflowException

    found = []
    for path, data in result.metrics.items():
        run_id = data.get("run_id")
        if not isinstance(run_id, str):
            continue
        stage = path.rpartition("/")[2].removesuffix(".json")
        try:
            run = client.get_run(run_id)
            parent = client.get_run(run.data.tags.get("mlflow.parentRunId", run_id))
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            found.append(_Source(stage, run_id, None, None))
        else:
            found.append(_Source(run.data.tags.get("mango.stage", stage), run_id, run, parent))
    return found


def _has_run(client: MlflowClient, experiment: str, result: _Result, sources: list[_Source]) -> bool:
    query = f"tags.`mango.kind` = 'pipeline' and tags.`mango.baseline` = '{result.baseline}'"
    if result.name:
        query += f" and tags.`mango.exp_name` = '{result.name}'"
        return bool(client.search_runs([experiment], query, max_results=1))
    if any("mango.exp_name" not in run.data.tags for run in client.search_runs([experiment], query, max_results=1000)):
        return True
    # `dvc repro` runs before its results are committed, so its run has the commit before as baseline.
    params = flatten(result.params)
    return any(
        source.parent is not None
        and "mango.exp_name" not in source.parent.data.tags
        and all(params.get(name) == value for name, value in source.parent.data.params.items())
        for source in sources
    )


def _make_run(client: MlflowClient, experiment: str, result: _Result, sources: list[_Source]) -> SyncedRun:
    cached = {source.stage: source.run_id for source in sources}
    tags = {
        "mango.kind": "pipeline",
        "mango.synced": "true",
        "mango.baseline": result.baseline,
        "mlflow.source.git.commit": result.revision,
        **({"mango.exp_name": result.name} if result.name else {}),
        **{f"mango.cached.{stage}": run_id for stage, run_id in cached.items()},
    }
    name = result.name or f"repro-{result.revision[:7]}"
    hidden = {key: redact(key, value) for key, value in tags.items()}
    run_id = str(client.create_run(experiment, run_name=name, tags=hidden).info.run_id)
    write_params(client, run_id, flatten(result.params))
    write_metrics(client, run_id, _headline(result, sources))
    client.set_terminated(run_id, "FINISHED")
    return SyncedRun(run_id, name, result.revision, cached)


def _headline(result: _Result, sources: list[_Source]) -> dict[str, float]:
    """Return what the stages' runs gave their parents; for runs of another machine, the reports' own headlines."""
    headline: dict[str, float] = {}
    for source in sources:
        if source.run is not None and source.parent is not None:
            above = source.parent.data.metrics
            headline.update({key: value for key, value in source.run.data.metrics.items() if above.get(key) == value})
    if all(source.run is None for source in sources):
        for data in result.metrics.values():
            if isinstance(data.get("headline"), Mapping):
                headline.update(numbers(data["headline"]))
    return headline
