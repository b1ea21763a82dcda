"""The tiny models are what their cards and provenance say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from mango.blocks import declared_licence
from mango.checkpoints import Checkpoint, sha256_file

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny"
NAMES = ("base", "code", "manuals", "maths", "maths-gpt2", "novels")


def cards() -> Any:
    spec = importlib.util.spec_from_file_location("cards", ROOT / "models" / "cards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_cards_say_what_provenance_says(name: str) -> None:
    folder = TINY / name
    config, provenance = (json.loads((folder / file).read_text()) for file in ("config.json", "provenance.json"))
    assert (folder / "README.md").read_text() == cards().card(name, config, provenance), "run python models/cards.py"
    assert declared_licence(folder) == "apache-2.0"
    for domain, score in provenance["test_bits_per_byte"].items():
        assert f" {score:.3f} |" in (folder / "README.md").read_text()
        assert domain in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_provenance_names_this_corpus_and_these_weights(name: str) -> None:
    provenance = json.loads((TINY / name / "provenance.json").read_text())
    for file, sha256 in provenance["corpus_sha256"].items():
        assert sha256_file(ROOT / "data" / "corpus" / file) == sha256
    checkpoint = Checkpoint.open(TINY / name)
    number = 0
    for tensor in checkpoint.names():
        info = checkpoint.info(tensor)
        assert info.dtype == "BF16"
        count = 1
        for size in info.shape:
            count *= size
        number += count
    assert number == provenance["parameters"]
    assert 2e6 <= number <= 4e6


def test_experts_are_best_on_their_own_domain() -> None:
    scores = {name: json.loads((TINY / name / "provenance.json").read_text()) for name in NAMES}
    for domain in ("code", "manuals", "maths", "novels"):
        by_model = {name: p["test_bits_per_byte"][domain] for name, p in scores.items()}
        assert min(by_model, key=lambda name: by_model[name]).startswith(domain)


def test_the_models_share_one_tokenizer_and_fit_the_size() -> None:
    assert len({sha256_file(TINY / name / "tokenizer.json") for name in NAMES}) == 1
    weights = sum((TINY / name / "model.safetensors").stat().st_size for name in NAMES)
    assert weights <= 24 * 2**20
