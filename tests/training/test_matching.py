"""Feature matching, Procrustes starts and distillation: what each changes in a training, and that it resumes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mango.blocks import BlockStore, load_source
from mango.errors import TrainingError
from mango.fusion import Adapter, AdapterParams, MolForCausalLM
from mango.training import Job, Trained, calibration_text, start_adapters, train_one
from mango.training.run import prepare
from mango.training.teaching import Teacher, best_sources, distillation_loss
from tests.training.toys import build, make_job, make_tokenizer

FINE = ({"model": "sister", "cut": "fine"}, {"model": "stranger", "cut": "fine"})


def with_start(job: Job, start: str) -> Job:
    adapter = AdapterParams.model_validate({"type": "linear", "linear": {"rank": 4, "start": start}})
    return Job(job.seed, job.corpus, job.fusion, job.router, adapter, job.train)


def started(job: Job, store: BlockStore) -> tuple[MolForCausalLM, dict[str, float]]:
    model = build(job, store)
    fits = start_adapters(model, store, calibration_text(job, make_tokenizer()), job.train.start, batch_size=2)
    return model, fits


def adapters(model: MolForCausalLM) -> dict[str, Adapter]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}


def test_procrustes_starts_equal_widths_from_a_rotation(toy_store: BlockStore, toy_corpus: Path) -> None:
    job = make_job(toy_corpus, experts=FINE)
    plain, few = started(job, toy_store)
    turned, fits = started(with_start(job, "procrustes"), toy_store)
    free, best = started(with_start(job, "ridge"), toy_store)
    assert set(few) == {"stranger/0/out", "stranger/1/in"}  # identity at equal width fits nothing
    assert set(fits) == set(best) == {*few, "sister/0/out", "sister/1/in"}
    for name in ("sister/0/out", "sister/1/in"):
        assert fits[name] <= best[name] + 1e-3  # a rotation is one of all maps
    for name, adapter in adapters(turned).items():
        if adapter.width_in == adapter.width_out:
            weight = adapter.affine.weight  # type: ignore[union-attr]
            torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), atol=1e-5, rtol=0)
            assert not weight.equal(adapters(free)[name].affine.weight)  # type: ignore[union-attr]
            assert adapters(plain)[name].affine is None
            assert float(adapter.distance().detach()) == 0.0


def test_an_unfitted_adapter_of_equal_width_is_the_identity(toy_store: BlockStore, toy_corpus: Path) -> None:
    model = build(with_start(make_job(toy_corpus, experts=FINE), "procrustes"), toy_store)
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    same = [adapter for adapter in adapters(model).values() if adapter.width_in == adapter.width_out]
    assert len(same) == 2
    for adapter in same:
        torch.testing.assert_close(adapter(states), states)


@pytest.mark.parametrize("kind", ["linear", "bottleneck"])
def test_matching_brings_states_closer_and_becomes_the_start(
    toy_store: BlockStore, toy_corpus: Path, kind: str
) -> None:
    job = make_job(toy_corpus, experts=FINE, adapter=kind)
    long = make_job(
        toy_corpus, {"start": {"sequences": 2, "matching_steps": 60, "matching_learning_rate": 0.01}}, experts=FINE,
        adapter=kind,
    )  # fmt: skip
    before, closed = started(job, toy_store)
    after, matched = started(long, toy_store)
    # Every adapter has a figure, those that start from the identity too.
    assert set(matched) == {*closed, "sister/0/out", "sister/1/in"}
    short = make_job(
        toy_corpus, {"start": {"sequences": 2, "matching_steps": 1, "matching_learning_rate": 1e-9}}, experts=FINE,
        adapter=kind,
    )  # fmt: skip
    unmoved = started(short, toy_store)[1]
    assert all(matched[name] > unmoved[name] + 0.02 for name in ("sister/0/out", "sister/1/in"))
    # Affine maps are at their best from the start and stay; a bottleneck adds what none of them can say.
    assert all(matched[name] >= unmoved[name] for name in closed)
    assert any(matched[name] > unmoved[name] for name in closed) is (kind == "bottleneck")
    moved = False
    for name, adapter in adapters(after).items():
        if adapter.width_in != adapter.width_out:
            affine: Any = adapter.affine
            assert affine.start_weight.equal(affine.weight)
            assert float(affine.distance().detach()) == 0.0
            moved |= not affine.weight.equal(adapters(before)[name].affine.weight)  # type: ignore[union-attr]
    assert moved is (kind == "bottleneck")


def test_the_teacher_of_a_token_is_the_best_source_around_it(toy_store: BlockStore) -> None:
    names = ["base", "sister", "stranger"]
    losses = {name: torch.full((1, 5), 2.0) for name in names}
    losses["stranger"][0, :2] = 1.0
    losses["sister"][0, 3:] = 0.5
    best = best_sources(losses, names, 1)
    assert best.tolist() == [[2, 2, 0, 1, 1, 1]]
    ids = torch.randint(1, 200, (1, 6), generator=torch.Generator().manual_seed(1))
    said = Teacher(toy_store, names, "cpu").log_probs(ids, best)
    with torch.no_grad():
        alone = {n: torch.log_softmax(load_source(toy_store, n)(input_ids=ids).logits, -1) for n in names}
    for token, number in enumerate(best[0].tolist()):
        torch.testing.assert_close(said[0, token], alone[names[number]][0, token])


def test_the_divergence_by_hand() -> None:
    taught = torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]]).log()
    assert float(distillation_loss(taught + 3.0, taught)) == pytest.approx(0.0, abs=1e-6)
    said = torch.tensor([[[0.25, 0.75], [0.9, 0.1], [0.9, 0.1]]]).log()
    wanted = (0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(0.5 / 0.75).log()) / 2  # the last token is left out
    assert float(distillation_loss(said, taught)) == pytest.approx(float(wanted), rel=1e-5)


class _KilledError(Exception):
    """Stands for a process that dies while it logs."""


def run(job: Job, store: BlockStore, work: Path, kill_at: int | None = None) -> Trained:
    def log(metrics: Mapping[str, float], step: int) -> None:
        if step == kill_at:
            raise _KilledError

    data = prepare(job, store, make_tokenizer(), "cpu")
    return train_one(job, store, data, what="fused", work=work, device="cpu", log=log)


def state(out: Trained) -> dict[str, Tensor]:
    return out.model.state_dict()


EVERYTHING: dict[str, Any] = {
    "steps": 4,
    "save_every": 2,
    "losses": {"distill": 0.5, "adapter": 0.1},
    "start": {"sequences": 2, "router_steps": 5, "window": 4, "matching_steps": 3},
}


def test_matched_and_distilled_trainings_resume_bit_for_bit(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path
) -> None:
    job = with_start(make_job(toy_corpus, EVERYTHING, experts=FINE), "procrustes")
    whole = run(job, toy_store, tmp_path / "whole")
    with pytest.raises(_KilledError):
        run(job, toy_store, tmp_path / "killed", kill_at=3)
    out = run(job, toy_store, tmp_path / "killed")
    assert {name for name, tensor in state(out).items() if not tensor.equal(state(whole)[name])} == set()
    assert out.curve == whole.curve
    assert out.starts == whole.starts
    shutil.rmtree(tmp_path / "killed")


def test_distillation_is_part_of_the_loss_and_brings_the_model_to_its_teachers(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path
) -> None:
    losses = {"balance": 0.0, "entropy": 0.0, "adapter": 0.0}
    base = {"steps": 12, "adapter_learning_rate": 0.02, "batch_size": 4}
    plain = run(make_job(toy_corpus, {**base, "losses": losses}, experts=FINE), toy_store, tmp_path / "plain")
    taught = run(
        make_job(toy_corpus, {**base, "losses": {**losses, "distill": 5.0}}, experts=FINE), toy_store,
        tmp_path / "taught",
    )  # fmt: skip
    assert "distill" not in plain.curve[0]
    for entry in taught.curve:
        assert entry["loss"] == pytest.approx(entry["lm"] + 5.0 * entry["distill"], abs=2e-3)
    assert plain.curve[0]["lm"] == pytest.approx(taught.curve[0]["lm"], abs=1e-4)  # the same start, counted alike
    job = make_job(toy_corpus, {**base, "losses": {**losses, "distill": 5.0}}, experts=FINE)
    data = prepare(job, toy_store, make_tokenizer(), "cpu")
    assert data.train_losses is not None
    names = sorted(data.train_losses)
    best = best_sources(data.train_losses, names, job.train.start.window)
    said = Teacher(toy_store, names, "cpu").log_probs(data.train.input_ids[:8], best[:8])

    def away(out: Trained) -> float:
        with torch.no_grad():
            return float(distillation_loss(out.model(input_ids=data.train.input_ids[:8]).logits, said))

    assert away(taught) < away(plain)


def test_no_teacher_for_other_tasks(toy_corpus: Path) -> None:
    job = make_job(toy_corpus, {"losses": {"distill": 0.5}, "controls": {"continued_trunk": False}})
    masked = job.fusion.model_copy(update={"task": "masked-lm"})
    with pytest.raises(TrainingError, match=r"distill: 0\.5, but tokens of a model for masked-lm have no teacher"):
        Job(job.seed, job.corpus, masked, job.router, job.adapter, job.train).check()
