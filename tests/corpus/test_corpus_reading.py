from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from mango.corpus import COLUMNS, CorpusParams, corpus_sha256, read_split
from mango.errors import DataError

Rows = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]


def test_reads_every_row_with_its_columns(corpus: Path, made_rows: Rows) -> None:
    dataset = read_split(CorpusParams(path=corpus), "test")
    assert dataset.column_names == list(COLUMNS)
    assert list(dataset["text"]) == [row["text"] for row in made_rows()]


def test_keeps_the_chosen_domains_alone(corpus: Path) -> None:
    dataset = read_split(CorpusParams(path=corpus, domains=("novels", "code")), "train")
    assert set(dataset["domain"]) == {"code", "novels"}
    assert len(dataset) == 24


def test_reads_a_file_that_changed_since(corpus: Path, made_rows: Rows, write: Write) -> None:
    assert len(read_split(CorpusParams(path=corpus), "test")) == 36
    write(corpus / "test.parquet", made_rows(2))
    assert len(read_split(CorpusParams(path=corpus), "test")) == 6


def test_a_folder_name_is_no_pattern(tmp_path: Path, made_rows: Rows, write: Write) -> None:
    write(tmp_path / "a[b]*" / "test.parquet", made_rows(1))
    assert len(read_split(CorpusParams(path=tmp_path / "a[b]*"), "test")) == 3


def test_draws_no_progress_bar_and_leaves_the_setting(corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    before = datasets.are_progress_bars_disabled()
    read_split(CorpusParams(path=corpus), "validation")
    assert datasets.are_progress_bars_disabled() is before
    assert capfd.readouterr() == ("", "")


def test_an_unknown_split_is_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"unknown split 'dev' of the corpus\. Known: train, validation, test"):
        read_split(CorpusParams(path=corpus), "dev")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.parquet is missing; corpus\.path must name a folder"):
        read_split(CorpusParams(path=tmp_path), "train")


def test_a_file_that_is_no_parquet_is_named(corpus: Path) -> None:
    (corpus / "test.parquet").write_bytes(b"not parquet at all, and long enough for a footer")
    with pytest.raises(DataError, match=r"test\.parquet: this is no readable parquet file"):
        read_split(CorpusParams(path=corpus), "test")


def test_damage_in_the_middle_of_a_file_is_an_error_of_ours(corpus: Path) -> None:
    path = corpus / "test.parquet"
    content = bytearray(path.read_bytes())
    content[4:600] = b"\xff" * 596
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"test\.parquet: the file cannot be read to its end"):
        read_split(CorpusParams(path=corpus), "test")


def test_a_missing_column_is_named(tmp_path: Path, made_rows: Rows, write: Write) -> None:
    schema = pa.schema([(name, pa.string()) for name in ("doc_id", "domain", "text")])
    write(tmp_path / "test.parquet", made_rows(1), schema)
    with pytest.raises(DataError, match="missing column source, licence; found doc_id, domain, text, wanted"):
        read_split(CorpusParams(path=tmp_path), "test")


def test_a_column_of_another_type_is_named(tmp_path: Path, made_rows: Rows, write: Write) -> None:
    schema = pa.schema([(name, pa.int64() if name == "source" else pa.string()) for name in COLUMNS])
    write(tmp_path / "test.parquet", [{**row, "source": 1} for row in made_rows(1)], schema)
    with pytest.raises(DataError, match=r"column source is int64, wanted text \(string\)"):
        read_split(CorpusParams(path=tmp_path), "test")


def test_an_empty_corpus_is_refused(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "test.parquet", [])
    with pytest.raises(DataError, match="the corpus is empty"):
        read_split(CorpusParams(path=tmp_path), "test")


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("column", ["text", "domain"])
def test_rows_without_a_value_are_named(
    corpus: Path, made_rows: Rows, write: Write, column: str, value: str | None
) -> None:
    made = made_rows()
    for row in (3, 5):
        made[row][column] = value
    write(corpus / "test.parquet", made)
    with pytest.raises(DataError, match=rf"rows 3, 5 \(counted from 0\) with an empty {column}"):
        read_split(CorpusParams(path=corpus), "test")


def test_rows_with_nul_are_named_and_counted(corpus: Path, made_rows: Rows, write: Write) -> None:
    made = made_rows()
    for row in range(7, 15):
        made[row]["text"] += "\0"
    write(corpus / "test.parquet", made)
    message = "rows 7, 8, 9, 10, 11 and 3 more (counted from 0) with a NUL character in text"
    with pytest.raises(DataError, match=re.escape(message)):
        read_split(CorpusParams(path=corpus), "test")


def test_a_domain_without_documents_is_named(corpus: Path) -> None:
    with pytest.raises(DataError, match="no document of domain 'poems'; found code, manuals, novels"):
        read_split(CorpusParams(path=corpus, domains=("code", "poems")), "test")


def test_the_hash_follows_every_file(corpus: Path, made_rows: Rows, write: Write) -> None:
    before = corpus_sha256(corpus)
    assert corpus_sha256(corpus) == before
    write(corpus / "validation.parquet", made_rows(11))
    assert corpus_sha256(corpus) != before
    (corpus / "train.parquet").unlink()
    with pytest.raises(DataError, match=r"train\.parquet is missing"):
        corpus_sha256(corpus)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sequence_length": 32}, "segment_length: 64 is more than the 32 tokens"),
        ({"domains": ("code", "code")}, "domains: 'code' is listed more than once"),
        ({"sequence_length": 1, "segment_length": 1}, "greater than or equal to 2"),
        ({"lenght": 1}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_parameters_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CorpusParams(**values)


def test_the_import_is_light() -> None:
    code = (
        "import sys, mango.corpus\n"
        "heavy = {'datasets', 'pyarrow', 'pandas', 'transformers', 'great_expectations', 'mlflow'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
