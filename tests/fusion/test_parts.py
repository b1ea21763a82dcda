"""Runs, catch-up, pools, selection and temperature, each against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mango.fusion import Pool, Selection, SimpleRouter, TopKRouter
from mango.fusion.params import HeadParams, SimpleParams, TemperatureParams, TokenParams, TopKParams
from mango.fusion.routers import TokenRouter, choose
from mango.fusion.runs import ALIGNMENT, Runs, align_right, processed_tokens
from tests.reference import catch_up as slow
from tests.reference import pooling as pools

MASKS = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 40).flatmap(
        lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows)
    )
)


@given(MASKS, st.booleans())
def test_runs_pick_in_order_and_put_back(mask: list[list[bool]], align: bool) -> None:
    marks = torch.tensor(mask)
    runs = Runs.of(marks, align=align)
    values = torch.arange(marks.numel() * 2).view(*marks.shape, 2) + 1
    picked = runs.pick(values)
    for row in range(len(mask)):
        assert picked[row][runs.valid[row]].equal(values[row][marks[row]])
        assert runs.valid[row].tolist() == sorted(runs.valid[row].tolist(), reverse=True)
    assert runs.put(picked).equal(values * marks.unsqueeze(-1))
    longest = int(marks.sum(1).max())
    length = runs.valid.shape[1]
    if not align:
        assert length == longest
    else:
        assert longest <= length <= marks.shape[1]
        assert length == marks.shape[1] or (length % ALIGNMENT == 0 and marks.shape[1] >= 2 * ALIGNMENT)


@given(MASKS)
def test_align_right_packs_to_the_right_in_order(mask: list[list[bool]]) -> None:
    marks = torch.tensor(mask)
    order, packed = align_right(marks)
    assert order.shape[1] == packed.shape[1] == int(marks.sum(1).max())
    for row in range(len(mask)):
        assert order[row][packed[row]].tolist() == marks[row].nonzero().squeeze(1).tolist()
        assert packed[row].tolist() == sorted(packed[row].tolist())


@given(MASKS, st.integers(0, 20))
def test_processed_tokens_are_those_of_the_definition(mask: list[list[bool]], catch_up: int) -> None:
    routed = torch.tensor(mask)
    found = processed_tokens(routed.unsqueeze(-1), torch.ones_like(routed), catch_up).squeeze(-1)
    assert found.tolist() == [slow.processed(row, catch_up) for row in mask]


def test_padding_is_never_processed() -> None:
    routed = torch.tensor([[[True], [False], [False], [True]]])
    valid = torch.tensor([[False, True, True, True]])
    assert processed_tokens(routed, valid, 16).flatten().tolist() == [False, True, True, True]
    assert processed_tokens(routed[:, :0], valid[:, :0], 16).shape == (1, 0, 1)


def test_an_expert_never_goes_back() -> None:
    """The order in which tokens are processed is their order in the row, so a cache may append."""
    generator = torch.Generator().manual_seed(0)
    for density in (0.1, 0.3, 0.7):
        row = (torch.rand(60, generator=generator) < density).tolist()
        for catch_up in (0, 1, 3, 16):
            order = [token for step in slow.processed_in_order(row, catch_up) for token in step]
            assert order == sorted(set(order))


def pool_in_chunks(pool: Pool, states: Tensor, lengths: list[int]) -> Tensor:
    """Pool a row that comes in chunks, with no more history than the pool asks for."""
    total, outputs, start = torch.zeros(1, states.shape[-1], dtype=torch.float64), [], 0
    for length in lengths:
        kept = 0 if pool.kind == "prompt" else min(pool.history, start)
        part = states[None, start - kept : start + length]
        index = torch.arange(start - kept, start + length)[None]
        found, total = pool(part, torch.ones_like(index, dtype=torch.bool), index, total)
        outputs.append(found[0, kept:])
        start += length
    return torch.cat(outputs)


@given(
    st.sampled_from(["window", "prompt", "segment"]),
    st.integers(1, 9),
    st.lists(st.integers(0, 7), min_size=1, max_size=6),
)
def test_pools_equal_the_reference_at_once_and_in_chunks(kind: str, size: int, lengths: list[int]) -> None:
    length = sum(lengths)
    if not length:
        return
    states = torch.randn(length, 3, generator=torch.Generator().manual_seed(size)) * 100
    wanted = getattr(pools, kind)(states.double().numpy(), size)
    pool = Pool(kind, size)
    assert np.allclose(pool_in_chunks(pool, states, [length]).numpy(), wanted, rtol=1e-6, atol=1e-5)
    assert np.allclose(pool_in_chunks(pool, states, lengths).numpy(), wanted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", ["window", "prompt", "segment"])
def test_padding_on_either_side_does_not_count(kind: str) -> None:
    states = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    wanted = getattr(pools, kind)(states[2:7].double().numpy(), 3)
    valid = torch.zeros(1, 9, dtype=torch.bool)
    valid[0, 2:7] = True
    found, _ = Pool(kind, 3)(states[None], valid, (torch.arange(9) - 2).clamp(min=0)[None], torch.zeros(1, 3).double())
    assert np.allclose(found[0, 2:7].numpy(), wanted, rtol=1e-6)


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def decide(log_probs: Tensor, selection: Selection, index: int = 0) -> tuple[list[float], list[bool]]:
    decision = choose(log_probs, log_probs, torch.tensor(index), selection)
    assert decision.selected is not None
    return decision.weights.tolist(), decision.selected.tolist()


def test_top_k_is_renormalised_and_top_1_weighs_one() -> None:
    weights, selected = decide(logs(0.1, 0.5, 0.25, 0.15), Selection(k=2))
    assert selected == [False, True, True, False]
    assert weights == pytest.approx([0, 2 / 3, 1 / 3, 0])
    assert decide(logs(0.1, 0.5, 0.25, 0.15), Selection(k=1)) == ([0, 1, 0, 0], [False, True, False, False])


def test_ties_go_to_the_expert_that_is_listed_first() -> None:
    for k, wanted in ((1, [True, False, False]), (2, [True, True, False])):
        assert decide(logs(1 / 3, 1 / 3, 1 / 3), Selection(k=k))[1] == wanted
    assert decide(logs(0.2, 0.4, 0.4), Selection(k=1))[1] == [False, True, False]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_weight_of_one_is_one_to_the_bit_and_has_a_gradient(k: int) -> None:
    scores = torch.randn(500, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    log_probs = scores.log_softmax(-1)
    decision = choose(log_probs, scores, torch.zeros(500, dtype=torch.long), Selection(k=k, straight_through=True))
    if k == 1:
        assert set(decision.weights.unique().tolist()) == {0.0, 1.0}
    (decision.weights * torch.arange(1, 4)).sum().backward()
    assert scores.grad is not None
    assert bool((scores.grad != 0).any(1).all())


def test_before_it_is_frozen_the_anchor_has_the_token_even_if_its_probability_vanishes() -> None:
    hopeless = torch.tensor([-500.0, 0.0, -1.0]).log_softmax(-1)
    for k in (1, 2):
        selection = Selection(k=k, frozen_after=4)
        assert decide(hopeless, selection, index=2) == ([1, 0, 0], [True, False, False])
        assert decide(hopeless, selection, index=3)[1] == [False, True, k == 2]


def test_temperature_comes_before_the_selection_and_every_statistic() -> None:
    """Twice the temperature halves the logits of what is reported, and of what top-2 renormalises."""
    pooled = torch.randn(7, 8, generator=torch.Generator().manual_seed(2))
    found = {}
    for start in (1.0, 2.0):
        params = TopKParams(k=2, temperature=TemperatureParams(start=start))
        torch.manual_seed(0)
        router = TopKRouter(8, 3, params)
        router.temperature.start_weights(0.02)
        assert router.temperature().item() == pytest.approx(start)
        decision = router.decide(pooled, torch.arange(7), router.selection)
        scores = router.scores(pooled)
        assert decision.log_probs.allclose((scores / start).log_softmax(-1), atol=1e-6)
        best = (scores / start).topk(2)
        assert decision.weights.gather(1, best.indices).allclose(best.values.softmax(-1), atol=1e-6)
        found[start] = decision.weights.detach()
    assert not found[1.0].allclose(found[2.0])


def test_temperature_stays_above_its_floor_and_learns_only_if_told() -> None:
    for learned in (True, False):
        router = TokenRouter(8, 3, TokenParams(temperature=TemperatureParams(floor=0.25, learned=learned)))
        assert router.temperature.theta.requires_grad is learned
        with torch.no_grad():
            router.temperature.theta.fill_(-1e4)
        assert router.temperature().item() == 0.25


def test_a_hidden_layer_is_used() -> None:
    torch.manual_seed(0)
    router = TokenRouter(8, 3, TokenParams(hidden=5))
    assert router.inner is not None
    pooled = torch.randn(4, 8)
    before = router.scores(pooled)
    with torch.no_grad():
        router.inner.weight.mul_(2)
    assert not router.scores(pooled).allclose(before)
    assert isinstance(TokenRouter(8, 3, TokenParams()).inner, type(None))


def test_a_router_without_a_rule_says_so() -> None:
    from mango.fusion import Router

    with pytest.raises(NotImplementedError, match="Router has no pooling rule"):
        _ = Router(8, 3, HeadParams()).pool


def test_training_and_use_select_as_the_parameters_say() -> None:
    soft = TopKRouter(8, 3, TopKParams(k=2, catch_up=5))
    assert (soft.selection.k, soft.selection.catch_up, soft.training_selection.k) == (2, 5, None)
    assert TopKRouter(8, 3, TopKParams(k=2, training="sparse")).training_selection.k == 2
    simple = SimpleRouter(8, 3, SimpleParams(prompt=9, k=1, catch_up=4))
    assert (simple.selection.k, simple.selection.catch_up, simple.selection.frozen_after) == (1, 4, 9)
    assert (simple.training_selection.k, SimpleRouter(8, 3, SimpleParams()).selection.k) == (None, None)
