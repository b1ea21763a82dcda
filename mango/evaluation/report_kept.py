"""The report's sections on what is kept of each expert, and on how sure each system is."""

from __future__ import annotations

from html import escape

from mango.evaluation.schema import Calibration, Evaluation, Kept, System
from mango.pages import Series, heat_cell, lines, scrolling

_DASH = "\N{EN DASH}"
_DRAWN = {"fused_hard": "main", "trunk": "other"}
"""Systems whose reliability is drawn, with the class of their line."""


def retention_table(evaluation: Evaluation) -> str:
    """Return the section of what is kept of each expert; empty without an expert.

    Args:
        evaluation: a checked evaluation.
    """
    if not evaluation.retention:
        return ""
    heads = ("Expert", "Its domain", "alone", "fused, soft", "fused, hard", "kept, soft", "kept, hard", "tokens given")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(_row(kept) for kept in evaluation.retention)
    table = f'<table class="heat"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return (
        "<section><h2>What is kept of each expert</h2>"
        '<p class="muted">The domain of an expert is that on which it is furthest ahead of the trunk. Kept is the '
        "expert\N{RIGHT SINGLE QUOTATION MARK}s loss there over that of the fused model: above 100% the fused model is "
        "better. Tokens given is the share of the domain that hard routing had this expert process.</p>"
        f"{scrolling(table, 'Table of what is kept of each expert')}</section>"
    )


def _row(kept: Kept) -> str:
    losses = "".join(f'<td class="plain">{value:.3f}</td>' for value in (kept.own, kept.soft, kept.hard))
    shares = "".join(
        heat_cell(value, _DASH if value is None else f"{value:.1%}", low=0.9, high=1.0)
        for value in (kept.kept_soft, kept.kept_hard)
    )
    given = heat_cell(kept.given, f"{kept.given:.0%}", low=0.0, high=1.0)
    return (
        f'<tr><th scope="row">{escape(kept.expert)}</th><td class="plain">{escape(kept.domain)}</td>'
        f"{losses}{shares}{given}</tr>"
    )


def work_table(evaluation: Evaluation) -> str:
    """Return the section of the work that was counted; empty where nothing was.

    Args:
        evaluation: a checked evaluation.
    """
    known = [system for system in evaluation.systems if system.flops is not None]
    if not known:
        return ""
    trunk = next((system for system in known if system.kind == "trunk"), None)
    rows = "".join(f'<tr><th scope="row">{escape(one.label)}</th>{_work(one, trunk)}</tr>' for one in known)
    heads = ("System", "tokens, pure", "switching", "MFLOP, pure", "switching", "\N{MULTIPLICATION SIGN} trunk, pure",
             "switching")  # fmt: skip
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    table = f'<table class="heat"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return (
        "<section><h2>Work, counted</h2>"
        '<p class="muted">For each token of text: tokens that experts really processed, in units of one expert, and '
        "floating-point operations of matrix products and attention, counted by torch with the shapes that ran, "
        "padding included.</p>"
        f"{scrolling(table, 'Table of counted work')}</section>"
    )


def _work(system: System, trunk: System | None) -> str:
    mega = [None if value is None else value / 1e6 for value in _flops(system)]
    theirs = (None, None) if trunk is None else (trunk.flops, trunk.flops_switching)
    ratios = [a / b if a is not None and b else None for a, b in zip(_flops(system), theirs, strict=True)]
    values = [(system.cost, 3), (system.cost_switching, 3), *((m, 2) for m in mega), *((r, 3) for r in ratios)]
    return "".join(
        f'<td class="plain">{_DASH if value is None else f"{value:.{digits}f}"}</td>' for value, digits in values
    )


def _flops(system: System) -> tuple[float | None, float | None]:
    return system.flops, system.flops_switching


def calibration_section(evaluation: Evaluation) -> str:
    """Return the section on how sure systems are of the next token; empty where none was asked.

    Args:
        evaluation: a checked evaluation.
    """
    if not evaluation.calibration:
        return ""
    known = [system for system in evaluation.systems if system.name in evaluation.calibration]
    rows = "".join(
        f'<tr><th scope="row">{escape(system.label)}</th>{_figures(evaluation.calibration[system.name])}</tr>'
        for system in known
    )
    heads = ("System", "calibration error", "how sure", "how often right")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    table = f'<table class="heat"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return (
        "<section><h2>How sure of the next token</h2>"
        '<p class="muted">The first guess of each next token of pure text, in bins of its probability. Calibration '
        "error is the mean difference between how sure a system is and how often it is right.</p>"
        f'<div class="panels">{_drawing(evaluation)}<div>{scrolling(table, "Table of calibration")}</div>'
        "</div></section>"
    )


def _figures(found: Calibration) -> str:
    figures = (found.error, _mean(found, "confidence"), _mean(found, "accuracy"))
    return "".join(f'<td class="plain">{value:.3f}</td>' for value in figures)


def _mean(found: Calibration, what: str) -> float:
    return float(sum(getattr(one, what) * one.share for one in found.bins))


def _drawing(evaluation: Evaluation) -> str:
    labels = {system.name: system.label for system in evaluation.systems}
    series, legend = [Series("as sure as right", "front", ((0.0, 0.0), (1.0, 1.0)))], ""
    for name, css in _DRAWN.items():
        found = evaluation.calibration.get(name)
        if found is not None and found.bins:
            points = tuple((one.confidence, one.accuracy) for one in found.bins)
            series.append(Series(labels[name], css, points, dots=True))
            legend += f'<li><span class="key {css}"></span>{escape(labels[name])}</li>'
    drawing = lines(series, title="How often a guess is right by how sure it is", x_name="how sure")
    caption = "How often right <small>the dashed line is perfect</small>"
    return f'<figure><figcaption>{caption}</figcaption>{drawing}<ul class="legend">{legend}</ul></figure>'
