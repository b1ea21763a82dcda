"""Checkpoints as torch writes and wrote them, with what a direct load gives."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip


class Small(nn.Module):
    """A module with parameters, a shared one, and buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("dropped", torch.arange(5), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.head(self.inner(self.embed(tokens)))


def of_all_types(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return a random tensor of each type: random bytes, so every bit pattern may occur."""
    tensors = {}
    for dtype in DTYPES:
        if dtype == torch.bool:
            tensors["bool"] = torch.randint(0, 2, (3, 5), generator=generator).bool()
            continue
        raw = torch.randint(0, 256, (3, 5, torch.empty(0, dtype=dtype).element_size()), generator=generator)
        tensors[str(dtype).removeprefix("torch.")] = raw.to(torch.uint8).view(dtype).view(3, 5)
    return tensors


def views(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return tensors that share, skip and repeat the elements of one storage, and empty and single ones."""
    base = torch.randn(6, 8, 5, generator=generator)
    return {
        "base": base,
        "again": base,
        "part": base[2:4],
        "transposed": base.transpose(0, 2),
        "columns": base[:, ::3, 1],
        "expanded": base[0, 0, :1].expand(4, 3),
        "permuted": base.permute(2, 0, 1)[1:4],
        "halves": base[0].half().t(),
        "empty": torch.empty(0, 4),
        "none_wide": torch.empty(3, 0),
        "scalar": torch.tensor(2.5),
        "parameter": nn.Parameter(base[1].clone()),
    }


def benign(folder: Path) -> dict[str, Path]:
    """Write checkpoints of every form that is read; return them by what they show."""
    generator = torch.Generator().manual_seed(0)
    types, shared, module = of_all_types(generator), views(generator), Small()
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.arange(4)).sum().backward()
    optimizer.step()
    state = module.state_dict()
    written: dict[str, tuple[Any, dict[str, Any]]] = {
        "types": (types, {}),
        "views": (shared, {}),
        "ordered": (OrderedDict(state), {}),
        "nested": ({"state_dict": state, "epoch": 3, "optimizer": optimizer.state_dict()}, {}),
        "model-key": ({"model": {"module": dict(state)}, "lr": 0.1}, {}),
        "two-parts": ({"encoder": {"w": types["float32"]}, "decoder": {"w": types["int64"]}}, {}),
        "lone": (types["bfloat16"], {}),
        "list": ([types["float32"], types["float16"]], {}),
        "protocol-5": (types, {"pickle_protocol": 5}),
        "stream": (state, {"_use_new_zipfile_serialization": False}),
        "stream-views": (shared, {"_use_new_zipfile_serialization": False}),
        "module": (module, {}),
        "module-stream": (module, {"_use_new_zipfile_serialization": False}),
    }
    files = {}
    for name, (value, options) in written.items():
        files[name] = folder / f"{name}.pt"
        torch.save(value, files[name], **options)
    files["raw-pickle"] = folder / "raw-pickle.bin"
    files["raw-pickle"].write_bytes(pickle.dumps({"a": types["float32"], "b": types["bfloat16"].clone()}))
    files["tar"] = folder / "tar.pth"
    oldest(files["tar"], {"a": torch.randn(3, 4, generator=generator), "b": torch.arange(6).reshape(2, 3)})
    return files


def oldest(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the tar archive of torch 0.1: storages, tensors and a pickle, each a member."""

    def pickled(value: Any) -> bytes:
        return pickle.dumps(value, protocol=2)

    storages = [pickled(len(tensors))]
    table = [pickled(len(tensors))]
    for number, tensor in enumerate(tensors.values()):
        name = {torch.float32: "FloatStorage", torch.int64: "LongStorage"}[tensor.dtype]
        storages.append(pickled((number, "cpu", getattr(torch, name))))
        storages.append(struct.pack("<q", tensor.numel()) + bytes(tensor.contiguous().view(-1).view(torch.uint8)))
        table.append(pickled((100 + number, number, torch.FloatTensor)))
        dims = tensor.dim()
        table.append(struct.pack(f"<ii{2 * dims}qq", dims, 0, *tensor.shape, *tensor.stride(), 0))
    storages.append(pickled([]))

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.number if isinstance(value, Reference) else None

    body = io.BytesIO()
    Pickler(body, protocol=2).dump({name: Reference(100 + i) for i, name in enumerate(tensors)})
    with tarfile.open(file, "w:", format=tarfile.PAX_FORMAT) as archive:
        for member, content in (
            ("sys_info", pickled({"protocol_version": 1000, "little_endian": True})),
            ("pickle", body.getvalue()),
            ("tensors", b"".join(table)),
            ("storages", b"".join(storages)),
        ):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


class Reference:
    """Stands for a tensor in the pickle of a tar archive."""

    def __init__(self, number: int) -> None:
        self.number = number
