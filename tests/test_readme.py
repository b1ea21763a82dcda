"""The README's snippets run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that reads like the repository, in which snippets may write."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(ROOT / "models" / "tiny")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snippet(word: str) -> str:
    found = [text for text in SNIPPETS if word in text]
    assert len(found) == 1
    return found[0]


def test_opening_a_package(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mango.blocks import extract
    from mango.checkpoints import ModelSource, copy_tokenizer
    from mango.fusion import AdapterParams, FusionParams, RouterParams, build_fused

    store = extract({n: ModelSource(source=f"models/tiny/{n}") for n in ("base", "code")}, "store", "reference")
    fusion = FusionParams.model_validate({"trunk": "base", "experts": ["code"]})
    build_fused(store, fusion, RouterParams(), AdapterParams(), seed=0).save_pretrained("models/package")
    copy_tokenizer(ROOT / "models" / "tiny" / "base", place / "models" / "package")
    exec(compile(snippet("generate("), "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("def main():")


def test_merging(place: Path) -> None:
    names: dict[str, object] = {}
    exec(compile(snippet("load_document("), "README.md", "exec"), names)
    assert (place / "out" / "soup" / "model.safetensors").is_file()


def test_extracting(place: Path) -> None:
    names: dict[str, torch.nn.Module] = {}
    exec(compile(snippet("load_block("), "README.md", "exec"), names)
    assert type(names["block"]).__name__ == "GPT2Block"
    assert (place / "out" / "blocks" / "manifest.json").is_file()
