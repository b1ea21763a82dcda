"""The forward pass of a fused model in lists and loops, one row, one position and one expert at a time.

Written from the definition: shares of a token go to experts, spans run on an explicit set of tokens at their true
positions, states that arrive at a cut are averaged by share, and heads are mixed in probability space.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mango.fusion import MolForCausalLM, Router
from mango.fusion.expert import FusedExpert
from tests.reference import catch_up, evidence, pooling

Shares = dict[int, float]
"""What share of each token of a row."""


@dataclass
class Leaving:
    """What an expert brings to a cut: the share of each token, and its state."""

    expert: int
    span: int
    shares: Shares
    states: dict[int, Tensor]


@dataclass
class Slow:
    """What one row gave: logits by token, and how many tokens each span processed."""

    logits: list[Tensor] = field(default_factory=list)
    processed: dict[tuple[int, int], int] = field(default_factory=dict)


def run_row(model: MolForCausalLM, ids: list[int]) -> Slow:
    """Run one row of tokens without padding, with the selection of the model's own routers."""
    layout, slow = model.layout, Slow()
    embed = model.get_input_embeddings()
    states = {token: embed(torch.tensor([ids[token]]))[0] for token in range(len(ids))}
    shares: Shares = dict.fromkeys(range(len(ids)), 1.0)
    cuts: dict[int, list[Leaving]] = {}
    for position in range(layout.num_positions):
        stream = sorted(shares)
        entering = layout.entering(position)
        choice = decide(model, position, [states[token] for token in stream], len(entering))
        for place, (expert, index) in enumerate(entering):
            routed = [weights[place] > 0 for weights in choice]
            done = catch_up.processed(routed, catch_up_of(model))
            run = [token for token, here in zip(stream, done, strict=True) if here]
            slow.processed[expert, index] = len(run)
            outputs = run_span(model, expert, index, [ids[token] for token in run], [states[t] for t in run], run)
            mine = {
                token: shares[token] * weights[place]
                for token, weights in zip(stream, choice, strict=True)
                if weights[place] > 0
            }
            cut = layout.experts[expert].spans[index].exit
            cuts.setdefault(cut, []).append(
                Leaving(expert, index, mine, {token: outputs[run.index(token)] for token in mine})
            )
        if position + 1 < layout.num_positions:
            shares, arrived = arrive(model, cuts[position + 1])
            states.update(arrived)
    slow.logits = [mix_heads(model, cuts[layout.num_positions], token) for token in range(len(ids))]
    return slow


def catch_up_of(model: MolForCausalLM) -> int:
    return model.iter_routers()[0].selection.catch_up


def decide(model: MolForCausalLM, position: int, stream: list[Tensor], count: int) -> list[list[float]]:
    """Return the weights of the experts for each token that enters."""
    if count == 1 or not stream:
        return [[1.0]] * len(stream)
    router = model.routers[str(position)]
    assert isinstance(router, Router)
    pool = getattr(pooling, router.pool.kind)
    pooled = torch.from_numpy(pool(torch.stack(stream).double().numpy(), router.pool.sizes or router.pool.size)).float()
    scores = torch.stack([router.scores(state) / router.temperature() for state in pooled])
    probable = scores.sigmoid() / scores.sigmoid().sum(-1, keepdim=True)
    if router.head.gate == "softmax":
        probable = scores.softmax(-1)
    if router.switch is not None:
        probable = torch.from_numpy(evidence.filtered(scores.double().numpy(), router.switch().item()))
    stuck = evidence.sticky(probable.double().log().numpy(), router.selection.stickiness)
    weights: list[list[float]] = []
    for number, probabilities in enumerate(probable.tolist()):
        best = sorted(range(count), key=lambda place: -probabilities[place])[: router.selection.k]
        if router.selection.k and router.selection.mass < 1:
            best = evidence.within_mass(probabilities, router.selection.k, router.selection.mass)
        if router.selection.stickiness:
            best = [stuck[number]]
        if number + 1 < router.selection.frozen_after:
            best = [0]
        total = sum(probabilities[place] for place in best)
        weights.append([probabilities[place] / total if place in best else 0.0 for place in range(count)])
    return weights


def run_span(
    model: MolForCausalLM, expert: int, index: int, ids: list[int], states: list[Tensor], places: list[int]
) -> list[Tensor]:
    """Run a span on these tokens and no others, at their true places in the row."""
    if not ids:
        return []
    fused = model.experts[expert]
    assert isinstance(fused, FusedExpert)
    body = fused.bodies[index]
    inputs = torch.tensor([ids]) if body.front else fused.enter(index, torch.stack(states)[None])
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    return list(body(inputs, mask, torch.tensor([places]), None)[0])


def arrive(model: MolForCausalLM, leaving: list[Leaving]) -> tuple[Shares, dict[int, Tensor]]:
    """Average by share what comes to a cut."""
    shares: Shares = {}
    states: dict[int, Tensor] = {}
    for token in sorted({token for each in leaving for token in each.shares}):
        here = [each for each in leaving if token in each.shares]
        shares[token] = sum(each.shares[token] for each in here)
        states[token] = sum_of(each.shares[token] / shares[token] * leave(model, each, token) for each in here)
    return shares, states


def leave(model: MolForCausalLM, each: Leaving, token: int) -> Tensor:
    fused = model.experts[each.expert]
    assert isinstance(fused, FusedExpert)
    return fused.leave(each.span, each.states[token][None])[0]


def mix_heads(model: MolForCausalLM, leaving: list[Leaving], token: int) -> Tensor:
    """Mix what the heads say of one token, with the level that the heads have on average."""
    by_head: dict[int, list[Leaving]] = {}
    for each in leaving:
        if token in each.shares:
            fused = model.experts[each.expert]
            assert isinstance(fused, FusedExpert)
            by_head.setdefault(each.expert if fused.own_tail else 0, []).append(each)
    mixture, level = torch.zeros(model.config.vocab_size, dtype=torch.float64), 0.0
    for head, members in by_head.items():
        share = sum(each.shares[token] for each in members)
        state = sum_of(each.shares[token] / share * leave(model, each, token) for each in members)
        fused = model.experts[head]
        assert isinstance(fused, FusedExpert)
        assert fused.tail is not None
        logits = fused.tail(state[None])[0].double()
        mixture += share * logits.softmax(-1)
        level += share * float(logits.logsumexp(-1))
    return mixture.log() + level


def sum_of(values: object) -> Tensor:
    total: Tensor | None = None
    for value in values:  # type: ignore[attr-defined]
        total = value if total is None else total + value
    assert total is not None
    return total
