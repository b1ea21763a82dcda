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
