from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mango.packaging import GitState, changes, committed_text, flat, reproduce_command
from tests.packaging.test_package_parts import git

CLEAN = GitState(revision="e" * 40, dirty=False)


def test_flat_names_leaves_and_keeps_lists_whole() -> None:
    tree = {"seed": 0, "router": {"type": "topk", "topk": {"k": 1}}, "fusion": {"experts": ["a", "b"]}, "empty": {}}
    assert flat(tree) == {
        "seed": 0,
        "router.type": "topk",
        "router.topk.k": 1,
        "fusion.experts": ["a", "b"],
        "empty": {},
    }


def test_changes_are_what_was_used_and_not_committed() -> None:
    committed = {"seed": 0, "router": {"type": "token"}, "gone": 1}
    used = {"seed": 0, "router": {"type": "topk", "k": 2}}
    assert changes(committed, used) == {"router.type": "topk", "router.k": 2}


@pytest.mark.parametrize(
    ("state", "changed", "command"),
    [
        (CLEAN, {}, f"git checkout {'e' * 40} && dvc repro package"),
        (GitState(revision=None, dirty=False), {}, "dvc repro package"),
        (
            CLEAN,
            {"router.type": "topk", "seed": 3},
            f"git checkout {'e' * 40} && dvc exp run -S router.type=topk -S seed=3 package",
        ),
        (
            GitState(revision=None, dirty=False),
            {"new.key": "two words", "fusion.experts": ["a", "b"], "name": "true", "version": "1.0"},
            """dvc exp run -S '++fusion.experts=["a","b"]' -S '++name="true"' -S '++new.key="two words"' """
            """-S '++version="1.0"' package""",
        ),
    ],
)
def test_the_command_names_commit_and_parameters(state: GitState, changed: dict[str, object], command: str) -> None:
    assert reproduce_command(state, "package", changed, {"router.type", "seed"}) == command


@pytest.mark.slow
def test_dvc_reads_the_command_as_meant(tmp_path: Path) -> None:
    """The settings of the command arrive in params.yaml with the types that they had."""
    git(tmp_path, "init", "--quiet")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "params.yaml").write_text("seed: 0\nrouter: {type: token}\n")
    (tmp_path / "dvc.yaml").write_text("stages:\n  package:\n    cmd: cp params.yaml out.yaml\n    outs: [out.yaml]\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "--quiet", "-m", "start")
    wanted = {
        "seed": 3,
        "router.type": "topk",
        "router.text": "true",
        "router.number": "1.0",
        "router.rate": 1e-05,
        "router.words": "it's {two} words, a=b",
        "router.list": ["a", "b c", 1, None],
        "router.none": None,
        "router.yes": True,
    }
    command = reproduce_command(GitState(revision=None, dirty=False), "package", wanted, {"seed", "router.type"})
    subprocess.run([sys.executable, "-m", *shlex.split(command)], cwd=tmp_path, check=True, capture_output=True)
    assert flat(YAML(typ="safe").load((tmp_path / "out.yaml").read_text())) == wanted


def test_committed_text_is_that_of_the_commit(tmp_path: Path) -> None:
    assert committed_text(tmp_path, Path("params.yaml")) is None
    git(tmp_path, "init", "--quiet")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "params.yaml").write_text("seed: 0\n\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "--quiet", "-m", "start")
    (tmp_path / "sub" / "params.yaml").write_text("seed: 1\n")
    assert committed_text(tmp_path / "sub", Path("params.yaml")) == "seed: 0\n\n"
    assert committed_text(tmp_path, Path("params.yaml")) is None
