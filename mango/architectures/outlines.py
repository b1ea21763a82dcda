"""Maps of models from their configuration and the headers of their files alone, without building anything.

To watch a model run (`describe`) takes transformers and torch, which are seconds and hundreds of MiB to import. Most
models that are extracted are of types whose map differs between two models in its numbers only. For those the package
ships an outline: the map of a tiny model of the type, the names of its tensors, and rules for every number and extent
that were found to hold for tiny models of several sizes.

An outline answers only where everything fits: every field of the configuration that is no number is as in the model
that the outline was made of, the checkpoint holds exactly the tensors that the outline names, and each has the extents
that its rules give. In every other case there is no answer, and the model is watched. What an outline said is compared
with what watching says before a block of the model is first built; see :class:`mango.blocks.BlockStore`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from mango.architectures.component_map import ComponentMap, Stack
from mango.architectures.kinds import LAYER_TYPES, declared_kinds

Rule = int | list[Any]
"""A number: itself, or ``[factor, symbol]``."""

INERT = re.compile(
    r"_token_ids?$|^(torch_)?dtype$|^rope|^_|version|^architectures$|act(ivation)?(_fn|_function)?$|^use_cache$"
    r"|^model_type$|^id2label$|^label2id$|^problem_type$|^task_specific_params$|dropout|^return_|^output_|epsilon|eps$"
    r"|^tokenizer_class$|^pruned_heads$|^chunk_size_feed_forward$|^initializer|^(summary|finetuning)_|^name_or_path$"
    r"|_range$|^pretraining_tp$|^gradient_checkpointing$|^bos$|^eos$|^scale_attn|^reorder_and_upcast_attn$"
)
"""Fields that do not bear on where a model keeps its parts or how many of them there are."""

# What each number falls back to where a configuration leaves its field out, in words of other numbers.
FALLBACKS = {"num_kv_heads": "num_heads", "head_dim": "width//num_heads"}
NUMBERS = (
    "num_blocks", "width", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size", "max_positions",
)  # fmt: skip
STACK_NUMBERS = ("width", "num_heads", "num_kv_heads", "head_dim")


@dataclass(frozen=True)
class Outlined:
    """What an outline says of one checkpoint.

    Args:
        components: the map of its parts.
        names: the name in the checkpoint of each tensor, by its name in the model; a tied head is not among them.
        block_class: class name of every block.
    """

    components: ComponentMap
    names: Mapping[str, str]
    block_class: str


@lru_cache(maxsize=1)
def outlines() -> dict[str, Any]:
    """Return the document that ships with the package: outlines by model type."""
    found: dict[str, Any] = json.loads(files("mango.architectures").joinpath("outlines.json").read_text("utf-8"))
    return found


def outline(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Outlined | None:
    """Return what the outlines say of a checkpoint, or None where the model has to be watched.

    Args:
        raw: content of its ``config.json``.
        shapes: extents of its tensors by their names in the checkpoint.
    """
    document = outlines()
    if document["transformers"] != version("transformers"):
        return None
    kind = document["types"].get(raw.get("model_type"))
    if kind is None:
        return None
    for variant in kind["variants"]:
        found = fit(kind, variant, raw, shapes)
        if found is not None:
            return found
    return None


def fit(
    kind: Mapping[str, Any], variant: Mapping[str, Any], raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Outlined | None:
    """Return what one outline says of a checkpoint, or None where it does not fit.

    Args:
        kind: what the outlines of the model type share.
        variant: one of them.
        raw: content of the checkpoint's ``config.json``.
        shapes: extents of its tensors by their names in the checkpoint.
    """
    architectures = raw.get("architectures")
    if architectures != [variant["architecture"]] and (architectures or not variant["default"]):
        return None
    given = {kind["aliases"].get(key, key): value for key, value in raw.items()}
    given = {key: value for key, value in given.items() if value is not None or key not in kind["computed"]}
    fields = {**kind["defaults"], **given}
    if any(not _like(fields.get(name), flag) for name, flag in variant["flags"].items()):
        return None
    symbols = {name: value for name, value in {**kind["integers"], **given}.items() if _natural(value)}
    numbers = _numbers(variant["numbers"], symbols)
    if numbers is None or not numbers["num_blocks"]:
        return None
    attention = _attention(given, variant, numbers["num_blocks"])
    if attention is None:
        return None
    symbols |= derived(numbers)
    wanted = dict(variant["edges"])
    for index in range(numbers["num_blocks"]):
        prefix = f"{variant['blocks_path']}.{index}."
        wanted |= {f"{prefix}{name}": rules for name, rules in variant["block"].items()}
    names = _names(wanted, shapes, variant["map"]["base_prefix"])
    if names is None:
        return None
    for name, rules in wanted.items():
        if shapes[names[name]] != tuple(evaluate(rule, symbols) for rule in rules):
            return None
    dtype = given.get("dtype", given.get("torch_dtype"))
    return Outlined(
        _map(variant, numbers, attention, None if dtype is None else str(dtype).removeprefix("torch.")),
        names,
        variant["map"]["block_class"],
    )


def flag_of(value: object) -> object:
    """Return what an outline keeps of a field: itself, or only what kind of value it is where that suffices."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return 0
    return []


