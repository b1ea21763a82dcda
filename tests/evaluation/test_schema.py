from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import mango.evaluation.schema as schema
from mango.errors import EvaluationError
from tests.evaluation.make_example import example

COMMITTED = Path(schema.__file__).with_name("evaluation.schema.json")


@pytest.fixture
def evaluation() -> dict[str, Any]:
    return example()


def test_the_committed_schema_is_the_generated_one() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == schema.json_schema_text()


def test_the_committed_example_is_the_generated_one() -> None:
    path = Path(__file__).with_name("example.json")
    assert json.loads(path.read_text(encoding="utf-8")) == example()


def test_the_example_is_valid_here_and_for_any_validator(evaluation: dict[str, Any]) -> None:
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(committed)
    jsonschema.validate(evaluation, committed)
    schema.validate(evaluation)
    assert schema.parse(evaluation).systems[0].name == "fused_soft"


def test_every_object_of_known_keys_refuses_others() -> None:
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    objects = [committed, *committed["$defs"].values()]
    with_properties = [part for part in objects if "properties" in part]
    assert len(with_properties) > 10
    assert all(part["additionalProperties"] is False for part in with_properties)


def change(evaluation: dict[str, Any], path: list[Any], value: object) -> dict[str, Any]:
    changed: Any = copy.deepcopy(evaluation)
    *parents, last = path
    place = changed
    for key in parents:
        place = place[key]
    place[last] = value
    return dict(changed)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["systems", 3, "pure", "code"], "1.2", r"systems\[3\]\.pure\.code: found '1\.2'"),
        (["systems", 3, "pure", "code"], float("nan"), r"systems\[3\]\.pure\.code: .*finite"),
        (["systems", 0, "pure_mean"], -0.1, r"systems\[0\]\.pure_mean: found -0\.1"),
        (["systems", 0, "kind"], "fuesd", r"systems\[0\]\.kind: found 'fuesd'.*'fused'"),
        (["systems", 0, "name"], "../x", r"systems\[0\]\.name: found '\.\./x'"),
        (["systems", 0, "colour"], 1, r"systems\[0\]\.colour: unknown key"),
        (["headline", "beats_self_stitch"], "yes", r"headline\.beats_self_stitch: found 'yes'"),
        (["schema_version"], 2, "schema_version: found 2"),
        (["systems"], [], "systems: found"),
        (["routing", "positions", 1, "by_domain", "code", "utilisation", 0], 1.5, r"utilisation\[0\]: found 1\.5"),
        (["parameters"], {"seed": np.float32(1)}, "cannot be written as JSON"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(
    evaluation: dict[str, Any], path: list[Any], value: object, said: str
) -> None:
    with pytest.raises(EvaluationError, match=said):
        schema.validate(change(evaluation, path, value))


def test_a_missing_key_is_named(evaluation: dict[str, Any]) -> None:
    del evaluation["corpus"]["sha256"]
    with pytest.raises(EvaluationError, match=r"corpus\.sha256: missing"):
        schema.validate(evaluation)


def test_all_problems_are_told_at_once(evaluation: dict[str, Any]) -> None:
    evaluation["seed"] = "x"
    evaluation["systems"][1]["cost"] = -1.0
    with pytest.raises(EvaluationError, match=r"seed: found 'x'.*systems\[1\]\.cost: found -1\.0"):
        schema.validate(evaluation)


def test_names_that_repeat_and_tables_that_miss_a_domain_are_refused(evaluation: dict[str, Any]) -> None:
    evaluation["systems"][1]["name"] = "fused_soft"
    del evaluation["systems"][2]["pure"]["maths"]
    evaluation["routing"]["positions"][0]["by_domain"]["code"]["utilisation"].pop()
    evaluation["training"]["curve"][1]["step"] = 1
    with pytest.raises(EvaluationError) as caught:
        schema.validate(evaluation)
    text = str(caught.value)
    assert "systems: 'fused_soft' stands there 2 times" in text
    assert "systems[2].pure: found domains ['code', 'manuals', 'novels'], wanted" in text
    assert "routing.positions[0].by_domain.code.utilisation: found 5 shares, wanted one for each of the 6" in text
    assert "training.curve: steps must rise" in text


def test_a_baseline_that_was_not_evaluated_is_null(evaluation: dict[str, Any]) -> None:
    evaluation["headline"] = dict.fromkeys(evaluation["headline"])
    evaluation["systems"][5].update(switching=None, switching_se=None, cost=None, tokens_per_s=None)
    assert schema.parse(evaluation).headline.gap_closed_soft is None
