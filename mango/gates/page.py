"""The page of a gate: which expectation failed, in which rows and why, in one file that asks for nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from mango.gates.checks import Finding

_SUBJECT = {
    "corpus": "the corpus, before training",
    "blocks": "the table of blocks, after extraction",
    "metrics": "the evaluation, before packaging",
}
_HEADS = {
    "row": "row",
    "doc_id": "document",
    "file_row": "row in the file",
    "num_nonfinite": "not finite",
}


def render(gate: str, source: str, num_rows: Mapping[str, int], findings: Sequence[Finding]) -> str:
    """Return the HTML page of a gate.

    Args:
        gate: name of the gate.
        source: what was checked.
        num_rows: rows of each table.
        findings: one for each expectation.
    """
    failures = [finding for finding in findings if not finding.passed]
    held = [finding for finding in findings if finding.passed]
    verdict = (
        f"Stopped: {len(failures)} of {len(findings)} checks failed."
        if failures
        else f"Passed: all {len(findings)} checks hold."
    )
    tables = ", ".join(f"{name} ({count:,} rows)" for name, count in num_rows.items())
    parts = [
        f"<h1>Gate: {escape(_SUBJECT.get(gate, gate))}</h1>",
        f'<p class="verdict {"bad" if failures else "good"}">{verdict}</p>',
        f'<p class="soft">Checked <code>{escape(source)}</code>: {escape(tables)}. Rows count from 0.</p>',
    ]
    if failures:
        parts += ["<h2>What failed</h2>", *(_card(finding) for finding in failures)]
        parts.append("<p>The pipeline stopped here, and later stages did not run. Mend the input and run it again.</p>")
    if held:
        items = "".join(
            f"<li>{escape(finding.rule)} <code>{escape(finding.expectation)}</code></li>" for finding in held
        )
        opened = "" if failures else " open"
        parts.append(f"<details{opened}><summary><h2>What holds ({len(held)})</h2></summary><ul>{items}</ul></details>")
    style = files("mango.gates").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(gate)} gate: {'failed' if failures else 'passed'}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(parts)}\n</main>\n</body>\n</html>\n"
    )


def _card(finding: Finding) -> str:
    where = f'<p class="soft">Table {escape(finding.table)}, <code>{escape(finding.expectation)}</code></p>'
    count = f" ({finding.num_rows:,} row{'s' if finding.num_rows != 1 else ''})" if finding.num_rows else ""
    lines = [f"<h3>{escape(finding.rule)}</h3>", f'<p class="why">{escape(finding.why)}{count}</p>', where]
    if finding.rows:
        lines.append(_table(finding.rows, finding.num_rows))
    return f"<article>{''.join(lines)}</article>"


def _table(rows: Sequence[Mapping[str, Any]], num_rows: int) -> str:
    if "file_row" in rows[0]:  # the row in the joined table says nothing more
        rows = [{name: value for name, value in row.items() if name != "row"} for row in rows]
    names = {name: _HEADS.get(name, name.replace("_", " ")) for name in rows[0]}
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names.values())
    body = "".join(f"<tr>{''.join(_cell(names[name], row[name]) for name in names)}</tr>" for row in rows)
    caption = f"<caption>The first {len(rows)} of {num_rows:,}</caption>" if num_rows > len(rows) else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(label: str, value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f'<td data-label="{escape(label)}">{escape(text)}</td>'
