"""Losses of tokens: the same from logits, from the losses of a fused model, and in batches of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mango.blocks import BlockStore, load_source
from mango.corpus import token_losses
from mango.evaluation.routing import RoutingTotals
from mango.evaluation.systems import Watched
from mango.fusion import MolForCausalLM
from tests.training.toys import build, make_job, make_store, save_sources, stir

IDS = torch.randint(1, 250, (5, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    root = tmp_path_factory.mktemp("scoring")
    return make_store(save_sources(root), root / "blocks")


def by_hand(model: PreTrainedModel, ids: Tensor) -> np.ndarray:
    """Return the losses from logits in float64, row by row."""
    rows = []
    for row in ids:
        with torch.no_grad():
            logits = model(row.view(1, -1)).logits[0].double().numpy()
        norm = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        rows.append([norm[t] - logits[t, row[t + 1]] for t in range(len(row) - 1)])
    return np.array(rows)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_losses_are_those_of_the_logits(store: BlockStore, batch_size: int) -> None:
    model = load_source(store, "stranger")
    found = token_losses(model, IDS, batch_size=batch_size)
    assert (found.dtype, found.shape) == (torch.float32, (5, 19))
    np.testing.assert_allclose(found.numpy(), by_hand(model, IDS), atol=2e-5)
    assert not found.requires_grad


def test_nothing_gives_nothing(store: BlockStore) -> None:
    assert token_losses(load_source(store, "base"), IDS[:0], batch_size=2).shape == (0, 19)
    assert token_losses(load_source(store, "base"), IDS[:, :1], batch_size=2).shape == (5, 0)


@pytest.fixture(scope="module")
def fused(store: BlockStore) -> MolForCausalLM:
    experts = ("sister", {"model": "stranger", "cut": "fine"}, {"model": "brother", "edges": "trunk"})
    return stir(build(make_job(Path("none"), experts=experts), store), scale=0.5)


@pytest.mark.parametrize("routing", ["soft", "hard"])
def test_losses_alone_are_those_of_the_logits(fused: MolForCausalLM, routing: str) -> None:
    fused.set_routing(routing)
    with torch.no_grad():
        whole = fused(input_ids=IDS, labels=IDS)
        alone = fused(input_ids=IDS, labels=IDS, losses_only=True)
    assert alone.logits is None
    np.testing.assert_allclose(alone.token_losses.numpy(), by_hand(fused, IDS), atol=5e-5)
    torch.testing.assert_close(alone.loss, whole.loss)
    assert alone.processed.equal(whole.processed)
    assert token_losses(fused, IDS, batch_size=2).numpy() == pytest.approx(alone.token_losses.numpy(), abs=5e-5)
    used = {int(e) for r in alone.routing[:1] for e in r.log_probs.argmax(-1).unique()}
    assert len(used) > 1


@pytest.mark.parametrize("routing", ["soft", "hard"])
def test_losses_alone_have_the_gradients_of_the_logits(fused: MolForCausalLM, routing: str) -> None:
    fused.set_routing(routing)
    gradients = []
    for alone in (False, True):
        fused.zero_grad()
        fused(input_ids=IDS, labels=IDS, losses_only=alone).loss.backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in fused.parameters() if p.requires_grad])
    for one, two in zip(*gradients, strict=True):
        assert (one is None) is (two is None)
        if one is not None:
            torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-4)


def test_losses_are_asked_for_where_a_model_knows_them(fused: MolForCausalLM) -> None:
    fused.set_routing("soft")
    watched: nn.Module = Watched(fused, RoutingTotals(fused))
    found = token_losses(watched, IDS, batch_size=2)
    torch.testing.assert_close(found, token_losses(fused, IDS, batch_size=5), atol=5e-5, rtol=1e-5)
    assert watched.totals.num_tokens == IDS.numel()
