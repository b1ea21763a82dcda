"""The page about merging has every registered method, with a picture that is current."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.method_pictures import FOLDER, PICTURES, changes, draw, merged
from mango.merging import MERGERS

PAGE = (Path(__file__).parents[2] / "docs" / "merging.md").read_text()
BUILT_IN = sorted(name for name in MERGERS.names() if MERGERS[name].combine.__module__.startswith("mango."))


def test_every_method_has_its_picture_and_no_other() -> None:
    assert sorted(PICTURES) == BUILT_IN
    assert sorted(path.stem for path in FOLDER.iterdir()) == BUILT_IN


@pytest.mark.parametrize("method", BUILT_IN)
def test_a_picture_is_current_and_on_the_page(method: str) -> None:
    path = FOLDER / f"{method}.svg"
    assert path.read_text("utf-8") == draw(method), "run `python benchmarks/method_pictures.py`"
    assert path.stat().st_size < 12_000
    ElementTree.fromstring(path.read_text("utf-8"))
    assert f"| `{method}` | ![{method}](img/methods/{method}.svg)<br>{PICTURES[method].caption} |" in PAGE


def test_every_method_has_a_row_with_its_parameters() -> None:
    rows = {}
    for line in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (?!!\[)(.*)$", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", line[0]):
            rows.setdefault(name, line[1])
    assert [name for name in BUILT_IN if name not in rows] == []
    for name in BUILT_IN:
        fields = MERGERS.entry(name).params.model_fields
        missing = [key for key in ((f.alias or n) for n, f in fields.items()) if f"`{key}`" not in rows[name]]
        assert missing == [] or "as `" in rows[name], (name, missing)


def test_pictures_show_different_things() -> None:
    """No two methods of the same number of models make the same of the tensor."""
    models = changes()
    found = {name: tuple(merged(name, picture, models).reshape(-1).tolist()) for name, picture in PICTURES.items()}
    assert len(set(found.values())) == len(found)
