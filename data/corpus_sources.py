"""Readers that turn what packages ship into plain documents: one function a domain, no third-party library."""

from __future__ import annotations

import re
import struct
import subprocess
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

GERMAN = frozenset(
    [
        "der",
        "die",
        "das",
        "und",
        "ist",
        "nicht",
        "ein",
        "eine",
        "zu",
        "den",
        "von",
        "mit",
        "sie",
        "für",
        "auf",
        "im",
        "dem",
        "des",
        "werden",
        "wird",
        "oder",
    ]
)
ENGLISH = frozenset(
    [
        "the",
        "and",
        "is",
        "of",
        "to",
        "a",
        "in",
        "that",
        "for",
        "it",
        "with",
        "as",
        "on",
        "be",
        "are",
        "this",
        "by",
        "an",
        "or",
        "you",
    ]
)


@dataclass(frozen=True)
class Document:
    """One document; parts of one original share a ``family`` and never fall on two sides of a split."""

    doc_id: str
    domain: str
    text: str
    source: str
    licence: str
    family: str


def cut(text: str, limit: int, boundary: re.Pattern[str]) -> list[str]:
    """Cut a text longer than `limit` characters at boundary matches into parts of at most about `limit`."""
    parts, start, last = [], 0, 0
    for match in boundary.finditer(text):
        if match.start() - start > limit and last > start:
            parts.append(text[start:last])
            start = last
        last = match.start()
    if len(text) - start > limit and last > start:
        parts.append(text[start:last])
        start = last
    return [part for part in (*parts, text[start:]) if part.strip()]


def documents(
    domain: str, name: str, text: str, source: str, licence: str, *, limit: int, boundary: re.Pattern[str]
) -> Iterator[Document]:
    """Yield the parts of one original text as documents."""
    text = text.replace("\r\n", "\n").strip("\n") + "\n"
    if "\0" in text or "\ufffd" in text or len(text) < 200:
        return
    parts = cut(text, limit, boundary)
    for number, part in enumerate(parts, 1):
        suffix = f"#{number}" if len(parts) > 1 else ""
        yield Document(f"{domain}/{name}{suffix}", domain, part, source, licence, f"{domain}/{name}")


def unpack(package: str, folder: Path) -> tuple[Path, str]:
    """Download a Debian package into `folder` unless it is there, unpack it, and return its root and its version."""
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        found = sorted(folder.glob(f"{package}_*.deb"))
    root = folder / "unpacked" / package
    if not root.exists():
        root.mkdir(parents=True)
        subprocess.run(["dpkg", "-x", str(found[-1]), str(root)], check=True)
    shown = subprocess.run(["dpkg-deb", "-f", str(found[-1]), "Version"], check=True, capture_output=True, text=True)
    return root, shown.stdout.strip()


def code(_: Callable[[str], Path]) -> Iterator[Document]:
    """Yield the standard library's modules; tests, generated tables and what is built for one machine stay out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "__pycache__"}
    boundary = re.compile(r"(?<=\n\n)(?=@|class |def |async def )")
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if left_out & set(relative.parts) or path.name.startswith(("_sysconfigdata", "__phello__")):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        yield from documents(
            "code", relative.as_posix(), text, "python-stdlib", "PSF-2.0", limit=60_000, boundary=boundary
        )


def r_strings(raw: bytes) -> list[str]:
    """Read the character vector at the start of an R serialisation (format X, versions 2 and 3)."""
    version = struct.unpack(">i", raw[2:6])[0]
    at = 14
    if version == 3:
        at += 4 + struct.unpack(">i", raw[14:18])[0]
    flags, count = struct.unpack(">ii", raw[at : at + 8])
    if flags & 0xFF != 16:
        raise ValueError(f"expected an R character vector (type 16), found type {flags & 0xFF}")
    at += 8
    lines = []
    for _ in range(count):
        size = struct.unpack(">i", raw[at + 4 : at + 8])[0]
        at += 8
        lines.append(raw[at : at + max(size, 0)].decode("utf-8"))
        at += max(size, 0)
    return lines


def novels(unpacked: Callable[[str], Path]) -> Iterator[Document]:
    """Yield the chapters of Jane Austen's six novels, paragraphs unwrapped to one line each."""
    raw = (unpacked("r-cran-janeaustenr") / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    heading = re.compile(r"^(?:(?:VOLUME|Volume) \w+\s*\n+)?(?:CHAPTER|Chapter) (?:[IVXL]+|\d+)\.?[ ]*$", re.MULTILINE)
    never = re.compile(r"(?!)")
    at = 0
    while at < len(raw):
        stream = zlib.decompressobj()
        lines = r_strings(stream.decompress(raw[at + 4 :]))
        at = len(raw) - len(stream.unused_data)
        title = re.sub(r"\W+", "-", next(line for line in lines if line.strip()).strip().lower())
        book = "\n".join(line.rstrip() for line in lines)
        starts = [match.start() for match in heading.finditer(book)]
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(book)], strict=True), 1):
            chapter = re.sub(r"\n{3,}", "\n\n", book[start:end])
            chapter = re.sub(r"(?<=\S)\n(?=\S)", " ", chapter)
            yield from documents(
                "novels",
                f"{title}/{number:02}",
                chapter,
                "r-cran-janeaustenr",
                "public domain",
                limit=1_000_000,
                boundary=never,
            )


