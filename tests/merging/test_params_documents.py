"""The merge section of params.yaml: text for the methods that read it, and folders of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mango.errors import ConfigError
from mango.merging import MERGERS, MergeParams, load_document

EVERY = Path(__file__).parents[2] / "examples" / "merge" / "every"
KARCHER = "merge_method: karcher\nmodels: [{model: a}, {model: b}]\n"


def params(**changes: Any) -> MergeParams:
    return MergeParams.model_validate({"models": ["a", "b"], "calibration": {"data": "text.txt"}, **changes})


def test_only_methods_that_read_text_get_it() -> None:
    assert params(method="task_arithmetic").to_document().calibration is None
    for method in ("fisher", "regmean"):
        document = params(method=method).to_document()
        assert document.calibration is not None
        assert document.calibration.data == Path("text.txt")
        assert document.learn is None
    learning = params(method="adamerging_pp", learn={"steps": 7}, adamerging_pp={"density": 0.5}).to_document()
    assert learning.learn is not None
    assert learning.learn.steps == 7
    assert learning.parameters == {"coefficient": 0.3, "density": 0.5}


def test_text_of_models_that_are_not_merged_is_left_out() -> None:
    text = {"data": "text.txt", "models": {"a": {"data": "a.txt"}, "c": {"data": "c.txt"}}}
    document = params(method="fisher", calibration=text).to_document()
    assert document.calibration is not None
    assert set(document.calibration.models) == {"a"}


def test_a_method_without_its_text_is_refused() -> None:
    with pytest.raises(ValidationError, match="method: fisher measures the models on text"):
        params(method="fisher", calibration=None)


def test_a_folder_stands_for_its_documents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(KARCHER)
    (tmp_path / "notes.txt").write_text("no document")
    assert list(params(documents=[str(tmp_path)]).all_documents()) == ["main", "one", "two"]
    (tmp_path / "main.yaml").write_text(KARCHER)
    with pytest.raises(ConfigError, match=r"main\.yaml: a second merge called 'main': rename the file"):
        params(documents=[str(tmp_path)]).all_documents()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"the folder .*empty holds no \.yaml file"):
        params(documents=[str(tmp_path / "empty")]).all_documents()


def test_there_is_a_document_for_every_built_in_method() -> None:
    documents = {path.stem: load_document(path) for path in sorted(EVERY.glob("*.yaml"))}
    assert all(document.name == stem for stem, document in documents.items())
    built_in = {name for name in MERGERS.names() if MERGERS[name].combine.__module__.startswith("mango.")}
    assert {document.merge_method for document in documents.values()} == built_in
    assert documents["search"].search is not None
