"""The guide shows the code that is built, installed and run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.test_other_package import ADAPTERS, ARCHITECTURES, MERGING, PYPROJECT, ROUTERS

GUIDE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


@pytest.mark.parametrize(
    "code",
    [PYPROJECT, ROUTERS, ADAPTERS, MERGING, ARCHITECTURES],
    ids=["project", "router", "adapter", "merge", "type"],
)
def test_the_guide_shows_it(code: str) -> None:
    assert code.strip() in GUIDE
