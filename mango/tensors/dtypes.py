"""The names that element types have in safetensors files, in documents and in torch."""

from __future__ import annotations

import torch

from mango.tensors.names import ITEM_BYTES, floating_name, torch_name

_NAMES = {torch_name(name): name for name in ITEM_BYTES}


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch type of a safetensors type name such as ``"BF16"``.

    Raises:
        KeyError: the name stands for no type that Mango reads.
    """
    return getattr(torch, torch_name(name))  # type: ignore[no-any-return]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the safetensors name of a torch type.

    Raises:
        KeyError: safetensors files cannot hold the type.
    """
    return _NAMES[str(dtype).removeprefix("torch.")]


def parse_dtype(word: str) -> torch.dtype:
    """Return the floating point type that a person means by ``word`` (``"bfloat16"``, ``"fp16"``, ``"float32"``).

    Raises:
        KeyError: the word names no floating point type.
    """
    return torch_dtype(floating_name(word))
