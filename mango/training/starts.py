"""Starting well: adapters from ridge regression on paired activations, routers from the source models' own losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mango.blocks import BlockStore, load_source
from mango.corpus import Sequences, token_losses
from mango.fusion import MolForCausalLM, MolPreTrainedModel, Router
from mango.surgery.vocabulary import Retokeniser, Retold
from mango.tensors import ProcrustesFit, RidgeFit
from mango.training.calibration import best_expert
from mango.training.matching import Place, match_features, paired_states, places
from mango.training.params import StartParams

FITS = {"ridge": RidgeFit, "procrustes": ProcrustesFit}
"""How closed forms are fitted, by what :attr:`mango.fusion.Adapter.fitted` says."""


@dataclass
class StartReport:
    """How well the starts fit.

    Args:
        adapters: R squared of each start in closed form, or after feature matching, by ``expert/span/in`` or
            ``.../out``.
        routers: for each position, the share of calibration tokens whose best expert the router finds.
        posterior: nats a token by which weighing heads by their predictions lowers the loss of calibration text.
    """

    adapters: dict[str, float] = field(default_factory=dict)
    routers: dict[str, float] = field(default_factory=dict)
    posterior: float | None = None


def start_adapters(
    model: MolPreTrainedModel, store: BlockStore, sequences: Sequences, params: StartParams, *, batch_size: int
) -> dict[str, float]:
    """Start every adapter that has a closed form from paired activations; return R squared.

    Args:
        model: the fused model; adapters change in place.
        store: where its source models come from.
        sequences: calibration text.
        params: strength of the ridge, and steps of feature matching.
        batch_size: sequences a forward pass.
    """
    batches = [{"input_ids": ids} for ids in sequences.input_ids.split(batch_size)]
    return start_adapters_on(model, store, batches, params)


def start_adapters_on(
    model: MolPreTrainedModel, store: BlockStore, batches: Sequence[Mapping[str, Tensor]], params: StartParams
) -> dict[str, float]:
    """Start every adapter that has a closed form from paired activations; return R squared.

    A model with another tokenizer reads the same text in its own tokens; activations are paired where a token of the
    trunk and one of its own end at the same byte.

    Args:
        model: the fused model; adapters change in place.
        store: where its source models come from.
        batches: what trunk and experts alike are run on, without padding.
        params: strength of the ridge, and steps of feature matching.
    """
    device = next(model.parameters()).device
    trunk = None
    fits: dict[str, float] = {}
    for number, expert in enumerate(model.layout.experts):
        found = places(model, number)
        fitted = [place for place in found if place.adapter.fitted != "identity"]
        if not (found if params.matching_steps else fitted):
            continue
        if trunk is None:
            trunk = load_source(store, model.layout.experts[0].source, device=device)
        source = load_source(store, expert.source, device=device)
        reader = Retokeniser.between(store, model.layout.experts[0].source, expert.source)
        if fitted:
            fits |= _fit(fitted, trunk, source, batches, params, device, reader)
        if params.matching_steps:
            fits |= match_features(found, trunk, source, batches, params, reader)
    return fits


def _fit(
    fitted: Sequence[Place],
    trunk: PreTrainedModel,
    source: PreTrainedModel,
    batches: Sequence[Mapping[str, Tensor]],
    params: StartParams,
    device: torch.device,
    reader: Retokeniser | None,
) -> dict[str, float]:
    """Start the adapters of one expert from their closed forms; return R squared."""
    sums = {
        place.name: FITS[place.adapter.fitted](
            place.adapter.width_in, place.adapter.width_out, ridge=params.ridge, device=device
        )
        for place in fitted
    }
    for batch in batches:
        for place, pair in zip(fitted, paired_states(fitted, trunk, source, batch, reader), strict=True):
            sums[place.name].add(*pair)
    fits: dict[str, float] = {}
    for place in fitted:
        weight, bias, fit = sums[place.name].solve()
        place.adapter.start_from(weight.to(torch.float32), bias.to(torch.float32))
        fits[place.name] = round(fit, 4)
    return fits


def source_losses(
    store: BlockStore,
    names: Sequence[str],
    input_ids: Tensor,
    *,
    batch_size: int,
    device: torch.device | str,
    trunk: str | None = None,
) -> dict[str, Tensor]:
    """Return each source model's loss on each token, float32 ``[rows, length - 1]``, by name.

    Args:
        store: holds the models.
        names: of the models.
        input_ids: tokens of text.
        batch_size: rows a forward pass.
        device: where models run.
        trunk: the model whose tokens they are; one with another tokenizer reads the text in its own, and what it loses
            there is told on these tokens. Without, they are the tokens of all.
    """
    losses: dict[str, Tensor] = {}
    for name in sorted(set(names)):
        model: nn.Module = load_source(store, name, device=device)
        reader = None if trunk is None else Retokeniser.between(store, trunk, name)
        if reader is not None:
            model = Retold(model, reader, batch_size=batch_size)
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


def entering_losses(model: MolForCausalLM, losses: Mapping[str, Tensor]) -> list[Tensor]:
    """Return what the sources of the experts lose on each token, for each position with a choice.

    Args:
        model: the fused model.
        losses: loss of each source model on each token, ``[rows, length - 1]``, by name.

    Returns:
        For each position ``[rows, length - 1, experts that can be entered there]``.
    """
    found: list[Tensor] = []
    for position in range(model.layout.num_positions):
        entering = model.layout.entering(position)
        if len(entering) > 1:
            found.append(torch.stack([losses[model.layout.experts[expert].source] for expert, _ in entering], -1))
    return found


def start_routers(
    model: MolForCausalLM,
    input_ids: Tensor,
    targets: Tensor,
    params: StartParams,
    *,
    batch_size: int,
    losses: Sequence[Tensor] = (),
) -> dict[str, float]:
    """Fit each router to the best expert of each token, from the first position to the last; return its accuracy.

    The states that a router sees depend on the routers before it, which are fitted by then.

    Args:
        model: the fused model; routers change in place.
        input_ids: calibration text, ``[rows, length]``.
        targets: from :func:`routing_targets`.
        params: steps and learning rate.
        batch_size: sequences a forward pass.
        losses: from :func:`entering_losses`, where ``params.mixture_steps`` is above 0.
    """
    device = next(model.parameters()).device
    accuracy: dict[str, float] = {}
    model.set_routing("soft")
    try:
        for place, (position, router) in enumerate(model.routers.items()):
            assert isinstance(router, Router)
            if params.router_steps == 0:
                continue
            pooled = _pooled(model, input_ids, int(position), batch_size)
            wanted = targets[..., place].to(device)
            lost = losses[place].to(device) if params.mixture_steps else None
            accuracy[position] = round(fit_router(router, pooled, wanted, params, losses=lost), 4)
    finally:
        model.set_routing(None)
    return accuracy


def _pooled(model: MolForCausalLM, input_ids: Tensor, position: int, batch_size: int) -> Tensor:
    """Return what a router makes its decisions from, ``[rows, length, width]``; it is the most that a start holds."""
    found: Tensor | None = None
    place = 0
    for ids in input_ids.split(batch_size):
        some = model.routing_at(ids.to(model.device), position).pooled
        if found is None:
            found = some.new_empty(len(input_ids), *some.shape[1:])
        found[place : place + len(ids)] = some
        place += len(ids)
    assert found is not None
    return found


TOKENS = 8192
"""Tokens of calibration text, about, on which a step is taken that looks at each token for itself."""
SPREAD = 8
"""Such a step takes every eighth token of a row, since neighbours are much alike."""
SCORED_ROWS = 128
"""Rows of calibration text, at most, whose tokens are decided on at once."""
FILTER_ROWS = 16
"""Rows of calibration text on which a step through the memory of a router is taken."""
MIXTURE_ROWS = 32
"""Rows of calibration text, at most, on which a step is taken that looks at the mixture of the source models."""

SCALES = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03)
"""By how much evidence is weakened before it is fitted on: neighbouring tokens say the same thing again and again."""


def fit_router(
    router: Router, pooled: Tensor, targets: Tensor, params: StartParams, *, losses: Tensor | None = None
) -> float:
    """Fit what a router says of each token; then, if it gathers evidence, what it says of it after all before it.

    With losses it then learns to weigh: it lowers what the mixture of the source models with its weights loses.

    Args:
        router: the router; its temperature stays.
        pooled: ``[rows, length, width]``.
        targets: ``[rows, length]``.
        params: steps and learning rate.
        losses: of the sources of its experts on the next token, ``[rows, length - 1, experts]``.

    Returns:
        The share of the tokens whose best expert it finds.
    """
    named = [(n, p) for n, p in router.named_parameters() if not n.startswith(("temperature.", "balance."))]
    temperature = router.temperature().detach()
    rate = params.router_learning_rate
    length = targets.shape[1]

    def turn(step: int, size: int) -> Tensor:
        return (torch.arange(size, device=pooled.device) + step * size) % len(pooled)

    def each_token(step: int) -> Tensor:
        rows = turn(step, min(max(1, TOKENS * SPREAD // length), len(pooled)))
        places = slice(step % min(SPREAD, length), None, SPREAD)
        scores = router.scores(pooled[rows, places].flatten(0, 1)) / temperature
        return torch.nn.functional.cross_entropy(scores, targets[rows, places].flatten())

    def after_all_before(step: int) -> Tensor:
        rows = turn(step, FILTER_ROWS)
        log_probs, _ = router.log_probs(pooled[rows])
        return torch.nn.functional.nll_loss(log_probs.flatten(0, 1), targets[rows].flatten())

    def of_mixture(step: int) -> Tensor:
        assert losses is not None
        rows = turn(step, min(MIXTURE_ROWS, len(pooled)))
        log_probs, _ = router.log_probs(pooled[rows])
        return -torch.logsumexp(log_probs[:, :-1] - losses[rows], -1).mean()

    minimise([p for n, p in named if not n.startswith("switch.")], each_token, params.router_steps, rate)
    if router.switch is not None:
        _weaken(router, lambda: after_all_before(0))
        minimise([p for _, p in named], after_all_before, max(1, params.router_steps // 2), rate)
    if losses is not None:
        minimise([p for _, p in named], of_mixture, params.mixture_steps, rate)
    with torch.no_grad():
        right = [
            router.log_probs(some)[0].argmax(-1) == best
            for some, best in zip(pooled.split(SCORED_ROWS), targets.split(SCORED_ROWS), strict=True)
        ]
        return float(torch.cat(right).float().mean())


@torch.no_grad()
def _weaken(router: Router, loss: Callable[[], Tensor]) -> None:
    """Scale the scores of a router by that of :data:`SCALES` which gives the lowest loss."""
    start = {name: parameter.clone() for name, parameter in router.outer.named_parameters()}
    found: dict[float, float] = {}
    for scale in SCALES:
        for name, parameter in router.outer.named_parameters():
            parameter.copy_(start[name] * scale)
        found[scale] = float(loss())
    best = min(found, key=lambda scale: found[scale])
    for name, parameter in router.outer.named_parameters():
        parameter.copy_(start[name] * best)


def minimise(weights: list[Tensor], loss: Callable[[int], Tensor], steps: int, learning_rate: float) -> None:
    """Lower a loss by AdamW with a learning rate that falls along a cosine.

    Args:
        weights: what changes.
        loss: the loss of a step, by its number.
        steps: how many.
        learning_rate: of the first step.
    """
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for step in range(steps):
            value = loss(step)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
