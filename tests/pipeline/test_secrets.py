"""Secrets that lie around a run do not get into what it writes, logs or shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.project import environment, git, stage

SECRETS = {
    "HF_TOKEN": "hf_PlantedPlantedPlanted01",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED000000002",
    "AWS_SECRET_ACCESS_KEY": "planted/secret/of/the/bucket/03",
    "PGPASSWORD": "planted-password-of-postgres-04",
    "SERVICE_API_KEY": "planted-key-of-a-service-05",
    "MANGO_SIGNING_PASSWORD": "planted-password-of-the-key-06",
}
IN_REMOTE = "ghp_plantedPlantedPlanted07"
IN_ADDRESS = "planted-password-of-the-address-08"
PLANTED = [*SECRETS.values(), IN_REMOTE, IN_ADDRESS]


def mango(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from mango.cli.app import main; main(sys.argv[1:])", *arguments]
    environ = environment(tracking=True, **variables)
    return subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, check=False)


def holders(root: Path) -> list[str]:
    """Return the files below a project, Git's own left out, that hold a planted secret."""
    files = [path for path in root.rglob("*") if path.is_file() and ".git" not in path.relative_to(root).parts]
    assert len(files) > 50
    return sorted(
        f"{path.relative_to(root)}: {secret}"
        for path in files
        for content in [path.read_bytes()]
        for secret in PLANTED
        if secret.encode() in content
    )


@pytest.mark.slow
def test_planted_secrets_are_in_no_file_and_no_output(finished: Path, migrated_database: Path, tmp_path: Path) -> None:
    shutil.copy(migrated_database, finished / "mlflow.db")
    git(finished, "remote", "add", "origin", f"https://someone:{IN_REMOTE}@example.org/project.git")
    made = mango(finished, "keygen", str(tmp_path / "key"), "--password-env", "MANGO_SIGNING_PASSWORD", **SECRETS)
    assert made.returncode == 0, made.stderr
    private = next(path for path in tmp_path.glob("key*") if b"PRIVATE KEY" in path.read_bytes())

    variables = {**SECRETS, "MANGO_SIGNING_KEY": str(private), "MANGO_TRACKING": "on"}
    packed = stage(finished, "package", **variables)
    assert packed.returncode == 0, packed.stderr
    promoted = mango(finished, "promote", "tiny-mango", **variables)
    assert promoted.returncode == 0, promoted.stderr
    told = mango(finished, "why", "models:/tiny-mango@champion", **variables)
    assert told.returncode == 0, told.stderr
    address = f"postgresql://someone:{IN_ADDRESS}@127.0.0.1:1/none"
    failed = mango(finished, "--debug", "promote", "tiny-mango", **variables, MLFLOW_TRACKING_URI=address)
    assert failed.returncode != 0

    shown = "".join(done.stdout + done.stderr for done in (made, packed, promoted, told, failed))
    assert [secret for secret in PLANTED if secret in shown] == []
    assert IN_REMOTE in (finished / ".git" / "config").read_text()
    assert (finished / "models" / "package" / "model.sig").is_file()
    assert holders(finished) == []
