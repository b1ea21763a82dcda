"""Calibration text: found, drawn and turned into sequences of tokens, with only what is drawn in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mango.errors import DataError, MergeError
from mango.merging.sections import CalibrationSection, TextSource
from mango.merging.vocabularies import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIXES = (".txt", ".md", ".jsonl")
"""Files of a folder that are read."""

_PASSAGE_BYTES = 1 << 12
Passages = list[Callable[[], str]]


@dataclass(frozen=True, eq=False)
class CalibrationText:
    """Sequences of tokens of one length.

    Attributes:
        input_ids: int64 ``[sequences, tokens]``.
        num_bytes: UTF-8 bytes that each token stands for, of the same shape; 0 for the end of a text.
    """

    input_ids: torch.Tensor
    num_bytes: torch.Tensor


def draw_text(section: CalibrationSection, source: TextSource, vocabulary: Vocabulary) -> CalibrationText:
    """Draw sequences of tokens without replacement; the same seed draws the same ones.

    Text is cut into passages, their order is drawn, and as many are read and tokenized as are needed. Of a corpus,
    every domain gives equally many sequences, up to one.

    Args:
        section: how much is drawn.
        source: where the text comes from.
        vocabulary: the tokenizer.

    Returns:
        The sequences.

    Raises:
        MergeError: the text is missing, cannot be read, or is too short.
    """
    groups = _passages(source)
    tokenizer = open_vocabulary(vocabulary)
    shares = [section.sequences // len(groups) + (i < section.sequences % len(groups)) for i in range(len(groups))]
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for (name, passages), share in zip(groups.items(), shares, strict=True):
        order = np.random.default_rng([section.seed, *name.encode()]).permutation(len(passages))
        drawn = (passages[i]() for i in order)
        rows.append(_rows(tokenizer, drawn, share, section.tokens, f"{source.data}{f' ({name})' if name else ''}"))
    ids, sizes = (torch.from_numpy(np.concatenate([row[i] for row in rows])) for i in range(2))
    return CalibrationText(ids, sizes)


def open_vocabulary(vocabulary: Vocabulary) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a vocabulary, also of one that is not written yet."""
    from mango.checkpoints import open_tokenizer

    if not vocabulary.changed and not vocabulary.removed:
        return open_tokenizer(vocabulary.folder)
    with TemporaryDirectory(prefix="mango-tokenizer-") as folder:
        vocabulary.write(Path(folder))
        return open_tokenizer(folder)


def text_files(source: TextSource) -> list[Path]:
    """Return the files that a source of text reads, sorted.

    Raises:
        MergeError: there are none.
    """
    path = source.data
    if path.is_file():
        return [path]
    if not path.exists():
        raise MergeError(f"calibration.data: {path} does not exist; name a text file, a .jsonl file or a folder")
    if (split := path / f"{source.split or 'train'}.parquet").is_file():
        return [split]
    found = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and file.suffix in SUFFIXES and not file.relative_to(path).as_posix().startswith(".")
    )
    if not found:
        raise MergeError(
            f"calibration.data: the folder {path} holds no file in {', '.join(SUFFIXES)} and no {split.name}"
        )
    return found


def _passages(source: TextSource) -> dict[str, Passages]:
    """Return what can be drawn, by domain; text that is no corpus has one domain without a name."""
    files = text_files(source)
    if files[0].suffix == ".parquet":
        return _corpus(source, files[0])
    if source.domains or source.split:
        what = "domains" if source.domains else "split"
        raise MergeError(f"calibration.{what}: {source.data} is no corpus with domains and splits; leave it out")
    found: Passages = []
    for file in files:
        found += _lines(file) if file.suffix == ".jsonl" else _blocks(file)
    if not found:
        raise MergeError(f"calibration.data: {source.data} holds no text")
    return {"": found}


def _corpus(source: TextSource, file: Path) -> dict[str, Passages]:
    from mango.corpus import CorpusParams, read_split

    try:
        rows = read_split(CorpusParams(path=file.parent, domains=source.domains), file.stem)
    except DataError as error:
        raise MergeError(f"calibration.data: {error}") from error
    except ImportError as error:
        raise MergeError(
            f"calibration.data: {file} is read by the packages of the extra 'pipeline' ({error}); install it, or "
            "name a text file"
        ) from error
    groups: dict[str, Passages] = {}
    for row, (domain, text) in enumerate(zip(rows["domain"], rows["text"], strict=True)):
        groups.setdefault(str(domain), []).extend(
            partial(_part, rows, row, start) for start in range(0, len(text), _PASSAGE_BYTES)
        )
    return dict(sorted(groups.items()))


def _part(rows: Any, row: int, start: int) -> str:
    return str(rows[row]["text"])[start : start + _PASSAGE_BYTES]


def _blocks(file: Path) -> Passages:
    """Cut a text file behind line ends, or between characters where a line is long."""
    size, start = file.stat().st_size, 0
    found: Passages = []
    with file.open("rb") as stream:
        while start < size:
            end = min(size, start + _PASSAGE_BYTES)
            if end < size:
                stream.seek(end)
                rest = stream.read(_PASSAGE_BYTES)
                inside = next((i for i, byte in enumerate(rest[:4]) if byte & 0xC0 != 0x80), 0)  # of a character
                end += rest.find(b"\n") + 1 or inside
            found.append(partial(_decoded, file, start, end))
            start = end
    return found


def _decoded(file: Path, start: int, end: int) -> str:
    with file.open("rb") as stream:
        stream.seek(start)
        data = stream.read(end - start)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MergeError(f"calibration.data: {file}: byte {start + error.start} is not UTF-8") from error


def _lines(file: Path) -> Passages:
    found: Passages = []
    position = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                found.append(partial(_entry, file, number, position, len(line)))
            position += len(line)
    return found


def _entry(file: Path, number: int, position: int, size: int) -> str:
    text = _decoded(file, position, position + size)
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MergeError(f"calibration.data: {file}:{number}: is no JSON ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise MergeError(f'calibration.data: {file}:{number}: wanted {{"text": "..."}} on each line')
    return str(entry["text"])


def _rows(
    tokenizer: PreTrainedTokenizerBase, drawn: Iterator[str], count: int, length: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``count`` rows of tokens and of their bytes."""
    from mango.corpus import tokenize

    wanted, have = count * length, 0
    ids: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    end = tokenizer.eos_token_id
    while have < wanted:
        batch: Sequence[str] = [text for _, text in zip(range(8), drawn, strict=False)]
        if not batch:
            raise MergeError(
                f"calibration.data: {where} has {have:,} tokens, and {count} sequences of {length} take {wanted:,}: "
                "lower sequences or tokens, or give more text"
            )
        try:
            for tokens, num_bytes in tokenize(tokenizer, batch):
                ids.append(tokens)
                sizes.append(num_bytes)
                if isinstance(end, int):
                    ids.append(np.array([end], dtype=np.int64))
                    sizes.append(np.zeros(1, dtype=np.int64))
        except DataError as error:
            raise MergeError(f"calibration: {error}") from error
        have = sum(map(len, ids))
    flat = [np.concatenate(part or [np.zeros(0, dtype=np.int64)])[:wanted] for part in (ids, sizes)]
    return flat[0].reshape(count, length), flat[1].reshape(count, length)
