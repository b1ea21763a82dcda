"""The report's section on where experts are cut: how alike trunk and expert are at each pair of depths."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mango.evaluation.schema import Alignment
from mango.pages import heat_cell, scrolling


def layers_section(alignments: Sequence[Alignment]) -> str:
    """Return the section; empty where nothing was proposed.

    Args:
        alignments: what was found of each expert.
    """
    if not alignments:
        return ""
    tables = "".join(f"<div>{_matrix(one)}{_found(one)}</div>" for one in alignments)
    return (
        "<section><h2>Where experts are cut</h2>"
        '<p class="muted">Centred kernel alignment of the states of trunk (rows) and expert (columns) at each '
        "depth, on calibration text; 1 is the same up to rotation and scale. The expert is cut at pairs in bold.</p>"
        f'<div class="panels maps">{tables}</div></section>'
    )


def _matrix(one: Alignment) -> str:
    head = "".join(f'<th scope="col">{depth}</th>' for depth in range(len(one.cka[0])))
    body = "".join(
        f'<tr><th scope="row">{ours}</th>'
        + "".join(
            heat_cell(value, f"{value:.2f}", low=0.0, high=1.0, strong=(ours, theirs) in one.taken)
            for theirs, value in enumerate(row)
        )
        + "</tr>"
        for ours, row in enumerate(one.cka)
    )
    caption = f"Trunk and {one.expert}"
    table = f'<table class="heat"><caption>{escape(caption)}</caption><thead><tr><td></td>{head}</tr></thead>'
    return scrolling(f"{table}<tbody>{body}</tbody></table>", caption)


def _found(one: Alignment) -> str:
    return f'<p class="muted">{escape(words(one))}</p>'


def words(one: Alignment) -> str:
    """Return in one sentence where an expert is cut, and how alike the states there are.

    Args:
        one: what was found of it.
    """
    likeness = {
        (cut, depth): one.fit[row][depth - 1] if one.measure == "fit" else one.cka[cut][depth]
        for row, cut in enumerate(one.trunk_cuts)
        for depth in range(1, len(one.cka[0]) - 1)
    }
    if one.taken:
        pairs = ", ".join(f"trunk {a} and expert {b} ({likeness[a, b]:.2f})" for a, b in one.taken)
        return f"Cut at {pairs}; {one.measure} is at least {one.least:g}."
    most = f": the most is {max(likeness.values()):.2f}" if likeness else ""
    return f"Not cut: no pair of depths has {one.measure} of at least {one.least:g}{most}."
