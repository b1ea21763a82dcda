"""What a gate found: the report for machines, the page for people, and the error that stops a pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mango.errors import GateError
from mango.gates.checks import Finding
from mango.gates.page import render

_NAMED_FAILURES = 3
_NAMED_ROWS = 5


@dataclass(frozen=True)
class GateReport:
    """The outcome of a gate.

    Args:
        gate: ``"corpus"``, ``"blocks"`` or ``"metrics"``.
        source: what was checked.
        num_rows: rows of each table that was checked.
        findings: one for each expectation.
        page: the page that shows them.
    """

    gate: str
    source: str
    num_rows: Mapping[str, int]
    findings: tuple[Finding, ...]
    page: Path

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The expectations that do not hold."""
        return tuple(finding for finding in self.findings if not finding.passed)

    @property
    def passed(self) -> bool:
        """Whether every expectation holds."""
        return not self.failures

    def raise_if_failed(self) -> None:
        """Stop here unless every expectation holds.

        Raises:
            GateError: names the page and the first failures.
        """
        if self.passed:
            return
        named = "; ".join(f"{failure.rule}: {_sentence(failure)}" for failure in self.failures[:_NAMED_FAILURES])
        more = len(self.failures) - _NAMED_FAILURES
        raise GateError(
            f"{self.source}: the {self.gate} gate failed in {len(self.failures)} of {len(self.findings)} checks: "
            f"{named}{f'; and {more} more' if more > 0 else ''}. See {self.page}"
        )


def write_report(
    gate: str, source: str, num_rows: Mapping[str, int], findings: Sequence[Finding], params: dict[str, Any], out: Path
) -> GateReport:
    """Write ``<gate>.json`` and ``<gate>.html`` in folder `out` and return the report.

    Both hold no time and no machine: the same input gives the same bytes.

    Args:
        gate: name of the gate.
        source: what was checked.
        num_rows: rows of each table.
        findings: what was found.
        params: the bounds that were applied.
        out: the folder; missing parents are made.

    Raises:
        CheckpointError: a file cannot be written.
    """
    from mango.checkpoints import write_file

    report = GateReport(gate, source, dict(num_rows), tuple(findings), out / f"{gate}.html")
    record = {
        "schema_version": 1,
        "gate": gate,
        "passed": report.passed,
        "source": source,
        "tables": dict(num_rows),
        "params": params,
        "num_checks": len(report.findings),
        "num_failures": len(report.failures),
        "checks": [asdict(finding) for finding in report.findings],
    }
    write_file(report.page, render(gate, source, report.num_rows, report.findings))
    write_file(out / f"{gate}.json", json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return report


def _sentence(failure: Finding) -> str:
    if not failure.rows:
        return failure.why
    named = "; ".join(_row(row) for row in failure.rows[:_NAMED_ROWS])
    more = failure.num_rows - min(len(failure.rows), _NAMED_ROWS)
    return f"{failure.why} ({named}{f'; {more} more' if more > 0 else ''})"


def _row(row: Mapping[str, Any]) -> str:
    named = {name: value for name, value in row.items() if name not in ("row", "domain", "excerpt")}
    return " ".join(f"{name}={value}" for name, value in (named or row).items())
