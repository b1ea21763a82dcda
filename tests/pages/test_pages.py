"""What pages are made of: escaped, self-contained, and drawn with round ticks."""

from __future__ import annotations

import re

from mango.pages import Series, heat_cell, lines, number, page, scrolling, ticks


def test_ticks_are_round_and_cover_the_range() -> None:
    assert ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert ticks(2.97, 4.61) == [3.0, 3.5, 4.0, 4.5]
    assert ticks(1.0, 1.0) == [1.0]


def test_a_page_escapes_its_title_and_names_no_address() -> None:
    made = page("<b>&", [scrolling("<table></table>", 'a "b"')], css=".own { color: red; }")
    assert "<title>&lt;b&gt;&amp;</title>" in made
    assert 'aria-label="a &quot;b&quot;"' in made
    assert made.index(".own {") > made.index(":root {")
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|https?:", made)
    assert "default-src 'none'" in made


def test_a_heat_cell_is_tinted_by_its_place_in_the_range() -> None:
    shares = [heat_cell(value, "x", low=0.0, high=2.0) for value in (-1.0, 0.5, 3.0)]
    assert [re.findall(r"--v:([\d.]+)", cell)[0] for cell in shares] == ["0.000", "0.250", "1.000"]
    assert heat_cell(None, "-", low=0, high=1) == '<td class="plain">-</td>'
    assert "cell top" in heat_cell(1.0, "x", low=0.0, high=1.0, strong=True)
    assert "0.000" in heat_cell(1.0, "x", low=1.0, high=1.0)


def test_lines_carry_title_and_values() -> None:
    drawn = lines([Series("loss <a>", "main", ((0, 1.0), (10, 2.0)), dots=True)], title="a & b", x_name="step")
    assert "<title>a &amp; b</title>" in drawn
    assert "loss &lt;a&gt;, step 10: 2" in drawn
    assert drawn.count("<circle") == 2
    assert number(-0.25) == "\N{MINUS SIGN}0.25"
