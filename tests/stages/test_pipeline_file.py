"""dvc.yaml and the code say the same."""

from __future__ import annotations

import functools
import importlib
import operator
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.params import Params

ROOT = Path(__file__).parents[2]
PIPELINE: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, Any] = PIPELINE["stages"]


def paths(stage: dict[str, Any], kind: str) -> list[str]:
    """Return the paths that a stage lists under ``outs`` or ``metrics``."""
    return [next(iter(item)) if isinstance(item, dict) else item for item in stage.get(kind, [])]


def outputs(stage: dict[str, Any]) -> list[str]:
    return paths(stage, "outs") + paths(stage, "metrics")


def test_the_five_stages_in_their_order() -> None:
    assert list(STAGES) == ["extract-blocks", "merge", "train-adapters-and-routers", "evaluate", "package"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_the_module_of_its_name(name: str) -> None:
    module = importlib.import_module(f"stages.{name.replace('-', '_')}")
    assert STAGES[name]["cmd"] == f"python -m {module.__name__}"
    assert name == module.NAME
    assert Path(module.__file__).read_text().count("\n") <= 150


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_itself_and_on_what_is_there_or_made_before(name: str) -> None:
    before = list(STAGES)[: list(STAGES).index(name)]
    made = {path for other in before for path in outputs(STAGES[other])}
    deps = STAGES[name]["deps"]
    assert deps[0] == f"stages/{name.replace('-', '_')}.py"
    assert [dep for dep in deps if dep not in made and not (ROOT / dep).exists()] == []
    assert deps[1:] == sorted(deps[1:])


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_names_parameters_of_the_schema_and_logs_their_sections(name: str) -> None:
    keys = [re.sub(r"\.\$\{.*\}", "", key) for key in STAGES[name]["params"]]
    assert {key.split(".")[0] for key in keys} == set(
        importlib.import_module(f"stages.{name.replace('-', '_')}").SECTIONS
    )
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    for key in keys:
        assert functools.reduce(operator.getitem, key.split("."), values) is not None, "DVC needs it in params.yaml"
        section, *rest = key.split(".")
        model = Params.model_fields[section].annotation
        assert not rest or rest[0] in model.model_fields


@pytest.mark.parametrize("name", STAGES)
def test_every_output_persists_and_git_ignores_it(name: str) -> None:
    items = [item for kind in ("outs", "metrics") for item in STAGES[name][kind]]
    assert all(isinstance(item, dict) and next(iter(item.values())) == {"persist": True} for item in items)
    ignored = subprocess.run(
        ["git", "check-ignore", *outputs(STAGES[name])], capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    assert sorted(ignored) == sorted(outputs(STAGES[name]))
    assert f"reports/{name}.json" in outputs(STAGES[name])


def test_a_choice_depends_on_the_selected_namespace_alone() -> None:
    train = STAGES["train-adapters-and-routers"]["params"]
    assert "router.type" in train
    assert "router.${router.type}" in train
    assert "router" not in train
