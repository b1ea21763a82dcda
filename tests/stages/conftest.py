"""A small pipeline of its own: four random models of two blocks, and the shipped parameters cut down to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
NAMES = ("base", "code", "novels", "manuals", "maths", "maths_gpt2")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the random models once."""
    folder = tmp_path_factory.mktemp("models")
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        home = folder / name
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(home)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "models" / "tiny" / "base" / file, home)
    return folder


def start(name: str, workspace: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a stage in a workspace, with this code and without tracking."""
    command = [sys.executable, "-m", f"stages.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=workspace, env=environment() | variables)


def environment() -> dict[str, str]:
    """Return the environment of a stage."""
    return os.environ | {"PYTHONPATH": str(ROOT), "MANGO_TRACKING": "off"}


@pytest.fixture
def workspace(models: Path, tmp_path: Path) -> Path:
    """Make a folder with params.yaml, merge documents and the models, as a clone has them."""
    return fill(tmp_path, models)


def fill(folder: Path, models: Path) -> Path:
    """Fill a folder as a clone has it."""
    shutil.copytree(models, folder / "models" / "tiny")
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("maths-gpt2", "maths_gpt2"))
    return folder


@pytest.fixture(scope="session")
def prepared_once(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the two stages that prepare models, once."""
    folder = fill(tmp_path_factory.mktemp("prepared"), models)
    for name in ("extract_blocks", "merge"):
        done = start(name, folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def prepared(prepared_once: Path, tmp_path: Path) -> Path:
    """Give a workspace of one's own in which the blocks are extracted and the models merged."""
    return Path(shutil.copytree(prepared_once, tmp_path / "prepared"))
