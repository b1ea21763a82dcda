"""Kernels that do in one pass over an accelerator's memory what takes torch dozens: whether they run, and launching.

They are written in Triton, which torch brings along where it is built for an accelerator. Where Triton cannot run, the
same operations are done one by one with torch, with the same bits as their result.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch

_log = logging.getLogger(__name__)
_LAUNCHING = threading.RLock()


class Change(NamedTuple):
    """What becomes of one model's difference from the base.

    Attributes:
        weight: what it counts in the mean over those that agree.
        num_early: elements before this one become zero up to ``most_early``, those from it on up to ``most_late``.
        most_early: a magnitude; below 0 none becomes zero.
        most_late: a magnitude.
        scale: what is left is multiplied with it.
    """

    weight: float
    num_early: int
    most_early: float
    most_late: float
    scale: float


def can_fuse(*tensors: torch.Tensor) -> bool:
    """Return whether kernels take these tensors: floating point, on one accelerator that runs Triton.

    That it does not run there is logged once.
    """
    device = tensors[0].device
    types = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    if device.type != "cuda" or any(t.dtype not in types or t.device != device for t in tensors):
        return False
    return what_is_missing(device) is None


def what_is_missing(device: torch.device) -> str | None:
    """Return why kernels cannot run on an accelerator, found by running one at the first call; None where they can."""
    with _LAUNCHING:  # a lock that the thread may take again, since the one that finds out launches a kernel
        return _found_missing(device)


@cache
def _found_missing(device: torch.device) -> str | None:
    missing: str | None = None
    if importlib.util.find_spec("triton") is None:
        missing = "Triton is not installed"
    else:
        own_error = importlib.import_module("triton.errors").TritonError
        try:
            _probe(device)
        except (OSError, RuntimeError, subprocess.SubprocessError, own_error) as error:
            missing = f"Triton does not run here ({error})"
    if missing is not None:
        _log.warning("%s on %s: merging there takes more passes over memory, and longer", missing, device)
    return missing


def _probe(device: torch.device) -> None:
    from mango.tensors.counting_kernel import count_piece

    counts = torch.zeros(4, dtype=torch.int64, device=device)
    ends = torch.tensor([0.5, 1.0], dtype=torch.float64, device=device)
    values = torch.ones(8, dtype=torch.float64, device=device)
    gathered = torch.empty(8, dtype=torch.float64, device=device)
    with on_device(device):
        count_piece([values], ends, counts, torch.zeros_like(counts[:1]), gathered)
    if counts.tolist() != [0, 0, 8, 0]:
        raise RuntimeError(f"a kernel counts {counts.tolist()} where [0, 0, 8, 0] is right")


def launch(kernel: Callable[..., Any], num_programs: int, *arguments: Any, **options: Any) -> None:
    """Start a kernel; a thread that comes while it is compiled for these types waits, instead of compiling it too.

    Products are rounded before they are added, except where the kernel asks for a fused one.

    Args:
        kernel: of Triton.
        num_programs: how many of it run.
        arguments: its own.
        options: its constants.
    """
    with _LAUNCHING, on_device(arguments[0].device):
        kernel[(num_programs,)](*arguments, **options, enable_fp_fusion=False)  # type: ignore[index]


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Return a block in which an accelerator is the current one, whose current stream kernels run on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
