"""The report's tables: all systems side by side, and what the router chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from mango.evaluation.report_words import KINDS, describe, spaced
from mango.evaluation.schema import Evaluation, RoutedPosition, System

_DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """One column of the table of systems."""

    heading: str
    value: Callable[[System], float | None]
    digits: int
    spread: Callable[[System], float | None] | None = None
    best: Callable[[Sequence[float]], float] | None = min
    starts_group: bool = False


def columns(evaluation: Evaluation) -> list[Column]:
    """Return the columns of the table of systems, in order."""

    def of_domain(domain: str) -> Column:
        return Column(domain, lambda system: system.pure[domain], 3)

    return [
        Column("Mean of domains", lambda s: s.pure_mean, 3, spread=lambda s: s.pure_se),
        *(of_domain(domain) for domain in evaluation.domains),
        Column("Switching text", lambda s: s.switching, 3, spread=lambda s: s.switching_se, starts_group=True),
        Column("Cost, pure", lambda s: s.cost, 2, best=None, starts_group=True),
        Column("Cost, switching", lambda s: s.cost_switching, 2, best=None),
        Column("Tokens per\N{NO-BREAK SPACE}s", lambda s: s.tokens_per_s, 0, best=max),
        Column("Memory, MB", lambda s: s.peak_memory_mb, 0),
    ]


def _shown(value: float | None, digits: int) -> str:
    return _DASH if value is None else f"{value:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _cell(column: Column, system: System, best: str | None) -> str:
    text = _shown(column.value(system), column.digits)
    css = [
        name for name, on in (("best", text == best and system.kind != "oracle"), ("first", column.starts_group)) if on
    ]
    spread = column.spread(system) if column.spread else None
    if spread is not None:
        text += f" <small>\N{PLUS-MINUS SIGN}{spread:.{column.digits}f}</small>"
    return f'<td class="{" ".join(css)}">{text}</td>' if css else f"<td>{text}</td>"


def systems_table(evaluation: Evaluation) -> str:
    """Return the table of systems, grouped by kind; the best of each column that no oracle holds is bold."""
    shown = columns(evaluation)
    best: list[str | None] = []
    for column in shown:
        values = [column.value(system) for system in evaluation.systems if system.kind != "oracle"]
        known = [value for value in values if value is not None]
        best.append(_shown(column.best(known), column.digits) if column.best and known else None)
    pure, switching = spaced(evaluation.units.pure), spaced(evaluation.units.switching)
    wide = len(evaluation.domains) + 1
    head = (
        f'<tr><th></th><th colspan="{wide}" scope="colgroup">{escape(pure)}, lower is better</th>'
        f'<th class="first" scope="colgroup">{escape(switching)}</th>'
        '<th class="first" colspan="2" scope="colgroup">tokens, in experts</th>'
        '<th colspan="2" scope="colgroup">measured</th></tr>'
    )
    names = "".join(
        f'<th scope="col"{" class=first" if column.starts_group else ""}>{escape(column.heading)}</th>'
        for column in shown
    )
    body = []
    for kind, heading in KINDS.items():
        members = [system for system in evaluation.systems if system.kind == kind]
        if not members:
            continue
        css = ' class="fused"' if kind == "fused" else ""
        rows = "".join(
            f'<tr{css}><th scope="row" title="{escape(describe(system))}">{escape(system.label)}</th>'
            + "".join(_cell(column, system, top) for column, top in zip(shown, best, strict=True))
            + "</tr>"
            for system in members
        )
        rest = f'<td colspan="{len(shown)}"></td>'
        body.append(f'<tbody><tr class="group"><th scope="rowgroup">{escape(heading)}</th>{rest}</tr>{rows}</tbody>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of systems"><table class="systems">'
        f'<thead>{head}<tr><th scope="col">System</th>{names}</tr></thead>{"".join(body)}</table></div>'
    )


def _heat_table(
    caption: str, experts: Sequence[str], rows: Sequence[tuple[str, Sequence[float], Sequence[str], str]], extra: str
) -> str:
    """Return one heatmap: for each row its name, shares (colour), texts (numbers) and a last plain cell."""
    head = "".join(f'<th scope="col">{escape(expert)}</th>' for expert in (*experts, extra))
    body = []
    for name, shares, texts, last in rows:
        top = max(shares)
        cells = "".join(
            f'<td class="cell{" top" if share == top else ""}" style="--v:{min(share, 1.0):.3f}">{escape(text)}</td>'
            for share, text in zip(shares, texts, strict=True)
        )
        body.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td class="plain">{escape(last)}</td></tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="heat">'
        f"<caption>{escape(caption)}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def router_heatmap(position: RoutedPosition, domains: Sequence[str]) -> str:
    """Return the heatmap of one position: domains by experts, each cell the mean weight of that expert."""
    rows = []
    for domain in domains:
        routed = position.by_domain[domain]
        texts = [f"{share:.2f}" for share in routed.utilisation]
        rows.append((domain, routed.utilisation, texts, f"{routed.entropy_nats:.2f}"))
    return _heat_table(f"Position {position.position}", position.experts, rows, "entropy, nats")


def processed_heatmap(evaluation: Evaluation) -> str:
    """Return the heatmap of the tokens that each expert really processed, by domain."""
    table = evaluation.routing.processed
    experts = list(dict.fromkeys(expert for domain in evaluation.domains for expert in table[domain]))
    rows = []
    for domain in evaluation.domains:
        counts = [table[domain].get(expert, 0) for expert in experts]
        total = sum(counts)
        shares = [count / total if total else 0.0 for count in counts]
        rows.append((domain, shares, [_shown(count, 0) for count in counts], _shown(total, 0)))
    return _heat_table("Tokens that each expert processed", experts, rows, "all")
