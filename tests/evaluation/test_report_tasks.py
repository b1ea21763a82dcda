"""The report's section on tasks of the lm-evaluation-harness, its file, and what is tracked."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from mango.errors import EvaluationError
from mango.evaluation.report import tables
from mango.evaluation.report_html import render
from mango.evaluation.schema import parse
from stages.evaluate import headline_metrics
from tests.evaluation.make_example import example


def score(system: str, metric: str, value: float | None, stderr: float | None = None, **more: Any) -> dict[str, Any]:
    values = {"system": system, "task": "arc<easy>", "metric": metric, "filter": "none", "value": value}
    return {**values, "stderr": stderr, "higher_is_better": metric == "acc", **more}


def with_tasks(*scores: dict[str, Any]) -> dict[str, Any]:
    document = example()
    document["lm_eval"] = {
        "version": "0.4.13",
        "tasks": [{"task": "arc<easy>", "samples": 200, "num_fewshot": 5, "group": False}],
        "scores": list(scores),
        "truncated": {"trunk": 3},
    }
    return document


DOCUMENT = with_tasks(
    score("trunk", "acc", 0.25, 0.031),
    score("fused_hard", "acc", 0.5, 0.035),
    score("trunk", "bits", 2.0),
    score("fused_hard", "bits", None),
    score("trunk", "acc", 0.75, filter="first word"),
)


def test_each_metric_is_a_row_and_the_best_is_bold_by_its_own_direction() -> None:
    page = render(parse(DOCUMENT))
    found = page.split("<h2>Tasks</h2>")[1].split("</section>")[0]
    assert "arc&lt;easy&gt;" in found
    assert "200 examples, 5-shot" in found
    assert "version 0.4.13" in found
    head, body = found.split("<tbody>")
    rows = body.split("</tr>")
    assert head.count('scope="col"') == 4  # task, metric and two systems, in the order of the systems
    assert "<td class=best>0.500 <small>\N{PLUS-MINUS SIGN}0.035</small></td>" in rows[0]
    assert "<td>0.250 <small>\N{PLUS-MINUS SIGN}0.031</small></td>" in rows[0]
    assert "<td class=best>2.000</td>" in rows[1]
    assert rows[1].count("\N{EN DASH}") == 1
    assert "acc (first word)" in rows[2]
    label = next(system["label"] for system in DOCUMENT["systems"] if system["name"] == "trunk")
    assert f"lost their beginning: {label}: 3." in found


def test_without_tasks_there_is_no_section_and_no_file() -> None:
    evaluation = parse(example())
    assert "<h2>Tasks</h2>" not in render(evaluation)
    assert "tasks.csv" not in tables(evaluation)


def test_scores_stand_in_a_file_and_among_the_metrics() -> None:
    rows = list(csv.DictReader(tables(parse(DOCUMENT))["tasks.csv"].splitlines()))
    assert len(rows) == 5
    assert (rows[1]["system"], rows[1]["value"], rows[1]["stderr"]) == ("fused_hard", "0.5", "0.035")
    figures = headline_metrics(DOCUMENT)
    assert figures["fused_hard.lm_eval.arc_easy_.acc"] == 0.5
    assert figures["fused_hard.lm_eval.arc_easy_.acc_stderr"] == 0.035
    assert figures["trunk.lm_eval.arc_easy_.acc.first_word"] == 0.75
    assert "fused_hard.lm_eval.arc_easy_.bits" not in figures


def test_a_score_of_a_system_that_is_not_there_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"lm_eval\.scores: no system is called 'nobody'"):
        parse(with_tasks(score("nobody", "acc", 0.5)))
    with pytest.raises(EvaluationError, match=r"lm_eval\.scores: no task is called 'other'"):
        parse(with_tasks(score("trunk", "acc", 0.5, task="other")))
