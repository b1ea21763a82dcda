"""With a cache the model computes what it computes without one, in batches whose rows take different experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mango.blocks import BlockStore
from mango.errors import ConfigError
from mango.fusion import FusedCache, MolForCausalLM, Selection
from tests.fusion.models import LAYOUTS, ROUTERS, fuse, left_padded, to_expert, tokens, with_router

IDS = tokens(3, 26, seed=9)
PADS = [7, 0, 3]
MASK = left_padded(IDS, PADS)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
"""Logits are of size one, and float32 sums of some thirty terms differ in their order."""


@pytest.fixture(scope="module", params=LAYOUTS)
def model(store: BlockStore, request: pytest.FixtureRequest) -> MolForCausalLM:
    return fuse(store, LAYOUTS[request.param])


@pytest.fixture(params=ROUTERS)
def routed(model: MolForCausalLM, request: pytest.FixtureRequest) -> MolForCausalLM:
    return with_router(model, ROUTERS[request.param])


@pytest.fixture(scope="module", params=["whole", "extents"])
def hardest(store: BlockStore, request: pytest.FixtureRequest) -> MolForCausalLM:
    """The layouts in which tokens leave the stream of the trunk."""
    return fuse(store, LAYOUTS[request.param])


def in_chunks(model: MolForCausalLM, ids: Tensor, mask: Tensor, lengths: list[int]) -> tuple[Tensor, FusedCache]:
    cache, logits, start = FusedCache(), [], 0
    with torch.no_grad():
        for length in lengths:
            stop = start + length
            logits.append(model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache).logits)
            start = stop
    return torch.cat(logits, 1), cache


def test_chunks_with_a_cache_equal_one_pass_without(routed: MolForCausalLM) -> None:
    with torch.no_grad():
        whole = routed(IDS, attention_mask=MASK)
    found, cache = in_chunks(routed, IDS, MASK, [9, 1, 1, 1, 4, 1, 8, 1])
    torch.testing.assert_close(found[MASK.bool()], whole.logits[MASK.bool()], **CLOSE)
    if cache.sparse:
        assert list(cache.num_cached_tokens().values()) == whole.processed.tolist()
    else:
        assert whole.processed.tolist() == [int(MASK.sum())] * len(routed.spans)
        assert set(cache.num_cached_tokens().values()) == {IDS.numel()}


@pytest.mark.parametrize("router", ["simple k=2", "top-1 window", "top-1 prompt", "top-2 segment"])
@pytest.mark.parametrize("lengths", [[1] * 26, [26]], ids=["token by token", "at once"])
def test_other_chunks_do_so_too(hardest: MolForCausalLM, router: str, lengths: list[int]) -> None:
    model = with_router(hardest, ROUTERS[router])
    with torch.no_grad():
        whole = model(IDS, attention_mask=MASK)
    found, cache = in_chunks(model, IDS, MASK, lengths)
    torch.testing.assert_close(found[MASK.bool()], whole.logits[MASK.bool()], **CLOSE)
    assert list(cache.num_cached_tokens().values()) == whole.processed.tolist()


def test_a_padded_row_in_a_batch_equals_the_row_alone(routed: MolForCausalLM) -> None:
    with torch.no_grad():
        together = routed(IDS, attention_mask=MASK)
        alone = [routed(IDS[row : row + 1, pad:]) for row, pad in enumerate(PADS)]
    for row, pad in enumerate(PADS):
        torch.testing.assert_close(together.logits[row, pad:], alone[row].logits[0], **CLOSE)
    assert torch.stack([one.processed for one in alone]).sum(0).equal(together.processed)


SOME = ("simple k=1", "token segment", "top-1 window", "top-1 prompt", "top-2 segment")


@pytest.mark.parametrize(("router", "beams"), [*((name, 1) for name in ROUTERS), *((name, 3) for name in SOME)])
def test_generation_with_a_cache_gives_the_tokens_of_generation_without(
    hardest: MolForCausalLM, router: str, beams: int
) -> None:
    model = with_router(hardest, ROUTERS[router])
    wanted: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    cached = model.generate(IDS, use_cache=True, **wanted)
    assert cached.shape == (3, 31)
    assert cached.equal(model.generate(IDS, use_cache=False, **wanted))


@pytest.mark.parametrize("router", ["simple k=1", "token window", "top-1 window", "top-2 segment"])
def test_sampling_with_a_seed_is_the_same_with_and_without_a_cache(store: BlockStore, router: str) -> None:
    model = fuse(store, LAYOUTS["whole"], ROUTERS[router])
    sequences = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        sequences.append(
            model.generate(
                IDS, attention_mask=MASK, max_new_tokens=6, do_sample=True, num_return_sequences=2, use_cache=use_cache
            )
        )
    assert sequences[0].shape == (6, 32)
    assert sequences[0].equal(sequences[1])
    assert not sequences[0][0].equal(sequences[0][1])


def test_rows_of_a_batch_go_to_different_experts_and_come_back(store: BlockStore) -> None:
    """Each row meets the expert that the router gives it, and the batch still equals its rows."""
    model = fuse(store, LAYOUTS["whole"], ROUTERS["top-1 one state"])
    with torch.no_grad():
        output = model(IDS, attention_mask=MASK)
        chosen = output.routing[0].weights.argmax(-1)
        apart = (chosen[0] != chosen[1]) & MASK[0].bool() & MASK[1].bool()
        assert apart.any()
        assert all(len(chosen[row][MASK[row].bool()].unique()) > 1 for row in range(3))


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("router", ["top-1 window", "top-1 prompt", "top-2 segment"])
def test_one_expert_may_take_every_token(store: BlockStore, router: str, place: int) -> None:
    """Positions that nothing enters, and experts that nothing takes, break neither a pass nor a generation."""
    model = fuse(store, LAYOUTS["whole"], ROUTERS[router])
    to_expert(model, place)
    model.set_routing(Selection(k=1, catch_up=3))
    found, cache = in_chunks(model, IDS, MASK, [1, 5, 1, 1, 18])
    with torch.no_grad():
        whole = model(IDS, attention_mask=MASK)
    torch.testing.assert_close(found[MASK.bool()], whole.logits[MASK.bool()], **CLOSE)
    counts = dict(zip(model.spans, whole.processed.tolist(), strict=True))
    assert {expert for (expert, _), count in counts.items() if count} == {place}
    assert cache.num_cached_tokens() == counts


@pytest.mark.parametrize("rows", [[2, 0, 0, 1], [1], []])
@pytest.mark.parametrize("router", ["token segment", "top-1 prompt", "top-2 window"])
def test_rows_of_a_cache_can_be_chosen(store: BlockStore, router: str, rows: list[int]) -> None:
    model = fuse(store, LAYOUTS["extents"], ROUTERS[router])
    start = 14
    _, cache = in_chunks(model, IDS[:, :start], MASK[:, :start], [start])
    picked = torch.tensor(rows, dtype=torch.long)
    cache.batch_select_indices(picked)
    if not rows:
        assert set(cache.num_cached_tokens().values()) == {0}
        return
    with torch.no_grad():
        found = model(IDS[picked][:, start:], attention_mask=MASK[picked], past_key_values=cache).logits
        wanted = model(IDS[picked], attention_mask=MASK[picked]).logits[:, start:]
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_rows_of_a_cache_can_be_repeated_and_forgotten(store: BlockStore) -> None:
    model = fuse(store, LAYOUTS["whole"], ROUTERS["top-1 window"])
    _, cache = in_chunks(model, IDS, MASK, [26])
    assert cache.is_initialized
    assert (cache.get_seq_length(), cache.get_mask_sizes(1, 0)) == (26, (27, 0))
    before = cache.num_cached_tokens()
    cache.batch_repeat_interleave(2)
    assert cache.num_cached_tokens() == {key: 2 * count for key, count in before.items()}
    cache.reset()
    assert (cache.is_initialized, cache.get_seq_length(), cache.num_cached_tokens()) == (False, 0, {})


@pytest.mark.parametrize("router", ["token window", "top-1 window", "top-2 window"])
def test_only_the_last_logits_are_computed_when_so_asked(hardest: MolForCausalLM, router: str) -> None:
    model = with_router(hardest, ROUTERS[router])
    with torch.no_grad():
        whole = model(IDS, attention_mask=MASK).logits
        last = model(IDS, attention_mask=MASK, logits_to_keep=2).logits
    torch.testing.assert_close(last, whole[:, -2:], **CLOSE)


@pytest.mark.parametrize("router", ["token window", "top-1 window", "top-2 segment"])
def test_rows_that_end_in_padding_or_are_nothing_else_do_no_harm(store: BlockStore, router: str) -> None:
    model = fuse(store, LAYOUTS["extents"], ROUTERS[router])
    mask = torch.ones_like(IDS)
    mask[0, 20:] = 0
    mask[1] = 0
    with torch.no_grad():
        found = model(IDS, attention_mask=mask).logits
        last = model(IDS, attention_mask=mask, logits_to_keep=1).logits
        nothing = model(IDS, attention_mask=torch.zeros_like(mask), logits_to_keep=1).logits
        alone = model(IDS[:1, :20]).logits
    torch.testing.assert_close(found[:1, :20], alone, **CLOSE)
    torch.testing.assert_close(last[2], found[2, -1:], **CLOSE)
    assert bool(found.isfinite().all())
    assert bool(nothing.isfinite().all())


def test_a_cache_of_another_kind_or_routing_is_refused(store: BlockStore) -> None:
    from transformers import DynamicCache

    model = fuse(store, ["sister"], ROUTERS["top-1 window"])
    with torch.no_grad():
        with pytest.raises(ConfigError, match=r"needs a mango\.fusion\.FusedCache, not a DynamicCache"):
            model(IDS, past_key_values=DynamicCache())
        with pytest.raises(ConfigError, match="not a DynamicCache"):
            model.generate(IDS, past_key_values=DynamicCache(), max_new_tokens=1)
        _, cache = in_chunks(model, IDS, MASK, [26])
        with pytest.raises(ConfigError, match="the cache holds 3 rows, but input_ids has 1"):
            model(IDS[:1, :1], past_key_values=cache)
        with pytest.raises(ConfigError, match="cannot be shortened"):
            cache.crop(3)
        for routing in ("soft", Selection(k=1, catch_up=9)):
            model.set_routing(routing)
            with pytest.raises(ConfigError, match="filled with another routing"):
                model(IDS[:, :1], past_key_values=cache)


@pytest.mark.parametrize("kind", ["static", "quantized", "offloaded"])
def test_caches_that_cannot_hold_a_fused_model_are_refused(store: BlockStore, kind: str) -> None:
    model = fuse(store, ["sister"])
    with pytest.raises(ConfigError, match=f"cache_implementation '{kind}': a fused model has a dynamic cache only"):
        model.generate(IDS, cache_implementation=kind, max_new_tokens=1)


def test_prompt_lookup_is_refused_rather_than_wrong(store: BlockStore) -> None:
    model = fuse(store, ["sister"], ROUTERS["top-1 window"])
    repeated = IDS[:1, :5].repeat(1, 4)
    with pytest.raises(ConfigError, match="generate without them"):
        model.generate(repeated, prompt_lookup_num_tokens=3, max_new_tokens=12, do_sample=False)
