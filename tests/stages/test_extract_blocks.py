"""The stage extract-blocks: what it writes, and that a failed gate leaves what was there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mango.blocks import BlockStore, ExtractParams
from mango.checkpoints import ModelSource
from mango.config import Settings
from mango.errors import GateError
from mango.gates import GateParams
from mango.tracking.runs import NullRun
from stages.extract_blocks import extract_blocks
from stages.params import Params
from stages.run import Stage
from tests.blocks.families import save_model


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(tmp_path)
    save_model(Path("models/llama"))
    save_model(Path("models/gpt2"), "gpt2", dtype=torch.bfloat16)
    params = Params.model_construct(
        models={name: ModelSource(source=f"models/{name}") for name in ("llama", "gpt2")},
        extract=ExtractParams(),
        gates=GateParams(),
    )
    return Stage("extract-blocks", params, Settings(), NullRun())


@pytest.mark.slow
def test_store_table_and_gate_agree(stage: Stage) -> None:
    metrics = extract_blocks(stage)
    table = pd.read_parquet("data/blocks.parquet")
    store = BlockStore.open("models/blocks")
    assert list(zip(table["model"], table["index"], strict=True)) == [
        (name, index) for name in ("gpt2", "llama") for index in range(3)
    ]
    assert table["sha256"].tolist() == [b.sha256 for name in store.models() for b in store.model(name).blocks]
    assert metrics["num_blocks"] == len(table)
    assert metrics["num_parameters"] == table["num_parameters"].sum()
    assert store.block("gpt2", 0).tensors[0].file == "../gpt2/model.safetensors"
    assert Path("reports/gates/blocks.html").is_file()

    # A weight that is no number stops the pipeline; the page names the block, and what was there stays.
    before = {path: path.read_bytes() for path in (Path("models/blocks/manifest.json"), Path("data/blocks.parquet"))}
    file = Path("models/llama/model.safetensors")
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = math.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(GateError, match=r"infinite or no number.*reports/gates/blocks\.html"):
        extract_blocks(stage)
    assert {path: path.read_bytes() for path in before} == before
    report = json.loads(Path("reports/gates/blocks.json").read_text())
    assert not report["passed"]
    assert "infinite or no number" in Path("reports/gates/blocks.html").read_text()
