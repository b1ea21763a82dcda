"""Where a merge is computed: the CPU, one accelerator or several."""

from __future__ import annotations

import torch

from mango.errors import ConfigError


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
