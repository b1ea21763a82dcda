"""Further losses against float64 references, values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mango.fusion import Routing
from mango.training import balance_loss, entropy_loss, supervision_loss, z_loss
from mango.training.losses import load_of
from tests.reference import training as reference

ROWS, LENGTH, EXPERTS = 2, 5, 3
PRESENT = torch.tensor([[True] * LENGTH, [False, False, True, True, True]])
TARGETS = torch.tensor([[0, 1, 2, -100, 1], [2, 2, 0, 1, -100]])


def routing(scores: Tensor, present: Tensor = PRESENT, position: int = 0) -> Routing:
    log_probs = scores.log_softmax(-1).where(present.unsqueeze(-1), 0.0)
    names = tuple(f"e{number}" for number in range(scores.shape[-1]))
    nothing, total = torch.zeros(*present.shape, 1), scores.logsumexp(-1) * present
    return Routing(position, names, log_probs, log_probs.exp(), nothing, present, total)


def scores(seed: int, experts: int = EXPERTS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, LENGTH, experts, generator=generator, dtype=torch.float64, requires_grad=True)


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[[Any], float]]] = {
    "balance": (balance_loss, reference.balance),
    "entropy": (entropy_loss, reference.entropy),
    "supervision": (
        lambda routings: supervision_loss(routings, TARGETS.unsqueeze(-1).expand(-1, -1, len(routings))),
        lambda probs: reference.supervision(probs, TARGETS[PRESENT].tolist()),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_those_of_the_reference(name: str) -> None:
    ours, theirs = LOSSES[name]
    first, second = scores(1), scores(2, experts=2 if name != "supervision" else 3)
    loss = ours([routing(first), routing(second, position=1)])
    loss.backward()

    def of(values: Any) -> float:
        return theirs(reference.softmax(values)[PRESENT.numpy()])

    arrays = [part.detach().numpy() for part in (first, second)]
    assert loss.item() == pytest.approx((of(arrays[0]) + of(arrays[1])) / 2, rel=1e-6)
    for part, array in zip((first, second), arrays, strict=True):
        assert part.grad is not None
        # The load is that of the float32 shares; central differences carry about 1e-9.
        np.testing.assert_allclose(part.grad.numpy(), reference.gradient(of, array) / 2, atol=2e-8)
        assert part.grad[~PRESENT].abs().max() == 0


def test_an_even_load_costs_one_and_a_collapse_costs_the_number_of_experts() -> None:
    even = torch.eye(EXPERTS, dtype=torch.float64).repeat(4, 1).unsqueeze(0) * 50
    everyone = torch.ones(even.shape[:2], dtype=torch.bool)
    assert balance_loss([routing(even, everyone)]).item() == pytest.approx(1.0)
    one = torch.zeros_like(even)
    one[..., 1] = 50
    assert balance_loss([routing(one, everyone)]).item() == pytest.approx(EXPERTS)


def test_entropy_rewards_confident_tokens_and_a_spread_batch_only() -> None:
    everyone = torch.ones(1, 12, dtype=torch.bool)
    spread = torch.eye(EXPERTS, dtype=torch.float64).repeat(4, 1).unsqueeze(0) * 50
    collapsed = torch.zeros_like(spread)
    collapsed[..., 0] = 50
    undecided = torch.zeros_like(spread)
    best, worse, same = (entropy_loss([routing(x, everyone)]).item() for x in (spread, collapsed, undecided))
    assert best == pytest.approx(-np.log(EXPERTS))
    assert worse == pytest.approx(0.0, abs=1e-9)
    assert same == pytest.approx(0.0, abs=1e-9)


def test_a_global_load_takes_the_place_of_the_batch_and_carries_no_gradient() -> None:
    values = scores(3)
    load = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    loss = balance_loss([routing(values)], [load])
    loss.backward()
    probs = reference.softmax(values.detach().numpy())[PRESENT.numpy()]
    assert loss.item() == pytest.approx(reference.balance(probs, load.detach().numpy()))
    assert load.grad is None
    assert values.grad is not None
    assert bool(values.grad.any())


def test_the_load_counts_present_tokens() -> None:
    values = torch.zeros(ROWS, LENGTH, EXPERTS)
    values[..., 2] = 1.0
    values[1, 4, 0] = 2.0
    assert load_of(routing(values)).tolist() == pytest.approx([1 / 8, 0, 7 / 8])


def test_the_z_loss_is_the_mean_square_of_the_log_of_what_scores_sum_to() -> None:
    first, second = scores(1), scores(2, experts=2)
    loss = z_loss([routing(first), routing(second, position=1)])
    loss.backward()

    def of(values: Tensor) -> float:
        totals = [math.log(sum(map(math.exp, token))) for token in values.detach()[PRESENT].tolist()]
        return sum(total**2 for total in totals) / len(totals)

    assert loss.item() == pytest.approx((of(first) + of(second)) / 2)
    assert first.grad is not None
    assert first.grad[~PRESENT].eq(0).all()
    assert first.grad[PRESENT].ne(0).all()
