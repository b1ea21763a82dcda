"""Room on the disk is asked for before anything is computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mango.checkpoints import TensorSpec, check_room, free_bytes, size_of, write_tensors
from mango.errors import CheckpointError, ConfigError


def test_what_fits_is_let_through_and_what_does_not_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "not" / "yet" / "there"
    monkeypatch.setattr("mango.checkpoints.room.free_bytes", lambda path: 1000)
    monkeypatch.setenv("MANGO_DISK_RESERVE", "100")
    check_room(out, 900)
    with pytest.raises(CheckpointError) as caught:
        check_room(out, 901)
    assert str(caught.value) == (
        f"{out}: no room to write: needs 901 bytes and 100 in reserve (MANGO_DISK_RESERVE), 1,000 are free; what was "
        "there before is unchanged. Free disk space, or choose another folder"
    )


def test_the_reserve_has_a_unit_and_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mango.checkpoints.room.free_bytes", lambda path: 2**30)
    check_room(tmp_path, 2**30 - 2**26)
    with pytest.raises(CheckpointError, match=r"67,108,864 in reserve"):
        check_room(tmp_path, 2**30 - 2**26 + 1)
    monkeypatch.setenv("MANGO_DISK_RESERVE", "2GiB")
    with pytest.raises(CheckpointError, match=r"2,147,483,648 in reserve"):
        check_room(tmp_path, 0)
    monkeypatch.setenv("MANGO_DISK_RESERVE", "much")
    with pytest.raises(ConfigError, match="MANGO_DISK_RESERVE: 'much'"):
        check_room(tmp_path, 0)


def test_weights_that_do_not_fit_are_not_computed(tmp_path: Path) -> None:
    asked: list[str] = []

    def produce(name: str) -> torch.Tensor:
        asked.append(name)
        return torch.zeros(1)

    terabytes = TensorSpec("a", "F32", (10**13,))
    with pytest.raises(CheckpointError, match=re.escape("needs 40,000,000,000,000 bytes")):
        write_tensors(tmp_path, [terabytes], produce)
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_free_and_used_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert size_of(tmp_path) == 10
    assert size_of(tmp_path / "nothing") == 0
    assert free_bytes(tmp_path / "x" / "y") > 0
