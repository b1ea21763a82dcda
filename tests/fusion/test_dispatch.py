"""Sparse routing is sparse: what an expert did not get, it does not process; and every chosen expert runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from mango.blocks import BlockStore
from mango.fusion import FusedCache, MolForCausalLM
from mango.fusion.expert import FusedExpert
from tests.fusion.models import LAYOUTS, ROUTERS, fuse, left_padded, to_expert, tokens, with_router
from tests.fusion.slow_forward import run_row

SPARSE = [name for name, params in ROUTERS.items() if params[params["type"]].get("k") or params["type"] == "topk"]
IDS = tokens(3, 40, seed=12)
PADS = [0, 19, 4]
MASK = left_padded(IDS, PADS)


@pytest.fixture(scope="module", params=LAYOUTS)
def model(store: BlockStore, request: pytest.FixtureRequest) -> MolForCausalLM:
    fused = fuse(store, LAYOUTS[request.param])
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # adapters that do something
        for adapter in fused.iter_adapters():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return fused


@pytest.mark.parametrize("router", SPARSE)
def test_the_model_equals_loops_over_explicit_sets_of_tokens(model: MolForCausalLM, router: str) -> None:
    with_router(model, ROUTERS[router])
    with torch.no_grad():
        output = model(IDS, attention_mask=MASK)
        slow = [run_row(model, IDS[row, pad:].tolist()) for row, pad in enumerate(PADS)]
    for row, pad in enumerate(PADS):
        wanted = torch.stack(slow[row].logits).float()
        torch.testing.assert_close(output.logits[row, pad:], wanted, atol=2e-5, rtol=1e-5)
    assert output.processed.tolist() == [sum(each.processed[key] for each in slow) for key in model.spans]


class Watch:
    """Counts what really went through each span: tokens that its mask marks, and columns that it computed."""

    def __init__(self, model: MolForCausalLM) -> None:
        self.tokens: Counter[tuple[int, int]] = Counter()
        self.columns: Counter[tuple[int, int]] = Counter()
        self.calls: Counter[tuple[int, int]] = Counter()
        self.blocks: Counter[tuple[int, int]] = Counter()
        for number, fused in enumerate(model.experts):
            assert isinstance(fused, FusedExpert)
            for index, body in enumerate(fused.bodies):
                body.register_forward_pre_hook(self._hook((number, index)))
                assert isinstance(body.base, nn.Module)
                for block in body.base.get_submodule(body._blocks_path).children():
                    block.register_forward_hook(self._block((number, index)))

    def _hook(self, key: tuple[int, int]) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs, mask = args[:2]
            self.calls[key] += 1
            self.tokens[key] += int(mask[:, -inputs.shape[1] :].sum())
            self.columns[key] += inputs.shape[0] * inputs.shape[1]

        return hook

    def _block(self, key: tuple[int, int]) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self.blocks[key] += 1

        return hook


@pytest.mark.parametrize("router", SPARSE)
def test_tokens_that_went_through_are_those_that_are_reported(store: BlockStore, router: str) -> None:
    model = fuse(store, LAYOUTS["extents"], ROUTERS[router])
    watch = Watch(model)
    with torch.no_grad():
        output = model(IDS, attention_mask=MASK)
    reported = dict(zip(model.spans, output.processed.tolist(), strict=True))
    assert {key: watch.tokens[key] for key in model.spans} == reported
    # No row that an expert has nothing in goes through it, and every block of a span that runs, runs once.
    for expert, index in model.spans:
        span = model.layout.experts[expert].spans[index]
        assert watch.calls[expert, index] == (reported[expert, index] > 0)
        assert watch.blocks[expert, index] == watch.calls[expert, index] * (span.stop - span.start)


def test_a_sparse_pass_costs_about_one_expert_and_a_soft_one_all(store: BlockStore) -> None:
    model = fuse(store, ["sister", "brother", "sister"], ROUTERS["top-1 one state"])
    ids = tokens(4, 64, seed=1)
    sparse, soft = Watch(model), Watch(model)
    with torch.no_grad():
        model(ids)
        columns = sum(sparse.columns.values()) / len(model.spans) / ids.numel()
        assert sum(sparse.tokens.values()) == 4 * ids.numel()  # each token once at each of four positions
        assert columns < 0.6  # of what all experts would cost; runs are padded to multiples of 16
        model.set_routing("soft")
        soft.columns.clear()
        model(ids)
        assert sum(soft.columns.values()) == len(model.spans) * ids.numel()


def test_while_decoding_an_expert_computes_its_own_tokens_only(store: BlockStore) -> None:
    """One row: no padding at all, so that columns are tokens, catch-up included."""
    model = fuse(store, LAYOUTS["whole"], ROUTERS["top-1 window"])
    watch, cache = Watch(model), FusedCache()
    with torch.no_grad():
        for place in range(40):
            output = model(IDS[:1, place : place + 1], past_key_values=cache)
            assert watch.columns == watch.tokens
            assert int(output.processed.sum()) > 0
    assert cache.num_cached_tokens() == {key: watch.tokens[key] for key in model.spans}


@pytest.mark.parametrize(
    ("layout", "how"),
    [("whole", "soft"), ("extents", "soft"), ("siblings", "hard"), ("trunk edges", "hard"), ("extents", "hard")],
)
def test_every_expert_that_is_chosen_changes_the_output(store: BlockStore, layout: str, how: str) -> None:
    """No expert is silently the identity: with other weights in one span, the logits are others."""
    model = fuse(store, LAYOUTS[layout])
    model.set_routing(how)
    with torch.no_grad():
        for expert, index in model.spans:
            to_expert(model, expert)
            routers = model.iter_routers()
            if how == "soft" or not int(model(IDS).processed[model.spans.index((expert, index))]):
                for router in routers:
                    router.outer.bias.zero_()
                    if how == "hard":  # every expert by turns
                        router.outer.weight.normal_(generator=torch.Generator().manual_seed(1))
            before = model(IDS)
            assert int(before.processed[model.spans.index((expert, index))]) > 0
            fused = model.experts[expert]
            assert isinstance(fused, FusedExpert)
            weights = [p for p in fused.bodies[index].base.parameters() if p.ndim == 2]
            kept = [weight.clone() for weight in weights]
            for weight in weights:
                weight.mul_(1.5)
            assert not model(IDS).logits.equal(before.logits), (expert, index)
            for weight, old in zip(weights, kept, strict=True):
                weight.copy_(old)
            assert model(IDS).logits.equal(before.logits)


def test_a_failing_expert_is_an_error_and_not_the_identity(store: BlockStore) -> None:
    model = fuse(store, ["sister"])

    def fail(*_: Any) -> None:
        raise RuntimeError("this block is broken")

    expert = model.experts[1]
    assert isinstance(expert, FusedExpert)
    expert.bodies[2].register_forward_pre_hook(fail)
    with torch.no_grad(), pytest.raises(RuntimeError, match="this block is broken"):
        model(IDS)
