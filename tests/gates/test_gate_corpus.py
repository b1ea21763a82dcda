from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mango.corpus import SPLITS, CorpusParams
from mango.errors import DataError, GateError
from mango.gates import GateParams, GateReport, run_corpus_gate

Tables = dict[str, pd.DataFrame]
Run = Callable[..., GateReport]


def table(split: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "doc_id": f"{split}/{domain}/{number}",
                "domain": domain,
                "text": f"{split} {domain} text number {number}\n",
                "source": "made",
                "licence": "CC0-1.0",
            }
            for domain in ("code", "novels")
            for number in range(6)
        ]
    )


@pytest.fixture
def tables() -> Tables:
    return {split: table(split) for split in SPLITS}


@pytest.fixture
def run(tables: Tables, tmp_path: Path) -> Run:
    def gate(domains: tuple[str, ...] = (), **bounds: Any) -> GateReport:
        (tmp_path / "corpus").mkdir(exist_ok=True)
        for split, frame in tables.items():
            frame.to_parquet(tmp_path / "corpus" / f"{split}.parquet")
        params = CorpusParams(path=tmp_path / "corpus", domains=domains)
        return run_corpus_gate(params, GateParams.model_validate({"corpus": bounds}), tmp_path / "gates")

    return gate


def failed(report: GateReport) -> dict[str, list[tuple[Any, Any]]]:
    """The failed rules, each with split and row in the file of its rows."""
    return {f.rule: [(row.get("split"), row.get("file_row")) for row in f.rows] for f in report.failures}


def test_a_good_corpus_passes(run: Run) -> None:
    report = run()
    report.raise_if_failed()
    assert report.passed
    assert report.num_rows == {"documents": 36, "domain shares": 6}
    record = json.loads(report.page.with_suffix(".json").read_text())
    assert (record["gate"], record["passed"], record["num_failures"]) == ("corpus", True, 0)
    assert record["num_checks"] == len(record["checks"]) == len(report.findings) > 20
    assert "Passed: all" in report.page.read_text()


def test_the_same_corpus_gives_the_same_bytes(run: Run) -> None:
    first = run()
    content = [first.page.read_bytes(), first.page.with_suffix(".json").read_bytes()]
    second = run()
    assert [second.page.read_bytes(), second.page.with_suffix(".json").read_bytes()] == content


def test_bad_rows_are_named_with_their_split_and_file(run: Run, tables: Tables) -> None:
    train, test = tables["train"], tables["test"]
    train.loc[3, "text"] = "abc\0def"
    train.loc[4, "text"] = "broken \ufffd text"
    train.loc[5, "text"] = ""
    test.loc[7, "doc_id"] = test.loc[8, "doc_id"]
    test.loc[0, "licence"] = None
    test.loc[1, "source"] = ""
    report = run()
    assert failed(report) == {
        "No text has a NUL character": [("train", 3)],
        "No text has a replacement character": [("train", 4)],
        "Every text has 1 to 1,000,000 characters": [("train", 5)],
        "Every doc_id occurs once in its split": [("test", 7), ("test", 8)],
        "Every document has a licence": [("test", 0)],
        "No source is an empty text": [("test", 1)],
    }
    (nul,) = [finding for finding in report.failures if "NUL" in finding.rule]
    assert nul.rows[0]["excerpt"] == "abc\\0def"
    assert nul.expectation == "expect_column_values_to_not_match_regex"
    with pytest.raises(GateError, match=r"gate failed in 6 of \d+ checks: .*; and 3 more\. See .*corpus\.html"):
        report.raise_if_failed()
    page = report.page.read_text()
    assert "\0" not in page
    assert "abc\\0def" in page


