"""One fused position: what enters it, what its router decides, and which tokens its experts process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mango.fusion.cache import PositionMemory
from mango.fusion.routers import Decision, Recalled, Router, Selection
from mango.fusion.runs import ALIGNMENT, Runs, processed_tokens
from mango.fusion.shells import Body
from mango.fusion.span_memory import SpanMemory


@dataclass(frozen=True)
class Arrival:
    """Tokens at a position: those kept from before, then the new ones, each row one run.

    Args:
        memory: everything about them, with flags for the new ones still unset.
        new: the new tokens of the row that they came from.
        num_kept: columns that hold tokens from before.
        decision: the router's decision on the new tokens, ``[rows, new, experts]``; None where there is no choice.
    """

    memory: PositionMemory
    new: Runs
    num_kept: int
    decision: Decision | None


def arrive(
    router: Router | None,
    selection: Selection,
    states: Tensor,
    ids: Tensor,
    position_ids: Tensor,
    present: Tensor,
    memory: PositionMemory,
    *,
    align: bool,
) -> Arrival:
    """Let new tokens in: put them behind those kept from before, pool, and decide.

    Args:
        router: the position's router; None where only the anchor can be entered.
        selection: how tokens choose.
        states: incoming states, ``[rows, length, width]``.
        ids: token ids, ``[rows, length]``.
        position_ids: true positions, ``[rows, length]``.
        present: which of them enter here; padding and tokens that are with a longer expert do not.
        memory: what is kept from before.
        align: whether no later token may move a bit of an earlier one, at the price of longer runs.
    """
    new = Runs.of(present, align=align)
    num_kept = memory.valid.shape[1]
    num_new = new.valid.shape[1]
    num_experts = memory.routed.shape[2]
    flags = torch.zeros(states.shape[0], num_new, num_experts, dtype=torch.bool, device=states.device)
    joined = PositionMemory(
        torch.cat([memory.states, new.pick(states)], 1),
        torch.cat([memory.ids, new.pick(ids)], 1),
        torch.cat([memory.position_ids, new.pick(position_ids)], 1),
        torch.cat([memory.valid, new.valid], 1),
        torch.cat([memory.routed, flags], 1),
        torch.cat([memory.processed, flags], 1),
        memory.seen + new.valid.sum(1),
        memory.prompt_sum,
        memory.belief,
        memory.choice,
    )
    if router is None:
        joined.routed[:, num_kept:] = new.valid.unsqueeze(-1)
        return Arrival(joined, new, num_kept, None)
    columns = torch.arange(joined.valid.shape[1], device=states.device)
    # A row's run starts where its valid columns start, and its first column has number seen - kept.
    started = num_kept - memory.valid.sum(1)
    index = (columns - started.unsqueeze(1) + (memory.seen - memory.valid.sum(1)).unsqueeze(1)).clamp(min=0)
    if router.pool.kind == "prompt":
        pooled, prompt_sum = router.pool(joined.states[:, num_kept:], new.valid, index[:, num_kept:], memory.prompt_sum)
        joined.prompt_sum = prompt_sum.detach()
    else:
        pooled, _ = router.pool(joined.states, joined.valid, index, memory.prompt_sum)
        pooled = pooled[:, num_kept:]
    recalled = Recalled(new.valid, memory.belief, memory.choice)
    decision = router.decide(pooled, index[:, num_kept:], selection, recalled)
    joined.belief, joined.choice = recalled.belief, recalled.choice
    if decision.selected is not None:
        joined.routed[:, num_kept:] = decision.selected & new.valid.unsqueeze(-1)
    return Arrival(joined, new, num_kept, decision)


def to_process(arrival: Arrival, catch_up: int) -> Tensor:
    """Return which tokens each expert has to process now, ``[rows, kept + new, experts]``, and mark them so."""
    memory = arrival.memory
    processed = processed_tokens(memory.routed, memory.valid, catch_up)
    # Entries among the kept tokens were answered when they came: what they asked for is marked as processed.
    due = processed & ~memory.processed
    memory.processed = memory.processed | due
    return due


def run_sparse(
    body: Body,
    enter: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    position_ids: Tensor,
    picked: Tensor,
    memory: SpanMemory | None,
) -> Tensor:
    """Run a span on the picked tokens only.

    The span's attention sees the tokens that it has processed and nothing else.

    Args:
        body: the span.
        enter: brings what is picked of `inputs` to the span.
        inputs: ids ``[rows, length]``, states ``[rows, length, width]``, or both.
        position_ids: true positions, ``[rows, length]``.
        picked: the tokens to process, ``[rows, length]``, each row's in order.
        memory: the span's keys and values, which grow by these tokens; None without a cache.

    Returns:
        States ``[rows, length, width of the span]``, zero for tokens that were not picked.
    """
    groups = _groups(body, position_ids, picked, memory)
    if not groups:
        return torch.zeros(*picked.shape, body.width, dtype=next(body.base.parameters()).dtype, device=picked.device)
    if len(groups) == 1:
        return _run_rows(body, enter, inputs, position_ids, picked, memory, groups[0])
    outs = [_run_rows(body, enter, inputs, position_ids, picked, memory, rows) for rows in groups]
    return torch.stack(outs).sum(0)  # zero in the rows of others


def _groups(body: Body, position_ids: Tensor, picked: Tensor, memory: SpanMemory | None) -> list[Tensor]:
    """Return the rows that have something to process, in the groups that a span can run at once."""
    rows = picked.any(1).nonzero().squeeze(1)
    if len(rows) == 0:
        return []
    if body.rereads and memory is not None and memory.valid is not None:
        kept = memory.valid.sum(1).tolist()  # padding between tokens that are read again would change states
    else:
        kept = [0] * picked.shape[0]
    if not body.even and (memory is None or not body.packed):
        return [rows]
    alike: dict[tuple[int, ...], list[int]] = {}
    for row in rows.tolist():
        places = body.positions(position_ids)[row][picked[row]]
        number = len(places)  # padding would change the states of shorter rows
        if not body.even:
            alike.setdefault((number, kept[row]), []).append(row)
            continue
        if memory is not None and memory.valid is not None and memory.positions is not None:
            places = torch.cat([body.positions(memory.positions)[row][memory.valid[row]], places])
        alike.setdefault((number, *(places - places[0]).tolist()), []).append(row)
    return [torch.tensor(group, device=rows.device) for group in alike.values()]


def num_reread(body: Body, picked: Tensor, memory: SpanMemory | None) -> Tensor | int:
    """Return how many tokens a span that rereads reads again, beside those that are picked now.

    Args:
        body: the span.
        picked: the tokens to process, ``[rows, length]``.
        memory: what the span has kept.
    """
    if not body.rereads or memory is None or memory.valid is None:
        return 0
    return memory.valid[picked.any(1)].sum()


def _run_rows(
    body: Body,
    enter: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    position_ids: Tensor,
    picked: Tensor,
    memory: SpanMemory | None,
    rows: Tensor,
) -> Tensor:
    """Run a span on the picked tokens of these rows."""
    num_rows = picked.shape[0]
    every = len(rows) == num_rows
    number = len(rows)
    align = memory is None  # within a generation there are no later tokens whose number could tell
    if align:
        # Short rows: as many of them as make a kernel's least number of rows, the last one several times.
        least = min(num_rows, -(-ALIGNMENT // picked.shape[1]))
        rows = torch.cat([rows, rows[-1:].expand(max(0, least - number))])
    if not every:
        inputs = tuple(part[rows] for part in inputs)
        position_ids, picked = position_ids[rows], picked[rows]
    runs = Runs.of(picked, align=align)
    mask = runs.valid
    cache = None
    if memory is not None:
        cache, cached = memory.load(body, rows)
        if cached is not None:
            mask = torch.cat([cached, mask], 1)
    out = runs.put(body(enter(*map(runs.pick, inputs)), mask, runs.pick(position_ids), cache))
    if memory is not None and cache is not None:
        memory.store(cache, mask, rows, num_rows)
    if every:
        return out
    return out.new_zeros(num_rows, *out.shape[1:]).index_copy(0, rows[:number], out[:number])
