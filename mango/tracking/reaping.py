"""Closes runs whose process is gone: SIGKILL, a power cut or an out-of-memory kill leaves them RUNNING for ever."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mango.tracking.processes import ProcessIdentity

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOGGER = logging.getLogger(__name__)


def reap(client: MlflowClient, experiment: str) -> list[str]:
    """Close as KILLED every open run that a process of this machine started and left.

    A run of another machine, or of a container whose processes cannot be seen from here, is left alone.

    Returns:
        ids of the runs that were closed.
    """
    from mlflow.entities import RunStatus, ViewType

    token: str | None = None
    stale: list[str] = []
    while True:
        page = client.search_runs(
            [experiment], "attributes.status = 'RUNNING'", ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
        )
        for run in page:
            process = ProcessIdentity.from_tags(run.data.tags)
            if process is not None and process.is_gone():
                stale.append(run.info.run_id)
        token = page.token
        if not token:
            break
    for run_id in stale:
        client.set_tag(run_id, "mango.reaped", "true")
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))
        _LOGGER.info("run %s was left open by a process that is gone: closed as KILLED", run_id)
    return stale
