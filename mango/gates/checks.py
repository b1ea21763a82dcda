"""Expectations about a table, and what Great Expectations finds when it checks them."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 20
_POSITION = "_position"
_LONGEST_SHOWN = 120
_VISIBLE = {code: f"\\x{code:02x}" for code in range(32)} | {0: "\\0", 9: "\\t", 10: "\\n", 13: "\\r"}


@dataclass(frozen=True)
class Check:
    """One expectation, in words for people and as a class of Great Expectations.

    Args:
        rule: what must hold, as a sentence.
        why: what is wrong with a row, or with the table, that breaks it.
        expectation: name of the class in ``great_expectations.expectations``.
        arguments: its arguments.
        shows: the columns that let a person find a failing row.
    """

    rule: str
    why: str
    expectation: str
    arguments: dict[str, Any]
    shows: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the expectation reads."""
        single = [self.arguments[key] for key in ("column", "column_A", "column_B") if key in self.arguments]
        return (*single, *self.arguments.get("column_list", ()))


@dataclass(frozen=True)
class Finding:
    """What one expectation found.

    Args:
        table: the table that was checked.
        rule: what must hold.
        expectation: type of the expectation (``expect_column_values_to_be_unique``).
        passed: whether it holds.
        why: what is wrong; empty when it holds.
        num_rows: how many rows break it; 0 when it is about the whole table.
        rows: the first of these rows: the number of the row in the table, from 0, and values that identify it.
    """

    table: str
    rule: str
    expectation: str
    passed: bool
    why: str = ""
    num_rows: int = 0
    rows: tuple[dict[str, Any], ...] = field(default=())


def run_checks(table: str, frame: pd.DataFrame, checks: Sequence[Check]) -> list[Finding]:
    """Check a table with one suite and one checkpoint in an ephemeral context.

    A check of a column that is not there fails without being run.

    Args:
        table: name of the table.
        frame: its rows.
        checks: what must hold.

    Returns:
        One finding for each check, in their order.
    """
    runnable = {str(i): check for i, check in enumerate(checks) if set(check.columns) <= set(frame.columns)}
    frame = frame.reset_index(drop=True)
    results = _validate(table, frame.assign(**{_POSITION: range(len(frame))}), runnable)
    findings = []
    for i, check in enumerate(checks):
        kind = _snake(check.expectation)
        if str(i) in results:
            findings.append(_finding(table, frame, check, results[str(i)]))
        else:
            missing = ", ".join(column for column in check.columns if column not in frame.columns)
            findings.append(Finding(table, check.rule, kind, False, f"cannot be checked: there is no column {missing}"))
    return findings


def _validate(table: str, frame: pd.DataFrame, checks: dict[str, Check]) -> dict[str, Any]:
    gx = _great_expectations()
    context = gx.get_context(mode="ephemeral", project_config=_settings())
    asset = context.data_sources.add_pandas("mango").add_dataframe_asset(table)
    suite = gx.ExpectationSuite(
        name=table,
        expectations=[
            getattr(gx.expectations, check.expectation)(**check.arguments, meta={"check": key, "rule": check.rule})
            for key, check in checks.items()
        ],
    )
    definition = gx.ValidationDefinition(
        name=table, data=asset.add_batch_definition_whole_dataframe("all"), suite=context.suites.add(suite)
    )
    checkpoint = gx.Checkpoint(
        name=table,
        validation_definitions=[context.validation_definitions.add(definition)],
        result_format={
            "result_format": "SUMMARY",
            "unexpected_index_column_names": [_POSITION],
            "partial_unexpected_count": MAX_ROWS,
        },
    )
    outcome = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
    (validation,) = outcome.run_results.values()
    return {result.expectation_config.meta["check"]: result for result in validation.results}


def _great_expectations() -> Any:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read on import
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own modules use deprecated ones of Python
        import great_expectations
    return great_expectations


def _settings() -> Any:
    """Return settings without progress bars, analytics and the temporary folder for a documentation site."""
    from great_expectations.data_context.types import base

    return base.DataContextConfig(
        store_backend_defaults=base.InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=base.ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )


def _finding(table: str, frame: pd.DataFrame, check: Check, result: Any) -> Finding:
    kind = _snake(check.expectation)
    if result.success:
        return Finding(table, check.rule, kind, True)
    problem = _exception(result.exception_info)
    if problem:
        return Finding(table, check.rule, kind, False, f"cannot be checked: {problem}")
    details = result.result
    positions = [int(entry[_POSITION]) for entry in details.get("partial_unexpected_index_list") or ()]
    shows = [name for name in check.shows if name in frame.columns]
    rows = tuple({"row": row, **{name: _shown(frame[name].iloc[row]) for name in shows}} for row in positions)
    return Finding(
        table, check.rule, kind, False, check.why + _observed(details), int(details.get("unexpected_count") or 0), rows
    )


def _observed(details: dict[str, Any]) -> str:
    """Return what a check of the whole table saw."""
    missing = details.get("partial_missing_list") or (details.get("details") or {}).get("mismatched", {}).get("missing")
    if missing:
        return f": {', '.join(sorted(map(str, missing)))}"
    observed = details.get("observed_value")
    return f": found {observed}" if observed is not None and "unexpected_count" not in details else ""


def _exception(info: Any) -> str:
    """Return the message of an exception that Great Expectations caught, empty if there was none."""
    entries = [info] if "raised_exception" in info else list(info.values())
    raised = [str(entry["exception_message"]) for entry in entries if entry.get("raised_exception")]
    return raised[0].strip().splitlines()[0] if raised else ""


def _shown(value: Any) -> Any:
    """Return a value that JSON and a page can hold: numbers as they are, text short and visible."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or value != value:  # NaN is what an empty cell becomes
        return "(no value)"
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if isinstance(value, (bool, int, float)):
        return value
    text = str(value).translate(_VISIBLE)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
