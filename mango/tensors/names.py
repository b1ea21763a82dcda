"""The names of element types, without torch: those of safetensors files, and the words that people write."""

from __future__ import annotations

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
"""The element types of safetensors that Mango reads and writes, with the size of one element in bytes."""

FLOATING_WORDS = {
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float16": "F16",
    "fp16": "F16",
    "half": "F16",
    "float32": "F32",
    "fp32": "F32",
    "float": "F32",
    "float64": "F64",
    "double": "F64",
}
"""The floating point type that a word means, as safetensors calls it."""

_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
}


def torch_name(name: str) -> str:
    """Return what torch, and configurations of models, call a safetensors type: ``"bfloat16"`` for ``"BF16"``.

    Raises:
        KeyError: the name stands for no type that Mango reads.
    """
    return _TORCH_NAMES[name]


def item_bytes(name: str) -> int:
    """Return the size in bytes of one element of a safetensors type.

    Raises:
        KeyError: the name stands for no type that Mango reads.
    """
    return ITEM_BYTES[name]


def floating_name(word: str) -> str:
    """Return the safetensors name of the floating point type that a person means (``"fp16"``, ``"torch.bfloat16"``).

    Raises:
        KeyError: the word names no floating point type.
    """
    return FLOATING_WORDS[word.removeprefix("torch.")]
