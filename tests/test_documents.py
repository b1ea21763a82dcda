"""Documents do not lie: links lead somewhere, commands exist, the reference is current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mango.cli.app import COMMANDS
from stages.reference import reference

ROOT = Path(__file__).parents[1]
SKIPPED = {".venv", ".git", ".dvc", "build", "mlartifacts", "package", "node_modules"}
DOCUMENTS = sorted(p for p in ROOT.rglob("*.md") if not SKIPPED & set(p.relative_to(ROOT).parts[:-1]))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def code(text: str) -> str:
    """Return what stands in code blocks and code spans."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    lines = code(path.read_text())
    assert set(re.findall(r"^(?:CI=true )?make ([a-z]+)", lines, re.MULTILINE)) - TARGETS == set()
    assert set(re.findall(r"^mango ([a-z][a-z-]*)", lines, re.MULTILINE)) - COMMANDS.keys() == set()
    modules = re.findall(r"^(?:\.venv/bin/)?python -m (stages\.\w+)", lines, re.MULTILINE)
    assert [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()] == []
    scripts = re.findall(r"^(?:\.venv/bin/)?python (\w[\w/.-]*\.py)", lines, re.MULTILINE)
    assert [name for name in scripts if not (ROOT / name).exists()] == []


def test_the_reference_is_current() -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == reference(), "run `make docs`"


def test_make_lists_every_target() -> None:
    described = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert described == TARGETS
    assert {"demo", "test", "lint", "types", "docs", "lock", "ui"} <= TARGETS
