"""Fused models for other tasks than causal language models, trained and evaluated as the pipeline does it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BertConfig,
    Dinov2Config,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    RobertaConfig,
    ViTConfig,
)

from mango.architectures.tasks import class_for
from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from mango.corpus import CorpusParams, examples, mistakes
from mango.errors import DataError, TrainingError
from mango.evaluation import EvaluateParams, Subjects, evaluate_all, parse
from mango.evaluation.report_html import render
from mango.fusion import AdapterParams, FusionParams, RouterParams
from mango.training import Job, TrainParams, train_all
from tests.training.toys import make_tokenizer, save_corpus

ROOT = Path(__file__).parents[2]
PROVENANCE = {"git_revision": None, "mango_version": "0"}
EVALUATE = EvaluateParams(sequences=4, speed_repeats=1)
TRAIN: dict[str, Any] = {
    "steps": 20, "batch_size": 4, "save_every": 0, "validation_sequences": 2, "losses": {"supervision": 0.1},
    "controls": {"continued_trunk": False}, "start": {"sequences": 4, "router_steps": 20},
}  # fmt: skip


@dataclass(frozen=True)
class Encoders:
    """Three encoders in a store, and text for them."""

    root: Path
    store: BlockStore
    tokenizer: PreTrainedTokenizerBase

    def job(self, task: str, router: dict[str, Any] | None = None, **train: Any) -> Job:
        prefix = {"seq2seq-lm": "bart_", "image-classification": "vit_"}.get(task, "")
        corpus = "digits" if task == "image-classification" else "corpus"
        experts = [f"{prefix}sister", {"model": f"{prefix}wide", "cut": "fine"}]
        return Job(
            seed=0,
            corpus=CorpusParams(path=self.root / corpus, sequence_length=20, segment_length=8),
            fusion=FusionParams.model_validate({"task": task, "trunk": f"{prefix}base", "experts": experts, "span": 1}),
            router=RouterParams.model_validate(router or {"type": "simple", "simple": {"prompt": 8}}),
            adapter=AdapterParams.model_validate({"type": "linear", "linear": {"rank": 4}}),
            train=TrainParams.model_validate({**TRAIN, **train}),
        )


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("encoders")
    save_corpus(root / "corpus", documents=6)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>", "cls_token": "<cls>", "sep_token": "<sep>"})
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    bart: dict[str, Any] = {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": len(tokenizer),
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
        "decoder_start_token_id": 0, "forced_eos_token_id": None,
    }  # fmt: skip
    pixels: dict[str, Any] = {
        **{key: value for key, value in sizes.items() if key.startswith(("hidden", "inter", "num"))},
        "image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10,
    }  # fmt: skip
    configs: dict[str, PretrainedConfig] = {
        "base": BertConfig(**sizes), "sister": BertConfig(**sizes),
        "wide": RobertaConfig(**{**sizes, "hidden_size": 48}),
        "bart_base": BartConfig(**bart), "bart_sister": BartConfig(**bart),
        "bart_wide": BartConfig(**{**bart, "d_model": 48}),
        "vit_base": ViTConfig(**pixels), "vit_sister": ViTConfig(**pixels),
        "vit_wide": Dinov2Config(**{**pixels, "hidden_size": 48, "mlp_ratio": 2}),
    }  # fmt: skip
    for seed, (name, config) in enumerate(configs.items()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            kinds = {"bart": "seq2seq-lm", "vit": "image-classification"}
            model_class: Any = class_for(config, kinds.get(name.partition("_")[0], "masked-lm"))
            model_class(config).save_pretrained(root / name)
        if name.startswith("vit"):
            (root / name / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
        else:
            tokenizer.save_pretrained(root / name)
    subprocess.run([sys.executable, "data/build_digits.py", "--out", str(root / "digits")], check=True, cwd=ROOT)
    store = extract({name: ModelSource(source=str(root / name)) for name in configs}, root / "store", "reference")
    return Encoders(root, store, tokenizer)


@pytest.mark.parametrize(
    ("task", "unit", "baselines"),
    [
        ("masked-lm", "bits_per_byte", {"ensemble_uniform"}),
        ("sentence-embedding", "share_of_texts_not_found", set()),
        ("seq2seq-lm", "bits_per_byte", {"ensemble_uniform"}),
        ("image-classification", "share_of_images_mistaken", {"ensemble_uniform"}),
    ],
)
def test_a_task_is_trained_and_evaluated(
    encoders: Encoders, tmp_path: Path, task: str, unit: str, baselines: set[str]
) -> None:
    stitched = task == "masked-lm"
    job = encoders.job(task, controls={"continued_trunk": False, "self_stitch": stitched})
    summary = train_all(
        job, encoders.store, out=tmp_path / "fused", controls=tmp_path / "controls", work=tmp_path / "work"
    )
    assert set(summary) == {"validation_loss"} | ({"self_stitch_validation_loss"} if stitched else set())
    trained = json.loads((tmp_path / "fused" / "training.json").read_text())
    assert [point["step"] for point in trained["curve"] if "loss" in point] == list(range(1, 21))
    assert all("supervision" in point for point in trained["curve"] if "loss" in point)
    assert set(trained["starts"]["routers"]) == {"0", "1"}
    _, sister, wide = dict.fromkeys(job.model_names())
    assert {f"{wide}/0/out", f"{wide}/1/in"} <= set(trained["starts"]["adapters"])
    subjects = Subjects(tmp_path / "fused", encoders.store, tmp_path / "merged", tmp_path / "controls")
    found = evaluate_all(subjects, job.corpus, EVALUATE, seed=0, provenance=PROVENANCE)
    assert unit.replace("_", " ") in render(parse(found))
    systems = {system["name"]: system for system in found["systems"]}
    extra = baselines | ({"self_stitch"} if stitched else set())
    plain = {"trunk", "best_single", f"expert_{sister}", f"expert_{wide}", "oracle_sequence"}
    assert set(systems) == plain | extra | {"fused_soft", "fused_hard"}
    assert found["units"]["pure"] == unit
    assert systems["fused_soft"]["cost"] == pytest.approx(3)
    assert systems["fused_hard"]["cost"] == pytest.approx(1)
    for domain in found["domains"]:
        best = min(systems[name]["pure"][domain] for name in ("trunk", f"expert_{sister}", f"expert_{wide}"))
        assert systems["oracle_sequence"]["pure"][domain] <= best


@pytest.mark.parametrize("task", ["seq2seq-lm"])
def test_topk_is_trained_sparsely_and_evaluated(encoders: Encoders, tmp_path: Path, task: str) -> None:
    router = {"type": "topk", "topk": {"k": 2, "window": 8, "training": "sparse"}}
    job = encoders.job(task, router, steps=4)
    train_all(job, encoders.store, out=tmp_path / "fused", controls=tmp_path / "controls", work=tmp_path / "work")
    subjects = Subjects(tmp_path / "fused", encoders.store, tmp_path / "merged", tmp_path / "controls")
    found = evaluate_all(subjects, job.corpus, EVALUATE, seed=0, provenance=PROVENANCE)
    systems = {system["name"]: system for system in found["systems"]}
    for name, cost in (("fused_soft", 3), ("fused_hard", 1), ("fused_as_routed", 2)):
        assert systems[name]["cost"] == pytest.approx(cost)
    # operations count all that runs, encoders and heads too: those of k experts are fewer than those of all
    flops = [systems[name]["flops"] for name in ("trunk", "fused_hard", "fused_as_routed", "fused_soft")]
    assert flops == sorted(set(flops))
    assert found["headline"]["flops_hard"] == pytest.approx(flops[1] / flops[0])


def test_every_token_is_asked_for_once(encoders: Encoders) -> None:
    corpus = encoders.job("masked-lm").corpus
    found = examples("masked-lm", corpus, "test", encoders.tokenizer, per_domain=3, seed=0, evaluated=True)
    asked = (found.inputs["labels"] != -100).view(-1, found.group, 20).sum(1)
    assert bool((asked[:, 1:-1] == 1).all())
    assert not bool(asked[:, [0, -1]].any())  # special tokens are not asked for
    assert bool((found.inputs["input_ids"][found.inputs["labels"] != -100] == encoders.tokenizer.mask_token_id).all())
    assert found.units.view(-1, found.group).sum(1).tolist() == [18.0] * 6  # one byte a token


def test_mistakes_are_bits_and_misses(encoders: Encoders) -> None:
    corpus = encoders.job("sentence-embedding").corpus
    own = examples("sentence-embedding", corpus, "test", encoders.tokenizer, per_domain=3, seed=0, evaluated=True)
    said = torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[0.0, 1.0], [0.1, 0.9]], [[0.6, 0.8], [0.5, 0.0]]])
    assert mistakes("sentence-embedding", said, own).tolist() == [0.0, 0.0, 1.0]
    assert mistakes("masked-lm", torch.log(torch.tensor([[0.5, 0.25, 1.0]])), own).tolist() == pytest.approx([3.0])
    assert own.inputs["input_ids"].shape[1:] == (2, 20)


def test_what_cannot_be_trained(encoders: Encoders, tmp_path: Path) -> None:
    job = encoders.job("masked-lm", controls={"continued_trunk": True})
    with pytest.raises(TrainingError, match=r"continued_trunk: true, but .* a model for masked-lm .* set it to false"):
        train_all(job, encoders.store, out=tmp_path / "fused", controls=tmp_path / "controls", work=tmp_path / "work")
    with pytest.raises(DataError, match="has no mask token"):
        examples("masked-lm", job.corpus, "test", make_tokenizer(), per_domain=1, seed=0)
    long = CorpusParams(path=job.corpus.path, sequence_length=5000, segment_length=8)
    with pytest.raises(DataError, match=r"has no document of \d+ tokens"):
        examples("masked-lm", long, "test", encoders.tokenizer, per_domain=1, seed=0)