class _Prose(HTMLParser):
    """Collect the text of headings, paragraphs, list items and table cells; skip navigation, code, hidden text."""

    BLOCK = frozenset(
        [
            "p",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
            "li",
            "dt",
            "dd",
            "td",
            "th",
            "div",
            "br",
            "tr",
            "section",
            "table",
            "ul",
            "ol",
        ]
    )
    SKIP = frozenset(
        ["script", "style", "pre", "nav", "header", "footer", "aside", "noscript", "title", "button", "figure"]
    )
    VOID = frozenset(["br", "img", "meta", "link", "input", "hr", "col", "base", "wbr", "area", "source"])
    DROPPED_CLASS = frozenset(
        [
            "MAC",
            "relatedtopics",
            "docnav",
            "toc",
            "literallayout",
            "screen",
            "programlisting",
            "noteicon",
            "bascode",
            "pycode",
        ]
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        # for each open element: whether it is left out, and whether it is an inline switch that still wants its wording
        self.stack: list[tuple[bool, bool | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.BLOCK:
            self.out.append("\n\n")
        if tag in self.VOID:
            return
        classes = set((dict(attrs).get("class") or "").split())
        skip = self.skipped() or tag in self.SKIP or bool(classes & self.DROPPED_CLASS)
        parent = self.stack[-1][1] if self.stack else None
        if parent is not None and not skip:  # an inline switch offers one wording for each program: the first is kept
            skip = not parent
            self.stack[-1] = (self.stack[-1][0], False)
        self.stack.append((skip, True if "switchinline" in classes else None))

    def skipped(self) -> bool:
        """Return whether what comes next stands inside something that is left out."""
        return bool(self.stack) and self.stack[-1][0]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BLOCK:
            self.out.append("\n\n")
        if tag not in self.VOID and self.stack:
            self.stack.pop()

    def handle_data(self, data: str) -> None:
        if not self.skipped():
            self.out.append(data)


def german(paragraph: str) -> bool:
    """Return False for a paragraph that was left in English."""
    words = re.findall(r"\w+", paragraph.lower())
    return sum(word in GERMAN for word in words) >= sum(word in ENGLISH for word in words)


def prose(html: str) -> str:
    """Return the German prose of one page, a line a paragraph, blank lines between."""
    parser = _Prose()
    parser.feed(html)
    parser.close()
    paragraphs = (re.sub(r"\s+", " ", piece).strip() for piece in "".join(parser.out).split("\n\n"))
    kept: list[str] = []
    for paragraph in paragraphs:
        if paragraph and german(paragraph) and paragraph not in kept[-3:]:
            kept.append(paragraph)
    return "\n\n".join(kept)


def manuals(unpacked: Callable[[str], Path]) -> Iterator[Document]:
    """Yield pages of LibreOffice's German help (Basic and Python reference left out) and the Debian handbook."""
    paragraph = re.compile(r"(?<=\n\n)(?=\S)")
    root = unpacked("libreoffice-help-de") / "usr/share/libreoffice/help/de/text"
    for path in sorted(root.rglob("*.html")):
        relative = path.relative_to(root)
        if relative.parts[0] == "sbasic":
            continue
        text = prose(path.read_text(encoding="utf-8"))
        yield from documents(
            "manuals", f"libreoffice/{relative.with_suffix('').as_posix()}", text, "libreoffice-help-de", "MPL-2.0",
            limit=16_000, boundary=paragraph,
        )  # fmt: skip
    root = unpacked("debian-handbook") / "usr/share/doc/debian-handbook/html/de-DE"
    for path in sorted(root.glob("*.html")):
        if path.name == "index.html":
            continue
        text = prose(path.read_text(encoding="utf-8"))
        yield from documents(
            "manuals", f"debian-handbook/{path.stem}", text, "debian-handbook", "CC-BY-SA-3.0",
            limit=16_000, boundary=paragraph,
        )  # fmt: skip


def maths(unpacked: Callable[[str], Path], *, max_bytes: int = 3_000_000) -> Iterator[Document]:
    """Yield runs of theorems from the beginning of set.mm: comments, statements and the labels each proof uses.

    The compressed step code behind a proof's labels is close to random letters, so it is left out.
    """
    raw = (unpacked("metamath-databases") / "usr/share/metamath/databases/set.mm").read_text(encoding="utf-8")
    body = raw[raw.index("$( Begin $[ set-main.mm $] $)") :]
    body = re.sub(r"(\$=\s+\([^)]*?\))\s+[A-Z?\s]+?\s*\$\.", r"\1 $.", body)
    body = re.sub(r"\n{3,}", "\n\n", body)
    theorem = re.compile(r"(?<=\n\n)(?=  \$[({])")
    section = re.compile(r"(?=^\$\(\n(?:#\*|=-|-\.))", re.MULTILINE)
    used = 0
    for number, text in enumerate(section.split(body), 1):
        for part, run in enumerate(cut(text, 12_000, theorem), 1):
            yield from documents(
                "maths", f"set.mm/{number:03}-{part:02}", run, "metamath-databases", "CC0-1.0",
                limit=100_000, boundary=theorem,
            )  # fmt: skip
        used += len(text)
        if used > max_bytes:
            return


DOMAINS: dict[str, tuple[tuple[str, ...], Callable[[Callable[[str], Path]], Iterator[Document]]]] = {
    "code": ((), code),
    "novels": (("r-cran-janeaustenr",), novels),
    "manuals": (("libreoffice-help-de", "debian-handbook"), manuals),
    "maths": (("metamath-databases",), maths),
}
