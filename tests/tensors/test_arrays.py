"""Sums of stored elements with numpy: the bits that torch makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mango.tensors import measure_angle, torch_dtype
from mango.tensors.arrays import ARRAY_TYPES, Array, NotFiniteError, sum_arrays
from mango.tensors.sums import weighted_sum

SIZES = [1, 2, 3, 4, 255, 256, 1001, 2**17, 2**17 + 1]


def stored(tensor: torch.Tensor, shift: int = 0) -> Array:
    """The elements of a tensor as they lie in a file, ``shift`` bytes behind an aligned place."""
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    whole = bytearray(shift) + raw
    name = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}[tensor.dtype]
    return np.frombuffer(memoryview(whole)[shift:], dtype=ARRAY_TYPES[name])


def values(size: int, dtype: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(size, generator=generator, dtype=torch.float64)
    scale = 10.0 ** torch.randint(-7, 3, (size,), generator=generator)  # subnormal numbers of float16 among them
    return (spread * scale).to(torch_dtype(dtype))


@pytest.mark.parametrize("written", list(ARRAY_TYPES))
@pytest.mark.parametrize("dtypes", [(d, d) for d in ARRAY_TYPES] + [("BF16", "F32"), ("F16", "BF16")])
def test_sums_are_those_of_torch_to_the_bit(dtypes: tuple[str, str], written: str) -> None:
    for size in SIZES:
        tensors = [values(size, dtype, seed) for seed, dtype in enumerate((*dtypes, dtypes[0]))]
        for coefficients, divisor in (([0.3, 0.3, 0.4], 1.0), ([1.0, -1.7, 0.0], 0.7), ([1 / 3] * 3, 3.0)):
            wanted = weighted_sum(tensors, coefficients, torch_dtype(written), divisor=divisor)
            for shift in (0, 2):
                arrays = [stored(tensor, shift) for tensor in tensors]
                if not wanted.isfinite().all():
                    with pytest.raises(NotFiniteError):
                        sum_arrays(arrays, coefficients, written, divisor=divisor)
                    continue
                found = sum_arrays(arrays, coefficients, written, divisor=divisor)
                assert found.tobytes() == stored(wanted).tobytes(), (size, coefficients)


def test_every_bfloat16_is_read_and_rounded_like_torch() -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[every.isfinite()]
    for factor in (1.0, 1 + 2**-8, 1 + 2**-9, 0.1, 2**-120):
        wanted = weighted_sum([every], [factor], torch.bfloat16)
        fits = wanted.isfinite()
        found = sum_arrays([stored(every[fits])], [factor], "BF16")
        assert torch.equal(torch.from_numpy(found.view(np.int16).copy()).view(torch.bfloat16), wanted[fits])


@pytest.mark.parametrize("written", list(ARRAY_TYPES))
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_told(wrong: float, written: str) -> None:
    for size in (1, 2, 1001, 1002):
        tensor = torch.ones(size, dtype=torch.bfloat16)
        tensor[size // 2] = wrong
        for factor in (1.0, 0.0):
            with pytest.raises(NotFiniteError):
                sum_arrays([stored(tensor)], [factor], written)


@pytest.mark.parametrize(
    ("written", "largest", "beyond"),
    [("BF16", 3.3895e38, 3.4e38), ("F16", 65519.0, 65520.0), ("F32", 3.4028e38, 3.5e38)],
)
def test_numbers_too_large_for_the_type_are_told(written: str, largest: float, beyond: float) -> None:
    for sign in (1.0, -1.0):
        sum_arrays([np.full(2, sign)], [largest], written)
        with pytest.raises(NotFiniteError):
            sum_arrays([np.full(2, sign)], [beyond], written)
        assert not torch.tensor([beyond], dtype=torch.float64).to(torch_dtype(written)).isfinite()


def test_a_nan_with_every_bit_set_is_told() -> None:
    nan = np.array([0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)
    with pytest.raises(NotFiniteError):
        sum_arrays([nan], [1.0], "BF16")


@pytest.mark.parametrize("dtype", list(ARRAY_TYPES))
@pytest.mark.parametrize("between", [0.0, 1e-6, 1e-3, 0.3, 3.0])
@pytest.mark.parametrize("length", [1.0, 2.5, -1.0, -0.4])
def test_angles_are_exact(dtype: str, between: float, length: float) -> None:
    first = values(70_001, "F64", 1)
    second = (first * length + between * values(70_001, "F64", 2)).to(torch_dtype(dtype))
    first = first.to(torch_dtype(dtype))
    a, b = (tensor.double().numpy().astype(np.longdouble) for tensor in (first, second))
    u, v = a / np.sqrt((a * a).sum()), b / np.sqrt((b * b).sum())
    wanted: Any = 2 * np.arctan2(np.sqrt(((u - v) ** 2).sum()), np.sqrt(((u + v) ** 2).sum()))
    found = measure_angle(first, second)
    assert abs(found.radians - float(wanted)) < 1e-13
    assert measure_angle(stored(first), stored(second)) == found
