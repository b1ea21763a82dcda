"""Where to cut: depths at which trunk and expert think alike, found on calibration text (``fusion.layers: auto``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mango import console
from mango.architectures import ComponentMap
from mango.blocks import BlockStore, load_source
from mango.corpus import Sequences
from mango.errors import TrainingError
from mango.fusion import ADAPTERS, AdapterParams, ExpertParams, FusionParams, SpanParams
from mango.tensors import held_out_fit, linear_cka
from mango.training.calibration import recorded_states


@dataclass(frozen=True)
class Alignment:
    """How alike trunk and expert are at each pair of depths, and where the expert is cut for it.

    Depth d is the state that enters block d; the last is what leaves the last block.

    Args:
        expert: name of the expert's model.
        cka: centred kernel alignment at each depth of the trunk (rows) and of the expert (columns).
        fit: R squared of the adapters' starts at the trunk's inner cuts (rows) and the expert's inner depths.
        trunk_cuts: the trunk's inner cuts, which are the rows of `fit`.
        taken: the pairs (trunk's block, expert's block) at which the expert is cut.
        measure: which of both decided.
        least: how alike a cut has to be.
    """

    expert: str
    cka: tuple[tuple[float, ...], ...]
    fit: tuple[tuple[float, ...], ...]
    trunk_cuts: tuple[int, ...]
    taken: tuple[tuple[int, int], ...]
    measure: str
    least: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class Proposal:
    """A fusion whose experts say where they are cut, and why.

    Args:
        fusion: with spans in the place of ``cut: auto``, and ``layers: given``.
        alignments: what was found of each expert that was looked at.
    """

    fusion: FusionParams
    alignments: tuple[Alignment, ...]


def propose_layers(
    store: BlockStore,
    fusion: FusionParams,
    adapter: AdapterParams,
    sequences: Sequences,
    *,
    ridge: float,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Proposal:
    """Propose where each expert is cut, from how alike its states are to the trunk's on the same text.

    An expert whose ``cut`` is ``auto`` is cut at pairs of depths that are at least ``fusion.auto.least`` alike; of all
    pairings that keep the order of both models, that with the most likeness above this is taken. An expert that is
    nowhere so alike is not cut, and neither is a guest of another task, whose states are masked causally only as a
    guest, or a model of another tokenizer. What the user has said of an expert stays.

    Args:
        store: the blocks.
        fusion: what is fused.
        adapter: the adapters that stand at cuts.
        sequences: calibration text.
        ridge: strength of the ridge regression that adapters start from.
        batch_size: sequences a forward pass.
        device: where models run.

    Raises:
        TrainingError: the states of a model are no numbers, or there is too little text.
    """
    maps = {name: store.model(name).architecture for name in {fusion.trunk, *(e.model for e in fusion.experts)}}
    rows = sequences.input_ids
    if rows.numel() < 32:
        raise TrainingError(f"fusion.layers: auto: {rows.numel()} tokens of calibration text; wanted 32 or more")
    cuts = tuple(range(0, maps[fusion.trunk].num_blocks, fusion.span))[1:]
    states: dict[str, list[Tensor]] = {}

    def states_of(name: str) -> list[Tensor]:
        if name not in states:
            model = load_source(store, name, device=device)
            states[name] = _states(model, maps[name], rows, fusion.auto.tokens, batch_size, name)
        return states[name]

    experts: list[ExpertParams] = []
    found: dict[str, Alignment] = {}
    for expert in fusion.experts:
        if expert.cut != "auto":
            experts.append(expert)
            continue
        ours, theirs = (store.model(name) for name in (fusion.trunk, expert.model))
        if (maps[expert.model].task, theirs.tokenizer_sha256) != (maps[fusion.trunk].task, ours.tokenizer_sha256):
            console.note(f"{expert.model}: not cut: its tokens are other ones, or as a guest its states are")
            experts.append(expert.model_copy(update={"cut": "whole"}))
            continue
        if expert.model not in found:
            kind = _kind(adapter, maps[expert.model].width, maps[fusion.trunk].width)
            pair = states_of(fusion.trunk), states_of(expert.model)
            found[expert.model] = _align(expert.model, *pair, cuts, fusion, kind, ridge)
            if expert.model != fusion.trunk:
                del states[expert.model]
        spans = _spans(found[expert.model].taken, (0, *cuts, maps[fusion.trunk].num_blocks), maps[expert.model])
        experts.append(expert.model_copy(update={"cut": spans}))
    resolved = fusion.model_copy(update={"experts": tuple(experts), "layers": "given"})
    return Proposal(resolved, tuple(found.values()))


def _kind(adapter: AdapterParams, width: int, trunk_width: int) -> str:
    """Return what an adapter between these widths starts from."""
    make: Any = ADAPTERS[adapter.type]
    with torch.device("meta"):
        return str(make(trunk_width, width, adapter.chosen()).fitted)


@torch.no_grad()
def _states(
    model: PreTrainedModel, parts: ComponentMap, rows: Tensor, wanted: int, batch_size: int, name: str
) -> list[Tensor]:
    """Return the states at every depth of evenly spaced tokens, ``[tokens, width]`` each, on the CPU."""
    depths = range(parts.num_blocks + 1)
    device = next(model.parameters()).device
    total = rows.numel()
    picked = torch.arange(min(wanted, total)) * total // min(wanted, total)
    out: list[list[Tensor]] = [[] for _ in depths]
    done = 0
    for ids in torch.split(rows, batch_size):
        here = picked[(picked >= done) & (picked < done + ids.numel())] - done
        done += ids.numel()
        with recorded_states(model, depths) as recorded:
            model(input_ids=ids.to(device))
        for depth in depths:
            out[depth].append(recorded[depth].flatten(0, 1)[here.to(device)].float().cpu())
    joined = [torch.cat(parts_of) for parts_of in out]
    if not all(bool(torch.isfinite(one).all()) for one in joined):
        raise TrainingError(f"fusion.layers: auto: the states of {name!r} on calibration text are no numbers")
    return joined


def _align(
    name: str,
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    cuts: tuple[int, ...],
    fusion: FusionParams,
    kind: str,
    ridge: float,
) -> Alignment:
    cka = tuple(tuple(round(linear_cka(x, y), 6) for y in theirs) for x in ours)
    inner = range(1, len(theirs) - 1)

    def fit(x: Tensor, y: Tensor) -> float:
        into, out_of = (held_out_fit(a, b, kind=kind, ridge=ridge) for a, b in ((x, y), (y, x)))
        return round(min(into, out_of), 6)

    fits = tuple(tuple(fit(ours[cut], theirs[depth]) for depth in inner) for cut in cuts)
    auto = fusion.auto
    likeness = fits if auto.measure == "fit" else tuple(tuple(cka[cut][depth] for depth in inner) for cut in cuts)
    chain = best_chain([[value - auto.least for value in row] for row in likeness])
    taken = tuple((cuts[row], inner[column]) for row, column in chain)
    return Alignment(name, cka, fits, cuts, taken, auto.measure, auto.least)


def best_chain(gains: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Return the cells with the largest sum of which each lies below and to the right of the one before.

    Only cells that are not below 0 are taken; of equal sums, the one with cells further up and to the left.

    Args:
        gains: a rectangle of numbers.
    """
    height, width = len(gains), len(gains[0]) if gains else 0
    # Sums and, of equal ones, the number of cells: a cell of 0 is as good as it has to be.
    best = [[(0.0, 0)] * (width + 1) for _ in range(height + 1)]
    for i in range(height):
        for j in range(width):
            choices = [best[i][j + 1], best[i + 1][j]]
            if gains[i][j] >= 0:
                sum_so_far, count = best[i][j]
                choices.append((sum_so_far + gains[i][j], count + 1))
            best[i + 1][j + 1] = max(choices)
    chain: list[tuple[int, int]] = []
    i, j = height, width
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            chain.append((i, j))
    return chain[::-1]


def _spans(taken: Sequence[tuple[int, int]], cuts: tuple[int, ...], guest: ComponentMap) -> tuple[SpanParams, ...]:
    """Return the spans between the cuts that are taken, from the first block to the last."""
    ends = [(0, 0), *((cuts.index(ours), theirs) for ours, theirs in taken), (len(cuts) - 1, guest.num_blocks)]
    return tuple(SpanParams(enter=a[0], exit=b[0], blocks=(a[1], b[1])) for a, b in pairwise(ends))
