"""The words for what blocks mix tokens with, and what a configuration's list of layer types says in them."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Words of transformers' own vocabulary of layer types, in the order in which they are looked for.
_KINDS = (
    ("sliding", re.compile(r"sliding|local|window|swa")),
    ("chunked", re.compile(r"chunked")),
    ("linear", re.compile(r"linear|delta|gated_?net|rwkv|lightning|retention|kda")),
    ("ssm", re.compile(r"mamba|ssm|recurrent|lstm|mixer2|rglru")),
    ("conv", re.compile(r"conv")),
    ("full", re.compile(r"full|global|attention|hybrid|sparse|compressed|mla")),
)
LAYER_TYPES = ("layer_types", "layers_block_type")
"""The fields of a configuration that say of each block what it mixes tokens with."""


def declared_kinds(layer_types: object, count: int) -> list[str] | None:
    """Return the kind of each block by a list of layer types, or None where it is none for so many blocks.

    Args:
        layer_types: the value of such a field.
        count: number of blocks.
    """
    if not isinstance(layer_types, Sequence) or isinstance(layer_types, str) or len(layer_types) != count:
        return None
    found = [next((kind for kind, words in _KINDS if words.search(str(item).lower())), None) for item in layer_types]
    return [str(kind) for kind in found] if all(found) else None
