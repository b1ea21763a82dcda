"""The report's samples: text coloured by the expert that processed each token."""

from __future__ import annotations

from html import escape
from itertools import groupby

from mango.evaluation.schema import Evaluation, Sample

ANCHOR = "anchor"
_COLOURS = 8


def expert_colours(evaluation: Evaluation) -> dict[str, int]:
    """Return the colour of each expert, the same in all parts of the page; the anchor is grey."""
    seen: dict[str, None] = {}
    for position in evaluation.routing.positions:
        seen.update(dict.fromkeys(position.experts))
    for sample in evaluation.routing.sample:
        for token in sample.tokens:
            seen.update(dict.fromkeys((token.expert, *token.path)))
    others = [name for name in seen if name != ANCHOR]
    return {ANCHOR: 0} | {name: 1 + i % (_COLOURS - 1) for i, name in enumerate(others)}


def sample_section(sample: Sample, evaluation: Evaluation) -> str:
    """Return a text coloured by expert: at the first position, and folded below at every other one.

    Args:
        sample: the text.
        evaluation: the evaluation that it is of.
    """
    colours = expert_colours(evaluation)
    first = [token.expert for token in sample.tokens]
    used = {*first, *(expert for token in sample.tokens for expert in token.path)}
    legend = "".join(
        f"<li>{_run(colours[name], name, '&nbsp;' * 5, f'expert {name}')}</li>" for name in colours if name in used
    )
    depth = len(sample.tokens[0].path)
    numbers = [position.position for position in evaluation.routing.positions]
    others = "".join(
        f"<details><summary>Position {numbers[place]}</summary>"
        f"{_text(sample, [token.path[place] for token in sample.tokens], colours, 'folded')}</details>"
        for place in range(1, depth)
    )
    return (
        f"<section><h2>{escape(sample.title)}, by chosen expert</h2>"
        '<p class="muted">Each run of text begins with the name of the expert that the router chose; '
        "the small headings say which domain the text comes from.</p>"
        f'<ul class="experts" aria-label="Experts">{legend}</ul>{_text(sample, first, colours)}{others}</section>'
    )


def _run(colour: int, expert: str, body: str, tip: str) -> str:
    tag = f'<b class="tag">{escape(expert)}</b>'
    return f'<span class="run b{colour % 4}" style="--c:var(--e{colour})" title="{escape(tip)}">{tag}{body}</span>'


def _text(sample: Sample, experts: list[str], colours: dict[str, int], css: str = "routed") -> str:
    pieces = []
    chosen = zip(sample.tokens, experts, strict=True)
    for domain, in_domain in groupby(chosen, key=lambda pair: pair[0].domain):
        pieces.append(f'<span class="domain">{escape(domain)}</span>')
        runs = [(name, [token.text for token, _ in pairs]) for name, pairs in groupby(in_domain, key=lambda p: p[1])]
        for i, (expert, texts) in enumerate(runs):
            text = "".join(texts)
            shown = text.rstrip("\n") if i + 1 == len(runs) else text
            plural = "token" if len(texts) == 1 else "tokens"
            tip = f"expert {expert}, {len(texts)} {plural} of {domain} text"
            pieces.append(_run(colours[expert], expert, escape(shown), tip))
    return f'<div class="{css}">{"".join(pieces)}</div>'
