"""The diagnosis for people: one HTML page that needs nothing outside itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from itertools import combinations
from pathlib import Path

from mango.pages import Series, heat_cell, lines, page, scrolling
from mango.surgery.diagnosis.result import PARTS, Diagnosis, Summary

_STYLES = 7
_MOST_TENSORS = 24
_DASH = "\N{EN DASH}"
_SIGNS = {"good": ("good", "\N{CHECK MARK}"), "note": ("muted", "\N{BULLET}"), "warning": ("bad", "!")}


def render(diagnosis: Diagnosis) -> str:
    """Return the page of a diagnosis; the same diagnosis always gives the same text."""
    css = files("mango.surgery.diagnosis").joinpath("page.css").read_text(encoding="utf-8")
    parts = [_head(diagnosis), _findings(diagnosis), _pairs(diagnosis), _blocks(diagnosis)]
    parts += [_spectra(diagnosis), _states(diagnosis), _tensors(diagnosis), _about(diagnosis)]
    return page("Diagnosis before a merge", [part for part in parts if part], css=css)


def short_names(diagnosis: Diagnosis) -> dict[str, str]:
    """Return each model's last part of a path, where that tells them apart."""
    named = [*diagnosis.models, *([] if diagnosis.base is None else [diagnosis.base])]
    short = {reference: Path(reference).name or reference for reference in named}
    return short if len(set(short.values())) == len(short) else {reference: reference for reference in named}


def _head(diagnosis: Diagnosis) -> str:
    short = short_names(diagnosis)
    names = ", ".join(short[name] for name in diagnosis.models)
    against = "" if diagnosis.base is None else f" against their base {short[diagnosis.base]}"
    warnings = [finding for finding in diagnosis.findings if finding.level == "warning"]
    first = warnings[0] if warnings else next(iter(diagnosis.findings), None)
    verdict = "Nothing stands out." if first is None else f"{first.title}."
    more = "" if first is None else f" {first.advice}"
    whole = diagnosis.whole
    most = max((c for c in whole.cosines if c is not None), key=abs, default=None)
    sizes = [norm for norm in whole.relative_norms if norm > 0]
    tiles = [
        (_number(most, 3), "largest cosine of two models' " + ("weights" if diagnosis.base is None else "differences")),
        (_percent(whole.conflict), "of elements that several changed much have differing signs"),
        (_number(max(sizes) / min(sizes) if sizes else None, 2), "largest over smallest difference"),
        (
            _percent(_mean([s.top_share for s in diagnosis.spectra if s is not None])),
            "of a difference in few directions",
        ),
    ]
    if diagnosis.cka:
        tiles.append((_number(min(min(row) for row in diagnosis.cka), 2), "lowest CKA of states"))
    shown = "".join(f"<div><dt>{escape(value)}</dt><dd>{escape(what)}</dd></div>" for value, what in tiles)
    return (
        f"<h1>Diagnosis of {escape(names)}{escape(against)}</h1>\n"
        f'<p class="verdict"><strong>{escape(verdict)}</strong>{escape(more)}</p>\n<dl class="figures">{shown}</dl>'
    )


def _findings(diagnosis: Diagnosis) -> str:
    if not diagnosis.findings:
        return ""
    items = []
    for finding in diagnosis.findings:
        css, sign = _SIGNS[finding.level]
        items.append(
            f'<li><p class="title"><span class="sign {css}" aria-label="{finding.level}">{sign}</span>'
            f"{escape(finding.title)} <small>{escape(finding.figure)}</small></p><p>{escape(finding.advice)}</p></li>"
        )
    return f'<section><h2>What follows</h2><ul class="findings">{"".join(items)}</ul></section>'


