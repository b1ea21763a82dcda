"""Bits per byte and nats per token by hand, and standard errors against the bootstrap."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mango.errors import EvaluationError
from mango.evaluation import Estimate, bits_per_byte, gap_closed, headline, nats_per_token
from mango.evaluation.metrics import mean_of, ratio


def test_bits_per_byte_by_hand() -> None:
    losses = torch.tensor([[1.0, 2.0], [3.0, 0.5]]) * math.log(2)
    num_bytes = torch.tensor([[7, 1, 3], [2, 4, 0]])  # the first token is not predicted
    found = bits_per_byte(losses, num_bytes)
    assert found.value == pytest.approx((1 + 2 + 3 + 0.5) / (1 + 3 + 4 + 0))
    # Residuals y - r x: 3 - 0.8125 * 4 and 3.5 - 0.8125 * 4.
    assert found.error == pytest.approx(math.sqrt(2 / 1 * (0.25**2 + 0.25**2)) / 8)


def test_nats_per_token_by_hand() -> None:
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = nats_per_token(losses)
    assert found.value == pytest.approx(3.5)
    # The means of rows are 1.5, 3.5 and 5.5: their deviation is 2, of the mean 2 / sqrt(3).
    assert found.error == pytest.approx(2 / math.sqrt(3))


def test_the_error_is_that_of_the_bootstrap() -> None:
    generator = torch.Generator().manual_seed(0)
    bottom = torch.randint(200, 400, (40,), generator=generator)
    top = bottom * 1.3 + torch.randn(40, generator=generator) * 30
    drawn = torch.randint(40, (20_000, 40), generator=generator)
    values = top[drawn].double().sum(1) / bottom[drawn].double().sum(1)
    # The bootstrap of 40 has a factor of sqrt(39 / 40), and its own error at 20,000 draws is half a percent.
    assert ratio(top, bottom).error == pytest.approx(values.std().item() * math.sqrt(40 / 39), rel=0.03)


def test_one_sequence_has_no_error_and_nothing_is_refused() -> None:
    assert ratio(torch.tensor([3.0]), torch.tensor([2.0])) == Estimate(1.5, 0.0)
    with pytest.raises(EvaluationError, match="over 1 sequences is nan"):
        ratio(torch.tensor([3.0]), torch.tensor([0.0]))
    for bad in (math.nan, math.inf):
        with pytest.raises(EvaluationError, match="no finite probabilities"):
            nats_per_token(torch.tensor([[1.0], [bad]]))


def test_means_add_errors_as_independent_ones() -> None:
    found = mean_of({"a": Estimate(1.0, 0.3), "b": Estimate(2.0, 0.4)})
    assert (found.value, found.error) == pytest.approx((1.5, 0.25))


def test_the_gap_closed() -> None:
    assert gap_closed(2.0, 1.0, 1.1) == pytest.approx(0.9)
    assert gap_closed(2.0, 1.0, 2.5) == pytest.approx(-0.5)
    assert gap_closed(1.0, 1.0, 1.0) is None


def system(name: str, kind: str, pure: float, switching: float, cost: float = 1.0) -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "pure": {"one": pure - 0.5, "two": pure + 0.5}, "pure_mean": pure,
        "switching": switching, "cost_switching": cost, "flops": 8.0 * cost, "flops_switching": 10.0 * cost,
    }  # fmt: skip


ROWS = [
    system("trunk", "trunk", 2.0, 4.0),
    system("fused_soft", "fused", 1.1, 3.0, 5.0),
    system("fused_hard", "fused", 1.2, 3.1, 1.1),
    system("merge_soup", "merge", 1.9, 3.5),
    system("self_stitch", "control", 1.8, 3.2),
    system("ensemble_posterior", "ensemble", 1.05, 3.3),
    system("oracle_sequence", "oracle", 1.0, 3.8),
]


def test_the_headline_by_hand() -> None:
    kept = [{"kept_soft": 0.97, "kept_hard": None}, {"kept_soft": 0.99, "kept_hard": 0.9}]
    assert headline(ROWS, kept, {"fused_hard": {"error": 0.25}}) == {
        "gap_closed_soft": pytest.approx(0.9),
        "gap_closed_hard": pytest.approx(0.8),
        "switching_hard_minus_posterior_ensemble": pytest.approx(-0.2),
        "cost_hard_switching": 1.1,
        "beats_every_static_merge": True,
        "beats_self_stitch": True,
        "least_kept_soft": 0.97,
        "least_kept_hard": 0.9,
        "worst_against_best_single_soft": pytest.approx(1.6 / 2.5 - 1),
        "worst_against_best_single_hard": pytest.approx(1.7 / 2.5 - 1),
        "calibration_error_soft": None,
        "calibration_error_hard": 0.25,
        "flops_hard": pytest.approx(1.1),
        "flops_hard_switching": pytest.approx(1.1),
    }


def test_one_loss_anywhere_takes_a_headline_away() -> None:
    worse = [*ROWS, system("merge_ties", "merge", 1.15, 9.0)]  # better than hard on pure text
    assert headline(worse)["beats_every_static_merge"] is False
    stitched = [row if row["name"] != "self_stitch" else {**row, "switching": 3.05} for row in ROWS]
    assert headline(stitched)["beats_self_stitch"] is False
    few = [row for row in ROWS if row["kind"] not in ("merge", "control")]
    assert headline(few)["beats_every_static_merge"] is None
    assert headline(few)["beats_self_stitch"] is None
