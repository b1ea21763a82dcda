"""The report for people: one HTML page that needs nothing outside itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mango.evaluation.report_budget import budget_table
from mango.evaluation.report_kept import calibration_section, retention_table, work_table
from mango.evaluation.report_layers import layers_section
from mango.evaluation.report_merges import merges_table
from mango.evaluation.report_pictures import pictures_section
from mango.evaluation.report_sample import sample_section
from mango.evaluation.report_svg import Point, quality_against_cost
from mango.evaluation.report_table import processed_heatmap, router_heatmap, systems_table
from mango.evaluation.report_tasks import tasks_section
from mango.evaluation.report_words import KINDS, describe, figures, spaced, verdict
from mango.evaluation.schema import Evaluation, System
from mango.pages import Series, lines, page

_FIRST_LABELLED = ("fused", "trunk", "ensemble", "routing", "control", "oracle", "merge", "expert")


def render(evaluation: Evaluation) -> str:
    """Return the report as one self-contained HTML page.

    Args:
        evaluation: A checked evaluation.

    Returns:
        The page; the same evaluation always gives the same text.
    """
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    parts = [
        _verdict(evaluation),
        _systems(evaluation),
        merges_table(evaluation),
        tasks_section(evaluation),
        _quality(evaluation),
        work_table(evaluation),
        _router(evaluation),
        retention_table(evaluation),
        *(sample_section(sample, evaluation) for sample in evaluation.routing.sample if sample.tokens),
        calibration_section(evaluation),
        pictures_section(evaluation.images),
        layers_section(evaluation.layers),
        _training(evaluation),
        _glossary(evaluation),
        _making(evaluation),
    ]
    return page("Evaluation of the fused model", parts, css=css)


def _verdict(evaluation: Evaluation) -> str:
    first, *rest = verdict(evaluation)
    tiles = []
    for figure in figures(evaluation):
        word, sign = ("good", "\N{CHECK MARK}") if figure.good else ("bad", "\N{BALLOT X}")
        mark = "" if figure.good is None else f'<span class="sign {word}" title="{word}">{sign}</span>'
        tiles.append(f"<div><dt>{escape(figure.value)}{mark}</dt><dd>{escape(figure.caption)}</dd></div>")
    return (
        "<h1>Evaluation of the fused model</h1>\n"
        f'<p class="verdict"><strong>{escape(first)}</strong> {escape(" ".join(rest))}</p>\n'
        f'<dl class="figures">{"".join(tiles)}</dl>'
    )


def _systems(evaluation: Evaluation) -> str:
    return (
        "<section><h2>Every system side by side</h2>"
        '<p class="muted">Best of each column in bold; oracles choose with hindsight and do not compete. '
        "\N{PLUS-MINUS SIGN} is one standard error.</p>" + systems_table(evaluation) + "</section>"
    )


def _has_label(system: System, best_merge: bool) -> bool:
    """Return whether a chart names a system: single experts, other merges and points of a budget only crowd it."""
    if system.kind == "fused":
        return system.name in ("fused_soft", "fused_hard")
    return system.name == "best_single" if system.kind == "expert" else system.kind != "merge" or best_merge


def _quality(evaluation: Evaluation) -> str:
    pure, switching = spaced(evaluation.units.pure), spaced(evaluation.units.switching)
    ordered = sorted(evaluation.systems, key=lambda system: _FIRST_LABELLED.index(system.kind))

    def panel(heading: str, unit: str, points: Sequence[Point]) -> str:
        if not points:
            return ""
        title = f"{heading}: {unit} against cost"
        drawing = quality_against_cost(points, title=title, cost_name="cost, in experts (log scale)")
        return f"<figure><figcaption>{escape(heading)} <small>{escape(unit)}</small></figcaption>{drawing}</figure>"

    def points(losses: Sequence[tuple[System, float | None, float | None]]) -> list[Point]:
        known = [(s, loss, cost) for s, loss, cost in losses if loss is not None and cost is not None]
        best_merge = min((loss for s, loss, _ in known if s.kind == "merge"), default=None)
        return [
            Point(s.label, s.kind, cost, loss, labelled=_has_label(s, loss == best_merge)) for s, loss, cost in known
        ]

    on_switching = points([(s, s.switching, s.cost_switching) for s in ordered])
    on_pure = points([(s, s.pure_mean, s.cost) for s in ordered])
    return (
        "<section><h2>Quality against cost</h2>"
        '<p class="muted">Down and left is better. The blue line is the fused model from one expert a token to all of '
        "them; the dashed line joins the systems that nothing cheaper beats; an arrow marks a value above the frame. "
        "Small marks without a name are single experts, other merges and points of the blue line.</p>"
        f'<div class="panels">{panel("Text that switches domain", switching, on_switching)}'
        f"{panel('Pure domains', pure, on_pure)}</div>{budget_table(evaluation)}</section>"
    )


def _router(evaluation: Evaluation) -> str:
    maps = "".join(
        f"<div>{router_heatmap(position, evaluation.domains)}</div>" for position in evaluation.routing.positions
    )
    return (
        "<section><h2>What the router chose</h2>"
        '<p class="muted">Mean weight of each expert on the test text of each domain, at each fused position; '
        "the largest of a row is bold.</p>"
        f'<div class="panels maps">{maps}<div>{processed_heatmap(evaluation)}</div></div></section>'
    )


def _training(evaluation: Evaluation) -> str:
    curve = evaluation.training.curve
    if not curve:
        untrained = "The adapters and routers were not trained: they stand at their start."
        return f"<section><h2>Training</h2><p>{untrained}</p></section>"

    def part(name: str, values: Sequence[float], height: float = 150.0) -> str:
        points = tuple((float(point.step), value) for point, value in zip(curve, values, strict=True))
        drawing = lines([Series(name, "main", points)], title=f"{name} by training step", x_name="step", height=height)
        return f"<figure><figcaption>{escape(name)}</figcaption>{drawing}</figure>"

    series = [Series("training", "main", tuple((float(p.step), p.lm) for p in curve))]
    legend = '<li><span class="key"></span>training</li>'
    validation = tuple((float(p.step), p.validation) for p in curve if p.validation is not None)
    if validation:
        series.append(Series("validation", "other", validation, dots=True))
        legend += '<li><span class="key other"></span>validation</li>'
    main = lines(series, title="Language-model loss by training step", x_name="step")
    return (
        "<section><h2>Training of adapters and routers</h2>"
        f'<div class="panels"><figure><figcaption>Language-model loss <small>nats per token</small></figcaption>{main}'
        f'<ul class="legend">{legend}</ul></figure>{part("Whole loss", [p.loss for p in curve], 220.0)}</div>'
        f'<div class="panels small">{part("Load balance", [p.balance for p in curve])}'
        f"{part('Router entropy', [p.entropy for p in curve])}"
        f"{part('Adapter distance from start', [p.adapter for p in curve])}</div></section>"
    )


def _glossary(evaluation: Evaluation) -> str:
    rows = "".join(
        f"<dt>{escape(system.label)}</dt><dd>{escape(describe(system))}</dd>"
        for kind in KINDS
        for system in evaluation.systems
        if system.kind == kind
    )
    return f'<section><h2>What each system is</h2><dl class="what">{rows}</dl></section>'


def _making(evaluation: Evaluation) -> str:
    made, corpus = evaluation.provenance, evaluation.corpus
    changed = " with uncommitted changes" if made.git_dirty else ""
    facts = [
        ("Git revision", f"{made.git_revision or 'not in a git repository'}{changed}"),
        ("Mango", made.mango_version),
        ("Device", made.device or "not recorded"),
        (
            "Libraries",
            ", ".join(f"{name} {version}" for name, version in sorted(made.packages.items())) or "not recorded",
        ),
        ("Seed", str(evaluation.seed)),
        ("Cost", evaluation.units.cost),
        ("Corpus SHA-256", corpus.sha256),
        (
            "Test text",
            "; ".join(
                f"{domain} {corpus.domains[domain].test_bytes:,} bytes, {corpus.domains[domain].test_tokens:,} tokens"
                for domain in evaluation.domains
            ),
        ),
    ]
    rows = "".join(f'<dt>{escape(name)}</dt><dd class="hash">{escape(value)}</dd>' for name, value in facts)
    parameters = json.dumps(evaluation.parameters, indent=2, sort_keys=True, ensure_ascii=False)
    return (
        f'<section><h2>How it was made</h2><dl class="what">{rows}</dl>'
        f'<h3 style="margin-top:14px">Reproduce it</h3><pre class="box">{escape(chr(10).join(made.commands))}</pre>'
        f'<details><summary>All parameters</summary><pre class="box">{escape(parameters)}</pre></details></section>'
    )
