from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mango.checkpoints import TensorSpec, write_tensors
from mango.tensors import dtype_name


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(5, 7, generator=generator).bfloat16(),
        "b.weight": torch.randn(3, 3, generator=generator),
        "c.bias": torch.randn(3, generator=generator).half(),
        "d.scalar": torch.tensor(2.5),
        "e.empty": torch.empty(0, 4),
        "f.mask": torch.tensor([True, False, True]),
        "g.ids": torch.arange(4),
    }


@pytest.fixture
def write() -> Callable[..., Path]:
    def write_folder(folder: Path, tensors: dict[str, torch.Tensor], max_shard_bytes: int = 10**9) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        specs = [TensorSpec(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()]
        write_tensors(folder, specs, tensors.__getitem__, max_shard_bytes=max_shard_bytes)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        return folder

    return write_folder


@pytest.fixture
def raw_file() -> Callable[..., Path]:
    """Writes a safetensors file from a header as given, however wrong it is."""

    def write_raw(file: Path, header: object, data: bytes) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return file

    return write_raw
