from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import mango.packaging.manifest as manifest_module
import mango.tracking.manifest as registry
from mango.blocks import extract
from mango.checkpoints import ModelSource, sha256_file
from mango.errors import UnknownNameError
from mango.packaging import GitState, PackageParams, build_package, git_state, parents_of
from mango.packaging.manifest import json_schema_text
from tests.packaging.conftest import save_tiny_checkpoint

COMMITTED = Path(manifest_module.__file__).with_name("mango.schema.json")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_committed_schema_is_the_generated_one_and_fits(fused: Path, facts: dict[str, Any]) -> None:
    assert COMMITTED.read_text(encoding="utf-8") == json_schema_text()
    package = build_package(fused, fused.parent / "package", **facts)
    document = json.loads((package / "mango.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, json.loads(COMMITTED.read_text(encoding="utf-8")))


def test_git_state_follows_commits_and_changes(tmp_path: Path) -> None:
    assert git_state(tmp_path) == GitState(revision=None, dirty=False)
    git(tmp_path, "init", "--quiet")
    assert git_state(tmp_path) == GitState(revision=None, dirty=False)
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "-m", "a")
    revision = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("1")
    assert git_state(tmp_path) == GitState(revision=revision, dirty=False)
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == GitState(revision=revision, dirty=True)


def test_parents_are_what_the_block_store_knows(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        save_tiny_checkpoint(tmp_path / name, seed=seed)
    sources = {name: ModelSource(source=str(tmp_path / name)) for name in ("one", "two")}
    sources["same"] = ModelSource(source=str(tmp_path / "one"))
    store = extract(sources, tmp_path / "store", "reference")
    parents = parents_of(store, ["two", "one", "two", "same"])
    assert [parent.name for parent in parents] == ["one", "same", "two"]
    assert parents[0].source == str(tmp_path / "one")
    assert parents[0].sha256 == parents[1].sha256 != parents[2].sha256
    copied = extract(sources, tmp_path / "copied", "copy")
    assert [p.sha256 for p in parents_of(copied, ["one"])] == [parents[0].sha256]
    with pytest.raises(UnknownNameError, match="three"):
        parents_of(store, ["three"])


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_a_name_must_fit_folders_and_registries(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        PackageParams(name=name)


def test_the_registry_reads_what_was_packed(fused: Path, facts: dict[str, Any]) -> None:
    """`mango promote` has its own reader of mango.json: both must mean the same."""
    facts["parameters"]["package"] = {"min_delta": 0.25}
    package = build_package(fused, fused.parent / "package", **facts)
    manifest, sha256 = registry.read_manifest(package)
    registry.check_files(package, manifest)
    registry.check_gates(manifest, ["corpus", "blocks", "metrics"], "here")
    assert sha256 == sha256_file(package / "mango.json")
    assert manifest.min_delta == 0.25
    for name in ("fused_hard.switching", "gap_closed_soft", "trunk.pure.code"):
        ours = manifest_module.metric_value(manifest_module.read_manifest(package).evaluation, name)
        assert registry.metric_value(manifest, name, "here") == ours
