"""Pure tensor maths: no modules, no files."""

from __future__ import annotations

from mango.tensors.angles import Angle, measure_angle
from mango.tensors.dtypes import DTYPES, dtype_name, item_bytes, parse_dtype, torch_dtype
from mango.tensors.randomness import keep_at_random, random_words, tensor_seed, uniform
from mango.tensors.ridge import RidgeFit
from mango.tensors.selection import Kept, keep_largest, num_kept

__all__ = [
    "DTYPES",
    "Angle",
    "Kept",
    "RidgeFit",
    "dtype_name",
    "item_bytes",
    "keep_at_random",
    "keep_largest",
    "measure_angle",
    "num_kept",
    "parse_dtype",
    "random_words",
    "tensor_seed",
    "torch_dtype",
    "uniform",
]
