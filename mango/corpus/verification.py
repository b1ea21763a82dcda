"""Whether a corpus holds the text that its provenance file says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mango.corpus.params import CorpusParams
from mango.corpus.reading import SPLITS, read_split
from mango.errors import DataError, IntegrityError


def verify_corpus(folder: Path) -> list[tuple[str, str, int, int]]:
    """Compare the text of every source with the SHA-256 that ``provenance.json`` gives for it.

    The digest of a source covers the texts of its documents in all splits, in the order of their ids, with NUL
    between them. It does not depend on how a parquet file is compressed.

    Args:
        folder: with the three splits and ``provenance.json``.

    Returns:
        Source, licence, number of documents and UTF-8 bytes of each source, sorted by source.

    Raises:
        DataError: a split or the provenance file cannot be read.
        IntegrityError: a document stands in two splits, or the text of a source is not what the provenance says.
    """
    path = Path(folder) / "provenance.json"
    try:
        recorded = {entry["source"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["sources"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as provenance ({error!r}); build the corpus again") from error
    texts: dict[str, dict[str, str]] = {}
    licences: dict[str, set[str]] = {}
    for split in SPLITS:
        for row in read_split(CorpusParams(path=Path(folder)), split):
            own = texts.setdefault(row["source"], {})
            if row["doc_id"] in own:
                raise IntegrityError(f"{folder}: document {row['doc_id']!r} of {row['source']} stands there twice")
            own[row["doc_id"]] = row["text"]
            licences.setdefault(row["source"], set()).add(row["licence"])
    problems = [f"{folder}: {s} is in the provenance and not in the splits" for s in sorted(recorded.keys() - texts)]
    verified = []
    for source in sorted(texts):
        ordered = [texts[source][doc_id] for doc_id in sorted(texts[source])]
        found = hashlib.sha256("\0".join(ordered).encode()).hexdigest()
        wanted = recorded.get(source, {}).get("sha256")
        if found != wanted:
            problems.append(f"{folder}: the text of {source} has SHA-256 {found}, the provenance says {wanted}")
        size = sum(len(text.encode()) for text in ordered)
        verified.append((source, ", ".join(sorted(licences[source])), len(ordered), size))
    if problems:
        raise IntegrityError("\n".join(problems))
    return verified
