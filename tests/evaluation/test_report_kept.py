"""The report's sections on what is kept, how sure systems are, and which tokens go where."""

from __future__ import annotations

import csv
from pathlib import Path

from mango.evaluation.report import tables
from mango.evaluation.report_html import render
from mango.evaluation.schema import parse
from tests.evaluation.make_example import example


def section(page: str, heading: str) -> str:
    return page.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]


def test_every_expert_has_a_row_of_what_is_kept() -> None:
    evaluation = parse(example())
    found = section(render(evaluation), "What is kept of each expert")
    for kept in evaluation.retention:
        cells = found.split(f'<th scope="row">{kept.expert}</th>')[1].split("</tr>")[0]
        assert f"{kept.own:.3f}" in cells
        assert f"{kept.kept_hard:.1%}" in cells
        assert "93%" in cells


def test_calibration_is_drawn_and_in_a_table() -> None:
    evaluation = parse(example())
    found = section(render(evaluation), "How sure of the next token")
    assert found.count("<circle") == 8  # four bins of two systems
    assert found.count("<tr>") == 1 + len(evaluation.calibration)
    assert "0.020" in found
    lines = tables(evaluation)["calibration.csv"].splitlines()
    assert lines[0] == "system,confidence,accuracy,share"
    assert len(lines) == 1 + 4 * 3


def test_without_figures_there_are_no_empty_sections() -> None:
    document = example()
    document["retention"], document["calibration"] = [], {}
    page = render(parse(document))
    assert "What is kept" not in page
    assert "How sure" not in page


def test_text_is_coloured_at_every_position() -> None:
    page = section(render(parse(example())), "Test text that switches domain, by chosen expert")
    first, *others = page.split("<details>")
    assert [part.split("</summary>")[0] for part in others] == [f"<summary>Position {i}" for i in (1, 2, 3)]
    # One token of each domain has experts of its own at the later positions.
    assert first.count('title="expert maths_gpt2, 1 token') == 1
    assert others[1].count('title="expert anchor, 1 token of maths text"') == 1
    assert others[0].count("maths_gpt2") == 0


def test_operations_stand_in_the_table_and_in_the_file(tmp_path: Path) -> None:
    document = example()
    document["systems"][0]["flops"] = 22.25e6
    evaluation = parse(document)
    found = section(render(evaluation), "Work, counted")
    cells = found.split("Fused, soft</th>")[1].split("</tr>")[0]
    assert "22.25" in cells
    assert f"{22.25 / 3.7:.3f}" in cells
    assert '<th scope="row">Oracle' in render(evaluation)
    (tmp_path / "systems.csv").write_text(tables(evaluation)["systems.csv"])
    with (tmp_path / "systems.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["flops"] == "22250000.0"
