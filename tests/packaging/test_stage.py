"""The stage ``package``, with every part real but the fused model, for which a tiny one stands in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from mango.blocks import extract
from mango.checkpoints import copy_tokenizer, replace_folder, write_file
from mango.config import Settings
from mango.errors import GateError, PackagingError
from mango.fusion import FusionParams, build_fused
from mango.merging import MergeParams
from mango.packaging import git_state, open_package, verify_package
from mango.tracking.runs import NullRun
from stages.package import command, gate_passed, package, parent_names
from stages.params import Params, load_params
from stages.run import Stage
from tests.packaging.conftest import EVALUATION, save_tiny_checkpoint
from tests.packaging.test_package_parts import git

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "code")):
        save_tiny_checkpoint(Path("models/tiny", name), seed=seed)
    params = Params.model_validate(
        {
            "models": {name: {"source": f"models/tiny/{name}"} for name in ("base", "code")},
            "merge": {"models": ["base", "code"]},
            "fusion": {"trunk": "base", "experts": ["code"], "span": 1},
            "router": {"type": "topk"},
        }
    )
    store = extract(params.models, Path("models/blocks"), "reference")
    fused = build_fused(store, params.fusion, params.router, params.adapter, seed=0)
    with replace_folder("models/fused") as folder:
        fused.save_pretrained(folder)
        copy_tokenizer(Path("models/tiny/base"), folder)
    Path("data/corpus").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        columns = {
            "doc_id": [split],
            "domain": ["d"],
            "text": [split],
            "source": ["tests"],
            "licence": ["CC-BY-SA-4.0"],
        }
        pq.write_table(pa.table(columns), f"data/corpus/{split}.parquet")
    write_file("reports/evaluation.json", EVALUATION.read_bytes())
    for gate in ("blocks", "corpus"):
        write_file(f"reports/gates/{gate}.json", json.dumps({"gate": gate, "passed": True}))
    return Stage("package", params, Settings(), NullRun())


def test_the_stage_packs_what_the_pipeline_left(stage: Stage) -> None:
    metrics = package(stage)
    manifest = verify_package(Path("models/package"))
    assert metrics == {
        "metric": 3.08,
        "num_files": len(manifest.files),
        "num_bytes": sum(file.bytes for file in manifest.files.values()),
    }
    assert [(parent.name, parent.source) for parent in manifest.parents] == [
        ("base", "models/tiny/base"),
        ("code", "models/tiny/code"),
    ]
    assert set(manifest.gates) == {"blocks", "corpus", "metrics"}
    assert set(manifest.data.files) == {f"data/corpus/{split}.parquet" for split in ("train", "validation", "test")}
    assert manifest.parameters["package"] == stage.params.package.model_dump(mode="json")
    assert Path("reports/gates/metrics.html").is_file()
    card = Path("models/package/README.md").read_text(encoding="utf-8")
    assert "Trunk `base`; experts `code` (cut `auto`, edges `own`)" in card
    assert "- `temperature.start`: `1.0`" in card
    model, _ = open_package(Path("models/package"))
    ids = torch.arange(4, 24)[None]
    original = AutoModelForCausalLM.from_pretrained("models/fused")
    assert torch.equal(model(ids).logits, original(ids).logits)


@pytest.mark.slow
def test_a_fresh_process_needs_no_more_than_import_mango(stage: Stage) -> None:
    package(stage)
    program = """
import mango
from transformers import AutoModelForCausalLM, pipeline
model = AutoModelForCausalLM.from_pretrained("models/package")
generate = pipeline("text-generation", model=model, tokenizer="models/package")
print(type(model).__name__, generate("w4 w5 w6", max_new_tokens=4, do_sample=False)[0]["generated_text"])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("MolForCausalLM w4 w5 w6")


def test_a_failed_metrics_gate_leaves_the_old_package(stage: Stage) -> None:
    package(stage)
    before = Path("models/package/mango.json").read_bytes()
    broken = json.loads(EVALUATION.read_text(encoding="utf-8"))
    broken["systems"] = [system for system in broken["systems"] if system["name"] != "trunk"]
    write_file("reports/evaluation.json", json.dumps(broken))
    with pytest.raises(GateError, match=r"metrics gate failed .*trunk.*reports/gates/metrics\.html"):
        package(stage)
    assert Path("models/package/mango.json").read_bytes() == before
    verify_package(Path("models/package"))


def test_an_earlier_gate_that_failed_or_never_ran_stops_the_stage(stage: Stage) -> None:
    write_file("reports/gates/corpus.json", json.dumps({"gate": "corpus", "passed": False}))
    with pytest.raises(PackagingError, match="did not pass: corpus"):
        package(stage)
    shutil.rmtree("reports/gates")
    with pytest.raises(PackagingError, match=r"reports/gates/blocks\.json: is no report of a gate"):
        package(stage)
    assert not Path("models/package").exists()


def test_only_a_clear_yes_passes(tmp_path: Path) -> None:
    (tmp_path / "gate.json").write_text('{"passed": "true"}')
    assert gate_passed(tmp_path / "gate.json") is False


@pytest.mark.parametrize(
    ("trunk", "experts", "names"),
    [
        ("base", ["novels", {"model": "code", "cut": "whole"}], ["base", "code", "novels"]),
        ("merged", ["novels"], ["base", "code", "maths", "novels"]),
        ("base", ["merged"], ["base", "code", "maths"]),
    ],
)
def test_parents_are_trunk_experts_and_what_was_merged(trunk: str, experts: list[Any], names: list[str]) -> None:
    fusion = FusionParams.model_validate({"trunk": trunk, "experts": experts})
    assert parent_names(fusion, MergeParams(models=("code", "maths"))) == names


def test_the_command_names_what_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    committed = load_params()
    assert command(committed, git_state(tmp_path)) == "dvc repro package"
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "--quiet", "-m", "start")
    start = f"git checkout {git(tmp_path, 'rev-parse', 'HEAD')} && "
    assert command(committed, git_state(tmp_path)) == f"{start}dvc repro package"
    used = load_params(overrides=["seed=7", "corpus.segment_length=32"])
    assert command(used, git_state(tmp_path)) in {
        f"{start}dvc exp run -S {added}corpus.segment_length=32 -S seed=7 package" for added in ("", "++")
    }
    Path("params.yaml").write_text("sede: 0\n")
    git(tmp_path, "commit", "--quiet", "-am", "another schema")
    every = command(used, git_state(tmp_path))
    assert "-S ++seed=7" in every
    assert "-S ++models.base.source=models/tiny/base" in every
