"""Merging what lies in safetensors files with numpy, without torch: importing it would take longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from mango.merging.outputs import COPY, OutputTensor, not_equal, not_finite
from mango.merging.pipeline import Call, Maker
from mango.merging.registry import MERGERS
from mango.merging.tensor_sources import Renamed, Stored, TensorSource
from mango.tensors.arrays import ARRAY_TYPES, Array, NotFiniteError, sum_arrays
from mango.tensors.pieces import wide_piece_elements

_MOST_FILES = 128
"""Weight files that may be open at the same time, far below what systems allow a process."""


PLAIN_BYTES = 36 << 20
"""Memory of a process that merges so, beside its pieces."""

BYTES_OF_ELEMENT = 72
"""Memory that a thread needs for each element of its piece: its buffers, and results that wait to be written."""


def is_plain(outputs: Sequence[OutputTensor]) -> bool:
    """Tell whether `ArrayMaker` can make every one of some tensors."""
    files = {stored.info.file for output in outputs for source in output.inputs if (stored := _stored(source))}
    return len(files) <= _MOST_FILES and all(map(_is_plain, outputs))


class ArrayMaker(Maker[Array]):
    """Makes pieces of copies, of weighted sums and by methods that take arrays; the bits are those that torch makes."""

    def calls(self, output: OutputTensor, index: int) -> Iterator[Call[Array]]:
        """Map a tensor's inputs, measure them, and yield calls that make its pieces."""
        del index
        if output.method == COPY:
            return _copies(output)
        arrays = [_array(source) for _, source in output.sources]
        return _pieces(output, _merge_of(output, arrays, None if output.base is None else _array(output.base[1])))

    def view(self, piece: Array) -> memoryview:
        """Return the bytes of a piece."""
        return piece.view(np.uint8).data


def seconds_per_element(output: OutputTensor, size: int) -> float:
    """Time a plain tensor on ones in the place of its inputs, the better of two times.

    Args:
        output: the tensor.
        size: how many elements to take.
    """
    if output.method == COPY or not size:
        return 0.0
    arrays = [_ones(source.dtype, size) for _, source in output.sources]
    base = None if output.base is None else _ones(output.base[1].dtype, size)
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        _merge_of(output, arrays, base)(0, size)
        best = min(best, time.perf_counter() - start)
    return best / size


def _ones(dtype: str, size: int) -> Array:
    return np.full(size, 0x3F80 if dtype == "BF16" else 1, dtype=ARRAY_TYPES[dtype])


def _is_plain(output: OutputTensor) -> bool:
    if any(_stored(source) is None for source in output.inputs):
        return False
    types = {source.dtype for source in output.inputs} | {output.spec.dtype}
    if output.method == COPY:  # truth values are looked at one by one when torch reads them
        return len(types) == 1 and "BOOL" not in types and (len(output.sources) == 1 or not types & set(ARRAY_TYPES))
    method = MERGERS[output.method]
    return (method.shares is not None or method.on_arrays) and types <= set(ARRAY_TYPES)


def _stored(source: TensorSource) -> Stored | None:
    while isinstance(source, Renamed):
        source = source.source
    return source if isinstance(source, Stored) else None


def _array(source: TensorSource) -> Array:
    stored = _stored(source)
    assert stored is not None, "is_plain() was not asked"
    return np.frombuffer(stored.checkpoint.view(stored.info.name), dtype=ARRAY_TYPES.get(source.dtype, np.uint8))


def _merge_of(output: OutputTensor, arrays: Sequence[Array], base: Array | None) -> Callable[[int, int], Array]:
    """Measure whole arrays, and return what merges their elements from a position to another."""
    method, arguments, dtype = MERGERS[output.method], dict(output.arguments), output.spec.dtype
    compares = method.base in ("reference", "optional")
    if method.random:
        arguments["seeds"] = output.seeds
    if method.measure is not None:
        arguments.update(method.measure(arrays, **({"base": base} if compares else {}), **arguments))
    if method.shares is not None:
        shares = method.shares(**arguments)
        together = arrays if base is None else [base, *arrays]
        return lambda start, end: sum_arrays(
            [array[start:end] for array in together], shares.coefficients, dtype, divisor=shares.divisor
        )

    def combined(start: int, end: int) -> Array:
        own: dict[str, Any] = {"base": None if base is None else base[start:end]} if compares else {}
        if method.takes_position:
            own["first_position"] = start
        merged: Array = method.combine([array[start:end] for array in arrays], **own, **arguments, dtype=dtype)
        return merged

    return combined


def _pieces(output: OutputTensor, merge: Callable[[int, int], Array]) -> Iterator[Call[Array]]:
    def piece(start: int, end: int) -> Array:
        try:
            return merge(start, end)
        except NotFiniteError:
            raise not_finite(output) from None

    step = wide_piece_elements()  # smaller ones fit the cache better, and have threads wait for each other more
    for start in range(0, output.spec.num_elements, step):
        yield partial(piece, start, min(start + step, output.spec.num_elements))


def _copies(output: OutputTensor) -> Iterator[Call[Array]]:
    arrays = [_array(source).view(np.uint8) for _, source in output.sources]
    if any(not np.array_equal(array, arrays[0]) for array in arrays[1:]):
        raise not_equal(output)
    step = 8 * wide_piece_elements()
    for start in range(0, len(arrays[0]), step):
        yield partial(arrays[0].__getitem__, slice(start, start + step))
