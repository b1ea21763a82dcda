"""What routers chose, counted by hand and by hooks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mango.blocks import BlockStore
from mango.corpus import Sequences
from mango.evaluation.routing import RoutingTotals, positions, sample
from mango.fusion import MolForCausalLM, Routing
from tests.training.toys import build, make_job, make_store, make_tokenizer, save_sources, stir

IDS = torch.randint(1, 250, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    root = tmp_path_factory.mktemp("routing")
    return make_store(save_sources(root), root / "blocks")


def fused(store: BlockStore, **router: Any) -> MolForCausalLM:
    """A fused model: the anchor and a sibling in two spans each, a stranger in one."""
    job = make_job(
        Path("none"), experts=("sister", "stranger"), router={"type": "topk", "topk": {"window": 2, **router}}
    )
    return stir(build(job, store), scale=0.5)


def output(position: int, probs: Tensor, weights: Tensor, processed: list[int]) -> Any:
    names = tuple(f"e{i}" for i in range(probs.shape[-1]))
    present = torch.tensor([[True, True, False]])
    routing = Routing(position, names, probs.log(), weights, torch.zeros(1, 3, 1), present, torch.zeros(1, 3))
    return SimpleNamespace(routing=(routing,), processed=torch.tensor(processed))


def test_totals_by_hand(store: BlockStore) -> None:
    model = fused(store)
    assert model.spans == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    totals = RoutingTotals(model)
    probs = torch.tensor([[[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [1.0, 1.0, 1.0]]])
    weights = torch.tensor([[[0.6, 0.4, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    totals.add(output(0, probs, weights, [2, 1, 0, 1, 2]), 3)
    totals.add(output(0, probs, weights, [3, 3, 1, 0, 1]), 3)
    # Spans of one position of two count half, the stranger's span of both counts whole.
    assert totals.by_expert() == {"anchor": 9 / 2, "sister": 2 / 2, "stranger": 3.0}
    assert totals.cost() == pytest.approx((4.5 + 1.0 + 3.0) / 6)
    rows = positions({"code": totals})
    assert rows[0]["position"] == 0
    assert rows[0]["experts"] == ["e0", "e1", "e2"]
    entropy = (-(0.5 * torch.tensor(0.5).log() + 0.5 * torch.tensor(0.25).log())).item()
    entropy += -(0.8 * torch.tensor(0.8).log() + 0.2 * torch.tensor(0.1).log()).item()
    found = rows[0]["by_domain"]["code"]
    assert found["utilisation"] == pytest.approx([0.8, 0.2, 0.0])
    assert found["entropy_nats"] == pytest.approx(entropy / 2, rel=1e-6)


def counted(model: MolForCausalLM) -> dict[tuple[int, int], int]:
    """Run the model; count the tokens that enter the first block of each span, without their padding."""
    seen = dict.fromkeys(model.spans, 0)
    handles = []
    for number, index in model.spans:
        body: Any = model.experts[number].bodies[index]  # type: ignore[index, union-attr]

        def hook(module: Any, args: Any, kwargs: Any, *, key: tuple[int, int] = (number, index)) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            seen[key] += states.shape[0] * states.shape[1]

        block = next(m for n, m in body.named_modules() if n.endswith((".layers.0", ".h.0")))
        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    with torch.no_grad():
        model(IDS)
    for handle in handles:
        handle.remove()
    return seen


def totals_of(model: MolForCausalLM) -> RoutingTotals:
    totals = RoutingTotals(model)
    with torch.no_grad():
        for row in IDS.split(2):
            totals.add(model(row), row.numel())
    return totals


def test_soft_costs_every_expert(store: BlockStore) -> None:
    model = fused(store)
    model.set_routing("soft")
    totals = totals_of(model)
    assert totals.cost() == pytest.approx(3.0)
    assert totals.by_expert() == dict.fromkeys(("anchor", "sister", "stranger"), 60.0)
    assert set(counted(model).values()) == {60}


def test_hard_without_catch_up_costs_one_expert(store: BlockStore) -> None:
    model = fused(store, catch_up=0)
    totals = totals_of(model)
    assert totals.cost() == pytest.approx(1.0)
    assert min(totals.by_expert().values()) > 0
    for position, weights in totals.weights.items():
        assert float(weights.sum()) == totals.present[position]
    # Every token takes each position once: as long as the stranger has it, it enters no other.
    assert totals.present[0] == 60
    assert totals.present[1] == 60 - totals.processed[model.spans.index((2, 0))]


def test_catching_up_costs_what_blocks_see(store: BlockStore) -> None:
    model = fused(store, catch_up=4)
    totals = totals_of(model)
    assert 1.0 < totals.cost() < 3.0
    # Blocks get runs that are padded to one length, so they see at least what is counted, and nothing that is not.
    seen = counted(model)
    for span, count in zip(model.spans, totals.processed.tolist(), strict=True):
        assert count <= seen[span] <= 2 * 60


def test_samples_name_the_preferred_expert(store: BlockStore) -> None:
    model = fused(store)
    tokenizer = make_tokenizer()
    ids = torch.tensor([tokenizer("12 ab")["input_ids"]])
    text = Sequences(ids, torch.tensor([[0, 0, 0, 1, 1]]), torch.ones_like(ids), ("digits", "letters"))
    found = sample(model, tokenizer, text, 0, "a title")
    assert found["title"] == "a title"
    assert [t["text"] for t in found["tokens"]] == ["1", "2", " ", "a", "b"]
    assert [t["domain"] for t in found["tokens"]] == ["digits"] * 3 + ["letters"] * 2
    with torch.no_grad():
        first, second = model(ids).routing
    names = ("anchor", "sister", "stranger")
    best = [names[i] for i in first.log_probs[0].argmax(-1).tolist()]
    assert [t["expert"] for t in found["tokens"]] == best
    # The stranger spans both positions: a token that it has is not asked again.
    later = [names[i] for i in second.log_probs[0].argmax(-1).tolist()]
    wanted = [(a, a if a == "stranger" else b) for a, b in zip(best, later, strict=True)]
    assert [tuple(t["path"]) for t in found["tokens"]] == wanted


def test_samples_follow_what_sticks(store: BlockStore) -> None:
    model = fused(store, stickiness=50.0)
    tokenizer = make_tokenizer()
    text = Sequences(IDS, torch.zeros_like(IDS), torch.ones_like(IDS), ("digits",))
    model.set_routing("hard")
    found = sample(model, tokenizer, text, 0, "x")["tokens"]
    with torch.no_grad():
        preferred = model(IDS[:1]).routing[0].log_probs[0].argmax(-1)
    assert len(set(preferred.tolist())) > 1
    assert len({token["expert"] for token in found}) == 1


def test_samples_of_the_trunk_alone_name_it(store: BlockStore) -> None:
    tokenizer = make_tokenizer()
    ids = torch.tensor([tokenizer("12 ab")["input_ids"]])
    text = Sequences(ids, torch.tensor([[0, 0, 0, 1, 1]]), torch.ones_like(ids), ("digits", "letters"))
    alone = build(make_job(Path("none"), experts=()), store)
    assert {t["expert"] for t in sample(alone, tokenizer, text, 0, "x")["tokens"]} == {"anchor"}
