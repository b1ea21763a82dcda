"""The report's table of static merges: by which method, with which parameters, how good on each domain."""

from __future__ import annotations

from html import escape

from mango.evaluation.report_words import spaced
from mango.evaluation.schema import Evaluation, System


def merges_table(evaluation: Evaluation) -> str:
    """Return the section of static merges, the best first, between the models that they are made of; empty without any.

    Args:
        evaluation: a checked evaluation.
    """
    merges = [system for system in evaluation.systems if system.kind == "merge"]
    if not merges:
        return ""
    beside = [s for s in evaluation.systems if s.kind in ("trunk", "expert") and s.name != "best_single"]
    rows = sorted([*merges, *beside], key=lambda system: (system.pure_mean, system.name))
    columns = [*evaluation.domains, "mean"]
    best = [min(_value(system, column) for system in merges) for column in columns]
    head = "".join(
        f'<th scope="col">{escape(name)}</th>' for name in ("Merge", "Method", "Models", "Parameters", *columns)
    )
    body = "".join(_row(system, columns, best) for system in rows)
    return (
        "<section><h2>Static merges</h2>"
        f'<p class="muted">{escape(spaced(evaluation.units.pure))} on the test text of each domain, lower is better. '
        "The best merge of each column is bold; single models stand between for comparison. The document of each merge "
        "lies beside its weights, as mango_merge.yaml.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of static merges">'
        f'<table class="systems merges"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>'
    )


def _value(system: System, column: str) -> float:
    return system.pure_mean if column == "mean" else system.pure[column]


def _row(system: System, columns: list[str], best: list[float]) -> str:
    made = system.merge
    words = ("", "", "") if made is None else (made.method, ", ".join(made.models), made.parameters)
    cells = []
    for column, lowest in zip(columns, best, strict=True):
        value = _value(system, column)
        css = ' class="best"' if system.kind == "merge" and value == lowest else ""
        cells.append(f"<td{css}>{value:.3f}</td>")
    texts = "".join(f'<td class="words">{escape(text)}</td>' for text in words)
    label = system.label.removeprefix("Merge ")
    return f'<tr><th scope="row">{escape(label)}</th>{texts}{"".join(cells)}</tr>'
