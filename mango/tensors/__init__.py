"""Pure tensor maths: no modules, no files. What needs no torch is imported without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mango.lazy import lazily
from mango.tensors.names import ITEM_BYTES, floating_name, item_bytes, torch_name

if TYPE_CHECKING:
    from mango.tensors.angles import Angle, measure_angle
    from mango.tensors.dtypes import dtype_name, parse_dtype, torch_dtype
    from mango.tensors.procrustes import ProcrustesFit
    from mango.tensors.randomness import keep_at_random, random_words, tensor_seed, uniform
    from mango.tensors.ridge import RidgeFit
    from mango.tensors.selection import Kept, keep_largest, num_kept
    from mango.tensors.similarity import held_out_fit, linear_cka
else:
    __getattr__ = lazily(
        __name__,
        {
            "Angle measure_angle": "angles",
            "dtype_name parse_dtype torch_dtype": "dtypes",
            "keep_at_random random_words tensor_seed uniform": "randomness",
            "ProcrustesFit": "procrustes",
            "RidgeFit": "ridge",
            "Kept keep_largest num_kept": "selection",
            "held_out_fit linear_cka": "similarity",
        },
    )

__all__ = [
    "ITEM_BYTES",
    "Angle",
    "Kept",
    "ProcrustesFit",
    "RidgeFit",
    "dtype_name",
    "floating_name",
    "held_out_fit",
    "item_bytes",
    "keep_at_random",
    "keep_largest",
    "linear_cka",
    "measure_angle",
    "num_kept",
    "parse_dtype",
    "random_words",
    "tensor_seed",
    "torch_dtype",
    "torch_name",
    "uniform",
]
