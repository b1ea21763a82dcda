"""Artifacts, packages and DVC's cache on an S3 service: moto's, on the loopback address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings, open_package, promote, stage_run, why
from mango.tracking.store import open_store

pytestmark = pytest.mark.slow

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Give the address of an S3 service that holds the bucket ``mango``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(urllib.request.Request(f"{address}/mango", method="PUT"), timeout=5).close()
                    break
                except urllib.error.URLError:
                    assert time.monotonic() < deadline, "moto's server did not answer"
                    time.sleep(0.1)
            yield address
        finally:
            server.terminate()


@pytest.fixture
def store(settings: TrackingSettings, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> TrackingSettings:
    """Give settings whose artifacts lie in the bucket."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(
        "MLFLOW_S3_ENDPOINT_URL", ""
    )  # so that it is put back after the test; settings bring the address
    return TrackingSettings(root=settings.root, artifact_root="s3://mango/files", s3_endpoint_url=endpoint)


def keys(endpoint: str) -> list[str]:
    import boto3

    client: Any = boto3.client("s3", endpoint_url=endpoint)
    return sorted(item["Key"] for item in client.list_objects_v2(Bucket="mango").get("Contents", []))


def test_artifacts_of_a_run(store: TrackingSettings, endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<html>")
    with stage_run("evaluate", settings=store, params={}) as run:
        run.log_artifact(tmp_path / "report.html")
    assert f"files/runs/{run.run_id}/artifacts/report.html" in keys(endpoint)
    assert [item.path for item in open_store(store).list_artifacts(run.run_id)] == ["report.html"]


def test_packages_are_uploaded_once_and_checked_when_fetched(
    store: TrackingSettings, endpoint: str, make_package: Callable[..., Path]
) -> None:
    import boto3

    first = promote("tiny", make_package(3.0), settings=store)
    place = f"files/packages/{first.package_sha256}"
    stored = [key for key in keys(endpoint) if key.startswith(place)]
    wanted = ["README.md", "mango.json", "model.safetensors", "tokenizer/vocab.txt"]
    assert stored == [f"{place}/{name}" for name in wanted]
    assert promote("tiny", make_package(3.0), settings=store).version == 1
    answer = why("models:/tiny@champion", settings=store)
    assert (answer.source, answer.package) == (f"s3://mango/{place}", "intact")
    with open_package(answer.source, store) as folder:
        assert (folder / "model.safetensors").read_bytes() == b"weights 3.0"
    bucket: Any = boto3.client("s3", endpoint_url=endpoint)
    bucket.put_object(Bucket="mango", Key=f"{place}/model.safetensors", Body=b"weights 4.0")
    with pytest.raises(RegistryError, match=r"model\.safetensors: found 11 bytes"), open_package(answer.source, store):
        pytest.fail("opened")
    bucket.delete_object(Bucket="mango", Key=f"{place}/mango.json")
    assert why("models:/tiny@champion", settings=store).package == "missing"


def test_dvc_pushes_and_pulls(endpoint: str, tmp_path: Path) -> None:
    environ = {**os.environ, **KEYS, "DVC_NO_ANALYTICS": "true", "GIT_CONFIG_GLOBAL": os.devnull}

    def dvc(*words: str) -> None:
        done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=tmp_path, env=environ, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

    data = tmp_path / "corpus.txt"
    data.write_text("text " * 100)
    dvc("init", "--no-scm", "--quiet")
    dvc("remote", "add", "--quiet", "--default", "store", "s3://mango/dvc")
    dvc("remote", "modify", "store", "endpointurl", endpoint)
    dvc("add", "--quiet", "corpus.txt")
    dvc("push", "--quiet")
    data.unlink()
    subprocess.run(["rm", "-r", str(tmp_path / ".dvc" / "cache")], check=True)
    dvc("pull", "--quiet")
    assert data.read_text() == "text " * 100
