"""How adapters and routers start: closed forms against slow references, and what they are good for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mango.blocks import BlockStore, load_source
from mango.corpus import token_losses
from mango.errors import TrainingError
from mango.fusion import Adapter, MolForCausalLM, TokenRouter
from mango.fusion.params import TokenParams
from mango.tensors import RidgeFit
from mango.training import StartParams, prepare, routing_targets, source_losses, start_adapters, start_routers
from mango.training.calibration import best_expert, recorded_states
from mango.training.data import mixture
from mango.training.posterior_start import start_posterior
from mango.training.starts import entering_losses, fit_router
from tests.reference import training as reference
from tests.training.toys import LENGTH, build, make_job, make_tokenizer


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0])
def test_ridge_is_that_of_the_reference_and_comes_batch_by_batch(strength: float) -> None:
    x = noise(50, 6) * torch.arange(1, 7) + 3.0
    y = x @ noise(6, 4, seed=1) + noise(50, 4, seed=2) - 2.0
    fit = RidgeFit(6, 4, ridge=strength)
    for part in (slice(0, 7), slice(7, 8), slice(8, 50)):
        fit.add(x[part], y[part])
    weight, bias, share = fit.solve()
    wanted = reference.ridge(x.double().numpy(), y.double().numpy(), strength)
    np.testing.assert_allclose(weight.numpy(), wanted[0], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(bias.numpy(), wanted[1], rtol=1e-8, atol=1e-9)
    assert share == pytest.approx(wanted[2], abs=1e-9)


def test_ridge_finds_an_exact_map_and_refuses_nothing_and_nan() -> None:
    x, weight = noise(40, 5), noise(5, 3, seed=1)
    fit = RidgeFit(5, 3, ridge=1e-12)
    with pytest.raises(TrainingError, match="0 pairs of finite activations"):
        fit.solve()
    fit.add(x, x @ weight + 1.0)
    found, bias, share = fit.solve()
    torch.testing.assert_close(found.float(), weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bias.float(), torch.ones(3), atol=1e-5, rtol=1e-5)
    assert share == pytest.approx(1.0)
    fit.add(torch.full((1, 5), torch.nan), torch.zeros(1, 3))
    with pytest.raises(TrainingError, match="finite"):
        fit.solve()


def test_recorded_states_are_those_that_enter_the_blocks(toy_store: BlockStore) -> None:
    model = load_source(toy_store, "stranger")
    ids = torch.arange(1, 11).view(1, -1)
    with torch.no_grad(), recorded_states(model, [0, 2, 3]) as states:
        hidden = model(ids, output_hidden_states=True).hidden_states
    assert sorted(states) == [0, 2, 3]
    assert states[0].equal(hidden[0])
    assert states[2].equal(hidden[2])
    norm = model.get_submodule("transformer.ln_f")
    assert norm(states[3]).equal(hidden[3])
    states.clear()
    model(ids)
    assert states == {}


def adapters(model: MolForCausalLM) -> dict[str, Adapter]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Adapter) and m.width_in != m.width_out}


@pytest.mark.parametrize("kind", ["linear", "bottleneck"])
def test_adapters_start_from_ridge_and_map_states_better(toy_store: BlockStore, toy_corpus: Path, kind: str) -> None:
    job = make_job(toy_corpus, adapter=kind)
    model = build(job, toy_store)
    text = mixture(job.corpus, "train", make_tokenizer(), num_sequences=12, switching_share=0.5, seed=0)
    trunk, stranger = (load_source(toy_store, name) for name in ("base", "stranger"))
    stop = model.layout.experts[2].spans[0].stop
    with torch.no_grad(), recorded_states(trunk, [1]) as ours, recorded_states(stranger, [stop]) as theirs:
        trunk(text.input_ids)
        stranger(text.input_ids)
    x, y = ours[1].flatten(0, 1), theirs[stop].flatten(0, 1)
    into = adapters(model)["experts.2.inputs.1"]

    def error() -> float:
        with torch.no_grad():
            return float((into(x) - y).square().sum())

    before = error()
    fits = start_adapters(model, toy_store, text, job.train.start, batch_size=5)
    assert set(fits) == {"stranger/0/out", "stranger/1/in"}
    weight, bias, share = reference.ridge(x.double().numpy(), y.double().numpy(), job.train.start.ridge)
    assert fits["stranger/1/in"] == pytest.approx(share, abs=1e-4)
    wanted = x.double().numpy() @ weight + bias
    with torch.no_grad():
        # States of hundreds of tokens in float32, mapped in float32: rounding alone.
        np.testing.assert_allclose(into(x).numpy(), wanted, atol=1e-4 * np.abs(wanted).max())
    spread = float((y - y.mean(0)).square().sum())
    assert error() == pytest.approx((1 - share) * spread, rel=1e-3)
    assert error() < before
    assert into.distance().item() == 0.0


def test_nothing_is_fitted_where_widths_are_equal(toy_store: BlockStore, toy_corpus: Path) -> None:
    job = make_job(toy_corpus, experts=("sister",))
    model = build(job, toy_store)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text = mixture(job.corpus, "train", make_tokenizer(), num_sequences=2, switching_share=0.0, seed=0)
    assert start_adapters(model, toy_store, text, job.train.start, batch_size=2) == {}
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 100])
def test_the_best_expert_is_that_of_the_reference(window: int) -> None:
    losses = noise(3, 2, 9).abs()
    assert best_expert(losses, window).tolist() == reference.best_expert(losses.double().numpy(), window).tolist()


def test_the_best_expert_by_hand() -> None:
    losses = torch.tensor([[[0.0, 0.0, 0.0, 9.0, 9.0, 9.0]], [[1.0] * 6]])
    assert best_expert(losses, 1).tolist() == [[0, 0, 0, 1, 1, 1, 1]]
    # Three around each: 0, 0, 3, 6, 9, 9 against 1.
    assert best_expert(losses, 3).tolist() == [[0, 0, 1, 1, 1, 1, 1]]
    assert best_expert(torch.ones(2, 1, 3), 2).tolist() == [[0, 0, 0, 0]]


def test_targets_name_the_experts_that_can_be_entered(toy_store: BlockStore, toy_corpus: Path) -> None:
    model = build(make_job(toy_corpus, experts=("sister", "stranger")), toy_store)
    assert [len(model.layout.entering(position)) for position in (0, 1)] == [3, 2]
    losses = {name: torch.full((1, LENGTH - 1), value) for name, value in (("base", 2.0), ("sister", 3.0))}
    losses["stranger"] = torch.full((1, LENGTH - 1), 1.0)
    targets = routing_targets(model, losses, window=4)
    assert targets.shape == (1, LENGTH, 2)
    assert targets[..., 0].unique().tolist() == [2]
    assert targets[..., 1].unique().tolist() == [0]


def test_source_losses_are_those_of_each_model(toy_store: BlockStore) -> None:
    ids = torch.randint(1, 200, (3, 10), generator=torch.Generator().manual_seed(1))
    found = source_losses(toy_store, ["stranger", "base", "base"], ids, batch_size=2, device="cpu")
    assert list(found) == ["base", "stranger"]
    assert found["stranger"].equal(token_losses(load_source(toy_store, "stranger"), ids, batch_size=3))


ROUTERS: dict[str, dict[str, Any]] = {
    "token": {"type": "token", "token": {"window": 1}},
    "evidence": {"type": "token", "token": {"window": 1, "switch": 0.02}},
    "hidden layer": {"type": "token", "token": {"window": 1, "hidden": 8}},
    "topk": {"type": "topk", "topk": {"window": 1, "catch_up": 2}},
    "simple": {"type": "simple", "simple": {"prompt": 12}},
}


@pytest.mark.parametrize("kind", ROUTERS)
def test_routers_learn_to_tell_two_languages_apart(toy_store: BlockStore, toy_corpus: Path, kind: str) -> None:
    job = make_job(toy_corpus, experts=("sister",), router=ROUTERS[kind])
    model = build(job, toy_store)
    text = mixture(job.corpus, "train", make_tokenizer(), num_sequences=24, switching_share=0.0, seed=0)
    targets = text.domain_ids.unsqueeze(-1).expand(-1, -1, 2)
    trained = {n for n, _ in model.routers.named_parameters()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accuracy = start_routers(model, text.input_ids, targets, StartParams(router_steps=60), batch_size=5)
    assert sorted(accuracy) == ["0", "1"]
    new = mixture(job.corpus, "test", make_tokenizer(), num_sequences=12, switching_share=0.0, seed=0)
    for position in (0, 1):
        assert accuracy[str(position)] > 0.8  # spaces and ends of documents stand in both languages
        routing = model.routing_at(new.input_ids, position)
        assert (routing.log_probs.argmax(-1) == new.domain_ids).float().mean() > 0.75
    changed = {n for n, tensor in model.state_dict().items() if not tensor.equal(before[n])}
    assert changed == {f"routers.{n}" for n in trained if "temperature" not in n}


def test_no_steps_leave_routers_undecided(toy_store: BlockStore, toy_corpus: Path) -> None:
    job = make_job(toy_corpus, experts=("sister",))
    model = build(job, toy_store)
    before = {name: tensor.clone() for name, tensor in model.routers.state_dict().items()}
    ids = torch.ones(1, 8, dtype=torch.long)
    assert start_routers(model, ids, torch.zeros(1, 8, 2).long(), StartParams(router_steps=0), batch_size=1) == {}
    assert all(tensor.equal(before[name]) for name, tensor in model.routers.state_dict().items())


@pytest.mark.parametrize("switch", [None, 0.05])
def test_a_router_learns_to_weigh_sources_by_what_their_mixture_loses(switch: float | None) -> None:
    """Labels say which source is best, not by how much: where it hardly matters a router need not be sure."""
    sure = noise(12, 10, seed=1) > 0
    pooled = torch.stack([sure.float(), noise(12, 10, seed=2) > 0, noise(12, 10, seed=3), noise(12, 10, seed=4)], -1)
    right = noise(12, 10, seed=5) > -0.3
    losses = torch.stack([torch.where(right, 0.9, 1.1), torch.where(right, 1.1, 0.9)], -1)
    losses[..., 1] = torch.where(sure, 9.0, losses[..., 1])
    losses = losses[:, :-1]
    targets = torch.nn.functional.pad(losses.argmin(-1), (0, 1))
    found = {}
    for steps in (0, 60):
        torch.manual_seed(0)
        router = TokenRouter(4, 2, TokenParams(window=1, switch=switch)).train(False)
        for part in (router.temperature, router.switch):
            if part is not None:
                part.start_weights(0.02)
        params = StartParams(router_steps=40, mixture_steps=steps)
        fit_router(router, pooled, targets, params, losses=losses if steps else None)
        with torch.no_grad():
            log_probs, _ = router.log_probs(pooled)
            found[steps] = float(-torch.logsumexp(log_probs[:, :-1] - losses, -1).mean())
    best, worst = float(losses.min(-1).values.mean()), float(losses.mean())
    assert best < found[60] < found[0] < worst


def test_mixture_steps_reach_the_routers_of_a_model(toy_store: BlockStore, toy_corpus: Path) -> None:
    job = make_job(toy_corpus, experts=("sister", "stranger"))
    text = mixture(job.corpus, "train", make_tokenizer(), num_sequences=4, switching_share=0.0, seed=0).input_ids
    losses = source_losses(toy_store, job.model_names(), text, batch_size=2, device="cpu")
    weights = []
    for steps in (0, 5):
        model = build(job, toy_store)
        mixed = entering_losses(model, losses)
        assert [tuple(one.shape) for one in mixed] == [(4, LENGTH - 1, 3), (4, LENGTH - 1, 2)]
        assert mixed[1][..., 0].equal(losses["base"])
        assert mixed[1][..., 1].equal(losses["sister"])
        targets = routing_targets(model, losses, 4)
        params = StartParams(router_steps=5, mixture_steps=steps)
        start_routers(model, text, targets, params, batch_size=2, losses=mixed)
        weights.append([router.outer.weight.detach().clone() for router in model.iter_routers()])
    assert not any(one.equal(other) for one, other in zip(*weights, strict=True))


def test_mixture_steps_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mixture_steps.*router_steps above 0"):
        StartParams(router_steps=0, mixture_steps=3)


def test_mixture_steps_want_a_next_token(toy_corpus: Path) -> None:
    job = make_job(toy_corpus, {"start": {"mixture_steps": 2}, "controls": {"continued_trunk": False}})
    job.check()
    other = replace(job, fusion=job.fusion.model_copy(update={"task": "masked-lm"}))
    with pytest.raises(TrainingError, match=r"train\.start\.mixture_steps: 2, but a model for masked-lm"):
        other.check()


def test_calibration_text_is_read_in_batches_of_its_own(
    toy_store: BlockStore, toy_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def watched(*args: Any, batch_size: int, **how: Any) -> dict[str, Tensor]:
        sizes.append(batch_size)
        return source_losses(*args, batch_size=batch_size, **how)

    monkeypatch.setattr("mango.training.run.source_losses", watched)
    for size, wanted in ((0, 2), (3, 3)):
        job = make_job(toy_corpus, {"start": {"sequences": 1, "batch_size": size}})
        prepare(job, toy_store, make_tokenizer(), "cpu")
        assert sizes.pop() == wanted


def test_predictions_are_trusted_as_far_as_they_lower_the_loss(toy_store: BlockStore, toy_corpus: Path) -> None:
    router = {"type": "token", "token": {"window": 2, "switch": 0.05, "posterior": True}}
    job = make_job(toy_corpus, router=router)
    model = build(job, toy_store)
    data = prepare(job, toy_store, make_tokenizer(), "cpu")
    ids = data.calibration.input_ids
    plain = float(token_losses(model.train(), ids, batch_size=4).mean())
    untold = float(token_losses(model.train(False), ids, batch_size=4).mean())
    gained = start_posterior(model, ids, batch_size=4)
    fitted = float(token_losses(model, ids, batch_size=4).mean())
    assert gained is not None
    assert gained == pytest.approx(plain - fitted, abs=1e-4)  # all of this text was read
    assert fitted < min(plain, untold) - 1e-3
    assert not any(parameter.requires_grad for parameter in model.posterior.parameters())
    assert start_posterior(build(make_job(toy_corpus), toy_store), ids, batch_size=4) is None
