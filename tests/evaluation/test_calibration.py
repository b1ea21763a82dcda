"""Calibration against sums by hand, and on models whose probabilities are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mango.corpus import Sequences, token_losses
from mango.evaluation.calibration import Guesses, calibration, losses_and_guesses
from mango.evaluation.routing import RoutingTotals
from mango.evaluation.systems import SWITCHING, Bench, Watched
from tests.training.toys import VOCAB, build, make_job, make_store, save_corpus, save_sources, stir


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


def guesses(model: nn.Module, ids: Tensor) -> Guesses:
    return losses_and_guesses(model, ids, batch_size=16)[1]


def test_a_model_that_is_as_sure_as_it_is_right_has_no_error() -> None:
    ids = (torch.rand(40, 101, generator=torch.Generator().manual_seed(0)) > 0.6).long()
    rate = float((ids[:, 1:] == 0).float().mean())
    assert calibration(guesses(Dice(rate), ids))["error"] < 1e-6
    sure = calibration(guesses(Dice(0.9), ids))
    assert sure["error"] == pytest.approx(0.9 - rate, abs=1e-6)
    assert len(guesses(Dice(0.9), ids).right) == 40 * 100


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_one_pass_gives_the_losses_that_are_asked_for_alone(mode: str, tmp_path: Path) -> None:
    router = {"type": "topk", "topk": {"window": 2, "catch_up": 2}}
    job = make_job(save_corpus(tmp_path / "corpus"), router=router)
    model = stir(build(job, make_store(save_sources(tmp_path), tmp_path / "blocks"))).eval()
    model.set_routing(mode)
    ids = torch.randint(1, VOCAB, (5, 20), generator=torch.Generator().manual_seed(1))
    alone, totals = Watched(model, RoutingTotals(model)), Watched(model, RoutingTotals(model))
    losses, found = losses_and_guesses(model, ids, batch_size=2, watch=totals.note)
    wanted = token_losses(alone, ids, batch_size=2)
    # The mixture over the vocabulary sums in another order than that over one token.
    torch.testing.assert_close(losses, wanted, rtol=0, atol=0 if mode == "hard" else 2e-6)
    assert totals.totals.cost() == alone.totals.cost()
    assert found.right.shape == (5 * 19,)
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits[:, :-1].float().softmax(-1)
    torch.testing.assert_close(found.confidence.view(5, 19), probabilities.amax(-1), rtol=0, atol=1e-6)
    assert torch.equal(found.right.view(5, 19) == 1, probabilities.argmax(-1) == ids[:, 1:])


def test_every_text_is_read_once() -> None:
    model = Dice(0.5)
    read: list[int] = []

    def note(_module: nn.Module, _args: Any, kwargs: dict[str, Tensor], _output: Any) -> None:
        read.append(len(kwargs["input_ids"]))

    model.register_forward_hook(note, with_kwargs=True)
    ids = torch.zeros(6, 9, dtype=torch.long)
    texts = {name: Sequences(ids, ids, torch.ones_like(ids), ("code",)) for name in ("code", SWITCHING)}
    measured = Bench(texts, 4, 1, torch.device("cpu"), Dice(0.5)).measure(lambda: model)
    assert measured.guesses is not None
    assert measured.guesses.right.shape == (6 * 8,)
    # Once for memory, to warm up and timed; each text in batches of four and two; and a row whose work is counted.
    assert read == [4, 4, 4, 4, 2, 4, 2, 1]
