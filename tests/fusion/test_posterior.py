"""Heads are weighed by what they predicted of the tokens so far: as defined, causally, with a cache as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM

from mango.blocks import BlockStore
from mango.errors import ConfigError
from mango.fusion import FusedCache, MolForCausalLM, RouterParams
from mango.fusion.mixing import CHUNK, losses_under
from tests.blocks.families import VOCAB
from tests.fusion.models import LAYOUTS, fuse, left_padded, tokens
from tests.reference import posterior as slow

POSTERIOR: dict[str, Any] = {"type": "token", "token": {"window": 3, "posterior": True}}
PLAIN: dict[str, Any] = {"type": "token", "token": {"window": 3}}
IDS = tokens(3, 26, seed=9)
MASK = left_padded(IDS, [7, 0, 3])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
"""Logits are of size one, and float32 sums of some thirty terms differ in their order."""


def strong(model: MolForCausalLM) -> MolForCausalLM:
    """Let predictions count so much that random models are told apart by them."""
    assert model.posterior is not None
    with torch.no_grad():
        model.posterior.log_scale.fill_(1.5)
        model.posterior.theta.fill_(-1.0)
        model.posterior.trust.copy_(torch.tensor([0.6, 0.9]))
    return model


@pytest.fixture(scope="module", params=["siblings", "whole", "extents"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(store: BlockStore, layout: str) -> MolForCausalLM:
    return strong(fuse(store, LAYOUTS[layout], POSTERIOR))


def head_logits(model: MolForCausalLM, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the routers' shares, and log-probabilities of every token under each head."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    places = torch.arange(ids.shape[1]).expand_as(ids)
    step, states = model._start(model._selection(), ids, mask, places, None, {})
    groups = step.run(states, mask)
    said = [torch.log_softmax(group.tail(group.states).double(), -1) for group in groups]
    return torch.stack([group.mass for group in groups], -1).double(), torch.stack(said, -2)


def test_the_mixture_is_that_of_the_definition(model: MolForCausalLM) -> None:
    with torch.no_grad():
        shares, said = head_logits(model, IDS)
        found = model(IDS).logits.double().log_softmax(-1)
    told = said[:, :-1].gather(-1, IDS[:, 1:, None, None].expand(-1, -1, said.shape[2], 1)).squeeze(-1)
    told = torch.nn.functional.pad(told, (0, 0, 1, 0))
    assert model.posterior is not None
    judge = {name: value.detach().double() for name, value in model.posterior.named_parameters()}
    for row in range(len(IDS)):
        weights = slow.weights(
            shares[row].numpy(),
            told[row].numpy(),
            scale=float(judge["log_scale"].exp()),
            switch=float(torch.sigmoid(judge["theta"])),
            trust_shares=float(judge["trust"][0]),
            trust_belief=float(judge["trust"][1]),
        )
        wanted = np.log(np.einsum("th,thv->tv", weights, said[row].exp().numpy()))
        np.testing.assert_allclose(found[row].numpy(), wanted, atol=2e-5)
    assert np.abs(weights - shares[row].numpy()).max() > 0.2  # predictions do tell heads apart


def test_no_earlier_logit_moves(model: MolForCausalLM) -> None:
    with torch.no_grad():
        before = model(IDS, attention_mask=MASK)
        for place in (2, 8, 17, 25):
            changed = IDS.clone()
            changed[:, place] = (changed[:, place] + 11) % VOCAB
            after = model(changed, attention_mask=MASK).logits
            real = MASK[:, :place].bool()
            assert after[:, :place][real].equal(before.logits[:, :place][real]), place


@pytest.mark.parametrize("lengths", [[9, 1, 1, 1, 4, 1, 8, 1], [1] * 26, [26]], ids=["mixed", "one by one", "at once"])
def test_chunks_with_a_cache_equal_one_pass_without(model: MolForCausalLM, lengths: list[int]) -> None:
    cache, logits, start = FusedCache(), [], 0
    with torch.no_grad():
        whole = model(IDS, attention_mask=MASK).logits
        for length in lengths:
            stop = start + length
            part = model(IDS[:, start:stop], attention_mask=MASK[:, :stop], past_key_values=cache, logits_to_keep=0)
            logits.append(part.logits)
            start = stop
    torch.testing.assert_close(torch.cat(logits, 1)[MASK.bool()], whole[MASK.bool()], **CLOSE)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_gives_the_tokens_of_generation_without(model: MolForCausalLM, beams: int) -> None:
    wanted: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    assert model.generate(IDS, use_cache=True, **wanted).equal(model.generate(IDS, use_cache=False, **wanted))


def test_a_padded_row_equals_the_row_alone(model: MolForCausalLM) -> None:
    with torch.no_grad():
        together = model(IDS, attention_mask=MASK).logits
        for row, pad in enumerate((7, 0, 3)):
            torch.testing.assert_close(together[row, pad:], model(IDS[row : row + 1, pad:]).logits[0], **CLOSE)


def test_losses_are_those_of_the_logits_whether_labels_are_the_tokens_or_others(model: MolForCausalLM) -> None:
    others = tokens(3, 26, seed=10)
    some = IDS.masked_fill(torch.rand(IDS.shape, generator=torch.Generator().manual_seed(0)) < 0.4, -100)
    with torch.no_grad():
        logits = model(IDS, attention_mask=MASK).logits
        last = model(IDS, attention_mask=MASK, logits_to_keep=2).logits
        for labels in (IDS, others, some):
            alone = model(IDS, attention_mask=MASK, labels=labels, losses_only=True)
            beside = model(IDS, attention_mask=MASK, labels=labels)
            torch.testing.assert_close(alone.loss, beside.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, logits[:, -2:], atol=1e-5, rtol=1e-5)


def test_a_hard_choice_knows_nothing_of_the_others_predictions(store: BlockStore) -> None:
    weighed, plain = strong(fuse(store, LAYOUTS["whole"], POSTERIOR)), fuse(store, LAYOUTS["whole"], PLAIN)
    with torch.no_grad():
        assert not weighed(IDS).logits.equal(plain(IDS).logits)
        for one in (weighed, plain):
            one.set_routing("hard")
        assert weighed(IDS).logits.equal(plain(IDS).logits)


def test_training_goes_by_the_routers_alone(store: BlockStore) -> None:
    weighed, plain = strong(fuse(store, LAYOUTS["whole"], POSTERIOR)), fuse(store, LAYOUTS["whole"], PLAIN)
    losses = []
    for one in (weighed, plain):
        one.train()
        losses.append(one(input_ids=IDS, labels=IDS, losses_only=True).loss)
        losses[-1].backward()
    assert losses[0].equal(losses[1])
    found = [[router.outer.weight.grad for router in one.iter_routers()] for one in (weighed, plain)]
    assert all(a is not None and bool(a.any()) and a.equal(b) for a, b in zip(*found, strict=True))


def test_saving_and_opening_differ_by_nothing(store: BlockStore, tmp_path: Path) -> None:
    model = strong(fuse(store, LAYOUTS["whole"], POSTERIOR))
    model.save_pretrained(tmp_path / "fused")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "fused")
    with torch.no_grad():
        assert opened(IDS).logits.equal(model(IDS).logits)


def test_one_head_has_nothing_to_be_weighed_against(store: BlockStore) -> None:
    assert fuse(store, LAYOUTS["trunk edges"], POSTERIOR).posterior is None


def test_long_text_is_asked_of_heads_piece_by_piece(model: MolForCausalLM) -> None:
    ids = tokens(2, CHUNK - 100, seed=3)
    tail = model.experts[0].tail
    states = torch.randn(*ids.shape, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = torch.nn.functional.cross_entropy(tail(states.flatten(0, 1)), ids.flatten(), reduction="none")
        torch.testing.assert_close(losses_under(tail, states, ids).flatten(), wanted, atol=1e-6, rtol=1e-6)


def test_where_experts_are_chosen_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="experts that are not chosen predict nothing"):
        RouterParams.model_validate({"type": "topk", "topk": {"posterior": True}})


def test_models_that_decide_once_a_row_refuse_it(store: BlockStore) -> None:
    from mango.fusion.rows import check_row_router

    router = fuse(store, LAYOUTS["whole"], {"type": "token", "token": {"pooling": "prompt", "posterior": True}})
    with pytest.raises(ConfigError, match=r"router\.token\.posterior: it goes on from what was predicted"):
        check_row_router(router.iter_routers()[0], "token", "masked-lm", once=False)
