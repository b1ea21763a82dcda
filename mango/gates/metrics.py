"""The gate of the evaluation: what must hold before a model is packaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mango.errors import GateError
from mango.gates.checks import Check, run_checks
from mango.gates.params import GateParams, MetricsGateParams
from mango.gates.report import GateReport, write_report

if TYPE_CHECKING:
    import pandas as pd

_SWITCHING = "switching text"
_COSTS = {"cost": "cost on pure text", "cost_switching": "cost on switching text"}
_WHERE = ("system", "measure")


def run_metrics_gate(evaluation: Path, gate_params: GateParams, out: Path) -> GateReport:
    """Check the evaluation and write ``metrics.json`` and ``metrics.html``.

    The evaluation becomes a table with a row for each system and measure: its loss on each domain, always, and its
    loss on switching text and its costs where the evaluation gives them.

    Args:
        evaluation: the file ``evaluation.json``.
        gate_params: the bounds; its ``metrics`` part applies.
        out: folder of the two files.

    Returns:
        The report; it does not raise by itself when a check fails.

    Raises:
        GateError: the evaluation is missing or has another format.
        CheckpointError: the report cannot be written.
    """
    rows, domains = _flatten(_read(evaluation), evaluation, gate_params.metrics)
    findings = run_checks("metrics", rows, _checks(rows, domains, gate_params.metrics))
    bounds = gate_params.metrics.model_dump(mode="json")
    return write_report("metrics", str(evaluation), {"metrics": len(rows)}, findings, bounds, out)


def _read(evaluation: Path) -> dict[str, Any]:
    try:
        content = json.loads(evaluation.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GateError(f"{evaluation} is missing; run the stage evaluate first") from None
    except (OSError, ValueError) as error:
        raise GateError(f"{evaluation}: this is no readable JSON ({error}); run evaluate again") from error
    if not isinstance(content, dict):
        raise GateError(f"{evaluation}: found {type(content).__name__}, wanted an object; run evaluate again")
    return content


def _flatten(
    content: dict[str, Any], evaluation: Path, bounds: MetricsGateParams
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    import pandas as pd

    try:
        domains = tuple(str(domain) for domain in content["domains"])
        rows = []
        for system in content["systems"]:
            common = {"system": system["name"], "kind": system["kind"]}
            pure = system["pure"]
            losses = {**dict.fromkeys(domains), **pure}
            rows += [_row(common, name, value, bounds.max_bits_per_byte) for name, value in losses.items()]
            if system["switching"] is not None:
                rows.append(_row(common, _SWITCHING, system["switching"], bounds.max_nats_per_token))
            rows += [
                _row(common, name, system[key], bounds.max_cost)
                for key, name in _COSTS.items()
                if system[key] is not None
            ]
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise GateError(f"{evaluation}: not the format of an evaluation ({problem}); run evaluate again") from error
    columns = {"system": "str", "kind": "str", "measure": "str", "value": "float64", "highest": "float64"}
    return pd.DataFrame(rows, columns=list(columns)).astype(columns), domains


def _row(common: dict[str, Any], measure: str, value: Any, highest: float) -> dict[str, Any]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {**common, "measure": measure, "value": float(value) if number else None, "highest": highest}


def _checks(rows: pd.DataFrame, domains: tuple[str, ...], bounds: MetricsGateParams) -> list[Check]:
    systems = rows["system"].nunique()
    return [
        Check(
            "The required systems were evaluated",
            "there is no row of these systems",
            "ExpectColumnDistinctValuesToContainSet",
            {"column": "system", "value_set": list(bounds.required_systems)},
        ),
        Check(
            "A fused model was evaluated",
            "no system is of this kind",
            "ExpectColumnDistinctValuesToContainSet",
            {"column": "kind", "value_set": ["fused"]},
        ),
        Check(
            f"There are figures for {systems} systems on {len(domains)} domains",
            "there are too few rows",
            "ExpectTableRowCountToBeBetween",
            {"min_value": max(1, systems * len(domains))},
        ),
        Check(
            "Every system is measured on the same domains",
            "the evaluation does not list this domain",
            "ExpectColumnValuesToBeInSet",
            {"column": "measure", "value_set": [*domains, _SWITCHING, *_COSTS.values()]},
            _WHERE,
        ),
        Check(
            "Every system is listed once",
            "the same system and measure stand in several rows",
            "ExpectCompoundColumnsToBeUnique",
            {"column_list": ["system", "measure"]},
            _WHERE,
        ),
        Check(
            "Every system has a number on every domain",
            "there is no number, or it is NaN",
            "ExpectColumnValuesToNotBeNull",
            {"column": "value"},
            _WHERE,
        ),
        Check(
            "No loss or cost is below zero",
            "the value is below zero",
            "ExpectColumnValuesToBeBetween",
            {"column": "value", "min_value": 0},
            (*_WHERE, "value"),
        ),
        Check(
            f"No loss is above {bounds.max_bits_per_byte:g} bits a byte or {bounds.max_nats_per_token:g} nats a token, "
            f"and no cost above {bounds.max_cost:g} experts",
            "the value is above its bound",
            "ExpectColumnPairValuesAToBeGreaterThanB",
            {"column_A": "highest", "column_B": "value", "or_equal": True, "ignore_row_if": "either_value_is_missing"},
            (*_WHERE, "value", "highest"),
        ),
    ]
