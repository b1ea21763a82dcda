"""Starts the small MLflow UI: one worker, on this machine only, no job runners."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mango.errors import RegistryError
from mango.redaction import redact_text
from mango.signals import end_signals_as_exceptions
from mango.tracking.environment import server_environment
from mango.tracking.settings import TrackingSettings
from mango.tracking.store import experiment_id, open_store
from mango.tracking.view import share_comparison

_HOST = "127.0.0.1"
_STOP_S = 10.0


@contextmanager
def ui_server(port: int = 0, *, settings: TrackingSettings | None = None, ready_s: float = 120.0) -> Iterator[str]:
    """Run the MLflow UI in a process of its own for as long as the context lasts.

    MLflow's default is fifteen processes and 1.9 GB; with job execution off and one worker it is two and 0.5 GB. It
    listens on the loopback address alone, and there is no option for another: it knows no users, so whoever reaches it
    may change what it holds. From elsewhere an SSH tunnel leads to it, which knows who you are.

    Args:
        port: of the loopback address; 0 takes a free one.
        settings: which store to show; from the environment when None.
        ready_s: how long the server may take to answer, in seconds.

    Yields:
        the address to open: the run table with the columns that tell experiments apart.

    Raises:
        RegistryError: the port is taken, the store is itself a server, or the UI did not come up.
    """
    settings = TrackingSettings.from_environment() if settings is None else settings
    if settings.backend == "server":
        raise RegistryError(f"{settings.safe_uri}: is a tracking server; open it in a browser")
    port = _claim(port)
    client = open_store(settings)
    view = share_comparison(client, experiment_id(client, settings))
    environ = server_environment(settings)
    command = [sys.executable, "-m", "mlflow", "server", "--host", _HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", settings.artifact_uri]
    # A page from elsewhere could reach this port through a name that it lets point here: the Host header gives it away.
    command += ["--allowed-hosts", f"{_HOST}:*,localhost:*"]  # any port: that of a tunnel differs
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://{_HOST}:{port}"
            if not _answers(address, server, ready_s):
                log.seek(0)
                lines = log.read().decode(errors="replace").strip().splitlines() or ["no output"]
                raise RegistryError(f"the MLflow UI did not come up: {redact_text(lines[-1])}")
            yield f"{address}/{view}"
        finally:
            _stop(server)


def serve_ui(port: int = 5000, *, announce: Callable[[str], None], settings: TrackingSettings | None = None) -> None:
    """Run the MLflow UI until the process is asked to end (Ctrl-C, SIGTERM).

    Args:
        port: of the loopback address; 0 takes a free one.
        announce: called with the address once the UI answers.
        settings: which store to show; from the environment when None.

    Raises:
        RegistryError: as for `ui_server`.
    """
    with end_signals_as_exceptions(), ui_server(port, settings=settings) as address:
        announce(address)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def _claim(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise RegistryError(f"port {port} of {_HOST}: {error.strerror}; choose another with --port") from error
        return int(probe.getsockname()[1])


def _answers(address: str, server: subprocess.Popen[bytes], ready_s: float) -> bool:
    deadline = time.monotonic() + ready_s
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers: they are a process group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(_STOP_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
