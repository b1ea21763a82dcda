"""DVC and the pipeline: what runs again and what does not, and what a failed run leaves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stages.conftest import ROOT, fill
from tests.stages.test_pipeline_file import STAGES, outputs
from tests.stages.test_run import fingerprint


def dvc(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run DVC in a repository, with this environment's Python first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = os.environ | {"PATH": path, "MANGO_TRACKING": "off", "DVC_NO_ANALYTICS": "true"}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=repository, env=environ)


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the stages that a run says it ran."""
    return re.findall(r"Running stage '([\w-]+)'", done.stdout + done.stderr)


@pytest.fixture
def repository(models: Path, tmp_path: Path) -> Path:
    """Make a Git repository with the pipeline, this code and the small models."""
    for name in ("mango", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvcignore", ".gitignore", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, tmp_path / ".dvc")
    shutil.copytree(ROOT / "data" / "corpus", tmp_path / "data" / "corpus")
    (tmp_path / "models" / "sources").mkdir(parents=True)
    shutil.copy(ROOT / "models" / "sources" / "README.md", tmp_path / "models" / "sources")
    fill(tmp_path, models)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


@pytest.fixture
def recorded(repository: Path) -> Path:
    """Give every stage some outputs and tell DVC that they are right, so that it can say what a change would run."""
    for stage in STAGES.values():
        for output in outputs(stage):
            path = repository / output
            if path.suffix:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
            else:
                path.mkdir(parents=True)
                (path / "file").write_text(output)
    done = dvc(repository, "commit", "--force")
    assert done.returncode == 0, done.stderr
    return repository


def would_run(repository: Path, old: str, new: str) -> list[str]:
    """Return the stages that would run after a change of params.yaml."""
    path = repository / "params.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    done = dvc(repository, "repro", "--dry", "--force-downstream")
    assert done.returncode == 0, done.stderr
    path.write_text(text)
    return ran(done)


LATER = ["train-adapters-and-routers", "evaluate", "package"]


@pytest.mark.slow
def test_a_change_runs_what_depends_on_it_alone(recorded: Path) -> None:
    assert would_run(recorded, "seed: 0", "seed: 0 ") == []
    assert would_run(recorded, "  type: token", "  type: topk") == LATER
    assert would_run(recorded, "topk: {k: 1", "topk: {k: 2") == []
    assert would_run(recorded, "bottleneck: {size: 64}", "bottleneck: {size: 32}") == []
    assert would_run(recorded, "ties: {density: 0.2", "ties: {density: 0.3") == []
    assert would_run(recorded, "name: mango-tiny", "name: mango-other") == ["package"]
    assert would_run(recorded, "mode: reference", "mode: copy") == ["extract-blocks", *LATER]

    (recorded / "mango" / "packaging" / "__pycache__").mkdir()
    (recorded / "mango" / "packaging" / "__pycache__" / "x.pyc").write_bytes(b"x")
    start_s = time.perf_counter()
    done = dvc(recorded, "repro")
    assert time.perf_counter() - start_s < 10  # two seconds on a quiet machine
    assert (done.returncode, ran(done)) == (0, [])


@pytest.mark.slow
def test_a_failed_stage_keeps_its_outputs_and_repro_goes_on(repository: Path) -> None:
    done = dvc(repository, "repro", "merge")
    assert (done.returncode, ran(done)) == (0, ["merge"]), done.stderr
    before = fingerprint(repository / "models" / "merged"), fingerprint(repository / "reports")
    params = repository / "params.yaml"
    text = params.read_text()

    params.write_text(text.replace("lambda: 0.2", "lambda: 1e39"))  # beyond bfloat16: the result is not finite
    done = dvc(repository, "repro", "merge")
    assert done.returncode != 0
    assert (fingerprint(repository / "models" / "merged"), fingerprint(repository / "reports")) == before

    params.write_text(text.replace("method: task_arithmetic", "method: tise"))
    done = dvc(repository, "repro", "merge")
    assert done.returncode != 0
    assert (fingerprint(repository / "models" / "merged"), fingerprint(repository / "reports")) == before

    params.write_text(text)
    assert ran(dvc(repository, "repro", "merge")) == []
    tracked = subprocess.run(["git", "status", "--short"], cwd=repository, capture_output=True, text=True).stdout
    assert tracked.split() == ["A", "dvc.lock"]
