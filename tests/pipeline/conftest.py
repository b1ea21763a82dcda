"""A project in which the pipeline has run, made once, and copies of it for tests that change it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.pipeline.project import STAGES, commit, dvc, make_project, ran


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Give a folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def finished_once(shared: Path) -> Path:
    """Run the whole pipeline once, also when several workers run the tests."""
    root = shared / "finished"
    with FileLock(shared / "finished.lock"):
        if not (root / "done").exists():
            root.mkdir()
            make_project(root)
            done = dvc(root, "repro")
            assert (done.returncode, sorted(ran(done))) == (0, sorted(STAGES)), done.stdout + done.stderr
            commit(root)
            (root / "done").touch()
    return root


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """Give a copy of one's own of a project in which the pipeline has run."""
    return copy_project(finished_once, tmp_path / "project")


@pytest.fixture(scope="module")
def finished_for_all(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give one copy to all tests of a file, for tests that put back what they change."""
    return copy_project(finished_once, tmp_path_factory.mktemp("projects") / "project")


def copy_project(root: Path, copy: Path) -> Path:
    """Copy a project with its outputs and DVC's cache."""
    shutil.copytree(root, copy, symlinks=True)
    (copy / "done").unlink()
    return copy
