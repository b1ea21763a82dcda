"""The card of a merged model: front matter that parses, every parent, the document as it is."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML

from mango.merging import merge
from mango.merging.card import merge_card


def card(**changes: object) -> str:
    given: dict[str, object] = {
        "name": "soup",
        "method": "ties",
        "models": {"base": "org/base", "a": "org/a"},
        "base": "base",
        "licences": {"base": "Apache-2.0", "a": "Apache-2.0"},
        "document": "merge_method: ties\n",
        "num_parameters": 12345,
        "dtype": "bfloat16",
        "tokenizer": "base",
    }
    return merge_card(**given | changes)  # type: ignore[arg-type]


def front(text: str) -> dict[str, object]:
    return dict(YAML(typ="safe").load(text.split("---\n")[1]))


def test_it_names_parents_method_and_document() -> None:
    text = card()
    assert front(text) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": ["org/base", "org/a"],
        "base_model_relation": "merge",
        "tags": ["mango", "merge"],
    }
    assert "| base | org/base | base | Apache-2.0 |" in text
    assert "| a | org/a | merged | Apache-2.0 |" in text
    assert "12,345 parameters in bfloat16" in text
    assert "```yaml\nmerge_method: ties\n```" in text


def test_licences_that_differ_are_said_and_names_cannot_break_the_page() -> None:
    text = card(licences={"base": "mit"}, models={"base": "x|y\n# z", "a": "org/a"}, document="a: '```'\n")
    assert front(text)["license"] == "other"
    assert front(text)["license_name"] == "mit, not declared"
    assert "| base | x\\|y \\# z | base | mit |" in text
    assert "````yaml\na: '```'\n````" in text


def test_a_merge_writes_its_card(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[2] / "models" / "tiny"
    models = [{"model": str(tiny / name), "parameters": {"weight": 1.0}} for name in ("code", "novels")]
    merge({"merge_method": "linear", "models": models, "name": "two"}, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "# two" in text
    assert str(tiny / "code") in text.replace("\\", "")
    assert "merge_method: linear" in text
