"""``python -m tests.conformance.outlines``: make the outlines that ship with the package, and check each.

An outline of a model type is learned from a tiny model, and kept where it says of models of other sizes, with and
without the fields that a configuration may leave out, exactly what watching them says.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig

from mango.architectures import ComponentMap, build_class, build_meta, describe, task_of
from mango.architectures.kinds import LAYER_TYPES
from mango.architectures.meta import MODEL_FAILURES
from mango.architectures.outlines import (
    FALLBACKS,
    INERT,
    NUMBERS,
    STACK_NUMBERS,
    Rule,
    derived,
    fit,
    flag_of,
)
from mango.architectures.support import support_table
from mango.errors import MangoError
from tests.conformance import pool
from tests.conformance.recipe import HEAD_DIM, HEADS, INNER, VOCAB, WIDTH, tiny_config

OUT = Path(__file__).parents[2] / "mango" / "architectures" / "outlines.json"
FAILURES = (*MODEL_FAILURES, MangoError)
LIMIT_S = 120.0
FAMILIES = ("causal", "masked")
SIZES: tuple[dict[str, int], ...] = (
    {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 96,
     "vocab_size": 130, "max_position_embeddings": 72, "num_hidden_layers": 4},
    {"hidden_size": 120, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 28, "intermediate_size": 176,
     "vocab_size": 208, "max_position_embeddings": 88, "num_hidden_layers": 6},
    {"hidden_size": 80, "num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 16, "intermediate_size": 304,
     "vocab_size": 142, "max_position_embeddings": 104, "num_hidden_layers": 3},
)  # fmt: skip
# Fields whose other value makes another structure and is common.
TOGGLES: tuple[dict[str, Any], ...] = (
    {},
    {"sliding_window": None},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": True, "attention_bias": True},
    {"attention_bias": True},
)
OPTIONAL = ("num_key_value_heads", "head_dim")


class UnfitError(Exception):
    """No outline can be made of this type."""


def sized(model_type: str, sizes: Mapping[str, int], toggles: Mapping[str, Any], *, square: bool) -> dict[str, Any]:
    """Return the fields of a tiny configuration of other sizes.

    Args:
        model_type: the type.
        sizes: its sizes, by the names that transformers gives them.
        toggles: further fields.
        square: whether heads together are as wide as the stream.
    """
    tiny = tiny_config(model_type)
    values = tiny.to_dict()
    aliases = dict(type(tiny).attribute_map)
    like = {WIDTH: sizes["hidden_size"], INNER: sizes["intermediate_size"], VOCAB: sizes["vocab_size"]}
    known = {aliases.get(name, name): name for name in sizes}
    for name, value in list(values.items()):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if name in known:
            new = sizes[known[name]]
            if known[name] == "head_dim" and square:
                new = sizes["hidden_size"] // sizes["num_attention_heads"]
            if known[name] == "num_key_value_heads" and CONFIG_MAPPING[model_type]().to_dict().get(name) == 1:
                new = 1
            values[name] = new
        elif value in like and not name.endswith(("_id", "positions")):
            values[name] = like[value]
        elif value == HEADS and "head" in name:
            values[name] = sizes["num_attention_heads"]
        elif value == HEAD_DIM and "head_dim" in name:
            values[name] = sizes["hidden_size"] // sizes["num_attention_heads"]
    for name in (*LAYER_TYPES, "architectures", "transformers_version", "_name_or_path"):
        values.pop(name, None)
    for name, value in toggles.items():
        if name not in values:
            raise UnfitError(f"has no {name}")
        values[name] = value
    return values


class Sample:
    """A configuration, what watching its model says, and the tensors that the model has."""

    def __init__(self, model_type: str, values: Mapping[str, Any]) -> None:
        self.config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(dict(values))
        self.task = task_of(self.config)
        found = build_class(self.config, self.task)
        assert found is not None
        if found[1] is not self.config:
            raise UnfitError("its language model takes a part of its configuration")
        self.config.architectures = [found[0].__name__]
        self.parts: ComponentMap = describe(self.config, self.task)
        model = build_meta(self.config, self.task)
        self.shapes: dict[str, tuple[int, ...]] = {}
        seen: set[int] = set()
        for name, tensor in model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                self.shapes[name] = tuple(tensor.shape)
        self.classes = {type(block).__name__ for block in model.get_submodule(self.parts.blocks_path).children()}
        self.raw: dict[str, Any] = json.loads(self.config.to_json_string(use_diff=True))

    def numbers(self) -> dict[str, int]:
        stack = self.parts.stacks[0]
        own = {name: getattr(self.parts, name) or 0 for name in NUMBERS}
        return own | {f"stack.{name}": getattr(stack, name) or 0 for name in STACK_NUMBERS}


def learn(model_type: str) -> dict[str, Any]:
    """Return the outlines of a model type.

    Raises:
        UnfitError: none can be made; says why.
    """
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    plain = default.to_dict()
    if any(isinstance(value, dict) and "model_type" in value for value in plain.values()):
        raise UnfitError("it has parts with configurations of their own")
    static = {f.name: f.default for f in fields(config_class)} if is_dataclass(config_class) else {}
    kind: dict[str, Any] = {
        "aliases": dict(type(default).attribute_map),
        "defaults": {name: flag_of(value) for name, value in plain.items() if not INERT.search(name)},
        "integers": {
            name: value
            for name, value in plain.items()
            if isinstance(value, int) and not isinstance(value, bool) and value > 0 and static.get(name) == value
            and not INERT.search(name)
        },
        "computed": sorted(n for n, v in plain.items() if v is not None and n in static and static[n] is None),
    }  # fmt: skip
    layered = any(len(set(plain.get(name) or ())) > 1 for name in LAYER_TYPES)
    problems: list[str] = []
    variants: list[dict[str, Any]] = []
    for toggles in TOGGLES:
        for square in (False, True):
            try:
                variant = _variant(model_type, kind, toggles, layered=layered, square=square)
            except (UnfitError, *FAILURES) as error:
                problems.append(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
                continue
            if variant not in variants:
                variants.append(variant)
            break
    if not variants:
        raise UnfitError(problems[0])
    return {**kind, "variants": variants}


def _variant(
    model_type: str, kind: Mapping[str, Any], toggles: Mapping[str, Any], *, layered: bool, square: bool
) -> dict[str, Any]:
    samples = [Sample(model_type, sized(model_type, sizes, toggles, square=square)) for sizes in SIZES[:2]]
    first, second = samples
    parts = first.parts
    if any(len(s.parts.stacks) != 1 or len(s.classes) != 1 for s in samples):
        raise UnfitError("it has several stacks, or blocks of several classes")
    stack = parts.stacks[0]
    if stack.order != tuple(range(stack.num_blocks)) or stack.path != parts.blocks_path:
        raise UnfitError("its blocks do not run once and in order")
    kinds = {kind_ for s in samples for kind_ in s.parts.stacks[0].attention}
    fields_ = asdict(parts)
    inner = fields_.pop("stacks")[0]
    for name in (*NUMBERS, "dtype"):
        fields_.pop(name)
    for name in (*STACK_NUMBERS, "num_blocks", "order", "attention"):
        inner.pop(name)
    ints = [_ints(s.config.to_dict()) for s in samples]
    numbers = {name: _number_rules(name, [s.numbers() for s in samples], ints, kind) for name in first.numbers()}
    symbols = [i | derived(s.numbers()) for i, s in zip(ints, samples, strict=True)]
    blocks, edges = _split(first.shapes, parts.blocks_path)
    others, other_edges = _split(second.shapes, parts.blocks_path)
    if any(b.keys() != blocks[0].keys() for b in (*blocks, *others)) or edges.keys() != other_edges.keys():
        raise UnfitError("its blocks hold tensors of other names, or its edges do")
    if any(b != blocks[0] for b in blocks) or any(b != others[0] for b in others):
        raise UnfitError("its blocks have tensors of other shapes")
    bare = CONFIG_MAPPING[model_type].from_dict({k: v for k, v in first.raw.items() if k != "architectures"})
    values = first.config.to_dict()
    flags = {name: flag_of(value) for name, value in values.items() if _matters(name, value)}
    variant = {
        "architecture": parts.architecture,
        "default": task_of(bare) == first.task,
        "flags": flags,
        "map": {**fields_, "stack": inner},
        "numbers": numbers,
        "attention": kinds.pop() if len(kinds) == 1 and not layered else None,
        "blocks_path": parts.blocks_path,
        "block": {n: _rules(blocks[0][n], others[0][n], symbols) for n in blocks[0]},
        "edges": {n: _rules(edges[n], other_edges[n], symbols) for n in edges},
    }
    _confirm(model_type, kind, variant, samples, toggles, square=square)
    return variant


def _confirm(
    model_type: str, kind: Mapping[str, Any], variant: Mapping[str, Any], samples: Sequence[Sample],
    toggles: Mapping[str, Any], *, square: bool,
) -> None:  # fmt: skip
    """Raise UnfitError where an outline says anything else than watching; drop fallbacks that do not hold."""
    third = Sample(model_type, sized(model_type, SIZES[2], toggles, square=square))
    wanted = [*samples, third]
    for sample in wanted:
        if variant["attention"] is None:
            kinds = next((sample.config.to_dict().get(name) for name in LAYER_TYPES if name in sample.raw), None)
            if kinds is None:
                name = next((n for n in LAYER_TYPES if sample.config.to_dict().get(n)), None)
                if name is None:
                    raise UnfitError("its blocks mix tokens in several ways, and its configuration does not say how")
                sample.raw[name] = sample.config.to_dict()[name]
        _same(kind, variant, sample, sample.raw)
        full = json.loads(sample.config.to_json_string(use_diff=False))
        _same(kind, variant, sample, full)
    aliases = kind["aliases"]
    for number, name in (("num_kv_heads", "num_key_value_heads"), ("head_dim", "head_dim")):
        rules = variant["numbers"][number]
        if len(rules) < 2:
            continue
        values = sized(model_type, SIZES[1], toggles, square=True)
        values.pop(aliases.get(name, name), None)
        try:
            left_out = Sample(model_type, values)
            for key in LAYER_TYPES:
                if variant["attention"] is None and left_out.config.to_dict().get(key):
                    left_out.raw[key] = left_out.config.to_dict()[key]
            raw = {k: v for k, v in left_out.raw.items() if k != aliases.get(name, name)}
            _same(kind, variant, left_out, raw)
        except (UnfitError, *FAILURES):
            del rules[1:]


def _same(kind: Mapping[str, Any], variant: Mapping[str, Any], sample: Sample, raw: Mapping[str, Any]) -> None:
    found = fit(kind, variant, raw, sample.shapes)
    if found is None:
        raise UnfitError("the outline does not fit a model of its own type")
    if found.components != sample.parts:
        wrong = [n for n, v in asdict(found.components).items() if v != asdict(sample.parts)[n]]
        raise UnfitError(f"the outline says another {', '.join(wrong)} than watching")


def _matters(name: str, value: Any) -> bool:
    if INERT.search(name) or name in LAYER_TYPES:
        return False
    if isinstance(value, list | tuple | dict) and len(value):
        raise UnfitError(f"its field {name} holds several values")
    return True


def _ints(values: Mapping[str, Any]) -> dict[str, int]:
    return {n: v for n, v in values.items() if isinstance(v, int) and not isinstance(v, bool) and v > 0}


_CANONICAL = {
    "width": "hidden_size", "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim", "intermediate_size": "intermediate_size", "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings", "num_blocks": "num_hidden_layers",
}  # fmt: skip


def _number_rules(
    name: str, numbers: Sequence[Mapping[str, int]], ints: Sequence[Mapping[str, int]], kind: Mapping[str, Any]
) -> list[Any]:
    values = [n[name] for n in numbers]
    plain = name.removeprefix("stack.")
    own = kind["aliases"].get(_CANONICAL[plain], _CANONICAL[plain])
    keys = [own, *sorted(ints[0])]
    rules: list[Any] = []
    for key in keys:
        if all(i.get(key) == v for i, v in zip(ints, values, strict=True)):
            rules.append([1, key])
            break
    fallback = FALLBACKS.get(plain)
    if fallback is not None:
        top, _, bottom = fallback.partition("//")
        if not rules:
            reached = [n[top] // n[bottom] if bottom and n[bottom] else n[top] for n in numbers]
            if reached == values:
                rules.append(fallback)
        elif plain in ("num_kv_heads", "head_dim"):
            rules.append(fallback)
    if not rules:
        rules += [[c, "@width"] for c in (1, 2, 3, 4) if [c * n["width"] for n in numbers] == values][:1]
    if not rules and values[0] == values[1]:
        rules.append(values[0])
    if not rules:
        raise UnfitError(f"nothing in its configuration gives its {name}")
    return rules


def _rules(first: Sequence[int], second: Sequence[int], symbols: Sequence[Mapping[str, int]]) -> list[Rule]:
    if len(first) != len(second):
        raise UnfitError("a tensor has another number of extents")
    out: list[Rule] = []
    for a, b in zip(first, second, strict=True):
        rule = next(_fitting(a, b, symbols), None)
        if rule is None:
            raise UnfitError(f"nothing in its configuration gives the extents {a} and {b}")
        out.append(rule)
    return out


def _fitting(a: int, b: int, symbols: Sequence[Mapping[str, int]]) -> Iterator[Rule]:
    for factor in (1, 2, 3, 4):
        for name in sorted(symbols[0], key=lambda n: (not n.startswith("@"), n)):
            if factor * symbols[0][name] == a and factor * symbols[1].get(name, -1) == b and a != b:
                yield [factor, name]
    if a == b:
        yield a


def _split(shapes: Mapping[str, tuple[int, ...]], path: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    blocks: dict[int, dict[str, Any]] = {}
    edges: dict[str, Any] = {}
    for name, shape in shapes.items():
        if name.startswith(f"{path}."):
            index, _, rest = name.removeprefix(f"{path}.").partition(".")
            blocks.setdefault(int(index), {})[rest] = shape
        else:
            edges[name] = shape
    return [blocks[i] for i in sorted(blocks)], edges


def attempt(model_type: str) -> dict[str, Any] | str:
    """Return the outlines of a type, or why there are none."""
    warnings.simplefilter("ignore")
    try:
        return learn(model_type)
    except (UnfitError, *FAILURES) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the outlines of some model types, or of all text models of one stack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; without, every causal and masked language model")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--write", action="store_true", help="write them into the package, beside those of other types")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wanted = chosen.types or [row.model_type for row in support_table().values() if row.family in FAMILIES]
    types: dict[str, Any] = {}
    if chosen.write and chosen.types and OUT.is_file():
        types = json.loads(OUT.read_text("utf-8"))["types"]
    start = time.monotonic()
    number = 0
    for item, found, _, problem in pool.run(attempt, wanted, jobs=chosen.jobs, limit_s=LIMIT_S):
        types.pop(item, None)
        if isinstance(found, dict):
            types[item] = found
            number += 1
        shown = f"{len(found['variants'])} outlines" if isinstance(found, dict) else found or problem
        print(f"{item}: {shown}", flush=True)
    print(f"{number} of {len(wanted)} types have outlines; {time.monotonic() - start:.0f} s")
    if chosen.write:
        known = sorted(name for name in CONFIG_MAPPING if name != "mol")
        document = {"transformers": transformers.__version__, "known": known, "types": dict(sorted(types.items()))}
        OUT.write_text(json.dumps(document, separators=(",", ":"), ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
