"""What ``kill -9`` leaves of DVC's state files, and how it is mended."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from mango.errors import RegistryError
from mango.tracking import repair

LOCK = """\
schema: '2.0'
stages:
  extract-blocks:
    cmd: python -m stages.extract_blocks
    deps:
    - path: mango/blocks
      md5: e70333c9e1814fbb4255e41913535957.dir
  merge:
    cmd: python -m stages.merge
    outs:
    - path: models/merged
      md5: 905f5b99ee084e7ab4319649139e7c1c.dir
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text(LOCK)
    return tmp_path


def test_whole_files_are_left_alone(root: Path) -> None:
    (root / ".dvc" / "tmp" / "rwlock").write_text('{"write": {}}')
    assert repair(root) == []
    assert (root / "dvc.lock").read_text() == LOCK


@pytest.mark.parametrize("size", range(len(LOCK)))
def test_a_lock_file_cut_at_any_byte_becomes_one_that_dvc_reads(root: Path, size: int) -> None:
    (root / "dvc.lock").write_text(LOCK[:size])
    said = repair(root)
    if not (root / "dvc.lock").exists():
        assert "every stage runs again" in said[0]
        assert size < LOCK.index("  merge:")
        return
    stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    assert list(stages) in (["extract-blocks"], ["extract-blocks", "merge"])
    assert all("cmd" in stage for stage in stages.values())
    assert repair(root) == []


@pytest.mark.parametrize("content", ["", '{"write": {"/x": {"pi', "[]"])
def test_a_broken_table_of_readers_goes_away(root: Path, content: str) -> None:
    (root / ".dvc" / "tmp" / "rwlock").write_text(content)
    assert repair(root) == [".dvc/tmp/rwlock: was cut short; removed, since no DVC runs"]
    assert not (root / ".dvc" / "tmp" / "rwlock").exists()


def readers(number: int) -> str:
    user = {"pid": number, "cmd": "dvc repro"}
    return json.dumps({"write": {"/x/models": user}, "read": {"/x/data": [user]}})


def test_numbers_of_processes_that_are_gone_or_are_others_by_now_go_away(root: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    for number in (gone.pid, os.getpid()):
        (root / ".dvc" / "tmp" / "rwlock").write_text(readers(number))
        assert repair(root) == [".dvc/tmp/rwlock: named processes that are gone; removed"]
        assert not (root / ".dvc" / "tmp" / "rwlock").exists()


def test_a_dvc_that_is_named_and_runs_elsewhere_is_left_alone(root: Path, fake_dvc: Path) -> None:
    with subprocess.Popen([sys.executable, str(fake_dvc), "sleep 60"], stdout=subprocess.PIPE, text=True) as running:
        number = int(running.stdout.readline())
        (root / ".dvc" / "tmp" / "rwlock").write_text(readers(number))
        try:
            with pytest.raises(RegistryError, match=rf"DVC is running here \(process {number}\)"):
                repair(root)
        finally:
            for child in psutil.Process(number).children():
                child.kill()
    assert (root / ".dvc" / "tmp" / "rwlock").exists()


def test_a_lock_of_git_that_nobody_holds_goes_away(root: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    (root / ".git" / "index.lock").touch()
    begun_s = time.monotonic()
    assert repair(root) == [".git/index.lock: nobody holds it any more; removed"]
    assert time.monotonic() - begun_s > 1  # it was fresh: somebody might just have taken it
    assert repair(root) == []


def test_a_lock_of_git_is_left_to_a_git_that_runs(root: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    lock = root / ".git" / "index.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    with (
        subprocess.Popen(["git", "hash-object", "--stdin"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL),
        pytest.raises(RegistryError, match=r"index\.lock: git is running here \(process \d+\)"),
    ):
        repair(root)
    assert lock.exists()


@pytest.mark.slow
def test_repro_mends_and_runs_where_dvc_alone_gives_up(tmp_path: Path) -> None:
    def shell(*words: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "true"}  # which forks a dvc that lingers
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    shell("git", "init", "--quiet")
    assert shell("dvc", "init").returncode == 0
    shell("dvc", "config", "core.autostage", "true")
    shell("dvc", "config", "core.analytics", "false")
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: echo 1 > out, outs: [out]}}\n")
    mango = (sys.executable, "-c", "from mango.cli.app import main; main()")
    assert shell(*mango, "repro").returncode == 0
    whole = (tmp_path / "dvc.lock").read_text()
    (tmp_path / "dvc.lock").write_text("schema: ")
    (tmp_path / ".git" / "index.lock").touch()
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text(readers(os.getpid())[:20])
    assert shell("dvc", "repro").returncode != 0
    done = shell(*mango, "repro", "--force", "a")
    assert done.returncode == 0, done.stderr
    assert "dvc.lock: " in done.stderr
    assert (tmp_path / "dvc.lock").read_text() == whole
    assert shell(*mango, "repro", "none").returncode == shell("dvc", "repro", "none").returncode != 0


def test_nothing_is_touched_while_dvc_runs(root: Path) -> None:
    (root / "dvc.lock").write_text("")
    with (root / ".dvc" / "tmp" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RegistryError, match="DVC is running here"):
            repair(root)
    assert (root / "dvc.lock").read_text() == ""


def test_elsewhere_it_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"is no DVC repository; run this where dvc.yaml is"):
        repair(tmp_path)
