"""Writes the report of an evaluation: a page and pictures for people, tables for ``dvc plots``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mango.checkpoints import write_file
from mango.evaluation.plots import draw
from mango.evaluation.report_html import render
from mango.evaluation.schema import Evaluation, Kept, parse
from mango.evaluation.schema_budget import Against
from mango.evaluation.schema_tasks import TaskScore


def write_report(evaluation: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the report of an evaluation.

    Args:
        evaluation: The document of ``reports/evaluation.json``.
        out: The folder of the reports; it is made where it does not exist.

    Returns:
        The files written: ``report.html``, ``plots/*.png``, and
        ``plots/{systems,training,retention,calibration,router}.csv``, and ``plots/{budget,tasks}.csv`` where there is
        a curve and tasks were asked for. The same evaluation gives the same bytes.

    Raises:
        EvaluationError: The document breaks the schema. Nothing is written then.
    """
    checked = parse(evaluation)
    files: dict[str, bytes | str] = {"report.html": render(checked)}
    files |= {f"plots/{name}": data for name, data in draw(checked).items()}
    files |= {f"plots/{name}": text for name, text in tables(checked).items()}
    written = []
    for name, data in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
        written.append(path)
    return written


def tables(evaluation: Evaluation) -> dict[str, str]:
    """Return the CSV tables by file name; a value that is not known is an empty cell."""
    made = {
        "systems.csv": _csv(_system_columns(evaluation), _system_rows(evaluation)),
        "training.csv": _csv(
            ("step", "loss", "lm", "balance", "entropy", "adapter", "validation"),
            ((p.step, p.loss, p.lm, p.balance, p.entropy, p.adapter, p.validation) for p in evaluation.training.curve),
        ),
        "retention.csv": _csv(
            tuple(Kept.model_fields),
            ([getattr(kept, name) for name in Kept.model_fields] for kept in evaluation.retention),
        ),
        "calibration.csv": _csv(
            ("system", "confidence", "accuracy", "share"),
            (
                (name, one.confidence, one.accuracy, one.share)
                for name, found in evaluation.calibration.items()
                for one in found.bins
            ),
        ),
        "router.csv": _csv(("position", "domain", "expert", "utilisation", "entropy_nats"), _router_rows(evaluation)),
    }
    if evaluation.budget:
        against = ((text, one) for text, found in evaluation.budget.items() for one in found.against)
        names = tuple(Against.model_fields)
        made["budget.csv"] = _csv(
            ("text", *names), ([text, *(getattr(one, n) for n in names)] for text, one in against)
        )
    if evaluation.lm_eval is not None:
        columns = tuple(TaskScore.model_fields)
        rows = ([getattr(score, name) for name in columns] for score in evaluation.lm_eval.scores)
        made["tasks.csv"] = _csv(columns, rows)
    return made


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


_MEASURES = (
    "pure_mean", "pure_se", "switching", "switching_se", "cost", "cost_switching", "flops", "flops_switching",
    "tokens_per_s", "peak_memory_mb",
)  # fmt: skip


def _system_columns(evaluation: Evaluation) -> list[str]:
    return ["system", "label", "kind", *_MEASURES, *(f"pure_{domain}" for domain in evaluation.domains)]


def _system_rows(evaluation: Evaluation) -> Iterable[Sequence[object]]:
    for system in evaluation.systems:
        measures = [getattr(system, name) for name in _MEASURES]
        yield [
            system.name,
            system.label,
            system.kind,
            *measures,
            *(system.pure[domain] for domain in evaluation.domains),
        ]


def _router_rows(evaluation: Evaluation) -> Iterable[Sequence[object]]:
    for position in evaluation.routing.positions:
        for domain in evaluation.domains:
            routed = position.by_domain[domain]
            for expert, share in zip(position.experts, routed.utilisation, strict=True):
                yield [position.position, domain, expert, share, routed.entropy_nats]
