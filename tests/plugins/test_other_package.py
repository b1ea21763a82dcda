"""A package of somebody else, built and installed for real, adds parts that configuration files can name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "mango-orchard"
version = "1.0"

[project.entry-points."mango.mergers"]
largest = "mango_orchard.merging"
"""

MERGING = """
import torch
from mango.config import Frozen
from mango.merging import merge_method


class LargestParams(Frozen):
    floor: float = 0.0


@merge_method("largest", LargestParams, base="none")
def largest(tensors, *, dtype, floor=0.0):
    stacked = torch.stack([t.float() for t in tensors])
    picked = stacked.gather(0, stacked.abs().argmax(0, keepdim=True))[0]
    return torch.where(picked.abs() < floor, 0.0, picked).to(dtype)
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package and install it into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    package = source / "mango_orchard"
    package.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (package / "__init__.py").write_text("")
    (package / "merging.py").write_text(MERGING)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, capture_output=True)
    return target


def run_with(installed: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that sees the installed package."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(installed)])}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environ, cwd=ROOT
    )


@pytest.mark.slow
def test_a_merge_method_of_another_package_merges(installed: Path, tmp_path: Path) -> None:
    document = tmp_path / "largest.yaml"
    document.write_text(
        "merge_method: largest\nmodels: [{model: code}, {model: novels}]\nparameters: {floor: 0.001}\ndtype: float32\n"
    )
    command = "import sys; from mango.cli.app import main; main(sys.argv[1:])"
    out = tmp_path / "out"
    done = run_with(installed, command, "merge", str(document), str(out), "--models", "params.yaml")
    assert done.returncode == 0, done.stderr

    from mango.checkpoints import Checkpoint

    tiny = ROOT / "models" / "tiny"
    merged, code, novels = (Checkpoint.open(folder) for folder in (out, tiny / "code", tiny / "novels"))
    name = "model.layers.1.mlp.up_proj.weight"
    pair = [model.tensor(name).float() for model in (code, novels)]
    largest = pair[0].where(pair[0].abs() >= pair[1].abs(), pair[1])
    assert merged.tensor(name).equal(largest.where(largest.abs() >= 0.001, 0.0))


def test_its_parameters_are_checked_by_its_own_model(installed: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    chosen = "method: largest\n  largest: {flor: 1}"
    text = (ROOT / "params.yaml").read_text().replace("method: task_arithmetic", chosen)
    params.write_text(text)
    code = "import sys, pathlib; from stages.params import load_params; load_params(pathlib.Path(sys.argv[1]))"
    line = next(n for n, row in enumerate(text.splitlines(), 1) if "flor" in row)
    shown = run_with(installed, code, str(params)).stderr
    assert f"{params}:{line} merge.largest.flor: unknown key; did you mean 'floor'?" in shown


def test_without_the_package_the_name_is_unknown(tmp_path: Path) -> None:
    code = "from mango.merging import MERGERS; MERGERS['largest']"
    shown = run_with(tmp_path, code).stderr
    assert "unknown merge method 'largest'. Known: linear, slerp, task_arithmetic, ties" in shown
