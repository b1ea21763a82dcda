"""What is trained gets a gradient, what is frozen stays bit for bit, and both whatever the routing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mango.blocks import BlockStore
from mango.errors import ConfigError
from mango.fusion import MolForCausalLM
from tests.fusion.models import LAYOUTS, ROUTERS, fuse, left_padded, tokens, with_router

IDS = tokens(4, 32, seed=20)
MASK = left_padded(IDS, [0, 9, 2, 0])
SPARSE = {"type": "topk", "topk": {"window": 2, "catch_up": 3, "training": "sparse"}}
TRAINING: dict[str, dict[str, Any]] = {
    "soft": ROUTERS["token window"],
    "simple": ROUTERS["simple k=1"],
    "top-1": SPARSE,
    "top-2": {"type": "topk", "topk": {"window": 2, "catch_up": 3, "training": "sparse", "k": 2}},
}


def stir(model: MolForCausalLM) -> MolForCausalLM:
    """Move adapters off their start, where half of a low-rank product has no gradient."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for adapter in model.iter_adapters():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@pytest.fixture(scope="module", params=LAYOUTS)
def model(store: BlockStore, request: pytest.FixtureRequest) -> MolForCausalLM:
    return stir(fuse(store, LAYOUTS[request.param]))


def trained(model: MolForCausalLM) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if name.startswith("routers.") or name.split(".")[2] in ("inputs", "outputs"):
            yield name, parameter


def silent(model: MolForCausalLM) -> list[str]:
    """Return what is trained but has no gradient, or none that is finite."""
    return [
        name
        for name, parameter in trained(model)
        if parameter.grad is None or not bool(parameter.grad.any()) or not bool(parameter.grad.isfinite().all())
    ]


def fingerprint(model: MolForCausalLM) -> dict[str, str]:
    ours = {name for name, _ in trained(model)}
    return {
        name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
        if name not in ours
    }


@pytest.mark.parametrize("training", TRAINING)
def test_gradients_reach_all_that_is_trained_and_steps_move_nothing_else(model: MolForCausalLM, training: str) -> None:
    with_router(model, TRAINING[training]).train()
    before = fingerprint(model)
    values = {name: parameter.detach().clone() for name, parameter in trained(model)}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(values)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.zero_grad()
    output = model(IDS, attention_mask=MASK, labels=IDS)
    assert output.loss is not None
    output.loss.backward(retain_graph=True)
    if training != "top-1" or not model.layout.experts[1].own_edges:
        assert silent(model) == []
    else:
        # Where experts end in heads of their own, one that is chosen alone says nothing about the others.
        assert {name.split(".")[1] for name in silent(model)} == {"3"}
        assert output.routing is not None
        output.routing[-1].log_probs.exp().square().sum().backward()
        assert silent(model) == []
    optimizer.step()
    assert fingerprint(model) == before
    assert [name for name, parameter in trained(model) if parameter.equal(values[name])] == []
    with torch.no_grad():
        for name, parameter in trained(model):
            parameter.copy_(values[name])
    model.eval()


@pytest.mark.parametrize("training", TRAINING)
def test_gradient_checkpointing_changes_no_gradient(store: BlockStore, training: str) -> None:
    gradients: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        model = stir(fuse(store, LAYOUTS["extents"], TRAINING[training])).train()
        calls: list[int] = []
        block = model.get_submodule("experts.0.bodies.1.base.layers.0")
        block.register_forward_pre_hook(lambda *_, seen=calls: seen.append(1))
        if checkpointing:
            model.activation_checkpointing_enable()
        loss = model(IDS, attention_mask=MASK, labels=IDS).loss
        loss.backward()
        assert len(calls) == 1 + checkpointing
        gradients.append({name: parameter.grad for name, parameter in trained(model)})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)
    with pytest.raises(ConfigError, match="gradient checkpointing runs spans twice"):
        model(IDS, use_cache=True)


def test_the_loss_is_that_of_the_trunk_and_does_not_count_padding(store: BlockStore, sources: Any) -> None:
    trunk = AutoModelForCausalLM.from_pretrained(sources["base"])
    model = fuse(store, [])
    real = MASK.bool()
    labels = IDS.masked_fill(~real, -100)
    labels[:, 1:][~real[:, :-1]] = -100  # what the last of the padding would predict
    positions = (MASK.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        wanted = trunk(IDS, attention_mask=MASK, position_ids=positions, labels=labels).loss
        torch.testing.assert_close(model(IDS, attention_mask=MASK, labels=IDS).loss, wanted)
        torch.testing.assert_close(model(IDS, attention_mask=MASK, labels=labels).loss, wanted)
        items = {"labels": labels, "num_items_in_batch": torch.tensor(50)}
        shared = model(IDS, attention_mask=MASK, **items).loss
        torch.testing.assert_close(shared, trunk(IDS, attention_mask=MASK, position_ids=positions, **items).loss)
        logits = model(IDS, labels=IDS).logits[:, -6:-1].flatten(0, 1)
        last = model(IDS, labels=IDS, logits_to_keep=6)
        assert last.logits.shape[1] == 6
        torch.testing.assert_close(last.loss, nn.functional.cross_entropy(logits, IDS[:, -5:].flatten()))


def test_experts_stay_in_evaluation_mode(store: BlockStore) -> None:
    """GPT-2 has dropout; a frozen expert must not drop anything while adapters are trained."""
    model = fuse(store, LAYOUTS["whole"])
    with torch.no_grad():
        wanted = model(IDS).logits
        assert model.train()(IDS).logits.equal(wanted)
    assert model.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.Dropout))
    assert not model.eval().training


@pytest.mark.parametrize("adapter", ["linear", "bottleneck"])
def test_adapters_start_and_are_pulled_back_to_where_they_started(store: BlockStore, adapter: str) -> None:
    model = fuse(store, LAYOUTS["cut"], adapter=adapter)
    for each in model.iter_adapters():
        states = torch.randn(5, each.width_in)
        weight, bias = torch.randn(each.width_in, each.width_out), torch.randn(each.width_out)
        if each.width_in == each.width_out:
            assert each(states).equal(states)
            with pytest.raises(ValueError, match="starts from the identity"):
                each.start_from(weight, bias)
        else:
            each.start_from(weight, bias)
            torch.testing.assert_close(each(states), states @ weight + bias, atol=1e-5, rtol=1e-5)
        assert each.distance().item() == 0
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.add_(0.1)
        distance = each.distance()
        assert distance.item() > 0
        distance.backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in each.parameters())


def test_half_precision_bodies_train_with_float32_adapters(store: BlockStore) -> None:
    model = stir(fuse(store, LAYOUTS["extents"], SPARSE, dtype="bfloat16")).train()
    assert {p.dtype for _, p in trained(model)} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if ".bodies." in n} == {torch.bfloat16}
    loss = model(IDS, attention_mask=MASK, labels=IDS).loss
    loss.backward()
    assert {name.split(".")[1] for name in silent(model)} == {"3"}


@pytest.mark.parametrize("training", TRAINING)
def test_autocast_computes_nearly_the_same(store: BlockStore, training: str) -> None:
    model = stir(fuse(store, LAYOUTS["extents"], TRAINING[training])).train()
    with torch.no_grad():
        exact = model(IDS, attention_mask=MASK, labels=IDS).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(IDS, attention_mask=MASK, labels=IDS).loss
    mixed.backward()
    torch.testing.assert_close(mixed.detach().float(), exact, atol=0.05, rtol=0.02)
    assert all(bool(p.grad.isfinite().all()) for _, p in trained(model) if p.grad is not None)
