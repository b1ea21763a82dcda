"""What the packaging room builds is what the registry takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mango.checkpoints import replace_folder
from mango.packaging import DataState, GitState, PackageParams, Parent, build_package, verify_package
from mango.tracking import TrackingSettings, open_package, promote, why

EVALUATION = Path(__file__).parents[1] / "evaluation" / "example.json"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with replace_folder(tmp_path / "fused") as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        (folder / "tokenizer.json").write_text("{}")
    build_package(
        tmp_path / "fused",
        tmp_path / "package",
        params=PackageParams(min_delta=0.25),
        evaluation=json.loads(EVALUATION.read_text(encoding="utf-8")),
        gates={"corpus": True, "blocks": True, "metrics": True},
        parameters={"seed": 0, "package": {"min_delta": 0.25}},
        parents=[Parent(name="base", source="models/tiny/base", revision=None, licence="apache-2.0", sha256="a" * 64)],
        data=DataState(corpus_sha256="c" * 64, files={"data/corpus/train.parquet": "d" * 64}),
        git=GitState(revision="e" * 40, dirty=False),
        reproduce="git checkout eeee && dvc repro package",
    )
    return tmp_path / "package"


def test_a_built_package_is_promoted_and_explained(settings: TrackingSettings, package: Path) -> None:
    manifest = verify_package(package)
    result = promote(None, package, gates=["corpus", "blocks", "metrics"], settings=settings)
    assert (result.name, result.promoted, result.min_delta) == (manifest.name, True, 0.25)
    assert (result.metric, result.value) == (manifest.metric.name, manifest.metric.value)
    answer = why(f"models:/{manifest.name}@champion", settings=settings)
    assert answer.package == "intact"
    assert answer.data == manifest.data.model_dump(mode="json")
    assert answer.gates == {"corpus": True, "blocks": True, "metrics": True}
    assert answer.reproduce == manifest.reproduce
    with open_package(answer.source, settings) as folder:
        assert verify_package(folder) == manifest
