"""The report's table of what the fused model's budget curve dominates."""

from __future__ import annotations

from html import escape
from typing import Literal

from mango.evaluation.report_words import KINDS, spaced
from mango.evaluation.schema import Evaluation
from mango.evaluation.schema_budget import Against
from mango.pages import scrolling

Text = Literal["pure", "switching"]

_DASH = "\N{EN DASH}"
_TEXTS: dict[Text, str] = {"switching": "Text that switches domain", "pure": "Pure domains"}


def budget_table(evaluation: Evaluation) -> str:
    """Return what the curve dominates, kind by kind and system by system; empty where nothing was compared.

    Args:
        evaluation: a checked evaluation.
    """
    if not evaluation.budget:
        return ""
    texts = [text for text in _TEXTS if text in evaluation.budget]
    units = {"switching": spaced(evaluation.units.switching), "pure": spaced(evaluation.units.pure)}
    head = "".join(
        f'<th scope="col">{escape(word)}</th>'
        for text in texts
        for word in (f"{_TEXTS[text]}: {units[text]}", "cost", "beaten at cost", "dominated")
    )
    beside = {text: {one.system: one for one in evaluation.budget[text].against} for text in texts}
    systems = [
        s for kind in KINDS for s in evaluation.systems if s.kind == kind and any(s.name in b for b in beside.values())
    ]
    labels = {system.name: system.label for system in evaluation.systems}
    rows = "".join(
        f'<tr><th scope="row">{escape(system.label)}</th>'
        + "".join(_cells(beside[text].get(system.name), labels) for text in texts)
        + "</tr>"
        for system in systems
    )
    table = (
        f'<table class="heat"><thead><tr><th scope="col">System</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )
    words = "; ".join(f"{_TEXTS[text]}: {_verdict(evaluation, text)}" for text in texts)
    return (
        "<h3>What the curve of the fused model dominates</h3>"
        '<p class="muted">A system is dominated where the fused model at some budget is better and processes no more '
        f"tokens. {escape(words)}.</p>{scrolling(table, 'Table of what the curve dominates')}"
    )


def _verdict(evaluation: Evaluation, text: Text) -> str:
    found = evaluation.budget[text].dominates
    words = {True: [KINDS[kind].lower() for kind, on in found.items() if on],
             False: [KINDS[kind].lower() for kind, on in found.items() if not on]}  # fmt: skip
    parts = []
    if words[True]:
        parts.append(f"dominates every one of {', '.join(words[True])}")
    if words[False]:
        parts.append(f"not every one of {', '.join(words[False])}")
    return ", ".join(parts)


def _cells(one: Against | None, labels: dict[str, str]) -> str:
    if one is None:
        return f'<td class="plain">{_DASH}</td>' * 4
    at = _DASH if one.beaten_at is None or one.beaten_by is None else f"{one.beaten_at:.2f}, {labels[one.beaten_by]}"
    word, sign = ("good", "\N{CHECK MARK}") if one.dominated else ("bad", "\N{BALLOT X}")
    return (
        f'<td class="plain">{one.loss:.3f}</td><td class="plain">{one.cost:.2f}</td><td class="plain">{escape(at)}</td>'
        f'<td class="plain"><span class="sign {word}" title="{"yes" if one.dominated else "no"}">{sign}</span></td>'
    )
