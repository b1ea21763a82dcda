"""Guests that keep their own tokenizers in the whole pipeline: starts from what their bridge loses, to the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mango.blocks import BlockStore
from mango.evaluation import EvaluateParams, Subjects, evaluate_all, validate
from mango.fusion import MolForCausalLM, bridged_losses
from mango.training import Job, prepare, train_all, train_one
from mango.training.starts import entering_losses
from tests.training.test_other_tokenizers import foreign_tokenizer, rows
from tests.training.test_other_tokenizers import store as foreign_store
from tests.training.toys import TOKEN, make_job, make_tokenizer

store = foreign_store
GUEST: dict[str, Any] = {"model": "foreign", "edges": "bridge"}


@pytest.fixture(scope="module")
def job(toy_corpus: Path) -> Job:
    train = {
        "steps": 6,
        "batch_size": 4,
        "start": {"sequences": 3, "router_steps": 20, "window": 4, "mixture_steps": 20},
    }
    router = {**TOKEN, "token": {"window": 4, "posterior": True}}
    return make_job(toy_corpus, train, experts=(GUEST, "sister"), router=router)


def test_routers_start_from_what_the_bridge_loses(
    store: BlockStore, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(job, store, make_tokenizer(), "cpu")
    assert set(data.losses) == {"base", "sister"}  # the guest is not asked on tokens of its own
    seen: list[torch.Tensor] = []

    def spy(model: MolForCausalLM, losses: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        seen.append(losses["foreign"])
        return entering_losses(model, losses)

    monkeypatch.setattr("mango.training.run.entering_losses", spy)
    trained = train_one(job, store, data, what="fused", work=tmp_path, device="cpu")
    assert isinstance(trained.model, MolForCausalLM)
    wanted = bridged_losses(trained.model, data.calibration.input_ids, batch_size=3)["foreign"]
    torch.testing.assert_close(seen[0], wanted, rtol=1e-4, atol=1e-4)
    assert trained.starts.adapters == {}
    assert set(trained.starts.routers) == {"0", "1"}


@pytest.fixture(scope="module")
def trained(store: BlockStore, job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bridged")
    train_all(job, store, out=root / "fused", controls=root / "controls", work=root / "work")
    return root


def test_it_trains_and_opens_again_alone(trained: Path) -> None:
    record = json.loads((trained / "fused/training.json").read_text())
    assert math.isfinite(record["summary"]["validation"])
    model = MolForCausalLM.from_pretrained(trained / "fused")
    ids = rows("12 345 67", end=False)
    cached, plain = (
        model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=use, pad_token_id=0) for use in (True, False)
    )
    assert cached.equal(plain)
    theirs = foreign_tokenizer()("12 345 67").input_ids
    assert int(model(input_ids=ids).processed[model.spans.index((1, 0))]) > len(theirs)


def test_the_self_stitch_is_of_the_trunk(trained: Path) -> None:
    control = MolForCausalLM.from_pretrained(trained / "controls/self_stitch")
    assert [expert.bridged for expert in control.layout.experts] == [False] * 3
    assert {expert.source for expert in control.layout.experts} == {"base"}


def test_it_is_evaluated_beside_whole_models(store: BlockStore, job: Job, trained: Path) -> None:
    params = EvaluateParams(sequences=2, switching_sequences=2, batch_size=2, prompt=4, speed_repeats=1)
    subjects = Subjects(trained / "fused", store, trained / "merged", trained / "controls")
    found = evaluate_all(subjects, job.corpus, params, seed=1, provenance={"git_revision": None, "mango_version": "0"})
    validate(found)
    systems = {system["name"]: system for system in found["systems"]}
    assert {"fused_soft", "fused_hard", "expert_foreign", "whole_model_by_prompt"} <= set(systems)
    assert all(math.isfinite(system["pure_mean"]) for system in systems.values())


def test_supervision_is_by_what_the_bridge_loses(store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    train = {"steps": 2, "losses": {"supervision": 1.0}}
    router = {"type": "topk", "topk": {"window": 4, "training": "sparse"}}
    job = make_job(toy_corpus, train, experts=(GUEST,), router=router)
    job.check()
    data = prepare(job, store, make_tokenizer(), "cpu")
    trained = train_one(job, store, data, what="fused", work=tmp_path, device="cpu")
    assert all(math.isfinite(entry["loss"]) for entry in trained.curve if "loss" in entry)
