"""Where a merge is computed: the CPU, one accelerator or several."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mango.errors import ConfigError

_STAGED_BYTES = 2**22  # of page-locked memory at a time: enough for the bus, and little enough for the caches
_own = threading.local()


def parse_devices(text: str) -> tuple[torch.device, ...]:
    """Return the devices that a text names.

    Args:
        text: ``cpu``, ``cuda`` for all of them, ``cuda:1``, several joined by commas, or ``auto`` for all accelerators
            where there are any, else the CPU.

    Returns:
        At least one device; tensors are computed on them in turn.

    Raises:
        ConfigError: a device is unknown, or is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    every = tuple(torch.device("cuda", i) for i in range(count))
    if text == "auto":
        return every or (torch.device("cpu"),)
    found: dict[torch.device, None] = {}
    for word in text.split(","):
        try:
            device = torch.device(word.strip())
        except RuntimeError as error:
            raise ConfigError(f"device: {word.strip()!r} is no device; wanted cpu, cuda, cuda:N or auto") from error
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"device: {word.strip()!r} does not compute in float64; wanted cpu, cuda, cuda:N or auto")
        if device.type == "cuda" and (not count or (device.index or 0) >= count):
            raise ConfigError(f"device: {word.strip()!r} is not there: torch sees {count} CUDA devices; use cpu")
        whole = device.type == "cuda" and device.index is None
        found.update(dict.fromkeys(every if whole else (device,)))
    return tuple(found)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Let what the body starts on an accelerator run beside what other threads start, and wait for it at the end.

    Args:
        device: ``cpu`` changes nothing.
    """
    if device.type == "cpu":
        yield
        return
    streams = _own.__dict__.setdefault("streams", {})
    stream = streams.get(device) or streams.setdefault(device, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to where it is computed, in page-locked parts, which the bus takes several times faster.

    Args:
        tensor: on the CPU; it may be mapped from a file.
        device: ``cpu`` returns the tensor itself.

    Returns:
        A tensor of its shape and type.
    """
    if device.type == "cpu":
        return tensor
    flat = tensor.reshape(-1)
    result = torch.empty(flat.shape, dtype=flat.dtype, device=device)
    step = max(1, _STAGED_BYTES // flat.element_size())
    stages = [torch.empty(min(step, len(flat)), dtype=flat.dtype, pin_memory=True) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in stages]  # type: ignore[no-untyped-call]
    for number, start in enumerate(range(0, len(flat), step)):
        part = flat[start : start + step]
        stage, event = stages[number % 2][: len(part)], copied[number % 2]
        event.synchronize()  # the part before the last is gone
        stage.copy_(part)
        result[start : start + step].copy_(stage, non_blocking=True)
        event.record()
    return result.view(tensor.shape)


def to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a result back into page-locked memory, which is used again; a tensor on the CPU is returned itself."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
