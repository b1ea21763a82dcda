"""A later token moves no earlier logit, not by one bit, whatever the router, the pooling and the layout."""

from __future__ import annotations

import pytest
import torch

from mango.blocks import BlockStore
from mango.fusion import MolForCausalLM
from tests.blocks.families import VOCAB
from tests.fusion.models import LAYOUTS, ROUTERS, fuse, left_padded, tokens, with_router

LENGTH = 40
IDS = tokens(3, LENGTH, seed=5)
MASK = left_padded(IDS, [0, 5, 1])


@pytest.fixture(scope="module", params=LAYOUTS)
def model(store: BlockStore, request: pytest.FixtureRequest) -> MolForCausalLM:
    return fuse(store, LAYOUTS[request.param])


@pytest.mark.parametrize("router", ROUTERS)
def test_no_earlier_logit_moves(model: MolForCausalLM, router: str) -> None:
    with_router(model, ROUTERS[router])
    with torch.no_grad():
        before = model(IDS, attention_mask=MASK)
        for place in (2, 6, 16, 17, 31, 39):
            changed = IDS.clone()
            changed[:, place] = (changed[:, place] + 11) % VOCAB
            after = model(changed, attention_mask=MASK)
            real = MASK[:, :place].bool()
            assert after.logits[:, :place][real].equal(before.logits[:, :place][real]), place
            assert not after.logits[:, place].equal(before.logits[:, place])


@pytest.mark.parametrize("router", [name for name, params in ROUTERS.items() if params["type"] != "token"])
def test_tokens_are_spread_and_changes_change_decisions(model: MolForCausalLM, router: str) -> None:
    """The test above means something: several experts run, and what a token takes depends on the tokens."""
    with_router(model, ROUTERS[router])
    ids = tokens(12, 20, seed=6)
    with torch.no_grad():
        before = model(ids)
        after = model(ids.roll(1, dims=1))
    assert int((before.processed > 0).sum()) > len(model.layout.experts)
    first = before.routing[0]
    assert int((first.weights > 0).any(1).any(0).sum()) > 1
    assert not first.weights.equal(after.routing[0].weights)


@pytest.mark.parametrize("length", [9, 17, 33])
@pytest.mark.parametrize("router", ["simple k=1", "top-1 window", "top-2 window"])
def test_whatever_the_length_of_the_rows(model: MolForCausalLM, router: str, length: int) -> None:
    """How many tokens an expert gets sets the sizes of the kernels that run, and with them the order of their sums."""
    with_router(model, ROUTERS[router])
    for rows in (1, 4):
        ids = tokens(rows, length, seed=length)
        with torch.no_grad():
            before = model(ids).logits
            for place in (1, length // 2, length - 1):
                changed = ids.clone()
                changed[:, place] = (changed[:, place] + 7) % VOCAB
                assert model(changed).logits[:, :place].equal(before[:, :place]), (rows, place)
