"""Reading merge documents from files: one, or several that name each other's results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mango.config import Document, parse_document, read_document, validate
from mango.errors import ConfigError
from mango.merging.document import MergeDocument, Module, Slice, key_of
from mango.merging.references import plain_references

_BETWEEN = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_END = re.compile(r"^\.\.\.\s*$", re.MULTILINE)


def load_document(path: Path | str) -> MergeDocument:
    """Read the merge document of a file. Of several in the file, it is the one that no other uses.

    Raises:
        ConfigError: one line for each problem: file, line, key, what was found and what was wanted; or several
            documents of the file are results.
    """
    loaded = load_documents(path)
    if len(loaded) > 1:
        raise ConfigError(f"{path}: makes {len(loaded)} models ({', '.join(loaded)}), and one was wanted here")
    return next(iter(loaded.values()))


def load_documents(path: Path | str) -> dict[str, MergeDocument]:
    """Read a file of one or more merge documents.

    A document may use the result of another by its ``name``: that document then becomes a part of it, so that no
    intermediate model is written.

    Returns:
        The documents that no other document of the file uses, by name; a single one without a name is called by the
        file's stem.

    Raises:
        ConfigError: one line for each problem of every document.
    """
    path = Path(path)
    parts = _split(path)
    documents, problems = [], []
    for part in parts:
        try:
            plain = replace(part, data=plain_references(part.data))
            documents.append(validate(MergeDocument, plain).value)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return _linked(path, documents)


def _split(path: Path) -> list[Document]:
    """Split a file at its document marks; every part keeps the line numbers of the file."""
    if len(_BETWEEN.findall(path.read_text("utf-8", errors="replace") if path.is_file() else "")) == 0:
        return [read_document(path)]
    read_size = path.stat().st_size
    if read_size > 1 << 20:
        raise ConfigError(f"{path}: has {read_size} bytes, more than the {1 << 20} that a configuration may have")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8: save the file as UTF-8") from error
    starts = [0, *(match.end() for match in _BETWEEN.finditer(text))]
    ends = [*(match.start() for match in _BETWEEN.finditer(text)), len(text)]
    found = []
    for start, end in zip(starts, ends, strict=True):
        content = _END.sub("", text[start:end])
        parsed = parse_document("\n" * text.count("\n", 0, start) + content, str(path))
        if parsed.data:
            found.append(parsed)
    return found or [parse_document("", str(path))]


def _linked(path: Path, documents: list[MergeDocument]) -> dict[str, MergeDocument]:
    if len(documents) == 1:
        return {documents[0].name or path.stem: documents[0]}
    named: dict[str, MergeDocument] = {}
    for document in documents:
        name = document.name or path.stem
        if name in named:
            what = f"called {name!r}" if document.name else "without a name"
            raise ConfigError(f"{path}: holds two documents {what}: give each a name of its own")
        named[name] = document
    used: set[str] = set()
    done = {name: _with_parts(path, name, named, used, ()) for name in named}
    if not (results := {name: document for name, document in done.items() if name not in used}):
        raise ConfigError(f"{path}: every document is used by another, so none is the result")
    return results


def _with_parts(
    path: Path, name: str, named: Mapping[str, MergeDocument], used: set[str], above: tuple[str, ...]
) -> MergeDocument:
    """Return a document in which the names of others have become these documents themselves."""
    if name in above:
        raise ConfigError(f"{path}: documents use each other in a circle: {' -> '.join((*above, name))}")

    def value(reference: str | MergeDocument) -> str | MergeDocument:
        if not isinstance(reference, str) or reference not in named:
            return reference
        used.add(reference)
        return _with_parts(path, reference, named, used, (*above, name))

    return substitute(named[name], value)


def substitute(document: MergeDocument, value: object) -> MergeDocument:
    """Return a document with each model that it names replaced by ``value(model)``."""
    assert callable(value)

    def piece(part: Slice) -> Slice:
        sources = tuple(source.model_copy(update={"model": value(source.model)}) for source in part.sources)
        base = None if part.base_model is None else value(part.base_model)
        return part.model_copy(update={"sources": sources, "base_model": base})

    def inside(part: MergeDocument | Module) -> dict[str, object]:
        models = part.models and tuple(e.model_copy(update={"model": value(e.model)}) for e in part.models)
        return {"models": models, "slices": part.slices and tuple(piece(one) for one in part.slices)}

    changes = inside(document)
    if document.modules is not None:
        changes["modules"] = {name: part.model_copy(update=inside(part)) for name, part in document.modules.items()}
    if document.base_model is not None:
        changes["base_model"] = value(document.base_model)
    if document.tokenizer_source is not None:
        changes["tokenizer_source"] = _renamed(document.tokenizer_source, value)
    if document.tokenizer is not None:
        source = _renamed(document.tokenizer.source, value)
        changes["tokenizer"] = document.tokenizer.model_copy(update={"source": source})
    if document.calibration is not None and document.calibration.models:
        own = {key_of(value(name)): text for name, text in document.calibration.models.items()}
        changes["calibration"] = document.calibration.model_copy(update={"models": own})
    return document.model_copy(update=changes)


def _renamed(source: str, value: object) -> str:
    assert callable(value)
    return source if source in ("base", "union") else key_of(value(source))
