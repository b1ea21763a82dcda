"""How blocks mix tokens: attention kinds and head geometry, from configurations and the words in class names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from mango.architectures.kinds import LAYER_TYPES, declared_kinds

_MIXERS = (
    ("ssm", re.compile(r"mamba|ssm|recurrent|lstm|rglru|slstm|mlstm", re.IGNORECASE)),
    ("linear", re.compile(r"deltanet|linearattention|rwkv|lightningattention|retention|fourier", re.IGNORECASE)),
    ("conv", re.compile(r"shortconv|convlayer|depthwise|convolution", re.IGNORECASE)),
    ("full", re.compile(r"attention|attn", re.IGNORECASE)),
)


def attention_kinds(blocks: Sequence[nn.Module], config: PretrainedConfig) -> tuple[str, ...]:
    """Return what each block mixes tokens with.

    The configuration's list of layer types decides where it has one for each block; else the modules inside a block.

    Args:
        blocks: the blocks in order.
        config: configuration of the model that they are in.
    """
    declared = _declared(config, len(blocks))
    if declared is None:
        return tuple(_observed(block) for block in blocks)
    return tuple(_refined(kind, block) for kind, block in zip(declared, blocks, strict=True))


def _refined(kind: str, block: nn.Module) -> str:
    """Tell state spaces and convolutions from linear attention: layer types have one word for them all."""
    if kind != "linear":
        return kind
    observed = [part for part in _observed(block).split("+") if part in {"ssm", "linear", "conv"}]
    return "+".join(observed) or kind


def _declared(config: PretrainedConfig, count: int) -> list[str] | None:
    found = (declared_kinds(getattr(config, name, None), count) for name in LAYER_TYPES)
    return next((kinds for kinds in found if kinds is not None), None)


def _observed(block: nn.Module) -> str:
    found: dict[str, None] = {}
    for module in block.modules():
        if module is block:
            continue
        name = type(module).__name__
        kind = next((kind for kind, words in _MIXERS if words.search(name)), None)
        if kind == "full" and _window(module):
            kind = "sliding"
        if kind is not None:
            found[kind] = None
    if "full" in found and len(found) > 1 and "sliding" in found:
        found.pop("full")  # the module around the one that has the window
    return "+".join(sorted(found)) or "none"


def _window(module: nn.Module) -> bool:
    window = getattr(module, "sliding_window", None)
    return isinstance(window, int) and window > 0


def heads_of(config: PretrainedConfig, role: str, width: int) -> tuple[int, int, int]:
    """Return query heads, key-value heads and the size of a head; 0 where the configuration has no single number.

    Args:
        config: configuration of the model that the stack is in.
        role: role of the stack.
        width: its width.
    """
    text = config if role.startswith(("vision", "audio")) else config.get_text_config()
    side = "decoder" if role.startswith("decoder") else "encoder"
    heads = _first(text, f"{side}_attention_heads", f"num_{side}_attention_heads", "num_attention_heads", "num_heads",
                   "n_head", "n_heads", "attention_heads")  # fmt: skip
    if not heads:
        return 0, 0, 0
    kv_heads = _first(text, f"{side}_num_key_value_heads", "num_key_value_heads", "num_kv_heads") or heads
    head_dim = _first(text, "head_dim", "d_kv", "attention_head_size") or (width // heads if width else 0)
    return heads, kv_heads, head_dim


def _first(config: PretrainedConfig, *names: str) -> int:
    for name in names:
        value = number(config, name)
        if value is not None:
            return value
    return 0


def number(config: Any, name: str) -> int | None:
    """Return a field of a configuration that is a positive integer, or None."""
    try:
        value = getattr(config, name, None)
    except (RuntimeError, AttributeError):  # the configuration says that layers differ in it
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
