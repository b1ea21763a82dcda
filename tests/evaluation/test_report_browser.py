"""The report in a real browser: nothing from outside, no complaint, right at phone and desktop width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mango.evaluation.report_html import render
from mango.evaluation.schema import parse
from tests.evaluation.browser import Browser
from tests.evaluation.make_example import example

pytestmark = pytest.mark.slow

# Elements that stick out of the page and do not lie inside an area that scrolls on its own.
STICKING_OUT = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5).map(e => e.outerHTML.slice(0, 80))
"""
CONTRAST = """
(() => {
  const lum = c => { const v = c.map(x => { x /= 255; return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4 });
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2] };
  const rgba = s => { const n = s.match(/[\\d.]+/g).map(Number);
    return s.startsWith('color(') ? [...n.slice(-4, -1).map(x => x * 255), n.at(-1)] : n.length < 4 ? [...n, 1] : n };
  const over = e => {
    const layers = [];
    for (let p = e; p; p = p.parentElement) layers.push(rgba(getComputedStyle(p).backgroundColor));
    let c = [255, 255, 255];
    for (const l of layers.reverse()) c = c.map((x, i) => x * (1 - l[3]) + l[i] * l[3]);
    return c;
  };
  let worst = 99;
  for (const e of document.querySelectorAll('p, dt, dd, th, td, small, .run, .tag, .domain, summary, pre, h1, h2')) {
    const a = lum(rgba(getComputedStyle(e).color)), b = lum(over(e));
    worst = Math.min(worst, (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
  }
  return worst;
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(parse(example())), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(need: Callable[[str], Path]) -> Iterator[Browser]:
    with Browser(str(need("chromium"))) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_opens_alone_and_fits(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.requested() == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(STICKING_OUT) == []
    assert browser.evaluate("document.querySelectorAll('svg').length") == 8
    assert browser.evaluate(CONTRAST) >= 4.5


def test_light_and_dark_differ(browser: Browser, page: Path) -> None:
    colours = []
    for dark in (False, True):
        browser.open(page, width=1280, dark=dark)
        colours.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(246, 247, 249)", "rgb(16, 19, 23)"]


def test_the_verdict_is_what_a_person_sees_first(browser: Browser, page: Path) -> None:
    browser.open(page, width=360)
    assert browser.evaluate("document.querySelector('.verdict').getBoundingClientRect().bottom") < 400
    browser.open(page, width=1280)
    table = "document.querySelector('.systems').closest('.scroll')"
    assert browser.evaluate(f"{table}.scrollWidth <= {table}.clientWidth")


def test_an_expert_is_told_by_words_and_not_by_colour_alone(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280)
    runs = "[...document.querySelectorAll('.routed .run')]"
    assert browser.evaluate(f"{runs}.length") > 4
    assert browser.evaluate(f"{runs}.every(e => e.title && e.querySelector('.tag').innerText.length > 0)")


def test_long_names_and_many_experts_do_not_widen_the_page(browser: Browser, tmp_path: Path) -> None:
    evaluation = example()
    endless = "a_name_without_any_place_to_break_it_" * 4
    experts = ["anchor", *(f"expert_{i}" for i in range(12)), endless]
    for position in evaluation["routing"]["positions"]:
        position["experts"] = experts
        for routed in position["by_domain"].values():
            routed["utilisation"] = [1 / len(experts)] * len(experts)
    for system in evaluation["systems"][3:6]:
        system["label"] = endless
    for token in evaluation["routing"]["sample"][0]["tokens"][:9]:
        token.update(expert=endless, text=endless)
    evaluation["provenance"]["commands"] = [endless * 5]
    page = tmp_path / "long.html"
    page.write_text(render(parse(evaluation)), encoding="utf-8")
    for width in (360, 1280):
        browser.open(page, width=width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(STICKING_OUT) == []


def test_the_browser_test_would_notice(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body><img src="http://127.0.0.1:9/x.png"><script>throw new Error("x")</script><p style="width:900px">'
    )
    browser.open(bad, width=360)
    assert "http://127.0.0.1:9/x.png" in browser.requested()
    assert browser.complaints() != []
    assert browser.evaluate("document.documentElement.scrollWidth") > 360
