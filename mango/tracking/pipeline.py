"""One parent run for each execution of the pipeline, one child for each stage."""

from __future__ import annotations

import getpass
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from mango.errors import RegistryError
from mango.redaction import redact, redact_text
from mango.signals import Terminated, end_signals_as_exceptions, end_signals_ignored
from mango.tracking import git
from mango.tracking.locks import machine_lock
from mango.tracking.processes import ProcessIdentity, dvc_ancestor
from mango.tracking.reaping import reap
from mango.tracking.runs import MlflowRun, NullRun, StageRun
from mango.tracking.settings import TrackingSettings
from mango.tracking.store import experiment_id, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FINISHED, _FAILED, _KILLED = "FINISHED", "FAILED", "KILLED"


@contextmanager
def stage_run(
    stage: str, *, settings: TrackingSettings | None = None, params: Mapping[str, object] | BaseModel
) -> Iterator[StageRun]:
    """Open a run for a stage, and close it however the stage ends.

    Inside ``dvc repro`` and ``dvc exp run`` the run is a child of the one run of that execution, which is found by a
    tag (a hash of the experiment name, the nearest ``dvc`` process above this one, the baseline revision and the
    experiment's name), so nothing is written that would disturb DVC's cache. Outside, the run stands alone, unless
    ``settings.parent_run`` names a parent, whose end is left to whoever began it. Runs left open by processes that are
    gone are closed first.

    Args:
        stage: name of the stage.
        settings: where to log; from the environment when None.
        params: nested parameters that the stage depends on; logged on the run and on its parent.

    Yields:
        the run. An exception ends it as FAILED; Ctrl-C, SIGTERM and SIGHUP end it as KILLED.

    Raises:
        RegistryError: the store cannot be opened, or ``settings.parent_run`` is not in it.
    """
    settings = TrackingSettings.from_environment() if settings is None else settings
    if not settings.enabled:
        yield NullRun()
        return
    with end_signals_as_exceptions():
        client = open_store(settings)
        experiment = experiment_id(client, settings)
        reap(client, experiment)
        parent = _parent_run(client, settings, experiment)
        own_tags = {**_code_tags(), **ProcessIdentity.own().tags(), "mango.stage": stage}
        if parent is None:
            run_id = _create(client, experiment, stage, {**own_tags, "mango.kind": "pipeline"})
        else:
            if not settings.parent_run:
                client.update_run(parent, status="RUNNING")
            own_tags |= {"mango.kind": "stage", "mlflow.parentRunId": parent}
            run_id = _create(client, experiment, stage, own_tags)
        run = MlflowRun(client, run_id, parent or run_id)
        try:
            run.log_params(params)
            yield run
            run.flush()
        except BaseException as error:
            with end_signals_ignored():
                _close(client, run, _status(error), error)
                if not settings.parent_run:
                    _close_parent(client, run, stage, _status(error))
            raise
        with end_signals_ignored():
            _close(client, run, _FINISHED, None)
            if not settings.parent_run:
                _close_parent(client, run, stage, _FINISHED)


def pipeline_key(settings: TrackingSettings, dvc: ProcessIdentity) -> str:
    """Return what tells this execution of the pipeline from every other one.

    Only what stays the same from the first stage to the last goes in: the baseline is that of a DVC experiment, since
    somebody may commit while a plain ``dvc repro`` runs.
    """
    exp_name, baseline = os.environ.get("DVC_EXP_NAME", ""), os.environ.get("DVC_EXP_BASELINE_REV", "")
    parts = [settings.experiment, dvc.host, dvc.boot, dvc.namespace, str(dvc.pid), dvc.started, baseline, exp_name]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _parent_run(client: MlflowClient, settings: TrackingSettings, experiment: str) -> str | None:
    if settings.parent_run:
        from mlflow.exceptions import MlflowException

        try:
            return str(client.get_run(settings.parent_run).info.run_id)
        except MlflowException as error:
            raise RegistryError(f"MANGO_PARENT_RUN: no run {settings.parent_run} in {settings.safe_uri}") from error
    dvc = dvc_ancestor()
    if dvc is None:
        return None
    key = pipeline_key(settings, dvc)
    with machine_lock(settings, "pipeline"):
        found = client.search_runs([experiment], f"tags.`mango.pipeline` = '{key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {**_code_tags(), **dvc.tags(), "mango.kind": "pipeline", "mango.pipeline": key}
        return _create(client, experiment, os.environ.get("DVC_EXP_NAME") or f"repro-{_baseline()[:7]}", tags)


def _create(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    hidden = {key: redact(key, value) for key, value in tags.items() if value}
    return str(client.create_run(experiment, run_name=name, tags=hidden).info.run_id)


def _baseline() -> str:
    return os.environ.get("DVC_EXP_BASELINE_REV") or git.revision(Path.cwd()) or ""


def _code_tags() -> dict[str, str]:
    here = Path.cwd()
    return {
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.git.commit": git.revision(here) or "",
        "mango.git.dirty": "true" if git.is_dirty(here) else "false",
        "mango.baseline": _baseline(),
        "mango.exp_name": os.environ.get("DVC_EXP_NAME", ""),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user number has no name
        return str(os.getuid())


def _close(client: MlflowClient, run: MlflowRun, status: str, error: BaseException | None) -> None:
    if error is not None:
        run.flush()
        if status != _FINISHED:
            run.set_tags({"mango.error": redact_text(f"{type(error).__name__}: {error}")[:1000]})
    client.set_terminated(run.run_id, status)


def _close_parent(client: MlflowClient, run: MlflowRun, stage: str, status: str) -> None:
    """Close the parent after each stage, since none knows whether it is the last; the next one opens it again."""
    if run.parent_id == run.run_id:
        return
    if status != _FINISHED:
        client.set_tag(run.parent_id, "mango.failed_stage", stage)
    # With `dvc repro --keep-going` later stages still run; one that succeeds must not hide the one that failed.
    parent = client.get_run(run.parent_id)
    broken = status == _FINISHED and "mango.failed_stage" in parent.data.tags
    client.set_terminated(run.parent_id, _FAILED if broken else status)


def _status(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | Terminated):
        return _KILLED
    return _FINISHED if isinstance(error, SystemExit) and error.code in (None, 0) else _FAILED