def _pairs(diagnosis: Diagnosis) -> str:
    if len(diagnosis.models) < 2:
        return ""
    short, whole = short_names(diagnosis), diagnosis.whole
    figures = dict(zip(diagnosis.pairs, whole.cosines, strict=True))
    shared = dict(zip(diagnosis.pairs, diagnosis.overlap or [None] * len(diagnosis.pairs), strict=True))
    what = "weights" if diagnosis.base is None else "differences from the base"

    def table(caption: str, values: dict[tuple[str, str], float | None], digits: int) -> str:
        head = "".join(f"<th scope=col>{escape(short[name])}</th>" for name in diagnosis.models)
        rows = []
        for first in diagnosis.models:
            cells = []
            for second in diagnosis.models:
                value = values.get((first, second), values.get((second, first)))
                size = None if value is None else abs(value)
                text = "" if first == second else _number(value, digits)
                cells.append(heat_cell(size, text, low=0.0, high=1.0))
            rows.append(f"<tr><th scope=row>{escape(short[first])}</th>{''.join(cells)}</tr>")
        drawn = (
            f'<table class="heat"><caption>{escape(caption)}</caption><thead><tr><td></td>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>"
        )
        return f"<div>{scrolling(drawn, caption)}</div>"

    maps = table(f"Cosine of {what}", figures, 3)
    if diagnosis.overlap:
        maps += table("Shared leading directions", shared, 2)
    chance = "" if not diagnosis.overlap else f" Random directions would share {_percent(diagnosis.overlap_by_chance)}."
    return (
        "<section><h2>Every two models</h2>"
        f'<p class="muted">Over all weights that can be compared; a stronger tint is a larger size.{escape(chance)}</p>'
        f'<div class="panels maps">{maps}</div></section>'
    )


def _chart(names: Sequence[str], columns: Sequence[Sequence[float]], title: str, x_name: str) -> str:
    series = [
        Series(name, f"m{1 + i % _STYLES}", tuple((float(x), value) for x, value in enumerate(column)))
        for i, (name, column) in enumerate(zip(names, columns, strict=True))
        if column
    ]
    if not series:
        return ""
    keys = "".join(
        '<li><svg class="stroke" viewBox="0 0 30 8" aria-hidden="true">'
        f'<path d="M0,4H30" class="line {one.css}"/></svg>'
        f"{escape(one.name)}</li>"
        for one in series
    )
    drawing = lines(series, title=title, x_name=x_name)
    return f'<figure><figcaption>{escape(title)}</figcaption>{drawing}<ul class="legend">{keys}</ul></figure>'


def _blocks(diagnosis: Diagnosis) -> str:
    short = short_names(diagnosis)
    names = [short[name] for name in diagnosis.models]
    size = "Norm" if diagnosis.base is None else "Size of the difference, in norms of the base"
    norms = [[block.relative_norms[i] for block in diagnosis.blocks] for i in range(len(names))]
    panels = _chart(names, norms, size, "block")
    conflicts = [block.conflict for block in diagnosis.blocks]
    if all(value is not None for value in conflicts) and len(names) > 1 and diagnosis.base is not None:
        panels += _chart(["all models"], [[c or 0.0 for c in conflicts]], "Share of conflicting signs", "block")
    return (
        f'<section><h2>Block by block</h2><div class="panels">{panels}</div>'
        f"{_part_table(diagnosis) if len(names) > 1 else ''}</section>"
    )


