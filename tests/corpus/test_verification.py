"""A corpus that was changed after it was built is found out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mango.corpus import verify_corpus
from mango.errors import DataError, IntegrityError

SHIPPED = Path(__file__).parents[2] / "data" / "corpus"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "corpus"))


def change(path: Path, row: int, **values: str) -> None:
    rows = pq.read_table(path).to_pylist()
    rows[row] |= values
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_the_shipped_corpus_is_what_its_provenance_says() -> None:
    recorded = json.loads((SHIPPED / "provenance.json").read_text())["sources"]
    assert [(r["source"], r["licence"], r["documents"], r["bytes"]) for r in recorded] == verify_corpus(SHIPPED)


def test_a_changed_word_names_the_source(corpus: Path) -> None:
    source = pq.read_table(corpus / "test.parquet").to_pylist()[3]["source"]
    change(corpus / "test.parquet", 3, text="other words")
    with pytest.raises(IntegrityError, match=f"the text of {source} has SHA-256 [0-9a-f]{{64}}, the provenance says"):
        verify_corpus(corpus)


def test_a_document_in_two_splits_is_named(corpus: Path) -> None:
    twin = pq.read_table(corpus / "train.parquet").to_pylist()[0]
    change(corpus / "test.parquet", 0, **twin)
    with pytest.raises(IntegrityError, match=f"document '{twin['doc_id']}' of {twin['source']} stands there twice"):
        verify_corpus(corpus)


def test_provenance_that_cannot_be_read(corpus: Path) -> None:
    (corpus / "provenance.json").write_text("{}")
    with pytest.raises(DataError, match=r"provenance\.json: cannot be read as provenance \(KeyError\('sources'\)\)"):
        verify_corpus(corpus)
