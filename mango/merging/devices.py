"""Where a merge is computed: the CPU, one accelerator or several."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch

from mango.errors import ConfigError

_STAGED_BYTES = 2**25  # of page-locked memory at a time: threads take turns at the interpreter for each part
_NUM_STREAMS = 8  # of each kind; each keeps memory of its own that was freed
_AHEAD_BYTES = 2**30
_own = threading.local()
_turns = itertools.count()


def bytes_ahead(device: torch.device) -> int:
    """Return how many bytes of tensors may wait on a device for their turn, for each file written at the same time.

    Args:
        device: an accelerator.
    """
    return min(_AHEAD_BYTES, int(torch.cuda.get_device_properties(device).total_memory) // 64)


@cache
def _stream(device: torch.device, number: int, loads: bool) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def check_devices(text: str) -> None:
    """Refuse a text that names no device which is there. That the CPU is there is known without torch.

    Raises:
        ConfigError: as `parse_devices` does.
    """
    if text != "cpu":
        parse_devices(text)


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
def own_stream(device: torch.device, *, loads: bool = False) -> Iterator[None]:
    """Let what the body starts on an accelerator run beside what other threads start, and wait for it at the end.

    Args:
        device: ``cpu`` changes nothing.
        loads: it copies whole tensors there, which what computes on others should not have to wait for.
    """
    if device.type == "cpu":
        yield
        return
    number = _own.__dict__.setdefault("number", next(_turns) % _NUM_STREAMS)
    stream = _stream(device, number, loads)
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
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)

    def fill(start: int, stage: torch.Tensor) -> None:
        stage.copy_(flat[start : start + len(stage)])

    return staged(tensor.shape, tensor.dtype, device, fill)


def staged(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, fill: Callable[[int, torch.Tensor], None]
) -> torch.Tensor:
    """Return a tensor on an accelerator whose bytes are filled into page-locked memory, part by part.

    Args:
        shape: its extents.
        dtype: its type.
        device: where it is to be.
        fill: ``fill(start, stage)`` puts the bytes from ``start`` on into ``stage``, uint8 of shape [n] on the CPU.
    """
    result = torch.empty(tuple(shape), dtype=dtype, device=device)
    flat = result.reshape(-1).view(torch.uint8)
    stages = _own.__dict__.setdefault("stages", {})
    if device not in stages:  # kept by the thread: to lock memory takes longer than to fill it
        locked = [torch.empty(_STAGED_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        stages[device] = [(memory, torch.cuda.Event()) for memory in locked]  # type: ignore[no-untyped-call]
    for number, start in enumerate(range(0, len(flat), _STAGED_BYTES)):
        memory, copied = stages[device][number % 2]
        copied.synchronize()  # the part before the last is gone
        stage = memory[: min(_STAGED_BYTES, len(flat) - start)]
        fill(start, stage)
        flat[start : start + len(stage)].copy_(stage, non_blocking=True)
        copied.record()
    return result


def to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a result back into page-locked memory, which is used again; a tensor on the CPU is returned itself."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