def _like(value: object, flag: object) -> bool:
    return flag_of(value) == flag and isinstance(flag_of(value), type(flag))


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def evaluate(rule: Rule, symbols: Mapping[str, int]) -> int:
    """Return the number that a rule gives, or -1 where its symbol has no value."""
    if isinstance(rule, int):
        return rule
    factor, symbol = rule
    return int(factor) * symbols[symbol] if symbol in symbols else -1


def derived(numbers: Mapping[str, int]) -> dict[str, int]:
    """Return the symbols that follow from a map's numbers, for extents of projections."""
    queries = numbers["num_heads"] * numbers["head_dim"]
    keys = numbers["num_kv_heads"] * numbers["head_dim"]
    own = {f"@{name}": numbers[name] for name in NUMBERS}
    return {**own, "@queries": queries, "@keys": keys, "@packed": queries + 2 * keys}


def _numbers(rules: Mapping[str, Any], symbols: Mapping[str, int]) -> dict[str, int] | None:
    """Return every number; each has several rules, of which the first that has a value decides."""
    found: dict[str, int] = {}
    for name in (*NUMBERS, *(f"stack.{name}" for name in STACK_NUMBERS)):
        values = (_number(rule, symbols, found) for rule in rules[name])
        value = next((value for value in values if value >= 0), -1)
        if value < 0:
            return None
        found[name] = value
    return found


def _number(rule: Rule | str, symbols: Mapping[str, int], found: Mapping[str, int]) -> int:
    if isinstance(rule, str):
        first, _, second = rule.partition("//")
        return found[first] // found[second] if second and found[second] else found[first] if not second else 0
    if isinstance(rule, list) and str(rule[1]).startswith("@"):
        return evaluate(rule, {f"@{name}": value for name, value in found.items()})
    return evaluate(rule, symbols)


def _attention(given: Mapping[str, Any], variant: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    for name in LAYER_TYPES:
        if given.get(name) is not None:
            kinds = declared_kinds(given[name], count)
            plain = kinds is not None and {"full", "sliding", "chunked"}.issuperset(kinds)
            return tuple(kinds) if kinds is not None and plain else None
    return (variant["attention"],) * count if variant["attention"] else None


def _names(wanted: Mapping[str, Any], shapes: Mapping[str, Any], base_prefix: str) -> dict[str, str] | None:
    """Return the checkpoint's name of each tensor: the model's own, or that inside its base model for all of them."""
    if len(wanted) != len(shapes):
        return None
    if wanted.keys() == shapes.keys():
        return {name: name for name in wanted}
    short = {name: name.removeprefix(f"{base_prefix}.") for name in wanted}
    return short if set(short.values()) == shapes.keys() else None


def _map(
    variant: Mapping[str, Any], numbers: Mapping[str, int], attention: tuple[str, ...], dtype: str | None
) -> ComponentMap:
    fixed = dict(variant["map"])
    count = numbers["num_blocks"]
    stack = dict(fixed.pop("stack"))
    for name in ("carried", "before", "after", "between"):
        stack[name] = tuple(stack[name])
    for name in ("before", "after", "position_embeddings"):
        fixed[name] = tuple(fixed[name])
    own: dict[str, Any] = {name: numbers[f"stack.{name}"] for name in STACK_NUMBERS}
    sizes: dict[str, Any] = {name: numbers[name] for name in NUMBERS}
    for name in ("intermediate_size", "max_positions"):
        sizes[name] = sizes[name] or None
    return ComponentMap(
        **fixed,
        **sizes,
        dtype=dtype,
        stacks=(Stack(**stack, **own, num_blocks=count, order=tuple(range(count)), attention=attention),),
    )
