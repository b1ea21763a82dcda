"""Reading a split of the corpus, with a clear error for each way in which it can be wrong."""

from __future__ import annotations

import errno
import glob
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mango.corpus.params import CorpusParams
from mango.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
COLUMNS = ("doc_id", "domain", "text", "source", "licence")
_NAMED_ROWS = 5
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def read_split(params: CorpusParams, split: str) -> Dataset:
    """Read one split, with the rows of the chosen domains in file order.

    Args:
        params: says where the corpus is and which domains to keep.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        A memory-mapped data set with at least the text columns ``doc_id``, ``domain``, ``text``, ``source`` and
        ``licence``.

    Raises:
        DataError: the split or a column is missing, a column is no text, a row has no text or a NUL character
            (rows are named by number, counted from 0), a chosen domain has no row, no row is left, or the
            disk is full.
    """
    path = split_path(params.path, split)
    _check_file(path)
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        with _no_progress_bars():
            dataset = Dataset.from_parquet(glob.escape(str(path)))
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM:
            raise DataError(
                f"{path}: no room to prepare it in the data sets' cache ({error.__cause__.strerror}): free disk space, "
                "or set HF_DATASETS_CACHE to another folder"
            ) from error
        raise DataError(f"{path}: the file cannot be read to its end ({error.__cause__}); build it again") from error
    assert isinstance(dataset, Dataset)
    _check_rows(dataset, path)
    return _choose_domains(dataset, params.domains, path)


def split_path(folder: Path, split: str) -> Path:
    """Return the file of a split.

    Raises:
        DataError: there is no such split, or its file is missing.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r} of the corpus. Known: {', '.join(SPLITS)}")
    path = Path(folder) / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"{path} is missing; corpus.path must name a folder with {', '.join(SPLITS)} as .parquet files")
    return path


def corpus_sha256(path: Path) -> str:
    """Return one SHA-256 over the files of all splits of the corpus in folder `path`.

    Raises:
        DataError: a split is missing.
    """
    digest = hashlib.sha256()
    for split in sorted(SPLITS):
        with split_path(path, split).open("rb") as file:
            digest.update(f"{split} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _check_file(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: this is no readable parquet file ({error}); build it again") from error
    missing = [column for column in COLUMNS if column not in schema.names]
    if missing:
        raise DataError(
            f"{path}: missing column {', '.join(missing)}; found {', '.join(schema.names) or 'none'}, "
            f"wanted {', '.join(COLUMNS)}"
        )
    for column in COLUMNS:
        found = schema.field(column).type
        if not (pa.types.is_string(found) or pa.types.is_large_string(found)):
            raise DataError(f"{path}: column {column} is {found}, wanted text (string)")
    if not metadata.num_rows:
        raise DataError(f"{path}: the corpus is empty; it needs at least one document")


def _check_rows(dataset: Dataset, path: Path) -> None:
    import numpy as np
    import pyarrow.compute as pc

    for column in COLUMNS:
        values = dataset.data.column(column)
        empty = np.flatnonzero(pc.fill_null(pc.equal(pc.utf8_length(values), 0), True).to_numpy())
        if len(empty):
            raise DataError(f"{path}: {_rows(empty.tolist())} with an empty {column}; give it a value or drop the row")
    nul = np.flatnonzero(pc.match_substring(dataset.data.column("text"), "\0").to_numpy())
    if len(nul):
        raise DataError(f"{path}: {_rows(nul.tolist())} with a NUL character in text; clean the text or drop the row")


def _choose_domains(dataset: Dataset, domains: tuple[str, ...], path: Path) -> Dataset:
    found = set(dataset.unique("domain"))
    unknown = [domain for domain in domains if domain not in found]
    if unknown:
        raise DataError(
            f"{path}: no document of domain {', '.join(map(repr, unknown))}; found {', '.join(sorted(found))}"
        )
    if not domains or found == set(domains):
        return dataset
    column = dataset["domain"]
    return dataset.select([row for row, domain in enumerate(column) if domain in domains])


def _rows(rows: list[int]) -> str:
    named = ", ".join(str(row) for row in rows[:_NAMED_ROWS])
    more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
    return f"row{'s' if len(rows) > 1 else ''} {named}{more} (counted from 0)"


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()
