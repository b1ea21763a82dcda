"""Starting well: adapters from ridge regression on paired activations, routers from the source models' own losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mango.blocks import BlockStore, load_source
from mango.corpus import Sequences, token_losses
from mango.fusion import Adapter, MolForCausalLM, Router
from mango.tensors import RidgeFit
from mango.training.calibration import best_expert, recorded_states
from mango.training.params import StartParams


@dataclass
class StartReport:
    """How well the starts fit.

    Args:
        adapters: R squared of each ridge start, by ``expert/span/in`` or ``.../out``.
        routers: for each position, the share of calibration tokens whose best expert the router finds.
    """

    adapters: dict[str, float] = field(default_factory=dict)
    routers: dict[str, float] = field(default_factory=dict)


def start_adapters(
    model: MolForCausalLM, store: BlockStore, sequences: Sequences, params: StartParams, *, batch_size: int
) -> dict[str, float]:
    """Start every adapter between different widths from ridge regression on paired activations; return R squared.

    Args:
        model: the fused model; adapters change in place.
        store: where its source models come from.
        sequences: calibration text.
        params: strength of the ridge.
        batch_size: sequences a forward pass.
    """
    layout = model.layout
    device = next(model.parameters()).device
    trunk = None
    fits: dict[str, float] = {}
    for number, expert in enumerate(layout.experts):
        parts: Any = model.experts[number]
        jobs: list[tuple[str, Adapter, int, int, bool]] = []
        for index, span in enumerate(expert.spans):
            for kind, adapters in (("in", parts.inputs), ("out", parts.outputs)):
                adapter = dict(adapters.items()).get(str(index))
                if isinstance(adapter, Adapter) and adapter.width_in != adapter.width_out:
                    into = kind == "in"
                    trunk_block = layout.cuts[span.enter if into else span.exit]
                    jobs.append(
                        (f"{expert.name}/{index}/{kind}", adapter, trunk_block, span.start if into else span.stop, into)
                    )
        if not jobs:
            continue
        if trunk is None:
            trunk = load_source(store, layout.experts[0].source, device=device)
        source = load_source(store, expert.source, device=device)
        ridges = {
            name: RidgeFit(adapter.width_in, adapter.width_out, ridge=params.ridge, device=device)
            for name, adapter, _, _, _ in jobs
        }
        for ids in sequences.input_ids.split(batch_size):
            with (
                torch.no_grad(),
                recorded_states(trunk, [job[2] for job in jobs]) as ours,
                recorded_states(source, [job[3] for job in jobs]) as theirs,
            ):
                trunk(input_ids=ids.to(device))
                source(input_ids=ids.to(device))
            for name, _, trunk_block, source_block, into in jobs:
                x, y = ours[trunk_block].flatten(0, 1), theirs[source_block].flatten(0, 1)
                ridges[name].add(*((x, y) if into else (y, x)))
        for name, adapter, _, _, _ in jobs:
            weight, bias, fit = ridges[name].solve()
            adapter.start_from(weight.to(torch.float32), bias.to(torch.float32))
            fits[name] = round(fit, 4)
    return fits


def source_losses(
    store: BlockStore, names: Sequence[str], input_ids: Tensor, *, batch_size: int, device: torch.device | str
) -> dict[str, Tensor]:
    """Return each source model's loss on each token, float32 ``[rows, length - 1]``, by name."""
    losses: dict[str, Tensor] = {}
    for name in sorted(set(names)):
        model = load_source(store, name, device=device)
        losses[name] = token_losses(model, input_ids, batch_size=batch_size)
    return losses


def routing_targets(model: MolForCausalLM, losses: Mapping[str, Tensor], window: int) -> Tensor:
    """Return the best expert of each token among those that can be entered at each position with a choice.

    Args:
        model: the fused model.
        losses: loss of each source model on each token, ``[rows, length - 1]``, by name.
        window: tokens around a token that are compared.

    Returns:
        int64 ``[rows, length, positions with a choice]``.
    """
    targets: list[Tensor] = []
    for position in range(model.layout.num_positions):
        entering = model.layout.entering(position)
        if len(entering) > 1:
            stacked = torch.stack([losses[model.layout.experts[expert].source] for expert, _ in entering])
            targets.append(best_expert(stacked, window))
    return torch.stack(targets, -1)


def start_routers(
    model: MolForCausalLM, input_ids: Tensor, targets: Tensor, params: StartParams, *, batch_size: int
) -> dict[str, float]:
    """Fit each router to the best expert of each token, from the first position to the last; return its accuracy.

    The states that a router sees depend on the routers before it, which are fitted by then.

    Args:
        model: the fused model; routers change in place.
        input_ids: calibration text, ``[rows, length]``.
        targets: from :func:`routing_targets`.
        params: steps and learning rate.
        batch_size: sequences a forward pass.
    """
    device = next(model.parameters()).device
    accuracy: dict[str, float] = {}
    model.set_routing("soft")
    try:
        for place, (position, router) in enumerate(model.routers.items()):
            assert isinstance(router, Router)
            if params.router_steps == 0:
                continue
            pooled = torch.cat(
                [
                    model.routing_at(ids.to(device), int(position)).pooled.flatten(0, 1)
                    for ids in input_ids.split(batch_size)
                ]
            )
            accuracy[position] = round(_fit(router, pooled, targets[..., place].flatten().to(device), params), 4)
    finally:
        model.set_routing(None)
    return accuracy


def _fit(router: Router, pooled: Tensor, targets: Tensor, params: StartParams) -> float:
    weights = [p for n, p in router.named_parameters() if not n.startswith("temperature.")]
    optimizer = torch.optim.AdamW(weights, lr=params.router_learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, params.router_steps)
    temperature = router.temperature().detach()
    with torch.enable_grad():
        for _ in range(params.router_steps):
            loss = torch.nn.functional.cross_entropy(router.scores(pooled) / temperature, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float((router.scores(pooled).argmax(-1) == targets).float().mean())
