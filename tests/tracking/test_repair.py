"""What ``kill -9`` leaves of DVC's state files, and how it is mended."""

from __future__ import annotations

import fcntl
from pathlib import Path

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
