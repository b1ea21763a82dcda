"""The UI comes up small, answers on this machine, and goes away."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import psutil
import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings, stage_run, ui_server

SERVE = """
import sys
from mango.tracking import TrackingSettings, serve_ui
serve_ui(0, announce=lambda address: print(address, flush=True), settings=TrackingSettings(root=sys.argv[1]))
"""


@pytest.mark.slow
def test_the_ui_shows_the_runs_and_stops_when_asked(settings: TrackingSettings) -> None:
    with stage_run("train", settings=settings, params={"seed": 0}) as run:
        pass
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(settings.root)], stdout=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(address, timeout=30) as page:
            assert b"<title>MLflow</title>" in page.read()
        with urllib.request.urlopen(f"{address}/api/2.0/mlflow/runs/get?run_id={run.run_id}", timeout=30) as answer:
            assert json.load(answer)["run"]["data"]["params"] == [{"key": "seed", "value": "0"}]
        servers = psutil.Process(process.pid).children(recursive=True)
        assert (
            len(servers) <= 4
        )  # a starter, the server, its worker and Python's resource tracker; MLflow's default: 15
        assert not any("sqlite" in word for server in servers for word in server.cmdline())
        listening = {
            item.laddr.ip for server in servers for item in server.net_connections() if item.status == "LISTEN"
        }
        assert listening == {"127.0.0.1"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not any(server.is_running() and server.status() != psutil.STATUS_ZOMBIE for server in servers)


def test_a_taken_port_is_said(settings: TrackingSettings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(RegistryError, match=rf"port {port} of 127\.0\.0\.1: .* choose another with --port"),
            ui_server(port, settings=settings),
        ):
            pytest.fail("served")


def test_a_tracking_server_is_its_own_ui(settings: TrackingSettings) -> None:
    server = TrackingSettings(root=settings.root, uri="https://me:hunter2@host")
    with (
        pytest.raises(RegistryError, match=r"https://\*\*\*@host: is a tracking server; open it in a browser"),
        ui_server(settings=server),
    ):
        pytest.fail("served")
