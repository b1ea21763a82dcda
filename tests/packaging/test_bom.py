"""The bill of materials: valid CycloneDX, complete, and the same each time."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from mango.errors import PackagingError
from mango.packaging import DataSource, DataState, build_package, verify_package
from mango.packaging.bom import RUNTIME
from mango.packaging.manifest import BOM_FILE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(fused: Path, facts: dict[str, Any]) -> Path:
    sources = (
        DataSource(name="novels", licence="public domain", documents=3, sha256="1" * 64),
        DataSource(name="manuals", licence="CC-BY-SA-3.0 AND MIT", documents=2, sha256="2" * 64),
        DataSource(name="unknown", licence=None, documents=1, sha256="3" * 64),
    )
    facts["data"] = DataState(corpus_sha256="c" * 64, files=facts["data"].files, sources=sources)
    return build_package(fused, fused.parent / "package", **facts)


@pytest.fixture
def bill(package: Path) -> dict[str, Any]:
    return json.loads((package / BOM_FILE).read_text(encoding="utf-8"))


def components(bill: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in bill["components"] if part["type"] == kind}


def test_it_is_valid_by_the_schema_of_cyclonedx(package: Path) -> None:
    text = (package / BOM_FILE).read_text(encoding="utf-8")
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"machine-learning-model"', '"model"')) is not None


def test_every_parent_stands_there_with_source_revision_licence_and_hash(bill: dict[str, Any]) -> None:
    models = components(bill, "machine-learning-model")
    assert set(models) == {"base", "code"}
    code = models["code"]
    assert (code["version"], code["hashes"]) == ("c0ffee", [{"alg": "SHA-256", "content": "b" * 64}])
    assert code["licenses"] == [{"license": {"id": "MIT"}}]
    assert {"name": "mango:source", "value": "someone/code"} in code["properties"]
    assert models["base"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert "version" not in models["base"]


def test_every_data_set_stands_there_with_licence_and_hash(bill: dict[str, Any]) -> None:
    data = components(bill, "data")
    assert set(data) == {"data/corpus/train.parquet", "novels", "manuals", "unknown"}
    assert data["novels"]["hashes"] == [{"alg": "SHA-256", "content": "1" * 64}]
    assert data["novels"]["licenses"] == [{"license": {"name": "public domain"}}]
    assert data["manuals"]["licenses"] == [{"expression": "CC-BY-SA-3.0 AND MIT"}]
    assert "licenses" not in data["unknown"]
    assert data["data/corpus/train.parquet"]["hashes"][0]["content"] == "d" * 64


def test_every_library_that_runs_it_stands_there_with_its_version(bill: dict[str, Any]) -> None:
    libraries = components(bill, "library")
    for name in ("torch", "transformers", "safetensors", "tokenizers", "numpy"):
        version = importlib.metadata.version(name)
        assert libraries[name]["version"] == version
        assert libraries[name]["purl"].startswith(f"pkg:pypi/{name}@{version.partition('+')[0]}")
    assert libraries["mango-compose"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert set(components(bill, "platform")) == {"cpython"}
    (dependency,) = (part for part in bill["dependencies"] if part["ref"] == "package")
    assert set(dependency["dependsOn"]) == {part["bom-ref"] for part in bill["components"]}


def test_the_libraries_are_those_that_mango_requires() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(RUNTIME) == sorted(re.match(r"[\w.-]+", line)[0] for line in required)


def test_it_lists_the_model_s_files_and_the_manifest_lists_it(package: Path, bill: dict[str, Any]) -> None:
    manifest = verify_package(package)
    files = {part["name"]: part["hashes"][0]["content"] for part in bill["metadata"]["component"]["components"]}
    assert files == {name: file.sha256 for name, file in manifest.files.items() if name not in {BOM_FILE, "README.md"}}
    assert bill["metadata"]["component"]["type"] == "machine-learning-model"


def test_it_is_the_same_each_time_and_another_for_another_package(
    fused: Path, package: Path, facts: dict[str, Any]
) -> None:
    again = build_package(fused, fused.parent / "again", **facts)
    assert (again / BOM_FILE).read_bytes() == (package / BOM_FILE).read_bytes()
    facts["parents"] = facts["parents"][:1]
    other = json.loads((build_package(fused, fused.parent / "other", **facts) / BOM_FILE).read_text())
    assert other["serialNumber"] != json.loads((package / BOM_FILE).read_text())["serialNumber"]
    assert "timestamp" not in other["metadata"]


def test_a_library_that_is_missing_is_said(fused: Path, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mango.packaging.bom.RUNTIME", (*RUNTIME, "no-such-library"))
    with pytest.raises(PackagingError, match="no-such-library: is not installed, but mango needs it"):
        build_package(fused, fused.parent / "package", **facts)
    assert not (fused.parent / "package").exists()
