"""Weighted sums of stored elements with numpy alone, to the bit what `weighted_sum` makes of them with torch.

Importing torch takes a second and 150 MB, as long as many a merge. numpy has no bfloat16; its elements are ``uint16``
here, the upper halves of float32 numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mango.tensors.pieces import wide_piece_elements

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]

ARRAY_TYPES: dict[str, npt.DTypeLike] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""The element types that can be summed here, by their names in safetensors files."""

_HALF = np.uint32(16)
_UPPER = np.uint32(0xFFFF0000)
_ONE = np.uint32(1)
_BELOW_MIDDLE = np.uint32(0x7FFF)
_LARGEST = {
    "F64": float(np.finfo(np.float64).max),
    "F32": float(np.finfo(np.float32).max),
    "F16": float(np.nextafter(np.float32(65520), np.float32(0))),
    "BF16": float(np.uint32(0x7F7F7FFF).view(np.float32)),
}
"""The largest float32 (float64 for F64) that each type rounds to a finite number."""


def widened(array: Array, out: Floats | None = None) -> Floats:
    """Return the values of an array of stored elements as float64.

    Args:
        array: of a type of `ARRAY_TYPES`, any shape.
        out: where to put them, float64 of that shape; a new array by default.
    """
    out = np.empty(array.shape) if out is None else out
    if array.dtype == np.uint16:
        words = array.astype(np.uint32)
        np.left_shift(words, _HALF, out=words)
        array = words.view(np.float32)
    np.copyto(out, array)
    return out


class _Buffers(threading.local):
    """What sums of a thread are made in: allocated once, and small enough for the cache of a processor."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Array, Array]] = {}

    def doubles(self, size: int) -> tuple[Floats, Floats]:
        return self._pair("doubles", size, np.float64, np.float64)

    def singles(self, size: int) -> tuple[npt.NDArray[np.float32], Words]:
        return self._pair("singles", size, np.float32, np.uint32)

    def _pair(self, name: str, size: int, *types: type[np.generic]) -> tuple[Any, Any]:
        if name not in self._kept or len(self._kept[name][0]) < size:
            first, second = (np.empty(max(size, wide_piece_elements()), dtype) for dtype in types)
            self._kept[name] = first, second
        first, second = self._kept[name]
        return first[:size], second[:size]


_BUFFERS = _Buffers()


class NotFiniteError(ArithmeticError):
    """An element is NaN or infinite in the type in which it is stored."""


def sum_arrays(arrays: Sequence[Array], coefficients: Sequence[float], dtype: str, *, divisor: float = 1.0) -> Array:
    """Return the sum of arrays, each times its coefficient, computed in float64.

    Args:
        arrays: at least one, of types of `ARRAY_TYPES`, all of shape [n].
        coefficients: one for each.
        dtype: safetensors name of the type of the result.
        divisor: what the sum is divided by at the end.

    Returns:
        The elements of the sum in their stored type, shape [n].

    Raises:
        NotFiniteError: one of them is not finite there.
    """
    paired = dtype == "BF16" and all(_is_paired(array) for array in arrays)
    (total, wide), (single, _) = _BUFFERS.doubles(len(arrays[0])), _BUFFERS.singles(len(arrays[0]))
    with np.errstate(all="ignore"):
        for number, (array, coefficient) in enumerate(zip(arrays, coefficients, strict=True)):
            target = wide if number else total
            if paired:
                np.copyto(target, _split(array.view(np.uint32), single))
            else:
                widened(array, target)
            np.multiply(target, coefficient, out=target)
            if number:
                np.add(total, wide, out=total)
        if divisor != 1.0:
            np.divide(total, divisor, out=total)
        return stored(total, dtype, paired=paired)


def stored(values: Floats, dtype: str, *, paired: bool = False) -> Array:
    """Return float64 elements in the type in which they are stored, in memory of their own.

    Args:
        values: any shape.
        dtype: safetensors name of the type.
        paired: those at even places come first, then those at odd places (BF16 alone).

    Returns:
        Of the same shape.

    Raises:
        NotFiniteError: an element is not finite there.
    """
    if dtype == "F64":
        _check_within(values, _LARGEST["F64"])
        return values.copy()
    single, words = _BUFFERS.singles(values.size)
    with np.errstate(all="ignore"):
        np.copyto(single, values.reshape(-1), casting="same_kind")
    _check_within(single, _LARGEST[dtype])
    if dtype == "F32":
        result: Array = single.copy()
    elif dtype == "F16":
        result = single.astype(np.float16)
    else:
        rounded = _round_to_upper(single.view(np.uint32), words)
        result = _joined(rounded, words) if paired else np.right_shift(rounded, _HALF, out=words).astype(np.uint16)
    return result.reshape(values.shape)


def _is_paired(array: Array) -> bool:
    return array.dtype == np.uint16 and len(array) % 2 == 0 and array.ctypes.data % 4 == 0


def _split(pairs: Words, single: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return bfloat16 elements as float32, those at even places first: two at a time need no conversion of type."""
    words, half = single.view(np.uint32), len(pairs)
    np.left_shift(pairs, _HALF, out=words[:half])
    np.bitwise_and(pairs, _UPPER, out=words[half:])
    return single


def _joined(words: Words, spare: Words) -> Array:
    """Return the upper halves of words in the order that `_split` took them from."""
    half = len(words) // 2
    result = np.right_shift(words[:half], _HALF)
    np.bitwise_and(words[half:], _UPPER, out=spare[half:])
    np.bitwise_or(result, spare[half:], out=result)
    return result.view(np.uint16)


def _round_to_upper(words: Words, spare: Words) -> Words:
    """Round float32 numbers, given as words, to what their upper halves can say, in place: to nearest, ties to even.

    A NaN may become another number.
    """
    np.right_shift(words, _HALF, out=spare)
    np.bitwise_and(spare, _ONE, out=spare)
    np.add(spare, _BELOW_MIDDLE, out=spare)
    return np.add(words, spare, out=words)


def _check_within(array: Array, limit: float) -> None:
    if array.size and not (array.max() <= limit and array.min() >= -limit):  # a NaN fails both
        raise NotFiniteError
