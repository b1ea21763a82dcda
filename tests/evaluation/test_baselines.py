"""Baselines of whole models against slow references, and what must hold between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mango.evaluation import (
    by_prompt,
    ensemble_posterior,
    ensemble_uniform,
    ensemble_window,
    oracle_segment,
    oracle_sequence,
)
from mango.evaluation.baselines import by_prompt_cost
from tests.reference import baselines as reference


def losses(models: int = 3, rows: int = 2, length: int = 11, seed: int = 0) -> Tensor:
    return torch.rand(models, rows, length, generator=torch.Generator().manual_seed(seed)) * 4


def close(found: Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=1e-6)  # losses are float32


def test_ensembles_are_those_of_the_reference() -> None:
    values = losses()
    exact = values.double().numpy()
    close(ensemble_uniform(values), reference.uniform(exact))
    close(ensemble_posterior(values), reference.posterior(exact))
    for window in (1, 3, 4):
        close(ensemble_window(values, window), reference.posterior(exact, window))
    close(ensemble_window(values, 100), reference.posterior(exact))


@pytest.mark.parametrize("prompt", [1, 2, 5, 12, 100])
def test_routing_by_prompt_is_that_of_the_reference(prompt: int) -> None:
    values = losses(seed=3)
    close(by_prompt(values, prompt), reference.by_prompt(values.double().numpy(), prompt))


@pytest.mark.parametrize("segment", [1, 2, 4, 5, 12, 100])
def test_oracles_are_those_of_the_reference(segment: int) -> None:
    values = losses(seed=4)
    close(oracle_segment(values, segment), reference.oracle(values.double().numpy(), segment))
    if segment >= 12:
        assert oracle_segment(values, segment).equal(oracle_sequence(values))


def test_routing_by_prompt_by_hand() -> None:
    values = torch.tensor([[[1.0, 1.0, 5.0, 5.0]], [[0.5, 0.5, 2.0, 2.0]], [[9.0, 9.0, 0.0, 0.0]]])
    # Three tokens of prompt are two predictions: model 1 wins them, and has the rest.
    assert by_prompt(values, 3).tolist() == [[1.0, 1.0, 2.0, 2.0]]
    assert by_prompt(values, 5).tolist() == [[1.0, 1.0, 5.0, 5.0]]
    assert by_prompt_cost(3, 5, 3) == pytest.approx((3 * 3 + 2) / 5)
    assert by_prompt_cost(3, 5, 100) == 3.0
    assert by_prompt_cost(1, 5, 3) == 1.0


def test_oracles_by_hand() -> None:
    values = torch.tensor([[[0.0, 9.0, 9.0, 0.0]], [[1.0, 1.0, 1.0, 1.0]]])
    assert oracle_sequence(values).tolist() == [[1.0, 1.0, 1.0, 1.0]]
    # Segments of two tokens: predictions of token 1, of tokens 2 and 3, of token 4.
    assert oracle_segment(values, 2).tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_the_posterior_forgets_nothing_and_the_window_does() -> None:
    """Fifty tokens of evidence for a model that then fails: only the forgetting mixture follows."""
    values = torch.full((2, 1, 60), 5.0)
    values[0, :, :50] = 0.1
    values[1, :, 50:] = 0.1
    assert ensemble_posterior(values)[0, -1].item() == pytest.approx(5.0, abs=0.01)
    assert ensemble_window(values, 4)[0, -1].item() == pytest.approx(0.1, abs=0.01)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 20), st.integers(0, 1000))
def test_orders_that_always_hold(models: int, rows: int, length: int, seed: int) -> None:
    values = losses(models, rows, length, seed)
    totals = values.double().sum(-1)
    posterior = ensemble_posterior(values).sum(-1)
    best = oracle_sequence(values).double().sum(-1)
    segment = oracle_segment(values, 4).double().sum(-1)
    assert bool((segment <= best + 1e-5).all())
    torch.testing.assert_close(best, totals.min(0).values, atol=1e-4, rtol=1e-5)
    # The mixture pays at most the logarithm of the number of models over the best of them.
    assert bool((posterior <= best + math.log(models) + 1e-4).all())
    for made in (ensemble_uniform(values), ensemble_window(values, 2), by_prompt(values, 3)):
        assert made.shape == (rows, length)
        assert bool(made.isfinite().all())
    order = torch.randperm(models, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(ensemble_posterior(values[order]), ensemble_posterior(values))


def test_a_single_model_is_itself() -> None:
    values = losses(models=1)
    for made in (
        ensemble_uniform(values),
        ensemble_posterior(values),
        ensemble_window(values, 3),
        by_prompt(values, 4),
        oracle_sequence(values),
        oracle_segment(values, 4),
    ):
        torch.testing.assert_close(made.float(), values[0])
