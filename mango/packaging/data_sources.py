"""What the corpus of a package consists of: its sources, with licence and hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mango.checkpoints import sha256_file
from mango.corpus import SPLITS, corpus_sha256, split_path
from mango.errors import DataError
from mango.packaging.manifest import DataSource, DataState

_COLUMNS = ["doc_id", "source", "licence", "text"]


def data_state(folder: Path) -> DataState:
    """Return the hashes of a corpus, and its sources with their licences.

    Args:
        folder: with the three splits.

    Returns:
        Files by path, sources by name.

    Raises:
        DataError: a split is missing, cannot be read or lacks a column.
    """
    files = {path.as_posix(): sha256_file(path) for path in (split_path(folder, split) for split in SPLITS)}
    return DataState(corpus_sha256=corpus_sha256(folder), files=files, sources=tuple(_sources(folder)))


def _sources(folder: Path) -> list[DataSource]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts: dict[str, list[tuple[str, str]]] = {}
    licences: dict[str, set[str]] = {}
    for split in SPLITS:
        path = split_path(folder, split)
        try:
            columns = pq.read_table(path, columns=_COLUMNS).to_pydict()
            rows = zip(*(columns[name] for name in _COLUMNS), strict=True)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(f"{path}: cannot be read ({error!r}); wanted columns {', '.join(_COLUMNS)}") from error
        for doc_id, source, licence, text in rows:
            texts.setdefault(str(source), []).append((str(doc_id), str(text)))
            licences.setdefault(str(source), set()).update([str(licence)] if licence else [])
    return [
        DataSource(
            name=name,
            licence=" AND ".join(sorted(licences[name])) or None,
            documents=len(texts[name]),
            sha256=hashlib.sha256("\0".join(text for _, text in sorted(texts[name])).encode()).hexdigest(),
        )
        for name in sorted(texts)
    ]
