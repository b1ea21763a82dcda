"""Toy models and text, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mango.blocks import BlockStore
from tests.training.toys import make_store, save_corpus, save_sources


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the corpus."""
    return save_corpus(tmp_path_factory.mktemp("toys") / "corpus")


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    """A block store of every source model."""
    root = tmp_path_factory.mktemp("toys")
    return make_store(save_sources(root), root / "blocks")
