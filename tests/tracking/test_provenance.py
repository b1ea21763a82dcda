"""What `why` answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings, promote, why
from mango.tracking.store import open_store


@pytest.fixture
def registered(settings: TrackingSettings, make_package: Callable[..., Path]) -> TrackingSettings:
    """Give settings of a registry that holds two versions; the second is champion."""
    promote("tiny", make_package(3.0), settings=settings)
    second = make_package(
        2.0, "second", git={"revision": "f" * 40, "dirty": True}, reproduce="", later={"ignored": True}
    )
    promote("tiny", second, settings=settings)
    return settings


def test_the_whole_answer(registered: TrackingSettings) -> None:
    answer = why("models:/tiny/1", settings=registered)
    assert (answer.name, answer.version, answer.aliases, answer.package) == ("tiny", 1, ("previous",), "intact")
    assert answer.git_revision == "0123456789abcdef0123456789abcdef01234567"
    assert answer.data == {"corpus_sha256": "c" * 64, "files": {"test.parquet": "d" * 64}}
    assert answer.parameters == {"seed": 0, "router": {"type": "token"}, "hub": {"token": "***"}}
    assert answer.gates == {"corpus": True, "metrics": True}
    assert answer.metric == {"name": "fused_hard.switching", "value": 3.0, "mode": "min"}
    assert answer.headline == {"gap_closed_soft": 0.95}
    assert answer.parents[0]["licence"] == "Apache-2.0"
    assert answer.reproduce == "git checkout 0123456 && dvc exp run -S router.type=token -S hub.token=***"
    assert json.loads(json.dumps(answer.as_dict()))["version"] == 1


def test_the_answer_for_people(registered: TrackingSettings) -> None:
    text = why("models:/tiny/1", settings=registered).text()
    lines = text.splitlines()
    assert lines[0] == "models:/tiny/1  (previous)"
    assert "git         0123456789abcdef0123456789abcdef01234567" in lines
    assert f"  corpus_sha256: {'c' * 64}" in lines
    assert "  base: models/tiny/base  Apache-2.0  " + "e" * 64 in lines
    assert "  corpus: passed" in lines
    assert "    type: token" in lines
    assert lines[-2:] == ["reproduce", "  git checkout 0123456 && dvc exp run -S router.type=token -S hub.token=***"]


def test_a_dirty_tree_is_said(registered: TrackingSettings) -> None:
    answer = why("models:/tiny@champion", settings=registered)
    assert answer.version == 2
    assert "the work tree had changes that are not in this commit" in answer.text()
    assert answer.reproduce == f"git checkout {'f' * 40} && dvc repro"


def test_what_became_of_the_files_is_said(registered: TrackingSettings) -> None:
    folder = Path(why("tiny@champion", settings=registered).source.removeprefix("file://"))
    (folder / "mango.json").unlink()
    (folder / "mango.json").write_text(
        (folder.parent / why("tiny/1", settings=registered).package_sha256 / "mango.json").read_text()
    )
    assert why("tiny@champion", settings=registered).package == "changed"
    shutil.rmtree(folder)
    assert why("tiny@champion", settings=registered).package == "missing"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("tiny", "wanted models:/NAME@champion or models:/NAME/VERSION"),
        ("models:/tiny@", "is no model address"),
        ("models:/it's@x", "is no model address"),
        ("models:/tiny@best", "models:/tiny@best: no such alias; known: champion, previous"),
        ("models:/tiny/9", "models:/tiny/9: nothing is registered there"),
        ("models:/other@champion", "nothing is registered there; register with `mango promote other`"),
    ],
)
def test_addresses_that_name_nothing(registered: TrackingSettings, uri: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        why(uri, settings=registered)


def test_versions_that_others_registered_have_no_answer(registered: TrackingSettings) -> None:
    client = open_store(registered)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "file:///nowhere")
    with pytest.raises(RegistryError, match="was not registered by `mango promote`"):
        why("models:/foreign/1", settings=registered)
