"""The house keeps its shape: top level, rooms, public names, small files."""

from __future__ import annotations

import ast
import importlib
import json
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC_API = Path(__file__).with_name("public_api.json")
LONGEST_FILE_LINES = 400

ROOMS = sorted(path.parent.name for path in (ROOT / "mango").glob("*/__init__.py"))
PACKAGES = sorted(".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mango").rglob("__init__.py"))
SOURCES = sorted(path for folder in ("mango", "stages") for path in (ROOT / folder).rglob("*.py"))


def test_the_top_level_is_there() -> None:
    wanted = """
        .ci/run .dvc/config .dvcignore CHANGELOG.md CONTRIBUTING.md LICENSE Makefile README.md constraints.txt data
        docs/adr dvc.yaml examples mango models params.yaml pyproject.toml stages tests
    """
    assert [name for name in wanted.split() if not (ROOT / name).exists()] == []


def test_every_room_has_its_place_in_the_import_rule() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = {name.strip(" ()") for layer in layers for name in layer.replace("|", ":").split(":")}
    modules = {path.stem for path in (ROOT / "mango").glob("*.py")} - {"__init__"}
    assert {*ROOMS, *modules} - placed == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_pinned_and_exist(package: str) -> None:
    pinned = json.loads(PUBLIC_API.read_text())
    module = importlib.import_module(package)
    assert sorted(module.__all__) == pinned[package], f"a change of the public surface: say so in {PUBLIC_API.name}"
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE_LINES, "there are two ideas in here"
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert len(docstring) > 10


def test_every_room_is_tested_beside_its_name() -> None:
    assert [room for room in ROOMS if not list((ROOT / "tests" / room).glob("test_*.py"))] == []
