"""Build data/corpus: four domains of real text, split by document, from the packages that ship it.

    python data/build_corpus.py --packages FOLDER

`FOLDER` receives (or already holds) the Debian packages; nothing is installed. Needs `apt-get`, `dpkg` and pyarrow.
The committed corpus is what every published number stands on: build a new one only to change the corpus on purpose.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from corpus_sources import DOMAINS, Document, unpack
from near_duplicates import components, shingles, similar_pairs

SPLITS = ("train", "validation", "test")
QUOTA_BYTES = {"test": 250_000, "validation": 150_000, "train": 2_200_000}
MIN_TEST_DOCUMENTS = 24
LARGEST_HELD_OUT_BYTES = 80_000
THRESHOLD = 0.5
COLUMNS = ("doc_id", "domain", "text", "source", "licence")


def digest(*texts: str) -> str:
    """Return the SHA-256 of the texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def size(documents: Sequence[Document]) -> int:
    """Return the UTF-8 bytes of the documents."""
    return sum(len(document.text.encode()) for document in documents)


def group(documents: list[Document]) -> list[list[Document]]:
    """Return groups that must stay on one side of the split: parts of one original, and near-duplicates."""
    pairs = similar_pairs([shingles(document.text) for document in documents], THRESHOLD)
    first: dict[str, int] = {}
    for index, document in enumerate(documents):
        pairs.append((first.setdefault(document.family, index), index))
    return [[documents[i] for i in members] for members in components(len(documents), pairs)]


def split(documents: list[Document], seed: int) -> dict[str, list[Document]]:
    """Deal whole groups, in the order of a hash, to test, validation and train until each has its bytes.

    A group above `LARGEST_HELD_OUT_BYTES` goes to train, so that no single one dominates a held-out split.
    """
    unique = list({document.text: document for document in reversed(documents)}.values())[::-1]
    groups = sorted(group(unique), key=lambda members: digest(str(seed), *(member.doc_id for member in members)))
    chosen: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for members in groups:
        for name in ("test", "validation", "train"):
            have = size(chosen[name])
            wanted = have < QUOTA_BYTES[name] or (name == "test" and len(chosen[name]) < MIN_TEST_DOCUMENTS)
            fits = name == "train" or size(members) <= LARGEST_HELD_OUT_BYTES
            if wanted and fits:
                chosen[name].extend(members)
                break
    return {name: sorted(members, key=lambda document: document.doc_id) for name, members in chosen.items()}


def write(corpus: dict[str, list[Document]], versions: dict[str, str], folder: Path, seed: int) -> None:
    """Write the parquet files and the provenance."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(column, pa.string()) for column in COLUMNS])
    folder.mkdir(parents=True, exist_ok=True)
    for name, members in corpus.items():
        table = pa.Table.from_pydict({c: [getattr(d, c) for d in members] for c in COLUMNS}, schema=schema)
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd", compression_level=19)
    everything = [document for members in corpus.values() for document in members]
    sources = []
    for source in sorted({document.source for document in everything}):
        own = sorted((d for d in everything if d.source == source), key=lambda document: document.doc_id)
        sources.append(
            {
                "source": source,
                "domain": own[0].domain,
                "version": versions[source],
                "licence": own[0].licence,
                "documents": len(own),
                "bytes": size(own),
                "sha256": digest(*(document.text for document in own)),
            }
        )
    splits = {
        name: {
            domain: {
                "documents": sum(d.domain == domain for d in members),
                "bytes": size([d for d in members if d.domain == domain]),
            }
            for domain in DOMAINS
        }
        for name, members in corpus.items()
    }
    provenance = {
        "command": "python data/build_corpus.py",
        "seed": seed,
        "near_duplicates": {"shingle_words": 5, "jaccard": THRESHOLD},
        "sources": sources,
        "splits": splits,
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Build the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder for the downloaded Debian packages")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "corpus")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.packages.mkdir(parents=True, exist_ok=True)
    corpus: dict[str, list[Document]] = {name: [] for name in SPLITS}
    versions = {"python-stdlib": platform.python_version()}
    for domain, (packages, read) in DOMAINS.items():
        roots: dict[str, Path] = {}
        for package in packages:
            roots[package], versions[package] = unpack(package, arguments.packages)
        for name, members in split(list(read(roots.__getitem__)), arguments.seed).items():
            corpus[name].extend(members)
            sys.stderr.write(f"{domain:8} {name:10} {len(members):5} documents {size(members):9,} bytes\n")
    write(corpus, versions, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
