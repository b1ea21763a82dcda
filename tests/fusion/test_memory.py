"""What a router remembers, gates, disturbs and balances, each against a slow reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from mango.errors import ConfigError
from mango.fusion import RouterParams, Selection, TokenRouter, TopKRouter
from mango.fusion.evidence import _by_doubling, _in_turn, filtered, sticky
from mango.fusion.params import TokenParams, TopKParams
from mango.fusion.routers import Recalled, choose
from tests.reference import evidence as slow


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def router(params: TokenParams, width: int = 8, experts: int = 3) -> TokenRouter:
    torch.manual_seed(0)
    made = TopKRouter(width, experts, params) if isinstance(params, TopKParams) else TokenRouter(width, experts, params)
    for part in (made.temperature, made.switch, made.balance):
        if part is not None:
            part.start_weights(0.02)
    return made.train(False)


@given(st.integers(1, 6), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.floats(1e-4, 0.9), st.integers(0, 9))
def test_evidence_adds_up_as_in_the_reference_at_once_and_in_chunks(
    experts: int, lengths: list[int], switch: float, seed: int
) -> None:
    length = sum(lengths)
    if not length:
        return
    scores = noise(1, length, experts, seed=seed) * 5
    wanted = slow.filtered(scores[0].double().numpy(), float(torch.tensor(switch)))
    for cuts in ([length], lengths):
        recalled = Recalled.nothing(torch.ones(1, 1, dtype=torch.bool), experts)
        belief, found, start = recalled.belief, [], 0
        for cut in cuts:
            part = scores[:, start : start + cut]
            out, belief = filtered(part, torch.ones(part.shape[:2], dtype=torch.bool), torch.tensor(switch), belief)
            found.append(out)
            start += cut
        np.testing.assert_allclose(torch.cat(found, 1)[0].exp().numpy(), wanted, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_evidence_adds_up_in_turn_as_it_does_by_doubling_with_the_same_gradient(length: int) -> None:
    valid = noise(3, length, seed=1) > -0.5
    before = torch.softmax(noise(3, 4, seed=2).double(), -1)
    found = []
    for way in (_by_doubling, _in_turn):
        likelihood = noise(3, length, 4).double().exp().requires_grad_()
        switch = torch.tensor(0.03, dtype=torch.float64, requires_grad=True)
        belief = way(likelihood, valid, switch, before)
        log_probs = belief.log() - belief.log().logsumexp(-1, keepdim=True)
        (log_probs * noise(3, length, 4, seed=3)).sum().backward()
        found.append((log_probs.detach(), likelihood.grad, switch.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_padding_passes_evidence_on_and_extreme_scores_rule_nobody_out() -> None:
    scores = noise(1, 9, 3) * 3
    valid = torch.tensor([[True, False, True, True, False, True, True, True, False]])
    belief = Recalled.nothing(valid, 3).belief
    out, last = filtered(scores, valid, torch.tensor(0.05), belief)
    short, wanted = filtered(scores[:, valid[0]], valid[:, valid[0]], torch.tensor(0.05), belief)
    torch.testing.assert_close(out[:, valid[0]], short)
    torch.testing.assert_close(last, wanted)
    extreme = torch.zeros(1, 400, 3)
    extreme[0, :200, 0], extreme[0, 200:, 2] = 1e6, 1e6
    out, _ = filtered(extreme.requires_grad_(), torch.ones(1, 400, dtype=torch.bool), torch.tensor(0.01), belief)
    assert out.isfinite().all()
    assert out.argmax(-1)[0].tolist() == [0] * 200 + [2] * 200
    out[..., 1].sum().backward()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


def test_evidence_needs_no_token_twice_and_turns_when_it_must() -> None:
    """Weak evidence, token after token, becomes certainty; when it turns, so does the decision, after a few tokens."""
    scores = torch.zeros(1, 200, 2)
    scores[0, :100, 0] = scores[0, 100:, 1] = 1.0
    belief = Recalled.nothing(torch.ones(1, 1, dtype=torch.bool), 2).belief
    out, _ = filtered(scores, torch.ones(1, 200, dtype=torch.bool), torch.tensor(0.01), belief)
    first = out[0, :, 0].exp()
    assert first[0] < 0.75
    assert first[20] > 0.98
    turned = int((first[100:] < 0.5).nonzero()[0])
    assert 2 < turned < 12


@given(st.integers(1, 5), st.integers(1, 30), st.floats(0, 2), st.integers(0, 9))
def test_choices_stick_as_in_the_reference_at_once_and_in_chunks(
    experts: int, length: int, margin: float, seed: int
) -> None:
    log_probs = noise(1, length, experts, seed=seed).log_softmax(-1)
    margin = float(torch.tensor(margin))
    wanted = slow.sticky(log_probs[0].numpy(), np.float32(margin))
    valid = torch.ones(1, length, dtype=torch.bool)
    none = torch.tensor([experts])
    assert sticky(log_probs, valid, margin, none)[0][0].tolist() == wanted
    half = length // 2
    left, choice = sticky(log_probs[:, :half], valid[:, :half], margin, none)
    right, _ = sticky(log_probs[:, half:], valid[:, half:], margin, choice)
    assert [*left[0].tolist(), *right[0].tolist()] == wanted


def test_a_sticky_router_switches_less_often() -> None:
    pooled = noise(2, 60, 8)
    switches = {}
    for margin in (0.0, 0.5, 50.0):
        made = router(TopKParams(window=1, stickiness=margin))
        selected = made.decide(pooled, torch.zeros(2, 60), made.selection).selected
        assert selected is not None
        assert selected.sum(-1).eq(1).all()
        chosen = selected.float().argmax(-1)
        switches[margin] = int((chosen[:, 1:] != chosen[:, :-1]).sum())
    assert switches[0.0] > switches[0.5] > switches[50.0] == 0


def test_used_hard_a_router_chooses_one_expert_with_its_own_catch_up_and_stickiness() -> None:
    hard = TopKRouter(8, 3, TopKParams(k=2, catch_up=5)).hard_selection
    assert (hard.k, hard.catch_up, hard.stickiness, hard.mass) == (1, 5, 0.0, 1.0)
    hard = TokenRouter(8, 3, TokenParams(stickiness=4.0)).hard_selection
    assert (hard.k, hard.catch_up, hard.stickiness) == (1, 16, 4.0)


@given(st.integers(1, 5), st.integers(1, 5), st.floats(0, 1), st.integers(0, 20))
def test_a_budget_keeps_the_most_probable_until_they_have_the_mass(k: int, count: int, mass: float, seed: int) -> None:
    log_probs = (noise(6, count, seed=seed) * 2).log_softmax(-1)
    k = min(k, count)
    decision = choose(log_probs, log_probs, torch.zeros(6), Selection(k=k, mass=mass))
    assert decision.selected is not None
    for row, probabilities in enumerate(log_probs.double().exp().tolist()):
        chosen = decision.selected[row].nonzero().flatten().tolist()
        assert sorted(slow.within_mass(probabilities, k, mass)) == chosen
    torch.testing.assert_close(decision.weights.sum(-1), torch.ones(6))


def test_more_budget_runs_more_experts() -> None:
    log_probs = noise(500, 6).log_softmax(-1)
    counts = []
    for mass in (0.0, 0.3, 0.6, 0.9, 1.0):
        selected = choose(log_probs, log_probs, torch.zeros(500), Selection(k=6, mass=mass)).selected
        assert selected is not None
        counts.append(int(selected.sum()))
    assert counts[0] == 500
    assert counts == sorted(set(counts))
    assert counts[-1] == 3000


def test_sigmoid_gates_are_weighed_by_their_sum() -> None:
    made = router(TokenParams(gate="sigmoid"))
    pooled = noise(7, 8)
    gates = (made.scores(pooled) / made.temperature()).sigmoid()
    weights = made.decide(pooled, torch.zeros(7), Selection()).weights
    torch.testing.assert_close(weights, gates / gates.sum(-1, keepdim=True))
    assert not weights.allclose(router(TokenParams()).decide(pooled, torch.zeros(7), Selection()).weights)


def test_noise_and_dropout_of_experts_act_in_training_alone() -> None:
    pooled = noise(64, 5, 8)
    for params in (TokenParams(noise=0.5), TokenParams(expert_dropout=0.5)):
        made = router(params)
        still = made.log_probs(pooled)[0]
        assert still.equal(made.log_probs(pooled)[0])
        made.train(True)
        torch.manual_seed(1)
        moved = made.log_probs(pooled)[0]
        assert not moved.allclose(still)
        if params.expert_dropout:
            dropped = (moved < -20).all(1)
            assert dropped.equal((moved < -20).any(1))  # a row goes without an expert in all its tokens
            assert not dropped.all(-1).any()
            assert 0.3 < dropped.float().mean() < 0.5
        else:
            assert (moved - still).abs().max() < 5


def test_biases_even_out_the_load_and_leave_weights_alone() -> None:
    made = router(TopKParams(k=1, training="sparse", balance_rate=0.05))
    assert made.balance is not None
    with torch.no_grad():
        made.outer.bias += torch.tensor([2.0, 0.0, -2.0])
    pooled = noise(300, 8)

    def load() -> Tensor:
        selected = made.decide(pooled, torch.zeros(300), made.selection).selected
        assert selected is not None
        return selected.float().mean(0)

    before, probabilities = load(), made.log_probs(pooled)[0]
    for _ in range(150):
        made.balance.update(load())
    after = load()
    assert before.max() > 0.7
    assert after.max() < 0.45
    assert made.log_probs(pooled)[0].equal(probabilities)
    assert not made.balance.bias.requires_grad


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token": {"windows": []}}, "give at least one number"),
        ({"token": {"pooling": "windows", "windows": [4, 0]}}, "all of them above 0"),
        ({"token": {"switch": 1.0}}, "less than 1"),
        ({"token": {"switch": 0.1, "gate": "sigmoid"}}, "leave out switch"),
        ({"topk": {"mass": 0.5}}, "raise k"),
        ({"topk": {"k": 2, "stickiness": 1.0}}, "but k is 2"),
        ({"topk": {"balance_rate": 0.1}}, "chooses nobody"),
        ({"token": {"expert_dropout": 1.0}}, "less than 1"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, ConfigError), match=message):
        RouterParams.model_validate(values)


def test_the_gradient_of_evidence_in_turn_is_that_of_its_differences() -> None:
    """By evidence, by the rate of forgetting and by what was believed before, through padding too."""
    valid = torch.tensor([[True, True, False, True], [False, True, True, True]])
    likelihood = noise(2, 4, 3).double().exp().requires_grad_()
    switch = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    before = torch.softmax(noise(2, 3, seed=2).double(), -1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: _in_turn(given[0], valid, *given[1:]), (likelihood, switch, before))
