from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mango.checkpoints import Checkpoint, TensorSpec, write_tensors
from mango.errors import CheckpointError


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pieces_make_the_tensor(tmp_path: Path) -> None:
    tensor = torch.arange(10.0).view(2, 5)
    write_tensors(tmp_path, [TensorSpec("a", "F32", (2, 5))], lambda _: tensor.view(-1).split(3))
    assert torch.equal(Checkpoint.open(tmp_path).tensor("a"), tensor)


def test_a_transposed_tensor_is_written_in_its_own_order(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).view(2, 3).T
    write_tensors(tmp_path, [TensorSpec("a", "F32", (3, 2))], lambda _: tensor)
    assert torch.equal(Checkpoint.open(tmp_path).tensor("a"), tensor)


@pytest.mark.parametrize(
    ("produced", "message"),
    [
        (torch.zeros(3, 2), r"produced as \[3, 2\], not \[2, 3\]"),
        (torch.zeros(2, 3, dtype=torch.float64), r"produced as torch\.float64 on cpu, not F32"),
        ([torch.zeros(5)], "produced with 5 elements or more, not 6"),
        ([torch.zeros(5), torch.zeros(2)], "produced with 7 elements or more, not 6"),
    ],
)
def test_a_produced_tensor_that_breaks_its_spec_is_an_error(tmp_path: Path, produced: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_tensors(tmp_path, [TensorSpec("a", "F32", (2, 3))], lambda _: produced)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([TensorSpec("a", "F32", (1,)), TensorSpec("a", "F32", (2,))], "'a' is to be written twice"),
        ([TensorSpec("", "F32", (1,))], "'' cannot be the name"),
        ([TensorSpec("__metadata__", "F32", (1,))], "cannot be the name"),
        ([TensorSpec("a", "Q4", (1,))], "has type 'Q4'"),
    ],
)
def test_wrong_specs_are_refused(tmp_path: Path, specs: list[TensorSpec], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_tensors(tmp_path, specs, lambda _: torch.zeros(1))
    assert list(tmp_path.iterdir()) == []


@given(sizes=st.lists(st.integers(0, 40), max_size=12), limit=st.integers(1, 200))
def test_shards_respect_their_limit(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    specs = [TensorSpec(f"t{i:02}", "U8", (n,)) for i, n in enumerate(sizes)]
    write_tensors(
        folder, specs, lambda name: torch.full((sizes[int(name[1:])],), 7, dtype=torch.uint8), max_shard_bytes=limit
    )
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.names() == [spec.name for spec in specs]
    for file in checkpoint.files():
        held = [info for info in checkpoint.infos() if info.file == file]
        assert len(held) == 1 or sum(info.end - info.start for info in held) <= limit


def test_a_full_disk_is_one_clear_error_and_keeps_the_old_version(tmp_path: Path) -> None:
    """A file size limit makes the kernel refuse to write, as a full disk does, without the rights to mount one."""
    script = """
import resource, signal, sys, torch
from mango.checkpoints import TensorSpec, replace_folder, verify, write_file, write_tensors
path = sys.argv[1]
with replace_folder(path) as new:
    write_file(new / "config.json", "old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
with replace_folder(path) as new:
    write_file(new / "config.json", "new")
    write_tensors(new, [TensorSpec("a", "F32", (10000,))], lambda name: torch.zeros(10000))
"""
    path = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"CheckpointError: .*: no room to write .* unchanged\. Free disk space", last)
    assert (path / "config.json").read_text() == "old"
    assert entries(tmp_path) == ["out"]
