from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from mango.gates import Check, Finding, run_checks, write_report

LOADS = {"src", "href", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in LOADS]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    failure = Finding(
        "documents",
        "No text has a NUL character",
        "expect_column_values_to_not_match_regex",
        False,
        "the text holds a NUL",
        25,
        (
            {"row": 3, "text": "<script src='https://example.org/x.js'></script> & \\0"},
            {"row": 5, "text": "(no value)"},
        ),
    )
    held = Finding("documents", "There are documents", "expect_table_row_count_to_be_between", True)
    report = write_report("corpus", "data/<corpus>", {"documents": 36}, [failure, held], {}, tmp_path)
    return report.page.read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_outside_itself(page: str) -> None:
    parsed = Page(page)
    assert [address for address in parsed.addresses if not address.startswith("data:")] == []
    assert not {"script", "img", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert not re.search(r"url\(|@import", page)
    assert "default-src 'none'" in page


def test_the_page_fits_a_phone(page: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "@media (max-width: 40rem)" in page
    assert 'class="scroll"' in page


def test_the_page_says_what_failed_where_and_why(page: str) -> None:
    text = Page(page).text
    for words in (
        "Gate: the corpus, before training",
        "Stopped: 1 of 2 checks failed.",
        "No text has a NUL character",
        "the text holds a NUL (25 rows)",
        "The first 2 of 25",
        "<script src='https://example.org/x.js'></script> & \\0",
        "data/<corpus>",
        "There are documents",
    ):
        assert words in text


def test_a_failed_report_is_machine_readable_without_nan(tmp_path: Path) -> None:
    frame = pd.DataFrame({"name": ["a", "b", "c"], "value": [1.0, float("nan"), float("inf")]})
    shows = ("name", "value")
    checks = [
        Check("all there", "no value", "ExpectColumnValuesToNotBeNull", {"column": "value"}, shows),
        Check("small", "too large", "ExpectColumnValuesToBeBetween", {"column": "value", "max_value": 10}, shows),
        Check("also there", "", "ExpectColumnValuesToNotBeNull", {"column": "absent"}),
        Check("comparable", "", "ExpectColumnValuesToBeBetween", {"column": "name", "min_value": 1}),
    ]
    findings = run_checks("things", frame, checks)
    assert [finding.rows for finding in findings] == [
        ({"row": 1, "name": "b", "value": "(no value)"},),
        ({"row": 2, "name": "c", "value": "inf"},),
        (),
        (),
    ]
    assert findings[2].why == "cannot be checked: there is no column absent"
    assert findings[3].why.startswith("cannot be checked: ")
    assert not any(finding.passed for finding in findings)
    report = write_report("things", "x", {"things": 3}, findings, {}, tmp_path)
    assert "NaN" not in report.page.with_suffix(".json").read_text()


def test_checks_draw_no_progress_bar(capfd: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"a": [1]})
    run_checks("t", frame, [Check("r", "w", "ExpectColumnValuesToNotBeNull", {"column": "a"})])
    assert capfd.readouterr() == ("", "")


def test_importing_the_gates_imports_neither_great_expectations_nor_pandas() -> None:
    code = (
        "import sys, mango.gates\n"
        "heavy = {'great_expectations', 'pandas', 'pyarrow', 'datasets', 'transformers'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
