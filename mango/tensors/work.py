"""Float64 work on pieces, the same with tensors of torch on any device and with arrays of numpy.

Both offer the same operations under the same names, and make the same bits of the same elements, except where torch
fuses a product with a sum (`add_multiple`).
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from mango.tensors.arrays import Array, Floats, stored, widened
from mango.tensors.pieces import wide_piece_elements
from mango.tensors.randomness import keep_at_random, kept_at_random
from mango.tensors.scratch import Scratch

Values = Any
"""Float64 elements: a tensor in `TensorWork`, an array in `ArrayWork`."""

_SIGN_BIT = np.int64(-(2**63))


def work_on(example: Any) -> Any:
    """Return a block in which one works on tensors, or on arrays, as the example is one.

    Its buffers come back to the thread at its end; nothing in them may leave it.
    """
    return ArrayWork() if isinstance(example, np.ndarray) else TensorWork()


class TensorWork(Scratch):
    """Work on tensors."""

    def multiply(self, first: Values, second: Values | float, out: Values) -> Values:
        """Return the product."""
        return torch.mul(first, second, out=out)

    def add(self, first: Values, second: Values, out: Values) -> Values:
        """Return the sum."""
        return torch.add(first, second, out=out)

    def subtract(self, first: Values, second: Values, out: Values) -> Values:
        """Return the difference."""
        return torch.sub(first, second, out=out)

    def divide(self, first: Values, second: Values, out: Values) -> Values:
        """Return the quotient."""
        return torch.div(first, second, out=out)

    def absolute(self, values: Values, out: Values) -> Values:
        """Return the magnitudes."""
        return torch.abs(values, out=out)

    def sign(self, values: Values, out: Values) -> Values:
        """Return 1, 0 or -1 for each element."""
        return torch.sign(values, out=out)

    def at_least(self, values: Values, least: float, out: Values) -> Values:
        """Return the larger of each element and a number."""
        return torch.clamp(values, min=least, out=out)

    def copysign(self, sizes: Values, signs: Values, out: Values) -> Values:
        """Return the magnitudes of one with the signs of the other."""
        return torch.copysign(sizes, signs, out=out)

    def add_multiple(self, total: Values, values: Values, factor: float) -> Values:
        """Add in place values, which are used up, times a factor; the product may not be rounded before."""
        return total.add_(values, alpha=factor)

    def choose(self, shares: Values, first: Values, second: Values) -> Values:
        """Return the first where a number is 1, the second where it is 0; both are used up. NaN stays NaN."""
        return torch.lerp(second, first, shares, out=second)

    def ones_below(self, values: Values, limit: float) -> Values:
        """Put 1 in the place of what is not larger in magnitude than a limit."""
        return values.masked_fill_(values.abs() <= limit, 1.0)

    def keep_above(self, values: Values, sizes: Values, limits: Values, spare: Values) -> Values:
        """Multiply in place with 1 where a size is above its limit, else with 0; limits and spare are used up."""
        if values.is_cpu:  # comparisons are many times slower than arithmetic there
            return values.mul_(torch.sub(sizes, limits, out=spare).clamp_(min=0.0).sign_())
        return values.mul_(sizes > limits)

    def keep_random(
        self,
        values: Values,
        factor: float,
        *,
        seed: int,
        first: int,
        probability: float,
        spare: Values,
        out: Values,
    ) -> Values:
        """Return elements times a factor where chance keeps them, else times 0; spare is used up.

        Args:
            values: contiguous.
            factor: of what is kept.
            seed: of the tensor.
            first: flat position of the first element.
            probability: of keeping an element.
            spare: a buffer of the same shape.
            out: where the result goes.
        """
        if values.is_cpu:
            drawn: dict[str, Any] = {"seed": seed, "first": first, "probability": probability}
            with ArrayWork() as work:
                work.keep_random(values.numpy(), factor, **drawn, spare=spare.numpy(), out=out.numpy())
            return out
        kept = keep_at_random(seed, first, values.numel(), probability, values.device).view_as(values)
        return torch.mul(values, spare.copy_(kept).mul_(factor), out=out)

    def stored(self, values: Values, dtype: torch.dtype | str) -> torch.Tensor:
        """Return the elements in a type, in memory of their own."""
        assert isinstance(dtype, torch.dtype)
        return values.to(dtype, copy=True)  # type: ignore[no-any-return]


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: list[Floats] = []


_KEPT = _Kept()


class ArrayWork:
    """Work on arrays."""

    def __enter__(self) -> Self:
        self._kept = _KEPT.buffers
        self._taken: list[Floats] = []
        self._quiet = np.errstate(all="ignore")  # infinity times zero is the NaN that is wanted
        self._quiet.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quiet.__exit__(kind, error, trace)
        self._kept += self._taken

    def like(self, array: Array) -> Floats:
        """Return a float64 buffer of an array's shape, with whatever was in it."""
        size, most = array.size, wide_piece_elements()
        if size > most:
            return np.empty(array.shape)
        whole = self._kept.pop() if self._kept else np.empty(most)
        self._taken.append(whole)
        return whole[:size].reshape(array.shape)

    def double(self, array: Array) -> Floats:
        """Return the values of stored elements in a buffer, as float64; the array itself is left alone."""
        return widened(array, self.like(array))

    def fill(self, buffer: Floats, array: Array) -> Floats:
        """Put the values of stored elements into a buffer."""
        return widened(array, buffer)

    def multiply(self, first: Values, second: Values | float, out: Values) -> Values:
        """Return the product."""
        return np.multiply(first, second, out=out)

    def add(self, first: Values, second: Values, out: Values) -> Values:
        """Return the sum."""
        return np.add(first, second, out=out)

    def subtract(self, first: Values, second: Values, out: Values) -> Values:
        """Return the difference."""
        return np.subtract(first, second, out=out)

    def divide(self, first: Values, second: Values, out: Values) -> Values:
        """Return the quotient."""
        return np.divide(first, second, out=out)

    def absolute(self, values: Values, out: Values) -> Values:
        """Return the magnitudes."""
        return np.absolute(values, out=out)

    def sign(self, values: Values, out: Values) -> Values:
        """Return 1, 0 or -1 for each element."""
        return np.sign(values, out=out)

    def at_least(self, values: Values, least: float, out: Values) -> Values:
        """Return the larger of each element and a number."""
        return np.maximum(values, least, out=out)

    def copysign(self, sizes: Values, signs: Values, out: Values) -> Values:
        """Return the magnitudes of one with the signs of the other."""
        return np.copysign(sizes, signs, out=out)

    def add_multiple(self, total: Values, values: Values, factor: float) -> Values:
        """Add in place values, which are used up, times a factor."""
        return np.add(total, np.multiply(values, factor, out=values), out=total)

    def choose(self, shares: Values, first: Values, second: Values) -> Values:
        """Return the first where a number is 1, the second where it is 0; both are used up."""
        np.copyto(second, first, where=shares > 0)
        return second

    def ones_below(self, values: Values, limit: float) -> Values:
        """Put 1 in the place of what is not larger in magnitude than a limit."""
        np.copyto(values, 1.0, where=np.absolute(values) <= limit)
        return values

    def keep_above(self, values: Values, sizes: Values, limits: Values, spare: Values) -> Values:
        """Multiply in place with 1 where a size is above its limit, else with 0; limits and spare are used up."""
        return np.multiply(values, _ones_where(np.greater(sizes, limits), 1.0, spare), out=values)

    def keep_random(
        self,
        values: Values,
        factor: float,
        *,
        seed: int,
        first: int,
        probability: float,
        spare: Values,
        out: Values,
    ) -> Values:
        """Return elements times a factor where chance keeps them, else times 0; see `TensorWork.keep_random`."""
        kept = kept_at_random(seed, first, values.size, probability).reshape(values.shape)
        return np.multiply(values, _ones_where(kept, factor, spare), out=out)

    def stored(self, values: Values, dtype: torch.dtype | str) -> Array:
        """Return the elements in a type, given by its safetensors name, in memory of their own.

        Raises:
            NotFiniteError: an element is not finite there.
        """
        assert isinstance(dtype, str)
        return stored(values, dtype)


def _ones_where(mask: Array, value: float, out: Floats) -> Floats:
    """Return a number where a mask is true and 0 of its sign elsewhere, made of bits: numpy converts truth slowly."""
    bits = out.view(np.int64)
    np.negative(mask.view(np.int8), out=bits)
    np.bitwise_and(bits, np.float64(abs(value)).view(np.int64), out=bits)
    return np.bitwise_or(bits, _SIGN_BIT, out=bits).view(np.float64) if np.signbit(value) else out
