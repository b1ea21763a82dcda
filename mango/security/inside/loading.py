"""From a checkpoint to safetensors with torch, as a direct load does it: what the pickle names runs, in here.

This is for files that the inert reader does not understand. The sandbox is what keeps the rest of the machine safe.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from typing import IO, Any

from mango.security.inside import archives
from mango.security.inside.selecting import select
from mango.security.inside.wire import Answers, Entry, RefusalError, safetensors_header

_PIECE = 1 << 26


def load(file: IO[bytes], options: Mapping[str, Any], answers: Answers) -> None:
    """Load a checkpoint and send its state dict as safetensors, and a report about what was left out.

    Args:
        file: the file, open.
        options: ``max_bytes``, the most that may be sent.
        answers: where to.

    Raises:
        RefusalError: it holds no tensors, or some that safetensors cannot hold.
    """
    sys.modules["dill"] = None  # type: ignore[assignment]  # torch would import it, and it wants to write to a device
    kind = archives.recognise(os.pread(file.fileno(), 512, 0))
    scripted = False
    if kind == "zip":
        members = archives.zip_members(file)
        scripted = f"{archives.root_of(members)}constants.pkl" in members
    elif kind == "tar":
        archives.tar_members(file)
    file.seek(0)
    value = pickle.load(file) if kind == "pickle" else None
    import torch

    torch.set_num_threads(1)
    names = _names()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if scripted:
            value = torch.jit.load(file, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        elif kind != "pickle":
            value = torch.load(file, map_location="cpu", weights_only=False)
    chosen, rest = select(value, torch.is_tensor, lambda item: _state_dict(torch, item))
    report = {"format": kind, "names": [], "left_out": sorted(map(str, rest))[:1000], "unread": []}
    answers.text(b"J", json.dumps({**report, "tensors": len(chosen), "loaded": True}))
    if not chosen:
        raise RefusalError("holds no state dict of tensors")
    _send(torch, names, chosen, int(options["max_bytes"]), answers)


def _names() -> dict[Any, str]:
    from safetensors.torch import _TYPES

    return {dtype: name for name, dtype in _TYPES.items()}


def _state_dict(torch: Any, value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, torch.nn.Module):
        return dict(value.state_dict())
    return None


def _send(torch: Any, names: Mapping[Any, str], chosen: Mapping[str, Any], max_bytes: int, answers: Answers) -> None:
    entries = []
    for name, tensor in chosen.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in names:
            raise RefusalError(f"holds {name!r} ({tensor.dtype}, {tensor.layout}); safetensors files cannot hold it")
        size = tensor.numel() * tensor.element_size()
        entries.append((Entry(name, names[tensor.dtype], tuple(tensor.shape), size), tensor))
    entries.sort(key=lambda pair: (-pair[1].element_size(), pair[0].name))
    header = safetensors_header([entry for entry, _ in entries])
    total = len(header) + sum(entry.num_bytes for entry, _ in entries)
    if total > max_bytes:
        raise RefusalError(f"would become {total} bytes of tensors; at most {max_bytes} may come of it")
    answers.begin(b"S", total)
    answers.write(header)
    for _, tensor in entries:
        flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), _PIECE):
            answers.write(flat[start : start + _PIECE].numpy().tobytes())
