"""Trainings that end when validation gets worse: which weights stay, and that a killed one ends alike."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from mango.blocks import BlockStore
from mango.corpus import token_losses
from mango.training import Trained, TrainParams, train_one
from mango.training.run import prepare
from mango.training.stopping import BEST_FOLDER
from tests.training.toys import make_job, make_tokenizer

TOO_FAST = {
    "steps": 30, "validate_every": 1, "save_every": 2, "warmup": 0.3,
    "adapter_learning_rate": 5.0, "router_learning_rate": 5.0,
    "start": {"sequences": 4, "router_steps": 0, "window": 4},
}  # fmt: skip
"""Better at first, then worse: the learning rate rises to where nothing is learned."""

SPARSE = {"training": "sparse", "k": 2, "window": 2, "balance_rate": 0.1}


class _KilledError(Exception):
    pass


def run(store: BlockStore, corpus: Path, work: Path, patience: int, kill_at: int | None = None) -> Trained:
    job = make_job(corpus, {**TOO_FAST, "patience": patience}, router={"type": "topk", "topk": SPARSE})

    def log(metrics: Mapping[str, float], step: int) -> None:
        if step == kill_at:
            raise _KilledError

    data = prepare(job, store, make_tokenizer(), "cpu")
    out = train_one(job, store, data, what="fused", work=work, device="cpu", log=log)
    losses = token_losses(out.model, data.validation.input_ids, batch_size=2)
    assert out.summary["validation"] == pytest.approx(losses.mean().item(), abs=1e-5)  # of the weights that are kept
    return out


def validations(trained: Trained) -> dict[int, float]:
    return {int(entry["step"]): entry["validation"] for entry in trained.curve if "validation" in entry}


def test_the_best_weights_stay_and_the_rest_is_not_trained(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path
) -> None:
    patient = run(toy_store, toy_corpus, tmp_path / "patient", patience=30)
    seen = validations(patient)
    best = min(seen, key=lambda step: (seen[step], step))
    assert 1 < best < 25  # else the training shows nothing
    assert list(seen) == list(range(1, 31))
    assert (patient.summary["best_step"], patient.summary["validation"]) == (best, seen[best])

    stopped = run(toy_store, toy_corpus, tmp_path / "stopped", patience=3)
    seen = validations(stopped)
    best = min(seen, key=lambda step: (seen[step], step))
    assert max(seen) == best + 3 < 30
    assert all(seen[step] >= seen[best] for step in range(best + 1, best + 4))
    assert (stopped.summary["best_step"], stopped.summary["validation"]) == (best, seen[best])
    assert all(validations(patient)[step] == loss for step, loss in seen.items())  # the same training up to there


def test_a_killed_one_ends_as_an_undisturbed_one(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    whole = run(toy_store, toy_corpus, tmp_path / "whole", patience=3)
    last = int(max(validations(whole)))
    work = tmp_path / "killed"
    with pytest.raises(_KilledError):
        run(toy_store, toy_corpus, work, patience=3, kill_at=last)
    assert all((path / BEST_FOLDER).is_dir() for path in (work / "fused").glob("checkpoint-*"))
    resumed = run(toy_store, toy_corpus, work, patience=3)
    again = run(toy_store, toy_corpus, work, patience=3)  # every step is done; the last checkpoint may be before that
    for other in (resumed, again):
        assert other.summary == whole.summary
        assert other.curve == whole.curve
        wanted = whole.model.state_dict()
        assert {name for name, tensor in other.model.state_dict().items() if not tensor.equal(wanted[name])} == set()
    newest = sorted((work / "fused").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[-1]
    shutil.rmtree(newest)
    assert run(toy_store, toy_corpus, work, patience=3).curve == whole.curve


def test_patience_needs_validations() -> None:
    with pytest.raises(ValidationError, match=r"patience.*counts validations, and validate_every is 0"):
        TrainParams(patience=2)
    assert TrainParams(patience=2, validate_every=5).patience == 2
