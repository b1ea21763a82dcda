"""The tokenizer files of a model folder: copying them, and telling whether two are the same vocabulary."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mango.checkpoints.documents import read_bytes, read_json
from mango.checkpoints.durable import write_file
from mango.checkpoints.failures import reading
from mango.checkpoints.names import check_inside
from mango.checkpoints.tokenizer_rules import MAX_FILE_BYTES, TOKENIZER_BOUNDS, check_tokenizer
from mango.errors import CheckpointError

_PATTERNS = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
PROCESSOR_NAME = "preprocessor_config.json"
"""How a model that sees wants its pixels; copied with the tokenizer, and in its place where there is none."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")


def copy_tokenizer(source: Path | str, target: Path | str, *, generation_config: bool = True) -> list[str]:
    """Copy a model's tokenizer, chat template and, if it has one, generation configuration.

    Args:
        source: a model folder.
        target: an existing folder.
        generation_config: copy ``generation_config.json`` too where there is one.

    Returns:
        The names of the files copied, sorted.

    Raises:
        CheckpointError: the source has no tokenizer, or a file cannot be read or written.
    """
    source, target = Path(source), Path(target)
    names = {path.relative_to(source).as_posix() for pattern in _PATTERNS for path in source.glob(pattern)}
    if (source / PROCESSOR_NAME).is_file():
        names.add(PROCESSOR_NAME)
    if not names & {*_VOCABULARIES, PROCESSOR_NAME}:
        raise CheckpointError(f"{source}: holds no tokenizer (one of {', '.join(_VOCABULARIES)}); copy it there first")
    if generation_config and (source / "generation_config.json").is_file():
        names.add("generation_config.json")
    for name in sorted(names):
        write_file(target / name, read_bytes(check_inside(source / name, source), MAX_FILE_BYTES))
    return sorted(names)


def has_tokenizer(folder: Path | str) -> bool:
    """Tell whether a model folder holds a vocabulary; models of images and sound have none."""
    return any((Path(folder) / name).is_file() for name in _VOCABULARIES)


def tokenizer_sha256(folder: Path | str) -> str:
    """Return a hash that identifies the vocabulary of a model folder: its tokens, their ids, and the merges.

    Two copies of one tokenizer match whatever wrote them: the order of the vocabulary's entries, the form of the
    merges, white space and settings such as padding do not count.

    Returns:
        64 hexadecimal digits.

    Raises:
        CheckpointError: the folder has no tokenizer, or it is malformed.
        UnsafeFileError: it holds more than any real tokenizer; see :func:`check_tokenizer`.
    """
    folder = Path(folder)
    if (folder / PROCESSOR_NAME).is_file() and not any((folder / name).is_file() for name in _VOCABULARIES):
        processor = read_json(check_inside(folder / PROCESSOR_NAME, folder))  # a model of images has no vocabulary
        return hashlib.sha256(json.dumps(processor, sort_keys=True).encode()).hexdigest()
    documents: dict[str, Any] = {}
    check_tokenizer(folder, documents)
    if "tokenizer.json" in documents:
        path, document = folder / "tokenizer.json", documents["tokenizer.json"]
        try:
            return _digest(*_of_tokenizer_json(document))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: is no tokenizer that Mango can read ({error!r})") from error
    if (folder / "vocab.json").is_file():
        return _digest(_of_vocab_files(folder), _merges_txt(folder / "merges.txt"))
    if (folder / "vocab.txt").is_file():
        with reading(folder / "vocab.txt"):
            lines = (folder / "vocab.txt").read_text("utf-8").split("\n")
        return _digest({token: i for i, token in enumerate(lines) if token}, [])
    if (folder / "tokenizer.model").is_file():
        with reading(folder / "tokenizer.model"):
            return hashlib.sha256((folder / "tokenizer.model").read_bytes()).hexdigest()
    raise CheckpointError(f"{folder}: holds no tokenizer (one of {', '.join(_VOCABULARIES)}); copy it there first")


def _of_tokenizer_json(document: dict[str, Any]) -> tuple[dict[str, int], list[list[Any]]]:
    model = document["model"]
    vocabulary = model["vocab"]
    rules: list[list[Any]] = []
    if isinstance(vocabulary, list):  # unigram: pieces in order of their ids, with scores
        rules = [[float(score)] for _, score in vocabulary]
        vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    else:
        vocabulary = dict(vocabulary)
    for merge in model.get("merges") or []:
        rules.append(merge.split(" ") if isinstance(merge, str) else [str(part) for part in merge])
    for token in document.get("added_tokens") or []:
        vocabulary[token["content"]] = token["id"]
    return {str(token): int(number) for token, number in vocabulary.items()}, rules


def _of_vocab_files(folder: Path) -> dict[str, int]:
    vocabulary = read_json(folder / "vocab.json", TOKENIZER_BOUNDS)
    if (folder / "added_tokens.json").is_file():
        vocabulary.update(read_json(folder / "added_tokens.json", TOKENIZER_BOUNDS))
    try:
        return {token: int(number) for token, number in vocabulary.items()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'vocab.json'}: gives a token an id that is no number ({error})") from error


def _merges_txt(path: Path) -> list[list[Any]]:
    with reading(path):
        lines = path.read_text("utf-8").splitlines()
    return [line.split(" ") for line in lines if line and not line.startswith("#version")]


def _digest(vocabulary: dict[str, int], rules: list[list[Any]]) -> str:
    text = json.dumps([sorted(vocabulary.items()), rules], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
