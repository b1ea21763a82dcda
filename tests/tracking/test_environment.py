"""What mlflow is imported and started in: no pickles, no telemetry, and a server that stays closed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mango.tracking
from mango.tracking import TrackingSettings
from mango.tracking.environment import quieten, server_environment

ROOM = Path(mango.tracking.__file__).parent

SAVE = """
import sys, mlflow.pyfunc

class Planted(mlflow.pyfunc.PythonModel):
    def __reduce__(self):
        return (open, (sys.argv[2], "w"))
    def predict(self, context, model_input, params=None):
        return model_input

mlflow.pyfunc.save_model(sys.argv[1], python_model=Planted(), pip_requirements=[])
"""

LOAD = """
import sys
from pathlib import Path
from mango.tracking import TrackingSettings
from mango.tracking.store import open_store
open_store(TrackingSettings(root=sys.argv[2]))
import mlflow.pyfunc
from mlflow.exceptions import MlflowException
try:
    mlflow.pyfunc.load_model(sys.argv[1])
except MlflowException as error:
    print(error)
else:
    print("loaded")
"""


def run(program: str, *arguments: str, **environment: str) -> str:
    import os

    words = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_pickled_model_does_not_load(settings: TrackingSettings, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    run(SAVE, str(tmp_path / "model"), str(ran), MLFLOW_ALLOW_PICKLE_DESERIALIZATION="true")
    run(
        "import sys, mlflow.pyfunc\ntry: mlflow.pyfunc.load_model(sys.argv[1])\nexcept Exception: pass",
        str(tmp_path / "model"),
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="true",
    )
    assert ran.exists(), "the planted pickle does nothing, so that refusing it shows nothing"
    ran.unlink()
    answer = run(LOAD, str(tmp_path / "model"), str(settings.root), MLFLOW_ALLOW_PICKLE_DESERIALIZATION="true")
    assert "Deserializing model using pickle is disallowed" in answer
    assert not ran.exists()


def test_pickles_are_off_whatever_the_environment_says(settings: TrackingSettings) -> None:
    environ = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true", "MLFLOW_DISABLE_TELEMETRY": "false"}
    quieten(settings, environ)
    assert environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_server_gets_no_setting_that_opens_it(settings: TrackingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HOST", "MLFLOW_UVICORN_OPTS", "MLFLOW_SERVER_ALLOWED_HOSTS", "MANGO_SIGNING_PASSWORD"):
        monkeypatch.setenv(name, "0.0.0.0")
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    environ = server_environment(settings)
    assert "0.0.0.0" not in environ.values()
    assert environ["MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"] == "false"
    assert environ["MLFLOW_BACKEND_STORE_URI"] == settings.uri


def test_nothing_of_mlflow_that_loads_models_is_used() -> None:
    """Packages are opened by our own reader; MLflow's loaders run what a model folder says."""
    used = {}
    for path in sorted(ROOM.parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in {"load_model", "load_pyfunc", "load_state_dict_from_mlflow"} or (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith(("mlflow.pyfunc", "mlflow.pytorch", "mlflow.transformers"))
            ):
                used[path.name] = name or "import"
    assert used == {}


def test_importing_the_ways_in_leaves_mlflow_out() -> None:
    """MLflow reads its environment at each use, so setting it before the first import of it is early enough."""
    program = """
import json, os, sys
import mango.tracking
before = "mlflow" in sys.modules
from mango.tracking import TrackingSettings
from mango.tracking.store import migrate
migrate(TrackingSettings(root=sys.argv[1], uri="http://127.0.0.1:9"))
print(json.dumps([before, "mlflow" in sys.modules, os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]]))
"""
    assert json.loads(run(program, "/tmp")) == [False, False, "false"]
