"""Environment of everything that tracking starts or imports: no telemetry, no system metrics, no pickles."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from mango.tracking.settings import TrackingSettings

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
# System metrics once hung a script four times out of four, so they stay off unless somebody asks for them by name.
_UNLESS_ASKED = {"MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"}


def quieten(settings: TrackingSettings, environ: MutableMapping[str, str] | None = None) -> None:
    """Prepare an environment before mlflow is imported or started in it.

    Args:
        settings: gives the S3 endpoint, which mlflow reads from the environment alone.
        environ: the environment to change; this process's own when None.
    """
    environ = os.environ if environ is None else environ
    environ.update(_QUIET)
    for name, value in _UNLESS_ASKED.items():
        environ.setdefault(name, value)
    if settings.s3_endpoint_url:
        environ["MLFLOW_S3_ENDPOINT_URL"] = settings.s3_endpoint_url