def test_splits_that_overlap_are_refused(run: Run, tables: Tables) -> None:
    tables["test"].loc[2, "doc_id"] = tables["train"].loc[9, "doc_id"]
    tables["validation"].loc[4, "text"] = tables["train"].loc[0, "text"]
    report = run()
    assert failed(report) == {
        "No doc_id stands in two splits": [("train", 9), ("test", 2)],
        "No text stands in two splits": [("train", 0), ("validation", 4)],
    }


def test_domain_shares_are_bounded_in_every_split(run: Run, tables: Tables) -> None:
    tables["test"] = tables["test"].iloc[:8]  # two novels are left
    tables["validation"].loc[tables["validation"]["domain"] == "code", "text"] *= 1_000
    report = run(min_documents=3, max_text_chars=10**6)
    shares = {f.rule: [(row["split"], row["domain"]) for row in f.rows] for f in report.failures if f.rows}
    assert shares == {
        "Every domain has at least 3 documents in every split": [("test", "novels")],
        "Every domain has at least 2.0% of the bytes of every split": [("validation", "novels")],
    }


def test_a_domain_that_is_missing_from_a_split_is_named(run: Run, tables: Tables) -> None:
    report = run(domains=("code", "poems"))
    rows = [row for finding in report.failures for row in finding.rows]
    assert {(row["split"], row["domain"]) for row in rows} == {(split, "poems") for split in SPLITS}


def test_only_the_chosen_domains_are_checked(run: Run, tables: Tables) -> None:
    tables["train"].loc[tables["train"]["domain"] == "novels", "text"] = "bad \0"
    assert run(domains=("code",)).passed
    assert not run().passed


def test_a_missing_column_fails_and_names_it(run: Run, tables: Tables) -> None:
    tables["test"] = tables["test"].drop(columns=["domain", "licence"])
    report = run()
    first = report.failures[0]
    assert (first.rule, first.why) == (
        "The table has all its columns",
        "columns are missing in at least one split: domain, licence",
    )
    whys = {finding.why for finding in report.failures[1:]}
    assert whys == {"cannot be checked: there is no column domain", "cannot be checked: there is no column licence"}


def test_a_column_of_another_type_fails(run: Run, tables: Tables) -> None:
    for frame in tables.values():
        frame["source"] = 7
    report = run()
    whys = {finding.rule: finding.why for finding in report.failures}
    assert whys["Column source is text"] == "the column has another type: found int64"


def test_an_empty_corpus_fails(run: Run, tables: Tables) -> None:
    for split in tables:
        tables[split] = tables[split].iloc[:0]
    assert "There are documents" in failed(run())


def test_at_most_twenty_rows_are_listed_and_all_are_counted(run: Run, tables: Tables) -> None:
    for frame in tables.values():
        frame["text"] += "\0"
    report = run()
    (finding,) = report.failures
    assert (finding.num_rows, len(finding.rows)) == (36, 20)
    assert "The first 20 of 36" in report.page.read_text()
    with pytest.raises(GateError, match=r"split=train file_row=4 doc_id=train/code/4; 31 more\)"):
        report.raise_if_failed()


def test_what_is_no_table_is_an_error(run: Run, tables: Tables, tmp_path: Path) -> None:
    run()
    (tmp_path / "corpus" / "test.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"test\.parquet: this is no readable parquet file"):
        run_corpus_gate(CorpusParams(path=tmp_path / "corpus"), GateParams(), tmp_path / "gates")
    with pytest.raises(DataError, match=r"train\.parquet is missing"):
        run_corpus_gate(CorpusParams(path=tmp_path / "nowhere"), GateParams(), tmp_path / "gates")


def test_the_shipped_corpus_passes(tmp_path: Path) -> None:
    shipped = CorpusParams(path=Path(__file__).parents[2] / "data" / "corpus")
    assert run_corpus_gate(shipped, GateParams(), tmp_path).failures == ()


def test_contradicting_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="max_text_chars: 3 is less than min_text_chars, 5"):
        GateParams.model_validate({"corpus": {"min_text_chars": 5, "max_text_chars": 3}})
