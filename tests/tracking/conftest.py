"""A store that was migrated once for all tests, and small packages that are valid."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mango.tracking import TrackingSettings


@pytest.fixture
def settings(tmp_path: Path, migrated_database: Path) -> TrackingSettings:
    """Give settings of a fresh store in the test's own folder."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copyfile(migrated_database, root / "mlflow.db")
    return TrackingSettings(root=root)


@pytest.fixture
def make_package(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that writes a small valid package; keywords replace parts of its manifest."""
    return lambda value=3.0, folder="package", **changes: write_package(tmp_path / folder, value, **changes)


def write_package(folder: Path, value: float, **changes: Any) -> Path:
    """Write a package whose metric has ``value``; a change to None leaves that part out."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"model.safetensors": f"weights {value}".encode(), "tokenizer/vocab.txt": b"a b c", "README.md": b"# card"}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    manifest = {
        "format_version": 1,
        "name": "tiny",
        "files": {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in files.items()},
        "git": {"revision": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "data": {"corpus_sha256": "c" * 64, "files": {"test.parquet": "d" * 64}},
        "parameters": {"seed": 0, "router": {"type": "token"}, "hub": {"token": "hf_secretsecretsecret1"}},
        "parents": [{"name": "base", "source": "models/tiny/base", "licence": "Apache-2.0", "sha256": "e" * 64}],
        "evaluation": {
            "headline": {"gap_closed_soft": 0.95},
            "systems": [{"name": "fused_hard", "switching": value, "pure": {"code": 1.5}}],
        },
        "gates": {"corpus": {"success": True}, "metrics": {"success": True}},
        "metric": {"name": "fused_hard.switching", "value": value, "mode": "min"},
        "reproduce": "git checkout 0123456 && dvc exp run -S router.type=token -S hub.token=hf_secretsecretsecret1",
        **changes,
    }
    text = json.dumps({key: part for key, part in manifest.items() if part is not None})
    (folder / "mango.json").write_text(text)
    return folder


@pytest.fixture
def fake_dvc(tmp_path: Path) -> Path:
    """Give a program called ``dvc`` that prints its number and runs each argument in a shell, as DVC runs stages."""
    script = tmp_path / "bin" / "dvc"
    script.parent.mkdir()
    script.write_text(
        "import os, subprocess, sys\n"
        "print(os.getpid(), flush=True)\n"
        "codes = [subprocess.run(command, shell=True).returncode for command in sys.argv[1:]]\n"
        "sys.exit(max(codes))\n"
    )
    return script
