"""Calibration against sums by hand, and on models whose probabilities are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mango.evaluation.calibration import Guesses, calibration, guesses


def test_the_error_by_hand() -> None:
    found = calibration(Guesses(torch.tensor([0.15, 0.15, 0.95, 1.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])))
    assert [one["share"] for one in found["bins"]] == [0.5, 0.5]
    assert [one["confidence"] for one in found["bins"]] == pytest.approx([0.15, 0.975])
    assert [one["accuracy"] for one in found["bins"]] == pytest.approx([0.5, 0.5])
    assert found["error"] == pytest.approx(0.5 * 0.35 + 0.5 * 0.475)


class Dice(nn.Module):
    """Predicts token 0 with a probability, and is otherwise indifferent."""

    def __init__(self, probability: float, vocabulary: int = 8) -> None:
        super().__init__()
        rest = (1 - probability) / (vocabulary - 1)
        logits = torch.full((vocabulary,), rest)
        logits[0] = probability
        self.logits = nn.Parameter(logits.log())

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def test_a_model_that_is_as_sure_as_it_is_right_has_no_error() -> None:
    ids = (torch.rand(40, 101, generator=torch.Generator().manual_seed(0)) > 0.6).long()
    rate = float((ids[:, 1:] == 0).float().mean())
    assert calibration(guesses(Dice(rate), ids, batch_size=16))["error"] < 1e-6
    sure = calibration(guesses(Dice(0.9), ids, batch_size=16))
    assert sure["error"] == pytest.approx(0.9 - rate, abs=1e-6)
    assert len(guesses(Dice(0.9), ids, batch_size=16).right) == 40 * 100
