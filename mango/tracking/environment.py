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
# Without it MLflow's server checks neither Host nor Origin, and any page that a browser shows could call it.
_GUARDED = {"MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false", "MLFLOW_SERVER_X_FRAME_OPTIONS": "DENY"}
# Each of them could open the server further than its command line says, or give it other hands.
_NOT_PASSED_ON = (
    "MLFLOW_ARTIFACTS_DESTINATION",
    "MLFLOW_DEFAULT_ARTIFACT_ROOT",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_GUNICORN_OPTS",
    "MLFLOW_HOST",
    "MLFLOW_REGISTRY_STORE_URI",
    "MLFLOW_SERVER_ALLOWED_HOSTS",
    "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS",
    "MLFLOW_STATIC_PREFIX",
    "MLFLOW_UVICORN_OPTS",
    "MLFLOW_WORKERS",
)
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


def server_environment(settings: TrackingSettings) -> dict[str, str]:
    """Return the environment for an MLflow server: quiet, without pickles, and with its checks of requests on.

    The tracking address goes in here: command lines can be read by everyone on the machine. Secrets that the server
    has no use for stay out.
    """
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_PASSED_ON and not name.startswith("MANGO_SIGNING_")
    }
    quieten(settings, environ)
    environ.update(_GUARDED)
    environ["MLFLOW_BACKEND_STORE_URI"] = settings.uri
    return environ
