"""Tiny random models, extracted once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from tests.blocks.families import save_model
from tests.fusion.models import SOURCES, config_named


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a llama trunk with siblings and strangers."""
    root = tmp_path_factory.mktemp("sources")
    folders: dict[str, Path] = {}
    for seed, name in enumerate(SOURCES):
        family, config = config_named(name)
        folders[name] = save_model(root / name, family, seed=seed, config=config)
    return folders


@pytest.fixture(scope="session")
def store(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    """A block store of all of them."""
    models = {name: ModelSource(source=str(folder)) for name, folder in sources.items()}
    return extract(models, tmp_path_factory.mktemp("blocks") / "store", "reference")
