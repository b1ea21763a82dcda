"""The names that element types have in safetensors files, in documents and in torch."""

from __future__ import annotations

import torch

from mango.tensors.names import floating_name

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}
"""The element types of safetensors that Mango reads and writes, with those of torch."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch type of a safetensors type name such as ``"BF16"``.

    Raises:
        KeyError: the name stands for no type that Mango reads.
    """
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the safetensors name of a torch type.

    Raises:
        KeyError: safetensors files cannot hold the type.
    """
    return _NAMES[dtype]


def parse_dtype(word: str) -> torch.dtype:
    """Return the floating point type that a person means by ``word`` (``"bfloat16"``, ``"fp16"``, ``"float32"``).

    Raises:
        KeyError: the word names no floating point type.
    """
    return DTYPES[floating_name(word)]