def _part_table(diagnosis: Diagnosis) -> str:
    present = [part for part in PARTS if any(key[1] == part for key in diagnosis.parts)]
    rows = []
    for block in sorted({key[0] for key in diagnosis.parts}):
        cells = []
        for part in present:
            found: Summary | None = diagnosis.parts.get((block, part))
            value = None if found is None else found.conflict
            cells.append(heat_cell(value, _percent(value), low=0.0, high=0.7))
        name = f"block {block}" if block >= 0 else "outside the blocks"
        rows.append(f"<tr><th scope=row>{name}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th scope=col>{part}</th>" for part in present)
    caption = "Conflicting signs by part"
    table = (
        f'<table class="heat"><caption>{caption}</caption><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return scrolling(table, caption)


def _spectra(diagnosis: Diagnosis) -> str:
    short = short_names(diagnosis)
    known = [(short[m], s) for m, s in zip(diagnosis.models, diagnosis.spectra, strict=True) if s is not None]
    if not known:
        return ""
    chart = _chart(
        [n for n, _ in known], [s.curve for _, s in known], "Singular values over the norm", "number, from 0"
    )
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{_percent(s.top_share)}</td><td>{s.stable_rank:.1f}</td>"
        f"<td>{s.largest_rank:.0f}</td></tr>"
        for name, s in known
    )
    table = (
        '<table class="plainly"><thead><tr><th scope=col>model</th><th scope=col>in the leading values</th>'
        "<th scope=col>stable rank</th><th scope=col>full rank</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
    return (
        '<section><h2>Spectra</h2><p class="muted">Mean over all matrices, each counted by its squared norm. A curve '
        "that falls steeply is a difference of few directions, as adapters make it.</p>"
        f'<div class="panels">{chart}<div>{scrolling(table, "Spectra")}</div></div></section>'
    )


def _states(diagnosis: Diagnosis) -> str:
    if not diagnosis.cka:
        return ""
    short = short_names(diagnosis)
    pairs = list(combinations(diagnosis.cka_models, 2))
    names = [f"{short[a]} and {short[b]}" for a, b in pairs]
    columns = [[row[i] for row in diagnosis.cka] for i in range(len(pairs))]
    order = sorted(range(len(pairs)), key=lambda i: min(columns[i]))[:_STYLES]
    chart = _chart([names[i] for i in order], [columns[i] for i in order], "CKA after each block", "block")
    few = "" if len(pairs) <= _STYLES else f" The {_STYLES} pairs that differ most are drawn."
    return (
        "<section><h2>States on the text</h2>"
        f'<p class="muted">Centred kernel alignment at {diagnosis.num_tokens} tokens or fewer: 1 is the same up to '
        f'rotation and scale, 0 is unrelated.{few}</p><div class="panels">{chart}</div></section>'
    )


def _tensors(diagnosis: Diagnosis) -> str:
    if len(diagnosis.models) < 2:
        return ""
    measured = [(Summary.of([tensor], len(diagnosis.models)), tensor) for tensor in diagnosis.tensors]
    ordered = sorted(measured, key=lambda entry: -(entry[0].conflict or 0.0) * max(entry[0].relative_norms))
    rows = []
    for summary, tensor in ordered[:_MOST_TENSORS]:
        most = max((c for c in summary.cosines if c is not None), key=abs, default=None)
        rows.append(
            f"<tr><th scope=row>{escape(tensor.name)}</th><td>{_number(max(summary.relative_norms), 4)}</td>"
            f"<td>{_number(most, 3)}</td><td>{_percent(summary.conflict)}</td></tr>"
        )
    table = (
        '<table class="plainly"><thead><tr><th scope=col>tensor</th><th scope=col>largest difference</th>'
        "<th scope=col>largest cosine</th><th scope=col>conflicting signs</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    count = f"{min(_MOST_TENSORS, len(ordered))} of {len(ordered)}"
    return (
        f"<section><details><summary>Tensors in most conflict ({count}; the JSON has all)</summary>"
        f"{scrolling(table, 'Tensors')}</details></section>"
    )


def _about(diagnosis: Diagnosis) -> str:
    facts = [(f"Model {i}", name) for i, name in enumerate(diagnosis.models, 1)]
    facts += [("Base", diagnosis.base or "none"), ("Architecture", diagnosis.architecture)]
    facts.append(("Elements compared", f"{diagnosis.whole.num_elements:,} in {len(diagnosis.tensors)} tensors"))
    facts += [("Not compared", f"{name}: {reason}") for name, reason in diagnosis.skipped[:8]]
    if len(diagnosis.skipped) > 8:
        facts.append(("Not compared", f"and {len(diagnosis.skipped) - 8} tensors more"))
    facts += [("Note", note) for note in diagnosis.notes]
    rows = "".join(f'<dt>{escape(name)}</dt><dd class="hash">{escape(value)}</dd>' for name, value in facts)
    return f'<section><h2>What was compared</h2><dl class="what">{rows}</dl></section>'


def _number(value: float | None, digits: int) -> str:
    return _DASH if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{value:.0%}".replace("-", "\N{MINUS SIGN}")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
