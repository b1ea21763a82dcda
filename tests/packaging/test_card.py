from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mango.blocks import declared_licence
from mango.packaging import PackageParams, build_package


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return dict(YAML(typ="safe").load(head))


@pytest.fixture
def card(fused: Path, facts: dict[str, Any]) -> str:
    package = build_package(fused, fused.parent / "package", **facts)
    return (package / "README.md").read_text(encoding="utf-8")


def test_front_matter_names_parents_and_licences(card: str) -> None:
    assert front_matter(card) == {
        "license": "other",
        "license_name": "MIT, apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": ["models/tiny/base", "someone/code"],
        "base_model_relation": "merge",
        "tags": ["mango", "model-fusion", "mixture-of-experts", "merge"],
    }


def test_the_card_says_what_it_is_and_how_to_use_it(card: str) -> None:
    assert "# mango-tiny\n\nThe fused model closes 94% of the gap" in card
    assert "AutoModelForCausalLM.from_pretrained(folder)" in card
    assert "| **Fused, soft** | 1.329 ± 0.008 | 1.079 | 1.879 | 1.629 | 0.729 | 3.030 ± 0.017 | 6.00 | 1367 |" in card
    assert "Type `topk`. The best experts for each token" in card
    assert "- `catch_up`: `16`" in card
    assert "| code | `someone/code` | `c0ffee` | MIT | `bbbbbbbbbbbb` |" in card
    assert "## Limitations" in card
    assert "Gates: blocks passed, corpus passed, metrics passed" in card
    assert "`fused_hard.switching` = 3.08 (min)" in card


def test_tables_have_as_many_cells_in_every_row(card: str) -> None:
    tables: list[list[str]] = [[]]
    for line in card.splitlines():
        if line.startswith("|"):
            tables[-1].append(line.replace("\\|", ""))
        elif tables[-1]:
            tables.append([])
    widths = [{row.count("|") for row in table} for table in tables if table]
    assert len(widths) == 2
    assert all(len(width) == 1 for width in widths)


def test_a_licence_that_all_parents_share_is_the_package_s(fused: Path, facts: dict[str, Any]) -> None:
    facts["parents"] = facts["parents"][:1]
    package = build_package(fused, fused.parent / "package", **facts)
    assert declared_licence(package) == "apache-2.0"
    facts["params"] = PackageParams(licence="CC-BY-4.0")
    package = build_package(fused, fused.parent / "package", **facts)
    assert declared_licence(package) == "cc-by-4.0"


def test_an_undeclared_licence_is_said(fused: Path, facts: dict[str, Any]) -> None:
    facts["parents"] = [parent.model_copy(update={"licence": None}) for parent in facts["parents"]]
    package = build_package(fused, fused.parent / "package", **facts)
    card = (package / "README.md").read_text(encoding="utf-8")
    assert front_matter(card)["license"] == "other"
    assert front_matter(card)["license_name"] == "not declared"
    assert "| not declared |" in card


def test_text_from_outside_cannot_break_the_card(fused: Path, facts: dict[str, Any]) -> None:
    hostile = "x | y\n# z `c` <script>alert(1)</script> [a](b)"
    facts["evaluation"]["systems"][0]["label"] = hostile
    facts["parents"] = [parent.model_copy(update={"source": hostile}) for parent in facts["parents"]]
    package = build_package(fused, fused.parent / "package", **facts)
    card = (package / "README.md").read_text(encoding="utf-8")
    assert front_matter(card)["base_model"] == [hostile]
    body = card.split("---\n", 2)[2]
    assert "\n# z" not in body
    assert "<script>" not in body.replace("`x \\| y # z 'c' <script>alert(1)</script> [a](b)`", "")
    test_tables_have_as_many_cells_in_every_row(card)


def test_parameters_without_a_router_are_said(fused: Path, facts: dict[str, Any]) -> None:
    facts["parameters"] = {"seed": 0}
    package = build_package(fused, fused.parent / "package", **facts)
    assert "name no router" in (package / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("masked-lm", "AutoModelForMaskedLM"),
        ("sentence-embedding", "pooler_output"),
        ("seq2seq-lm", "AutoModelForSeq2SeqLM"),
        ("image-text-to-text", "AutoModelForImageTextToText"),
    ],
)
def test_the_example_is_that_of_the_task(fused: Path, facts: dict[str, Any], task: str, words: str) -> None:
    facts["parameters"] = {"seed": 0, "fusion": {"task": task}}
    card = (build_package(fused, fused.parent / "package", **facts) / "README.md").read_text()
    assert words in card
    assert "AutoModelForCausalLM" not in card
    assert front_matter(card)["pipeline_tag"] != "text-generation"
