"""The UI comes up small, answers on this machine, and goes away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings, promote, stage_run, ui_server
from mango.tracking.store import experiment_id, open_store
from mango.tracking.view import share_comparison

SERVE = """
import sys
from mango.tracking import TrackingSettings, serve_ui
serve_ui(0, announce=lambda address: print(address, flush=True), settings=TrackingSettings(root=sys.argv[1]))
"""


OPENING = {
    "MLFLOW_HOST": "0.0.0.0",
    "MLFLOW_UVICORN_OPTS": "--host 0.0.0.0",
    "MLFLOW_SERVER_ALLOWED_HOSTS": "*",
    "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "*",
    "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true",
    "MANGO_SIGNING_PASSWORD": "planted-password",
}
"""An environment that would open the server to everyone."""


def answer_to(url: str, headers: dict[str, str]) -> tuple[int, str | None]:
    content = json.dumps({"max_results": 1}).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json", **headers}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["X-Frame-Options"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


def read_experiment(settings: TrackingSettings) -> str:
    return experiment_id(open_store(settings), settings)


def test_the_view_has_the_columns_that_tell_runs_apart(settings: TrackingSettings) -> None:
    client = open_store(settings)
    for seed, kind in ((0, "token"), (1, "token"), (0, "topk")):
        parent = client.create_run(read_experiment(settings), tags={"mango.kind": "pipeline"}).info.run_id
        params = {"seed": seed, "router": {"type": kind}, "merge": {"method": "ties"}, "train": {"steps": 5 + seed}}
        with stage_run("evaluate", settings=settings.model_copy(update={"parent_run": parent}), params=params) as run:
            run.log_metrics({"loss": 1.0})
            run.log_headline({"z_gap": 0.9})
        with stage_run("package", settings=settings.model_copy(update={"parent_run": parent}), params={}) as run:
            run.log_headline({"num_bytes": 9.0})
    share_comparison(client, read_experiment(settings))
    tags = client.get_experiment(read_experiment(settings)).tags
    assert json.loads(tags["mlflow.sharedViewState.mango"])["selectedColumns"] == [
        "params.`router.type`",
        "params.`seed`",
        "params.`train.steps`",
        "metrics.`z_gap`",
        "metrics.`num_bytes`",
    ]


@pytest.mark.slow
def test_the_ui_is_a_tracking_server_for_runs_but_not_for_promotions(
    settings: TrackingSettings, make_package: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("<html>")
    with ui_server(settings=settings) as address:
        remote = TrackingSettings(root=tmp_path, uri=address.partition("/#")[0], experiment="remote")
        with stage_run("train", settings=remote, params={"seed": 0}) as run:
            run.log_metrics({"loss": 1.0}, 3)
            run.log_artifact(tmp_path / "report.html")
            run.log_dataset("corpus", Path("data"), "ab" * 32)
        with pytest.raises(RegistryError, match=r"http://127.*: a tracking server has no lock"):
            promote("tiny", make_package(), settings=remote)
    found = open_store(settings).get_run(run.run_id)
    assert (found.info.status, found.data.params, found.data.metrics) == ("FINISHED", {"seed": "0"}, {"loss": 1.0})
    (stored,) = (settings.root / "mlartifacts").rglob("report.html")
    assert run.run_id in str(stored)


@pytest.mark.slow
def test_the_ui_shows_the_runs_and_stops_when_asked(settings: TrackingSettings) -> None:
    with stage_run("train", settings=settings, params={"seed": 0}) as run:
        pass
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(settings.root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **OPENING},
    ) as process:
        address, _, view = process.stdout.readline().strip().partition("/#")
        assert view == f"/experiments/{read_experiment(settings)}/runs?viewStateShareKey=mango"
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
        environment = next(server.environ() for server in servers if "MLFLOW_BACKEND_STORE_URI" in server.environ())
        assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
        assert "MANGO_SIGNING_PASSWORD" not in environment
        search = f"{address}/api/2.0/mlflow/experiments/search"
        for headers, status in (
            ({}, 200),
            ({"Host": "localhost:1234"}, 200),  # through a tunnel
            ({"Host": "rebound.example"}, 403),
            ({"Host": "192.168.1.1"}, 403),
            ({"Origin": "https://elsewhere.example"}, 403),
        ):
            assert answer_to(search, headers) == (status, "DENY" if status == 200 else None), headers
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
