"""The words of the report: the verdict, the figures beside it, and what each system is."""

from __future__ import annotations

from dataclasses import dataclass

from mango.evaluation.schema import Evaluation, Headline, System, Units
from mango.evaluation.schema_base import SystemKind

KINDS: dict[SystemKind, str] = {
    "fused": "Fused model",
    "trunk": "Trunk",
    "expert": "Experts alone",
    "merge": "Static merges",
    "control": "Controls",
    "ensemble": "Ensembles of whole models",
    "routing": "Routing whole models",
    "oracle": "Oracles (with hindsight)",
}
"""Kinds in the order in which the report shows them, with the heading of each group."""

_SYSTEMS = {
    "fused_soft": "All experts run on every token and the router mixes them.",
    "fused_hard": "Only the expert that the router chose runs; on each switch it first catches up on the last tokens.",
    "fused_no_catch_up": "Only the expert that the router chose runs, and it reads nothing that others were given.",
    "best_single": "The one expert with the best mean over all domains.",
    "self_stitch": "Same adapters and routers, trunk spans in place of all experts: what added capacity gains alone.",
    "continued_trunk": "The trunk trained further on the same text: what the data gains alone.",
    "ensemble_uniform": "All whole experts run and their probabilities are averaged.",
    "ensemble_posterior": "All whole experts run, each weighted by how well it predicted the text so far.",
    "whole_model_by_prompt": "One whole expert for each text, chosen from its beginning.",
    "oracle_sequence": "The best whole expert for each text, known only afterwards: a bound, not a system.",
    "oracle_segment": "The best whole expert for each segment, known only afterwards: a bound, not a system.",
}

_OF_KIND: dict[SystemKind, str] = {
    "fused": "Blocks of several models behind a router.",
    "trunk": "The model that the fused model falls back on.",
    "expert": "One expert alone, on every domain.",
    "merge": "One static model made from the experts' weights.",
    "control": "A control: what is gained without fusion.",
    "ensemble": "Whole experts side by side; their probabilities are mixed.",
    "routing": "Whole experts; a rule chooses one.",
    "oracle": "A bound with hindsight, not a system.",
}


def describe(system: System) -> str:
    """Return one line that says what a system is."""
    line = _SYSTEMS.get(system.name, _OF_KIND[system.kind])
    note = system.note.strip().rstrip(".")
    return f"{line} {note[0].upper()}{note[1:]}." if note else line


def spaced(unit: str) -> str:
    """Return a unit's name as prose: ``bits_per_byte`` becomes ``bits per byte``."""
    return unit.replace("_", " ")


def percent(share: float) -> str:
    """Return a share as whole per cent."""
    return f"{share * 100:.0f}%".replace("-", "\N{MINUS SIGN}")


def verdict(evaluation: Evaluation) -> list[str]:
    """Return the sentences that say how the fused model did."""
    return verdict_of(evaluation.headline, evaluation.units)


def verdict_of(head: Headline, units: Units) -> list[str]:
    """Return the sentences that say what the headline figures mean."""
    return [
        _gap_sentence(head.gap_closed_soft, head.gap_closed_hard),
        _switching_sentence(head, spaced(units.switching)),
        _baseline_sentence(head.beats_every_static_merge, head.beats_self_stitch),
    ]


def _gap_sentence(soft: float | None, hard: float | None) -> str:
    share = soft if soft is not None else hard
    if share is None:
        return "How much of the gap to the per-sequence oracle is closed is unknown: trunk or oracle was not evaluated."
    gap = "of the gap between its trunk and the per-sequence oracle on pure domains"
    text = f"The fused model closes {percent(share)} {gap}"
    if share <= 0:
        text = f"The fused model does not improve on its trunk: it closes {percent(share)} {gap}"
    if soft is not None and hard is not None:
        text += f" ({percent(hard)} with hard routing)"
    return text + "."


def _switching_sentence(head: Headline, unit: str) -> str:
    difference, cost = head.switching_hard_minus_posterior_ensemble, head.cost_hard_switching
    where = "On text that switches domain, hard routing"
    spent = "" if cost is None else f"processes {cost:.2f} times the tokens of one expert"
    if difference is None:
        return f"{where} {spent}." if spent else f"{where} was not compared with the posterior-weighted ensemble."
    verb = "beats" if difference < 0 else "loses to" if difference > 0 else "equals"
    by = f" by {abs(difference):.3f} {unit}" if difference else ""
    return f"{where} {verb} the posterior-weighted ensemble{by}{f' and {spent}' if spent else ''}."


def _baseline_sentence(merges: bool | None, stitch: bool | None) -> str:
    answers = {"every static merge": merges, "self-stitch": stitch}
    beaten = [name for name, answer in answers.items() if answer]
    lost = [name for name, answer in answers.items() if answer is False]
    parts = []
    if beaten:
        parts.append(f"beats {' and '.join(beaten)}")
    if lost:
        parts.append(f"does not beat {' or '.join(lost)}")
    return f"It {' but '.join(parts)}." if parts else "Static merges and self-stitch were not evaluated."


@dataclass(frozen=True)
class Figure:
    """One headline figure: its value in words, what it is, and whether it speaks for the fused model."""

    value: str
    caption: str
    good: bool | None


def figures(evaluation: Evaluation) -> list[Figure]:
    """Return the headline figures; one that is unknown is shown as a dash."""
    head, unit = evaluation.headline, spaced(evaluation.units.switching)
    dash = "\N{EN DASH}"

    def share(value: float | None, mode: str) -> Figure:
        good = None if value is None else value > 0
        return Figure(dash if value is None else percent(value), f"of the gap to the oracle closed, {mode}", good)

    def yes(value: bool | None, what: str) -> Figure:
        return Figure(dash if value is None else "yes" if value else "no", what, value)

    difference, cost = head.switching_hard_minus_posterior_ensemble, head.cost_hard_switching
    signed = dash if difference is None else f"{difference:+.3f}".replace("-", "\N{MINUS SIGN}")
    return [
        share(head.gap_closed_soft, "soft"),
        share(head.gap_closed_hard, "hard"),
        Figure(
            signed,
            f"{unit} against the posterior ensemble, hard, switching text",
            None if difference is None else difference < 0,
        ),
        Figure(
            dash if cost is None else f"{cost:.2f}\N{MULTIPLICATION SIGN}",
            "the tokens of one expert, hard, switching text",
            None,
        ),
        yes(head.beats_every_static_merge, "beats every static merge"),
        yes(head.beats_self_stitch, "beats self-stitch"),
    ]
