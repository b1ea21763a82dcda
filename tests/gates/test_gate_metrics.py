from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mango.errors import GateError
from mango.gates import GateParams, GateReport, run_metrics_gate


def system(name: str, kind: str, **values: Any) -> dict[str, Any]:
    pure = {"code": 1.0, "novels": 2.0}
    return {"name": name, "kind": kind, "pure": pure, "switching": 3.0, "cost": 1.0, "cost_switching": 1.1, **values}


@pytest.fixture
def evaluation() -> dict[str, Any]:
    return {
        "domains": ["code", "novels"],
        "systems": [
            system("trunk", "trunk"),
            system("best_single", "expert"),
            system("fused_soft", "fused"),
            system("oracle_sequence", "oracle", switching=None, cost=None, cost_switching=None),
        ],
    }


def gate(evaluation: Any, folder: Path, **bounds: Any) -> GateReport:
    path = folder / "evaluation.json"
    path.write_text(json.dumps(evaluation))
    return run_metrics_gate(path, GateParams.model_validate({"metrics": bounds}), folder / "gates")


def failed(report: GateReport) -> dict[str, list[tuple[Any, Any]]]:
    return {finding.rule: [(row["system"], row["measure"]) for row in finding.rows] for finding in report.failures}


def test_a_good_evaluation_passes(evaluation: dict[str, Any], tmp_path: Path) -> None:
    report = gate(evaluation, tmp_path)
    assert report.failures == ()
    assert report.num_rows == {"metrics": 3 * 5 + 2}  # measures that are not defined have no row


def test_missing_systems_are_named(evaluation: dict[str, Any], tmp_path: Path) -> None:
    evaluation["systems"] = evaluation["systems"][1:2]
    report = gate(evaluation, tmp_path, required_systems=("trunk", "best_single", "self_stitch"))
    assert {finding.rule: finding.why for finding in report.failures} == {
        "The required systems were evaluated": "there is no row of these systems: self_stitch, trunk",
        "A fused model was evaluated": "no system is of this kind: fused",
    }


@pytest.mark.parametrize("value", [float("nan"), None, "1.0", True])
def test_what_is_no_number_is_named(evaluation: dict[str, Any], tmp_path: Path, value: Any) -> None:
    evaluation["systems"][2]["pure"]["code"] = value
    assert failed(gate(evaluation, tmp_path)) == {"Every system has a number on every domain": [("fused_soft", "code")]}


def test_a_domain_without_a_figure_is_named(evaluation: dict[str, Any], tmp_path: Path) -> None:
    del evaluation["systems"][0]["pure"]["novels"]
    assert failed(gate(evaluation, tmp_path)) == {"Every system has a number on every domain": [("trunk", "novels")]}


def test_values_out_of_bounds_are_named(evaluation: dict[str, Any], tmp_path: Path) -> None:
    evaluation["systems"][0]["pure"]["code"] = -0.1
    evaluation["systems"][1]["switching"] = 25.0
    evaluation["systems"][2]["cost"] = float("inf")
    evaluation["systems"][3]["pure"]["novels"] = 16.5
    high = "No loss is above 16 bits a byte or 20 nats a token, and no cost above 1000 experts"
    assert failed(gate(evaluation, tmp_path)) == {
        "No loss or cost is below zero": [("trunk", "code")],
        high: [("best_single", "switching text"), ("fused_soft", "cost on pure text"), ("oracle_sequence", "novels")],
    }


def test_a_system_that_is_listed_twice_and_a_foreign_domain_are_named(
    evaluation: dict[str, Any], tmp_path: Path
) -> None:
    evaluation["systems"].append({**evaluation["systems"][3], "pure": {"code": 1.0, "novels": 1.0, "poems": 1.0}})
    assert failed(gate(evaluation, tmp_path)) == {
        "Every system is measured on the same domains": [("oracle_sequence", "poems")],
        "Every system is listed once": [("oracle_sequence", name) for name in ("code", "novels") * 2],
    }


def test_an_evaluation_without_systems_fails(tmp_path: Path) -> None:
    report = gate({"domains": ["code"], "systems": []}, tmp_path)
    assert "A fused model was evaluated" in failed(report)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"systems": []}, "not the format of an evaluation .KeyError: 'domains'.; run evaluate again"),
        ({"domains": ["a"], "systems": [1]}, "not the format of an evaluation .TypeError"),
        ([], "found list, wanted an object"),
    ],
)
def test_another_format_is_an_error(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=message):
        gate(content, tmp_path)


def test_a_missing_or_broken_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    with pytest.raises(GateError, match=r"evaluation\.json is missing; run the stage evaluate first"):
        run_metrics_gate(path, GateParams(), tmp_path)
    path.write_text('{"domains": [')
    with pytest.raises(GateError, match="this is no readable JSON"):
        run_metrics_gate(path, GateParams(), tmp_path)
