from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mango.checkpoints import Checkpoint
from mango.errors import CheckpointError, IntegrityError, UnsafeFileError

Write = Callable[..., Path]
Tensors = dict[str, torch.Tensor]


def assert_same(checkpoint: Checkpoint, tensors: Tensors) -> None:
    assert checkpoint.names() == sorted(tensors)
    for name, tensor in tensors.items():
        found = checkpoint.tensor(name)
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert torch.equal(found, tensor)
        raw = checkpoint.raw(name).numpy().tobytes()
        start = len(raw) // 3
        buffer = bytearray(len(raw) - start)
        checkpoint.read_into(name, start, memoryview(buffer))
        assert buffer == raw[start:]


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100, 1])
def test_what_is_written_is_read(tmp_path: Path, write: Write, tensors: Tensors, max_shard_bytes: int) -> None:
    folder = write(tmp_path / "model", tensors, max_shard_bytes)
    assert_same(Checkpoint.open(folder), tensors)


def test_files_of_the_safetensors_library_are_read_and_ours_by_it(
    tmp_path: Path, write: Write, tensors: Tensors
) -> None:
    (tmp_path / "theirs").mkdir()
    save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    assert_same(Checkpoint.open(tmp_path / "theirs"), tensors)
    loaded = load_file(write(tmp_path / "ours", tensors) / "model.safetensors")
    assert sorted(loaded) == sorted(tensors)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_unaligned_tensors_are_read(tmp_path: Path, raw_file: Write) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    data = b"\x07" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    raw_file(tmp_path / "model.safetensors", header, data)
    assert Checkpoint.open(tmp_path).tensor("b").tolist() == [1.5, -2.0]


def test_tensors_are_mapped_and_changes_stay_private(tmp_path: Path, write: Write, tensors: Tensors) -> None:
    folder = write(tmp_path / "model", tensors)
    before = (folder / "model.safetensors").read_bytes()
    checkpoint = Checkpoint.open(folder)
    first, second = checkpoint.tensor("b.weight"), checkpoint.tensor("b.weight")
    assert first.data_ptr() == second.data_ptr()
    first.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_info_gives_absolute_offsets(tmp_path: Path, write: Write, tensors: Tensors) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors, 100))
    for name, tensor in tensors.items():
        info = checkpoint.info(name)
        stored = info.file.read_bytes()[info.start : info.end]
        assert stored == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def index_of(folder: Path) -> tuple[Path, dict[str, dict[str, str]]]:
    path = folder / "model.safetensors.index.json"
    return path, json.loads(path.read_text())


def test_a_missing_shard_is_named(tmp_path: Path, write: Write, tensors: Tensors) -> None:
    folder = write(tmp_path / "model", tensors, 100)
    shard = sorted(folder.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(IntegrityError, match=f"{shard.name}: shard is missing"):
        Checkpoint.open(folder)


def test_a_truncated_shard_is_named(tmp_path: Path, write: Write, tensors: Tensors) -> None:
    folder = write(tmp_path / "model", tensors, 100)
    shard = sorted(folder.glob("model-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=f"{shard.name}: truncated"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", 3])
def test_an_index_that_points_elsewhere_is_refused(
    tmp_path: Path, write: Write, tensors: Tensors, place: object
) -> None:
    folder = write(tmp_path / "model", tensors, 100)
    path, index = index_of(folder)
    index["weight_map"]["a.weight"] = place  # type: ignore[assignment]
    path.write_text(json.dumps(index))
    with pytest.raises(UnsafeFileError, match="a shard lies beside its index"):
        Checkpoint.open(folder)


def test_a_shard_that_is_no_safetensors_file_is_refused(tmp_path: Path, write: Write, tensors: Tensors) -> None:
    folder = write(tmp_path / "model", tensors, 100)
    path, index = index_of(folder)
    index["weight_map"]["a.weight"] = "model.bin"
    path.write_text(json.dumps(index))
    with pytest.raises(UnsafeFileError, match="no safetensors file"):
        Checkpoint.open(folder)


def test_missing_and_surplus_tensors_are_named(tmp_path: Path, write: Write, tensors: Tensors) -> None:
    folder = write(tmp_path / "model", tensors, 100)
    path, index = index_of(folder)
    shard = index["weight_map"].pop("c.bias")
    path.write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match=f"{shard}: holds 'c.bias' that .* does not put there"):
        Checkpoint.open(folder)
    index["weight_map"]["c.bias"] = shard
    index["weight_map"]["z.weight"] = shard
    path.write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match=f"{shard}: lacks 'z.weight'"):
        Checkpoint.open(folder)


def test_an_unknown_tensor_is_an_error(tmp_path: Path, write: Write, tensors: Tensors) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors))
    assert "x" not in checkpoint
    with pytest.raises(CheckpointError, match="holds no tensor 'x'"):
        checkpoint.tensor("x")


def test_a_missing_folder_and_one_without_weights_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model folder"):
        Checkpoint.open(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickled weights can run code"):
        Checkpoint.open(tmp_path)


def test_a_malformed_config_is_an_error(tmp_path: Path, write: Write, tensors: Tensors) -> None:
    folder = write(tmp_path / "model", tensors)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is no JSON"):
        Checkpoint.open(folder).config()


def test_a_file_that_shrinks_while_open_is_an_error(tmp_path: Path, write: Write, tensors: Tensors) -> None:
    folder = write(tmp_path / "model", tensors)
    checkpoint = Checkpoint.open(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(IntegrityError, match="changed since it was opened"):
        checkpoint.read_into("a.weight", 0, memoryview(bytearray(1)))
    with pytest.raises(IntegrityError, match="changed since it was opened"):
        checkpoint.tensor("a.weight")


def test_threads_may_open_the_same_file_at_the_same_moment(tmp_path: Path, write: Write) -> None:
    """The size of the file follows from all of its tensors, which takes a moment when they are many."""
    folder = write(tmp_path / "model", {f"t{i:05}": torch.zeros(1) for i in range(20_000)})
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(5):
            checkpoint = Checkpoint.open(folder)
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(checkpoint.tensor, [f"t{i:05}" for i in range(8)]))
            assert all(torch.equal(tensor, torch.zeros(1)) for tensor in found)
    finally:
        sys.setswitchinterval(before)
