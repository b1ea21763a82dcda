"""The report's section on tasks of the lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from mango.evaluation.schema import Evaluation
from mango.evaluation.schema_tasks import LmEval, TaskScore
from mango.pages import scrolling

_DASH = "\N{EN DASH}"
_BETTER = {True: "\N{UPWARDS ARROW}", False: "\N{DOWNWARDS ARROW}", None: ""}

Key = tuple[str, str, str]


def tasks_section(evaluation: Evaluation) -> str:
    """Return the section of tasks: a row for each metric, a column for each system; empty where none was asked for.

    Args:
        evaluation: a checked evaluation.
    """
    found = evaluation.lm_eval
    if found is None:
        return ""
    scored = {score.system for score in found.scores}
    systems = [system for system in evaluation.systems if system.name in scored]
    head = "".join(
        f'<th scope="col"{" class=fused" if system.kind == "fused" else ""}>{escape(system.label)}</th>'
        for system in systems
    )
    body = "".join(_rows(found, [system.name for system in systems]))
    table = (
        '<table class="systems tasks"><thead><tr><th scope="col">Task</th><th scope="col">Metric</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table>"
    )
    lost = "; ".join(f"{s.label}: {found.truncated[s.name]}" for s in systems if s.name in found.truncated)
    cut = f" Prompts that were too long for a model and lost their beginning: {escape(lost)}." if lost else ""
    return (
        "<section><h2>Tasks</h2>"
        f'<p class="muted">Scores of the lm-evaluation-harness, version {escape(found.version)}, on the same examples '
        "for each system; best of each row in bold. The arrow says which way is better; \N{PLUS-MINUS SIGN} is one "
        f"standard error where lm-eval gives one.{cut}</p>{scrolling(table, 'Table of tasks')}</section>"
    )


def by_metric(found: LmEval) -> dict[Key, dict[str, TaskScore]]:
    """Return the score of each system by task, metric and filter, in the order of the document."""
    table: dict[Key, dict[str, TaskScore]] = {}
    for score in found.scores:
        table.setdefault((score.task, score.metric, score.filter), {})[score.system] = score
    return table


def _rows(found: LmEval, systems: list[str]) -> Iterator[str]:
    facts = {task.task: task for task in found.tasks}
    before = ""
    for (task, metric, kind), scores in by_metric(found).items():
        own = facts[task]
        shots = "" if not own.num_fewshot else f", {own.num_fewshot}-shot"
        word = f"{own.samples} examples{shots}{', of its tasks' if own.group else ''}"
        name = "" if task == before else f"{escape(task)} <small>{escape(word)}</small>"
        before = task
        better = next(iter(scores.values())).higher_is_better
        known = [s.value for s in scores.values() if s.value is not None]
        best = None if better is None or not known else f"{(max if better else min)(known):.3f}"
        label = escape(metric if kind == "none" else f"{metric} ({kind})")
        cells = "".join(_cell(scores.get(system), best) for system in systems)
        yield f'<tr><th scope="row">{name}</th><td class="words">{label} {_BETTER[better]}</td>{cells}</tr>'


def _cell(score: TaskScore | None, best: str | None) -> str:
    if score is None or score.value is None:
        return f"<td>{_DASH}</td>"
    text = f"{score.value:.3f}"
    spread = "" if score.stderr is None else f" <small>\N{PLUS-MINUS SIGN}{score.stderr:.3f}</small>"
    return f"<td{' class=best' if text == best else ''}>{text}{spread}</td>"
