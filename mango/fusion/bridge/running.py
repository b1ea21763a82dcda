"""Running a guest on the texts of rows: what it reads anew in a forward pass, and what it keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from mango.errors import ArchitectureError
from mango.fusion.bridge.module import Bridge
from mango.fusion.bridge.telling import Place
from mango.fusion.bridge.tree import Tree
from mango.fusion.shells import Body
from mango.fusion.span_cache import SpanCache

_KINDS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class RowReading:
    """What a guest keeps of a row: its text so far, and the keys and values of the guest's tokens of it.

    Args:
        ids: the trunk's tokens.
        tokens: the guest's.
        states: what left its last block at each of these, ``[tokens, width]``; None before any.
        layers: keys and values of each block, ``[1, heads, tokens, size]``.
    """

    ids: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    states: Tensor | None = None
    layers: tuple[tuple[Tensor, Tensor], ...] = ()


@dataclass(frozen=True)
class Reading:
    """What a guest has read for the new tokens of all rows.

    Args:
        states: what left its last block at each node, ``[nodes, width]``.
        places: for each row, the end of the text up to each new token, without padding.
        num_read: tokens that the guest processed.
        rows: what is kept of each row; nothing without a cache.
    """

    states: Tensor
    places: list[list[Place]]
    num_read: int
    rows: list[RowReading]


def refuse_unless_alike(body: Body, name: str) -> None:
    """Refuse a guest whose blocks cannot read texts that begin alike side by side.

    Raises:
        ArchitectureError: they keep a state, place tokens by themselves, or see other tokens than all or the last few.
    """
    config = body.base.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    layers = {type(layer) for layer in body.new_cache().own}
    attention = getattr(config, "_attn_implementation", "eager")
    problem = None
    if body.packed or layers != {DynamicLayer}:
        problem = "its blocks keep more than keys and values of tokens, or place tokens by themselves"
    elif not kinds <= _KINDS:
        problem = f"its blocks attend in a way of their own ({', '.join(sorted(kinds - _KINDS))})"
    elif attention not in ("eager", "sdpa"):
        problem = f"its attention ({attention}) takes no mask of its own for each pair of tokens; use eager or sdpa"
    if problem is not None:
        raise ArchitectureError(
            f"fusion: {name!r} cannot be joined by edges: bridge, since {problem}; let it take the trunk's tokens "
            "through adapters (edges: trunk), or give it the trunk's vocabulary first (mango transplant)"
        )


def read(bridge: Bridge, body: Body, rows: Sequence[Sequence[int]]) -> Reading:
    """Read rows from their beginning, all at once, and keep nothing.

    Args:
        bridge: between the guest and the trunk.
        body: the guest's blocks.
        rows: the trunk's tokens of each, without padding.
    """
    reader = bridge.opened().reader
    trees = [Tree.of(reader.read(row)) for row in rows]
    longest = max(map(len, trees), default=0)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    depths = torch.zeros_like(ids)
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(rows), 1, 1)  # what fills a row up sees itself
    for row, tree in enumerate(trees):
        ids[row, : len(tree)] = torch.tensor(tree.tokens)
        depths[row, : len(tree)] = torch.tensor(tree.depths)
        sees[row, : len(tree), : len(tree)] = tree.sees()
    states = _run(body, ids, sees, depths, depths, None).flatten(0, 1)
    places = [[place.moved(row * longest) for place in bridge.places(tree)] for row, tree in enumerate(trees)]
    return Reading(states, places, sum(map(len, trees)), [])


def read_on(bridge: Bridge, body: Body, rows: Sequence[Sequence[int]], before: Sequence[RowReading]) -> Reading:
    """Read on behind what was read before, row by row, and keep it.

    What was read before is kept as far as the longer text begins with the same tokens, and the rest is read again.

    Args:
        bridge: between the guest and the trunk.
        body: the guest's blocks.
        rows: new tokens of the trunk of each row, without padding.
        before: what was kept of each row.
    """
    states: list[Tensor] = []
    places: list[list[Place]] = []
    kept: list[RowReading] = []
    num_nodes = num_read = 0
    for new, old in zip(rows, before, strict=True):
        if not new:
            places.append([])
            kept.append(old)
            continue
        ids = (*old.ids, *new)
        tree = Tree.of(bridge.opened().reader.read(ids, len(old.ids)), old.tokens)
        found, layers = _extend(body, tree, old)
        path = tree.paths[-1]
        columns = torch.tensor(path, device=found.device)
        layers = tuple((keys[:, :, columns], values[:, :, columns]) for keys, values in layers)
        kept.append(RowReading(ids, tuple(tree.tokens[node] for node in path), found[columns], layers))
        places.append([place.moved(num_nodes) for place in bridge.places(tree)])
        states.append(found)
        num_nodes += len(tree)
        num_read += tree.num_new
    device = next(body.base.parameters()).device
    joined = torch.cat(states) if states else torch.zeros(0, body.width, device=device)
    return Reading(joined, places, num_read, kept)


def _extend(body: Body, tree: Tree, old: RowReading) -> tuple[Tensor, Sequence[tuple[Tensor, Tensor]]]:
    """Run the new nodes of a tree behind those that are known; return states, keys and values of all nodes."""
    known = tree.known
    before = [] if old.states is None else [old.states[:known]]
    if not tree.num_new:
        return before[0], [(keys[:, :, :known], values[:, :, :known]) for keys, values in old.layers]
    cache = body.new_cache()
    depths = torch.tensor([tree.depths])
    device = next(body.base.parameters()).device
    if known:
        for layer, (keys, values) in zip(cache.own, old.layers, strict=True):
            layer.update(keys[:, :, :known], values[:, :, :known])
        cache.note(depths[:, :known].to(device))
    ids = torch.tensor([tree.tokens[known:]])
    states = _run(body, ids, tree.sees().unsqueeze(0), depths[:, known:], depths, cache)
    return torch.cat([*before, states[0]]), [(layer.keys, layer.values) for layer in cache.own]


def _run(body: Body, ids: Tensor, sees: Tensor, depths: Tensor, all_depths: Tensor, cache: SpanCache | None) -> Tensor:
    """Run a guest on tokens of which each sees others of its own, ``[rows, new, width]``.

    Args:
        body: the guest's blocks.
        ids: its tokens, ``[rows, new]``.
        sees: which nodes each sees, ``[rows, new, nodes]``.
        depths: their places in their texts, ``[rows, new]``.
        all_depths: those of all nodes, ``[rows, nodes]``.
        cache: keys and values of the nodes that were read before.
    """
    parameter = next(body.base.parameters())
    if not ids.numel():
        return parameter.new_zeros(*ids.shape, body.width)
    config = body.base.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    near = sees if window is None else sees & (depths.unsqueeze(2) - all_depths.unsqueeze(1) < window)
    least = torch.finfo(parameter.dtype).min

    def additive(seen: Tensor) -> Tensor:
        mask = torch.zeros(seen.shape, dtype=parameter.dtype).masked_fill(~seen, least)
        return mask.unsqueeze(1).to(parameter.device)

    mask: Any = additive(near if kinds is None else sees)
    if kinds is not None and "sliding_attention" in kinds:
        mask = {"full_attention": mask, "sliding_attention": additive(near)}
    places = depths.to(parameter.device)
    return body.through("input_ids", ids.to(parameter.device), None, mask, places, cache)
