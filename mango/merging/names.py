"""What the names of a checkpoint's tensors tell: stacks of blocks, embeddings, heads, and parts of a larger model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_NUMBERED = re.compile(r"^(?P<stack>.*?)\.(?P<block>\d+)\.(?P<rest>.+)$")
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|token_embd|shared|tokens_embed)\.weight$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|output)\.(weight|bias)$")
_COUNT_KEYS = re.compile(r"layer|depth|block")
_NEVER_READ = re.compile(r"(rotary_emb\.inv_freq|\.attn\.masked_bias|\.attention\.masked_bias)$")
COUNT_WORDS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
"""What configurations call the number of blocks, the usual words first."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a tensor is in a model.

    Attributes:
        stack: name of its stack of blocks (``model.layers``), or nothing outside of stacks.
        block: index of its block, -1 outside of stacks.
        rest: its name inside the block, or its whole name outside.
    """

    stack: str
    block: int
    rest: str

    @property
    def name(self) -> str:
        """The whole name."""
        return f"{self.stack}.{self.block}.{self.rest}" if self.stack else self.rest


def find_stacks(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, int]:
    """Return the stacks of blocks that names show, with their number of blocks.

    A stack is numbered from 0 without a hole, and the configuration names its number of blocks.

    Args:
        names: names of tensors.
        config: content of ``config.json``; an empty one allows any number.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        if found := _NUMBERED.match(name):
            numbers.setdefault(found["stack"], set()).add(int(found["block"]))
    counts = {value for _, value in count_keys(config)}
    return {
        stack: len(found)
        for stack, found in sorted(numbers.items())
        if found == set(range(len(found))) and (not counts or len(found) in counts)
    }


def count_keys(config: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield (path, value) of every entry of a configuration that may be a number of blocks, the usual words first."""
    words = [word for word in COUNT_WORDS if word in config]
    for key in [*words, *sorted(set(config) - set(words))]:
        value = config[key]
        if isinstance(value, int) and not isinstance(value, bool) and _COUNT_KEYS.search(key):
            yield (*above, key), value
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from count_keys(value, (*above, key))


def place_of(name: str, stacks: Collection[str]) -> Place:
    """Return where a tensor is."""
    found = _NUMBERED.match(name)
    if found and found["stack"] in stacks:
        return Place(found["stack"], int(found["block"]), found["rest"])
    return Place("", -1, name)


def is_embedding(name: str) -> bool:
    """Tell whether a name is that of an input embedding's weight."""
    return bool(_EMBEDDING.search(name))


def is_head(name: str) -> bool:
    """Tell whether a name is that of an output head's weight or bias."""
    return bool(_HEAD.search(name))


def is_after(name: str) -> bool:
    """Tell whether a tensor outside of the blocks runs behind them: all but embeddings do."""
    return is_head(name) or not re.search(r"emb|wte|wpe", name)


def is_never_read(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor is one that old checkpoints hold and no architecture reads: caches of angles and masks."""
    mask = len(shape) == 4 and shape[:2] == (1, 1) and name.endswith((".attn.bias", ".attention.bias"))
    return mask or bool(_NEVER_READ.search(name))


def module_of(name: str) -> str:
    """Return which part of a model that has several a tensor belongs to, by the words that documents use."""
    if re.search(r"(^|\.)(multi_modal_projector|merger|projector|deepstack_merger_list|connector)(\.|$)", name):
        return "multi_modal_projector"
    if re.search(r"(^|\.)(vision\w*|visual)(\.|$)", name):
        return "vision_tower"
    if re.search(r"(^|\.)encoder\.", name):
        return "encoder"
    if re.search(r"(^|\.)decoder\.", name):
        return "decoder"
    return "text_decoder"


def translation(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Return what a model's tensors are called in another that is built alike but prefixed otherwise.

    ``h.0.ln_1.weight`` and ``transformer.h.0.ln_1.weight`` are one tensor; so are ``model.layers.0...`` and
    ``model.language_model.layers.0...``. A tail that is not unique among the wanted names translates nothing.

    Args:
        names: the model's own names.
        wanted: the names to translate into.

    Returns:
        The new name of each tensor; its own where nothing fits.
    """
    known = set(wanted)
    if known.issuperset(names):
        return {name: name for name in names}
    tails: dict[str, set[str]] = {}
    for name in wanted:
        tails.setdefault(_tail(name)[1], set()).add(_tail(name)[0])
    prefixes: dict[str, str] = {}
    for name in names:
        prefix, tail = _tail(name)
        found = tails.get(tail, set())
        if name not in known and len(found) == 1 and _NUMBERED.match(f"x.{tail}"):
            prefixes.setdefault(prefix, next(iter(found)))
    result = {}
    for name in names:
        prefix, tail = _tail(name)
        found = tails.get(tail, set())
        if name in known:
            result[name] = name
        elif prefix in prefixes and _NUMBERED.match(f"x.{tail}"):
            result[name] = prefixes[prefix] + tail
        elif len(found) == 1 and (new := next(iter(found)) + tail) not in names:
            result[name] = new
        else:
            result[name] = name
    return result if len(set(result.values())) == len(result) else {name: name for name in names}


def _tail(name: str) -> tuple[str, str]:
    """Split a name before the last word in front of its first number, or before its last two words."""
    found = _NUMBERED.match(name)
    if found:
        prefix, dot, word = found["stack"].rpartition(".")
        return prefix + dot, f"{word}.{found['block']}.{found['rest']}"
    words = name.split(".")
    head = ".".join(words[:-2])
    return (f"{head}." if head else ""), ".".join(words[-2:])
