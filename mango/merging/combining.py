"""Merging one tensor: what must be known of it as a whole first, then its pieces, each of them independent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mango.merging.devices import bytes_ahead, own_stream, to_cpu
from mango.merging.outputs import COPY, OutputTensor, not_equal, not_finite
from mango.merging.pipeline import Maker
from mango.merging.registry import MERGERS, MergeMethod
from mango.tensors import item_bytes, torch_dtype
from mango.tensors.pieces import device_piece_elements, wide_piece_elements

_PIECES_AHEAD = 6


@dataclass(frozen=True, eq=False)
class Prepared:
    """A tensor that is ready to be merged piece by piece.

    Attributes:
        output: what it is.
        tensors: the models' tensors, flat where pieces are independent.
        base: that of the base model, likewise.
        arguments: of the method, with what was measured of the whole tensors.
        statistics: what calibration text says of each, flat where pieces are independent.
        device: where it is computed.
    """

    output: OutputTensor
    tensors: tuple[torch.Tensor, ...]
    base: torch.Tensor | None
    arguments: Mapping[str, Any]
    device: torch.device
    statistics: tuple[torch.Tensor | None, ...] = ()

    @property
    def in_pieces(self) -> bool:
        """Whether it can be merged in pieces."""
        return self.output.method == COPY or MERGERS[self.output.method].elementwise


def prepare(output: OutputTensor, device: torch.device | str = "cpu") -> Prepared:
    """Load what a tensor is made of, and measure what its method must know of the whole.

    Args:
        output: the tensor.
        device: where it will be computed.

    Returns:
        The tensor, ready.

    Raises:
        MergeError: it holds integers that differ between the models.
    """
    device = torch.device(device)
    if output.method == COPY:
        tensors = tuple(source.load() for _, source in output.sources)
        if any(not torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
            raise not_equal(output)
        return Prepared(output, tensors[:1], None, {}, device)
    method = MERGERS[output.method]
    arguments = _arguments(output, method)
    with own_stream(device, loads=True):
        tensors = tuple(source.load_to(device) for _, source in output.sources)
        base = None if output.base is None else output.base[1].load_to(device)
        statistics = tuple(None if source is None else source.load_to(device) for source in output.statistics)
        if method.measure is not None:
            with_base: dict[str, Any] = {} if method.base not in ("reference", "optional") else {"base": base}
            arguments.update(method.measure(list(tensors), **with_base, **arguments))
    if method.elementwise:
        tensors = tuple(tensor.reshape(-1) for tensor in tensors)
        base = None if base is None else base.reshape(-1)
        statistics = tuple(None if values is None else values.reshape(-1) for values in statistics)
    return Prepared(output, tensors, base, arguments, device, statistics)


def _arguments(output: OutputTensor, method: MergeMethod) -> dict[str, Any]:
    arguments = dict(output.arguments)
    if method.random:
        arguments["seeds"] = output.seeds
    return arguments


def piece_calls(ready: Prepared) -> Iterator[Callable[[], torch.Tensor]]:
    """Yield calls that merge the pieces of a tensor, in order; they may run at the same time."""
    size = ready.output.spec.num_elements
    step = wide_piece_elements() if ready.device.type == "cpu" else device_piece_elements(ready.device)
    if not ready.in_pieces:
        yield lambda: merge_piece(ready, 0, size)
        return
    for start in range(0, size, step):
        yield _call(ready, start, min(start + step, size))


def _call(ready: Prepared, start: int, end: int) -> Callable[[], torch.Tensor]:
    return lambda: merge_piece(ready, start, end)


def merge_piece(ready: Prepared, start: int, end: int) -> torch.Tensor:
    """Return the merged elements from ``start`` to ``end``, flat and on the CPU.

    Raises:
        MergeError: they are not finite.
    """
    output, dtype = ready.output, torch_dtype(ready.output.spec.dtype)
    if output.method == COPY:
        piece = ready.tensors[0].reshape(-1)[start:end].to(dtype)
        return _finite(output, piece) if piece.is_floating_point() and len(output.sources) > 1 else piece
    method = MERGERS[output.method]
    if ready.in_pieces:
        parts = [tensor[start:end] for tensor in ready.tensors]
        base = None if ready.base is None else ready.base[start:end]
        statistics = tuple(None if values is None else values[start:end] for values in ready.statistics)
    else:
        parts, base, statistics = list(ready.tensors), ready.base, ready.statistics
    own: dict[str, Any] = {} if method.base not in ("reference", "optional") else {"base": base}
    if method.takes_position:
        own["first_position"] = start
    if method.statistics is not None:
        own[method.statistics] = statistics
    with own_stream(ready.device):
        merged = method.combine(parts, **own, **ready.arguments, dtype=dtype)
        return to_cpu(_finite(output, merged).reshape(-1))


class TensorMaker(Maker["torch.Tensor"]):
    """Makes pieces with torch, tensor by tensor on one device or on several in turn.

    Args:
        devices: where tensors are computed.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = devices
        self._accelerated = all(device.type != "cpu" for device in devices)

    def calls(self, output: OutputTensor, index: int) -> Iterator[Callable[[], torch.Tensor]]:
        """Load a tensor to its device, measure it, and yield calls that make its pieces."""
        return piece_calls(prepare(output, self._device(index)))

    def held_bytes(self, output: OutputTensor, index: int) -> int:
        """Return what its inputs hold, which on an accelerator is all of them."""
        if self._device(index).type == "cpu":
            return super().held_bytes(output, index)
        return sum(source.num_elements * item_bytes(source.dtype) for source in output.inputs)

    def room(self, index: int) -> int:
        """Return how much memory tensors may hold before their turn; of an accelerator, a part of it."""
        device = self._device(index)
        return super().room(index) if device.type == "cpu" else bytes_ahead(device)

    def at_once(self, index: int) -> int:
        """Return how many pieces a thread makes at a time; those of an accelerator are large."""
        return super().at_once(index) if self._device(index).type == "cpu" else 1

    def window(self) -> int | None:
        """Return how many pieces of a file may wait: page-locked ones are large, and cost the first merge of a process.

        Six are enough for all files together to keep the threads at work.
        """
        return _PIECES_AHEAD if self._accelerated else super().window()

    def num_files(self, num_threads: int) -> int:
        """Return how many files are written at the same time; none waits for another beside an accelerator."""
        return num_threads if self._accelerated else super().num_files(num_threads)

    def loaders(self, num_threads: int) -> AbstractContextManager[ThreadPoolExecutor | None]:
        """Return threads that fill an accelerator's memory, so that no piece waits behind tensors of later ones."""
        if not self._accelerated:
            return super().loaders(num_threads)
        return _loading_threads(num_threads)

    def view(self, piece: torch.Tensor) -> memoryview:
        """Return the bytes of a piece on the CPU."""
        return piece.detach().contiguous().view(-1).view(torch.uint8).numpy().data

    def _device(self, index: int) -> torch.device:
        return self._devices[index % len(self._devices)]


@contextmanager
def _loading_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(count, thread_name_prefix="mango-load")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def combine_whole(output: OutputTensor) -> torch.Tensor:
    """Return a merged tensor in its shape."""
    result = torch.empty(output.spec.num_elements, dtype=torch_dtype(output.spec.dtype))
    ready, position = prepare(output), 0
    for call in piece_calls(ready):
        piece = call()
        result[position : position + piece.numel()] = piece
        position += piece.numel()
    return result.view(output.spec.shape)


def _finite(output: OutputTensor, merged: torch.Tensor) -> torch.Tensor:
    # The least and the largest element are NaN where any is; to find both is several times faster than isfinite().
    if merged.numel() and not all(math.isfinite(float(end)) for end in torch.aminmax(merged)):
        raise not_finite(output)
    return merged
