from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mango.checkpoints.headers import MAX_HEADER_BYTES, read_header
from mango.errors import CheckpointError, IntegrityError, UnsafeFileError


def entry(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape or ((end - start) // 4,)), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, IntegrityError, "'b' overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, IntegrityError, "'b' leaves a hole"),
        ({"a": entry(0, 16)}, IntegrityError, "truncated: .* bytes, the header says"),
        ({"a": entry(0, 8)}, IntegrityError, "too long"),
        ({"a": entry(0, 12, shape=(2,))}, IntegrityError, r"F32 \[2\] but its range holds 12"),
        ({"a": entry(0, 12, shape=(-3,))}, IntegrityError, "no list of natural numbers"),
        ({"a": entry(0, 12, shape=(2**62, 2**62))}, IntegrityError, "but its range holds 12"),
        ({"a": {"dtype": "F32"}}, IntegrityError, "entry of 'a' is malformed"),
        ({"a": 3}, IntegrityError, "entry of 'a' is malformed"),
        ({"a": entry(0, 12, dtype="Q9")}, CheckpointError, "element type 'Q9'; known: "),
        ({"": entry(0, 12)}, UnsafeFileError, "empty or unprintable"),
        ({"a\x00b": entry(0, 12)}, UnsafeFileError, "empty or unprintable"),
        ([1], IntegrityError, "no JSON object"),
        (b"{", IntegrityError, "no JSON"),
        (b"[" * 100_000, UnsafeFileError, "deep"),
        (b"\xff\xfe", IntegrityError, "no JSON"),
    ],
)
def test_a_wrong_header_is_refused_with_the_file_named(
    tmp_path: Path, raw_file: Callable[..., Path], header: object, error: type[Exception], message: str
) -> None:
    file = raw_file(tmp_path / "model.safetensors", header, bytes(12))
    with pytest.raises(error, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


def test_a_repeated_key_is_refused(tmp_path: Path, raw_file: Callable[..., Path]) -> None:
    one = '"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}'
    file = raw_file(tmp_path / "model.safetensors", f"{{{one}, {one}}}".encode(), bytes(12))
    with pytest.raises(UnsafeFileError, match="'a' twice"):
        read_header(file)


def test_a_giant_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1))
    with pytest.raises(UnsafeFileError, match=f"header of {MAX_HEADER_BYTES + 1} bytes"):
        read_header(file)


@pytest.mark.parametrize("size", [0, 7, 8, 20])
def test_a_file_cut_in_its_header_is_named(tmp_path: Path, raw_file: Callable[..., Path], size: int) -> None:
    file = raw_file(tmp_path / "model.safetensors", {"a": entry(0, 12)}, bytes(12))
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(IntegrityError, match=r"model\.safetensors: (truncated|\d bytes is no safetensors)"):
        read_header(file)


@settings(max_examples=300)
@given(position=st.integers(0, 220), value=st.integers(0, 255), cut=st.integers(0, 60))
def test_no_damage_to_a_header_does_more_than_a_checkpoint_error(
    tmp_path: Path, raw_file: Callable[..., Path], position: int, value: int, cut: int
) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry(0, 8),
        "b.c": entry(8, 48, "F16", (4, 5)),
        "d": entry(48, 48),
    }
    file = raw_file(tmp_path / "model.safetensors", header, bytes(48))
    content = bytearray(file.read_bytes())
    content[min(position, len(content) - 1)] = value
    file.write_bytes(content[: len(content) - cut] if cut < 3 else content)
    message, infos = "model.safetensors", {}
    try:
        infos = read_header(file)
    except CheckpointError as error:
        message = str(error)
    assert "model.safetensors" in message
    assert sum(info.end - info.start for info in infos.values()) <= len(content)
