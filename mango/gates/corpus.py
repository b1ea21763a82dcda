"""The gate of the corpus: what must hold before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mango.corpus import COLUMNS, SPLITS, CorpusParams, split_path
from mango.errors import DataError
from mango.gates.checks import Check, run_checks
from mango.gates.params import CorpusGateParams, GateParams
from mango.gates.report import GateReport, write_report

if TYPE_CHECKING:
    import pandas as pd

_WHERE = ("split", "file_row", "doc_id", "domain")


def run_corpus_gate(params: CorpusParams, gate_params: GateParams, out: Path) -> GateReport:
    """Check the corpus and write ``corpus.json`` and ``corpus.html``.

    Args:
        params: where the corpus is and which domains count.
        gate_params: the bounds; its ``corpus`` part applies.
        out: folder of the two files.

    Returns:
        The report; it does not raise by itself when a check fails.

    Raises:
        DataError: a split is missing or is no parquet file.
        CheckpointError: the report cannot be written.
    """
    documents = _documents(params)
    findings = run_checks("documents", documents, _document_checks(gate_params.corpus))
    num_rows = {"documents": len(documents)}
    if {"domain", "text"} <= set(documents.columns):
        shares = _shares(documents, params.domains)
        findings += run_checks("domain shares", shares, _share_checks(gate_params.corpus))
        num_rows["domain shares"] = len(shares)
    bounds: dict[str, Any] = gate_params.corpus.model_dump(mode="json")
    return write_report("corpus", str(params.path), num_rows, findings, bounds, out)


def _documents(params: CorpusParams) -> pd.DataFrame:
    """Return the rows of all splits with their split, their row in its file, and what several rows must agree on."""
    import pandas as pd
    import pyarrow as pa

    frames = []
    for split in SPLITS:
        path = split_path(params.path, split)
        try:
            frame = pd.read_parquet(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: this is no readable parquet file ({error}); build it again") from error
        frames.append(frame.assign(split=split, file_row=range(len(frame))))
    documents = pd.concat(frames, ignore_index=True, join="inner")  # a column that one split lacks is missing
    if params.domains and "domain" in documents:
        documents = documents[documents["domain"].isin(params.domains)].reset_index(drop=True)
    for column, count in (("doc_id", "splits_with_doc_id"), ("text", "splits_with_text")):
        if column in documents:
            documents[count] = documents.groupby(column)["split"].transform("nunique")
    if "text" in documents:
        documents["excerpt"] = [_excerpt(text) for text in documents["text"]]
    return documents


def _excerpt(text: object) -> str:
    """Return the surroundings of the first character that does not belong into text, else the beginning."""
    if not isinstance(text, str):
        return str(text)
    found = [at for at in (text.find("\0"), text.find("\ufffd")) if at >= 0]
    start = max(0, min(found) - 30) if found else 0
    return text[start : start + 80]


def _shares(documents: pd.DataFrame, domains: tuple[str, ...]) -> pd.DataFrame:
    """Return documents, bytes and share of each domain in each split, also where there is none."""
    import pandas as pd

    names = domains or tuple(sorted(name for name in documents["domain"].unique() if isinstance(name, str)))
    sizes = [len(text.encode()) if isinstance(text, str) else 0 for text in documents["text"]]
    rows = []
    for split in SPLITS:
        inside = documents["split"] == split
        whole = sum(size for size, chosen in zip(sizes, inside, strict=True) if chosen)
        for name in names:
            mask = inside & (documents["domain"] == name)
            own = sum(size for size, chosen in zip(sizes, mask, strict=True) if chosen)
            share = own / whole if whole else 0.0
            rows.append(
                {"split": split, "domain": name, "documents": int(mask.sum()), "bytes": own, "share": share},
            )
    return pd.DataFrame(rows, columns=["split", "domain", "documents", "bytes", "share"])


def _document_checks(bounds: CorpusGateParams) -> list[Check]:
    checks = [
        Check(
            "The table has all its columns",
            "columns are missing in at least one split",
            "ExpectTableColumnsToMatchSet",
            {"column_set": list(COLUMNS), "exact_match": False},
        ),
        Check(
            "There are documents",
            "the corpus has too few rows",
            "ExpectTableRowCountToBeBetween",
            {"min_value": bounds.min_documents},
        ),
    ]
    for column in COLUMNS:
        checks += [
            Check(
                f"Column {column} is text",
                "the column has another type",
                "ExpectColumnValuesToBeOfType",
                {"column": column, "type_": "str"},
                _WHERE,
            ),
            Check(
                f"Every document has a {column}",
                f"{column} has no value",
                "ExpectColumnValuesToNotBeNull",
                {"column": column},
                _WHERE,
            ),
        ]
    checks += [
        Check(
            f"No {column} is an empty text",
            f"{column} is empty",
            "ExpectColumnValueLengthsToBeBetween",
            {"column": column, "min_value": 1},
            _WHERE,
        )
        for column in ("doc_id", "domain", "source", "licence")
    ]
    return [
        *checks,
        Check(
            "Every doc_id occurs once in its split",
            "the same doc_id stands in several rows of a split",
            "ExpectCompoundColumnsToBeUnique",
            {"column_list": ["split", "doc_id"]},
            _WHERE,
        ),
        Check(
            "No doc_id stands in two splits",
            "the doc_id also stands in another split, so the splits overlap",
            "ExpectColumnValuesToBeBetween",
            {"column": "splits_with_doc_id", "max_value": 1},
            _WHERE,
        ),
        Check(
            "No text stands in two splits",
            "the same text also stands in another split, so held-out figures would be too good",
            "ExpectColumnValuesToBeBetween",
            {"column": "splits_with_text", "max_value": 1},
            (*_WHERE, "excerpt"),
        ),
        Check(
            f"Every text has {bounds.min_text_chars:,} to {bounds.max_text_chars:,} characters",
            "the text is too short or too long",
            "ExpectColumnValueLengthsToBeBetween",
            {"column": "text", "min_value": bounds.min_text_chars, "max_value": bounds.max_text_chars},
            (*_WHERE, "excerpt"),
        ),
        Check(
            "No text has a NUL character",
            "the text holds a NUL character (shown as \\0)",
            "ExpectColumnValuesToNotMatchRegex",
            {"column": "text", "regex": "\\x00"},
            (*_WHERE, "excerpt"),
        ),
        Check(
            "No text has a replacement character",
            "the text holds U+FFFD (shown as \ufffd): it was decoded with the wrong encoding",
            "ExpectColumnValuesToNotMatchRegex",
            {"column": "text", "regex": "\ufffd"},
            (*_WHERE, "excerpt"),
        ),
    ]


def _share_checks(bounds: CorpusGateParams) -> list[Check]:
    shows = ("split", "domain", "documents", "bytes", "share")
    return [
        Check(
            f"Every domain has at least {bounds.min_documents} documents in every split",
            "the domain has too few documents",
            "ExpectColumnValuesToBeBetween",
            {"column": "documents", "min_value": bounds.min_documents},
            shows,
        ),
        Check(
            f"Every domain has at least {bounds.min_domain_share:.1%} of the bytes of every split",
            "the domain has too small a share",
            "ExpectColumnValuesToBeBetween",
            {"column": "share", "min_value": bounds.min_domain_share},
            shows,
        ),
    ]
