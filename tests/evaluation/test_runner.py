"""A whole evaluation of tiny models on a tiny corpus, checked against losses taken one by one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mango.blocks import load_source
from mango.checkpoints import replace_folder
from mango.corpus import CorpusParams, corpus_sha256, token_losses
from mango.errors import EvaluationError
from mango.evaluation import (
    EvaluateParams,
    LmEvalParams,
    Subjects,
    bits_per_byte,
    evaluate_all,
    nats_per_token,
    validate,
)
from mango.evaluation.runner import test_texts as draw_texts
from mango.training import train_all
from tests.training.toys import DOMAINS, LENGTH, make_job, make_store, make_tokenizer, save_corpus, save_sources

PARAMS = EvaluateParams(sequences=3, switching_sequences=4, batch_size=2, prompt=4, speed_repeats=1, budget=(0.9, 0.5))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runner")


@pytest.fixture(scope="module")
def subjects(root: Path) -> Subjects:
    folders = save_sources(root)
    store = make_store(folders, root / "blocks")
    save_corpus(root / "corpus")
    router = {"type": "topk", "topk": {"window": 2, "catch_up": 2}}
    job = make_job(root / "corpus", {"steps": 2}, experts=("sister", "stranger"), router=router)
    train_all(job, store, out=root / "fused", controls=root / "controls", work=root / "work")
    shutil.copytree(folders["brother"], root / "merged" / "soup")  # stands for a merged checkpoint
    (root / "merged" / "notes").mkdir()
    return Subjects(root / "fused", store, root / "merged", root / "controls")


@pytest.fixture(scope="module")
def corpus(root: Path) -> CorpusParams:
    return CorpusParams(path=root / "corpus", sequence_length=LENGTH, segment_length=8)


TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""
TOLD = ("12 345 67", "ab cde fg h ij")
"""The text of the task."""


@pytest.fixture(scope="module")
def evaluation(subjects: Subjects, corpus: CorpusParams, root: Path) -> dict[str, Any]:
    data = root / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TOLD))
    (root / "own.yaml").write_text(TASK.replace("DATA", str(data)))
    with_task = PARAMS.model_copy(update={"lm_eval": LmEvalParams(tasks=(str(root / "own.yaml"),))})
    return evaluate_all(
        subjects, corpus, with_task, seed=3, parameters={"seed": 3},
        provenance={"git_revision": None, "mango_version": "0"},
    )  # fmt: skip


def test_the_document_is_valid_and_names_every_system(evaluation: dict[str, Any], corpus: CorpusParams) -> None:
    validate(evaluation)
    assert [system["name"] for system in evaluation["systems"]] == [
        "trunk", "best_single", "expert_sister", "expert_stranger", "merge_soup", "continued_trunk", "self_stitch",
        "whole_model_by_prompt", "ensemble_uniform", "ensemble_posterior", "ensemble_window", "oracle_sequence",
        "oracle_segment", "fused_soft", "fused_hard", "fused_no_catch_up",
        "fused_mass_0.5", "fused_mass_0.9",
    ]  # fmt: skip
    assert evaluation["domains"] == list(DOMAINS)
    assert evaluation["corpus"]["sha256"] == corpus_sha256(corpus.path)
    # Every byte of the text is a token; only ends of documents stand for none.
    for size in evaluation["corpus"]["domains"].values():
        assert size["test_tokens"] == 3 * LENGTH
        assert 0.9 * 3 * LENGTH < size["test_bytes"] <= 3 * LENGTH
    assert [point["step"] for point in evaluation["training"]["curve"]] == [1, 2]
    assert evaluation["parameters"] == {"seed": 3}


def test_tasks_are_scored_on_every_single_model(evaluation: dict[str, Any], subjects: Subjects, root: Path) -> None:
    found = evaluation["lm_eval"]
    assert found["tasks"] == [{"task": "own", "samples": 2, "num_fewshot": 0, "group": False}]
    scores = {score["system"]: score["value"] for score in found["scores"]}
    single = ["trunk", "expert_sister", "expert_stranger"]
    assert set(scores) == {
        *single, "fused_soft", "fused_hard", "best_single", "merge_soup", "self_stitch", "continued_trunk",
    }  # fmt: skip
    means = {system["name"]: system["pure_mean"] for system in evaluation["systems"]}
    assert scores["best_single"] == scores[min(single, key=lambda name: means[name])]
    hard = AutoModelForCausalLM.from_pretrained(root / "fused")
    hard.set_routing("hard")
    models = {"trunk": load_source(subjects.store, "base"), "expert_stranger": load_source(subjects.store, "stranger"),
              "fused_hard": hard}  # fmt: skip
    for name, model in models.items():
        rows = [torch.tensor([[0, *make_tokenizer().encode(text)]]) for text in TOLD]
        nats = sum(float(token_losses(model, row, batch_size=1).sum()) for row in rows)
        assert scores[name] == pytest.approx(nats / math.log(2) / sum(map(len, TOLD)), rel=1e-5), name


def test_figures_are_those_of_each_model(
    evaluation: dict[str, Any], subjects: Subjects, corpus: CorpusParams, root: Path
) -> None:
    texts = draw_texts(corpus, PARAMS, make_tokenizer(), 3)
    systems = {system["name"]: system for system in evaluation["systems"]}
    fused = AutoModelForCausalLM.from_pretrained(root / "fused")
    models: dict[str, Any] = {
        "trunk": load_source(subjects.store, "base"),
        "expert_stranger": load_source(subjects.store, "stranger"),
        "merge_soup": AutoModelForCausalLM.from_pretrained(root / "merged" / "soup"),
        "continued_trunk": AutoModelForCausalLM.from_pretrained(root / "controls" / "continued_trunk"),
        "self_stitch": AutoModelForCausalLM.from_pretrained(root / "controls" / "self_stitch"),
        "fused_soft": fused,
        "fused_hard": fused,
    }
    for name, model in models.items():
        if name in ("self_stitch", "fused_soft", "fused_hard"):
            model.set_routing("hard" if name == "fused_hard" else "soft")
        losses = {text: token_losses(model, s.input_ids, batch_size=4) for text, s in texts.items()}
        found = systems[name]
        for domain in DOMAINS:
            wanted = bits_per_byte(losses[domain], texts[domain].num_bytes)
            assert found["pure"][domain] == pytest.approx(wanted.value, rel=1e-5)
        assert found["pure_mean"] == pytest.approx(sum(found["pure"].values()) / 2)
        assert found["switching"] == pytest.approx(nats_per_token(losses["switching"]).value, rel=1e-5)
        assert found["tokens_per_s"] > 0
        assert found["pure_se"] > 0 < found["switching_se"]


def test_what_follows_from_single_models_is_in_order(evaluation: dict[str, Any]) -> None:
    systems = {system["name"]: system for system in evaluation["systems"]}
    singles = [systems[name] for name in ("trunk", "expert_sister", "expert_stranger")]
    best = systems["best_single"]
    assert best["pure_mean"] == min(system["pure_mean"] for system in singles)
    for text in ("pure_mean", "switching"):
        assert systems["oracle_segment"][text] <= systems["oracle_sequence"][text] + 1e-9
        assert systems["oracle_sequence"][text] <= min(system[text] for system in singles) + 1e-9
    posterior = systems["ensemble_posterior"]["switching"] * (LENGTH - 1)
    assert posterior <= systems["oracle_sequence"]["switching"] * (LENGTH - 1) + math.log(3) + 1e-6


def test_costs_count_tokens(evaluation: dict[str, Any]) -> None:
    systems = {system["name"]: system for system in evaluation["systems"]}
    for name in ("trunk", "best_single", "expert_sister", "merge_soup", "continued_trunk", "oracle_segment"):
        assert systems[name]["cost"] == systems[name]["cost_switching"] == 1.0
    for name in ("fused_soft", "self_stitch", "ensemble_uniform", "ensemble_posterior", "ensemble_window"):
        assert systems[name]["cost"] == systems[name]["cost_switching"] == pytest.approx(3.0)
    assert systems["whole_model_by_prompt"]["cost"] == pytest.approx((3 * 4 + LENGTH - 4) / LENGTH)
    hard = systems["fused_hard"]
    assert 1.0 <= hard["cost"] < 3.0
    assert 1.0 <= hard["cost_switching"] < 3.0
    processed = evaluation["routing"]["processed"]
    assert sum(sum(row.values()) for row in processed.values()) / (2 * 3 * LENGTH) == pytest.approx(
        hard["cost"], abs=0.02
    )


def test_work_is_counted_and_not_assumed(evaluation: dict[str, Any], subjects: Subjects) -> None:
    systems = {system["name"]: system for system in evaluation["systems"]}
    trunk = load_source(subjects.store, "base")
    shapes = [m for m in trunk.modules() if isinstance(m, torch.nn.Linear)]
    products = sum(2 * m.in_features * m.out_features for m in shapes)
    config = trunk.config
    attention = config.num_hidden_layers * 4 * LENGTH * config.hidden_size
    assert systems["trunk"]["flops"] == products + attention
    assert systems["trunk"]["flops_switching"] == pytest.approx(systems["trunk"]["flops"])
    whole = sum(systems[name]["flops"] for name in ("trunk", "expert_sister", "expert_stranger"))
    assert systems["ensemble_uniform"]["flops"] == pytest.approx(whole)
    assert systems["fused_hard"]["flops"] < systems["fused_soft"]["flops"]
    assert systems["fused_soft"]["flops"] == pytest.approx(whole, rel=0.1)  # routers and adapters are small
    for name in ("whole_model_by_prompt", "oracle_sequence"):
        assert systems[name]["flops"] is systems[name]["flops_switching"] is None
    head = evaluation["headline"]
    assert head["flops_hard"] == pytest.approx(systems["fused_hard"]["flops"] / systems["trunk"]["flops"])


def test_what_is_kept_is_that_of_the_expert_on_its_domain(evaluation: dict[str, Any]) -> None:
    systems = {system["name"]: system["pure"] for system in evaluation["systems"]}
    assert [row["expert"] for row in evaluation["retention"]] == ["sister", "stranger"]
    for row in evaluation["retention"]:
        own = systems[f"expert_{row['expert']}"]
        ahead = {domain: own[domain] / systems["trunk"][domain] for domain in DOMAINS}
        assert ahead[row["domain"]] == min(ahead.values())
        assert row["kept_hard"] == pytest.approx(own[row["domain"]] / systems["fused_hard"][row["domain"]])
        assert 0 <= row["given"] <= 1
    assert evaluation["headline"]["least_kept_soft"] == min(row["kept_soft"] for row in evaluation["retention"])


def test_calibration_is_that_of_the_models_probabilities(
    evaluation: dict[str, Any], subjects: Subjects, corpus: CorpusParams
) -> None:
    texts = draw_texts(corpus, PARAMS, make_tokenizer(), 3)
    ids = torch.cat([texts[domain].input_ids for domain in DOMAINS])
    fused = AutoModelForCausalLM.from_pretrained(subjects.fused)
    fused.set_routing("hard")
    with torch.no_grad():
        best = fused(ids).logits[:, :-1].softmax(-1).max(-1)
    right = (best.indices == ids[:, 1:]).float()
    found = evaluation["calibration"]["fused_hard"]
    assert sum(one["share"] * one["confidence"] for one in found["bins"]) == pytest.approx(float(best.values.mean()))
    assert sum(one["share"] * one["accuracy"] for one in found["bins"]) == pytest.approx(float(right.mean()))
    asked = {"trunk", "expert_sister", "expert_stranger", "merge_soup", "continued_trunk", "self_stitch"}
    assert set(evaluation["calibration"]) == {
        *asked, "fused_soft", "fused_hard", "fused_no_catch_up", "fused_mass_0.5", "fused_mass_0.9",
    }  # fmt: skip


def test_routing_is_that_of_the_soft_model(evaluation: dict[str, Any]) -> None:
    routing = evaluation["routing"]
    assert [row["position"] for row in routing["positions"]] == [0, 1]
    assert routing["positions"][0]["experts"] == ["anchor", "sister", "stranger"]
    assert routing["positions"][1]["experts"] == ["anchor", "sister"]
    for row in routing["positions"]:
        for found in row["by_domain"].values():
            assert sum(found["utilisation"]) == pytest.approx(1.0, abs=1e-4)
            assert 0 <= found["entropy_nats"] <= math.log(len(row["experts"])) + 1e-6
    assert [len(sample["tokens"]) for sample in routing["sample"]] == [LENGTH, LENGTH]


def test_the_same_seed_gives_the_same_figures(
    evaluation: dict[str, Any], subjects: Subjects, corpus: CorpusParams
) -> None:
    bare = Subjects(subjects.fused, subjects.store, Path("nowhere"), Path("nowhere"))
    again = evaluate_all(bare, corpus, PARAMS, seed=3)
    figures = {
        (s["name"], key): s[key] for s in evaluation["systems"] for key in ("pure", "switching", "cost_switching")
    }
    found = {(s["name"], key): s[key] for s in again["systems"] for key in ("pure", "switching", "cost_switching")}
    assert found == {key: value for key, value in figures.items() if key in found}
    assert {name for name, _ in figures} - {name for name, _ in found} == {
        "merge_soup", "self_stitch", "continued_trunk"
    }  # fmt: skip
    assert again["headline"]["beats_every_static_merge"] is None
    assert again["headline"]["beats_self_stitch"] is None


def test_too_little_text_and_a_lost_curve_are_named(subjects: Subjects, corpus: CorpusParams, tmp_path: Path) -> None:
    few = save_corpus(tmp_path / "few", documents=1)
    long = CorpusParams(path=few, sequence_length=150, segment_length=8)
    with pytest.raises(EvaluationError, match=r"fewer than two sequences of 150 tokens for digits, letters"):
        draw_texts(long, PARAMS, make_tokenizer(), 0)
    fused = tmp_path / "fused"
    with replace_folder(fused) as new:  # whole, but never trained
        shutil.copytree(subjects.fused, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns("training.json"))
    bare = Subjects(fused, subjects.store, Path("nowhere"), Path("nowhere"))
    with pytest.raises(EvaluationError, match=r"training\.json: no training curve .*run train-adapters-and-routers"):
        evaluate_all(bare, corpus, PARAMS, seed=0)


def test_a_model_without_finite_probabilities_is_refused(
    subjects: Subjects, corpus: CorpusParams, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(subjects.merged / "soup")
    with torch.no_grad():
        model.get_submodule("model.norm").weight.fill_(torch.inf)
    model.save_pretrained(tmp_path / "merged" / "broken")
    bare = Subjects(subjects.fused, subjects.store, tmp_path / "merged", Path("nowhere"))
    with pytest.raises(EvaluationError, match=r"^Merge broken: .* gave no finite probabilities"):
        evaluate_all(bare, corpus, PARAMS, seed=0)
