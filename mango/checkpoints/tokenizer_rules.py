"""What the tokenizer files of a model may hold: sizes, numbers of tokens and merges, ids that stand for one token."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mango.checkpoints.configurations import is_trusted
from mango.checkpoints.documents import SMALL, Bounds, read_bytes, read_json, shown
from mango.checkpoints.magic import recognise_bytes
from mango.checkpoints.names import check_inside
from mango.errors import CheckpointError, UnsafeFileError

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_FILE_BYTES = 64 << 20
MAX_TOKENS = 2_000_000
MAX_ADDED_TOKENS = 20_000
MAX_MERGES = 2_000_000
MAX_TOKEN_LENGTH = 10_000
MAX_ID = 1 << 24
MAX_STEPS = 64
MAX_PATTERN_LENGTH = 4096
MAX_LENGTH = 1 << 24

TOKENIZER_BOUNDS = Bounds(MAX_FILE_BYTES, 5_000_000)
CONFIG_BOUNDS = Bounds(16 << 20, 400_000, number=2**127)  # a length of 1e30 is how releases wrote "no limit"
_CODE_KEYS = ("auto_map", "custom_code", "trust_remote_code", "code_revision")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def check_tokenizer(folder: Path | str, documents: dict[str, Any] | None = None) -> list[Path]:
    """Check the tokenizer files of a model folder before any library reads them.

    Args:
        folder: the model folder.
        documents: gets what ``tokenizer.json`` holds, by the file's name, so that a caller need not read it again.

    Returns:
        The files that were checked.

    Raises:
        CheckpointError: a file is malformed.
        UnsafeFileError: a file is larger, or holds more tokens, merges or steps, than any real one; an id stands for
            two tokens; a key chooses code; or a file leads out of the folder.
    """
    folder = Path(folder)
    checked = []
    for name, check in _CHECKS.items():
        path = folder / name
        if path.is_file() or path.is_symlink():
            found = check(check_inside(path, folder))
            if documents is not None and found is not None:
                documents[name] = found
            checked.append(path)
    return checked


def _check_tokenizer_json(path: Path) -> dict[str, Any]:
    document = read_json(path, TOKENIZER_BOUNDS)
    model = document.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: has no model; wanted a tokenizer as the tokenizers library writes it")
    added = document.get("added_tokens") or []
    ids = _ids_of_added(path, added)
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        _check_vocabulary(path, vocabulary, ids)
    elif isinstance(vocabulary, list):
        _check_pieces(path, vocabulary)
    elif vocabulary is not None:
        raise CheckpointError(f"{path}: vocab is a {type(vocabulary).__name__}; wanted tokens with their ids")
    merges = model.get("merges") or []
    if not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise UnsafeFileError(f"{path}: merges is no list of at most {MAX_MERGES} pairs")
    _check_merges(path, merges)
    for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"):
        _check_steps(path, key, document.get(key))
    for key in ("max_input_chars_per_word", "unk_id"):
        _check_length(path, key, model.get(key))
    return document


def _ids_of_added(path: Path, added: Any) -> dict[int, str]:
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise CheckpointError(f"{path}: added_tokens is no list of tokens")
    if len(added) > MAX_ADDED_TOKENS:
        raise UnsafeFileError(f"{path}: {len(added)} added tokens; at most {MAX_ADDED_TOKENS} are read")
    ids: dict[int, str] = {}
    contents: set[str] = set()
    for token in added:
        number, content = token.get("id"), token.get("content")
        _check_token(path, content, number)
        if number in ids or content in contents:
            raise UnsafeFileError(f"{path}: added token {shown(content)} or its id {number} stands there twice")
        ids[number] = content
        contents.add(content)
    return ids


def _check_vocabulary(path: Path, vocabulary: Mapping[str, Any], added: Mapping[int, str]) -> None:
    if len(vocabulary) > MAX_TOKENS:
        raise UnsafeFileError(f"{path}: {len(vocabulary)} tokens; at most {MAX_TOKENS} are read")
    seen: dict[int, str] = {}
    for token, number in vocabulary.items():
        _check_token(path, token, number)
        other = seen.setdefault(number, token)
        if other is not token:
            raise UnsafeFileError(f"{path}: id {number} stands for {shown(other)} and for {shown(token)}")
    for number, content in added.items():
        if seen.get(number, content) != content:
            raise UnsafeFileError(f"{path}: id {number} stands for {shown(seen[number])} and for {shown(content)}")
        if vocabulary.get(content, number) != number:
            raise UnsafeFileError(f"{path}: {shown(content)} has the ids {vocabulary[content]} and {number}")


def _check_token(path: Path, token: Any, number: Any) -> None:
    if not isinstance(token, str) or len(token) > MAX_TOKEN_LENGTH:
        raise UnsafeFileError(f"{path}: token {shown(token)} is no text of at most {MAX_TOKEN_LENGTH} characters")
    if type(number) is not int or not 0 <= number < MAX_ID:
        raise UnsafeFileError(f"{path}: token {shown(token)} has the id {shown(number)}; wanted 0 to {MAX_ID - 1}")


def _check_pieces(path: Path, pieces: list[Any]) -> None:
    if len(pieces) > MAX_TOKENS:
        raise UnsafeFileError(f"{path}: {len(pieces)} tokens; at most {MAX_TOKENS} are read")
    for number, piece in enumerate(pieces):
        if not isinstance(piece, list) or len(piece) != 2 or not isinstance(piece[1], int | float):
            raise CheckpointError(f"{path}: piece {number} is no text with a score")
        _check_token(path, piece[0], number)
        if not math.isfinite(piece[1]):
            raise UnsafeFileError(f"{path}: piece {number} has the score {piece[1]}")


def _check_merges(path: Path, merges: Iterable[Any]) -> None:
    for merge in merges:
        if type(merge) is str and merge.count(" ") == 1:
            continue
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise CheckpointError(f"{path}: merge {shown(merge)} is no pair of tokens")


def _check_steps(path: Path, key: str, part: Any) -> None:
    """Bound what a normalizer, splitter or decoder does: steps, patterns, and lengths that texts are padded to."""
    for number, (name, value) in enumerate(_leaves(part)):
        if number > 100_000:
            raise UnsafeFileError(f"{path}: {key} holds more than 100000 values")
        if name in ("Regex", "String", "pattern", "content", "prepend") and isinstance(value, str):
            if len(value) > MAX_PATTERN_LENGTH:
                raise UnsafeFileError(f"{path}: {key}: a pattern has {len(value)} characters")
        elif isinstance(value, int):
            _check_length(path, f"{key}.{name}", value)
    count = _num_steps(part)
    if count > MAX_STEPS:
        raise UnsafeFileError(f"{path}: {key} has {count} steps; at most {MAX_STEPS} are read")


def _leaves(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items: Iterable[tuple[str, Any]]
    if isinstance(part, dict):
        items = part.items()
    elif isinstance(part, list):
        items = ((name, inner) for inner in part)
    else:
        yield name, part
        return
    for inner_name, inner in items:
        yield from _leaves(inner, inner_name)


def _num_steps(part: Any) -> int:
    if isinstance(part, dict):
        lists = ("normalizers", "pretokenizers", "processors", "decoders")
        inner = [step for key in lists if isinstance(part.get(key), list) for step in part[key]]
        return 1 + sum(_num_steps(step) for step in inner)
    return 0


def _check_length(path: Path, key: str, value: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and not -MAX_LENGTH <= value <= MAX_LENGTH:
        raise UnsafeFileError(f"{path}: {key} is {value}; at most {MAX_LENGTH} is read")


def _check_tokenizer_config(path: Path) -> None:
    document = read_json(path, CONFIG_BOUNDS)
    _refuse_code(path, document)
    decoder = document.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{path}: added_tokens_decoder is no mapping of ids to tokens")
    if len(decoder) > MAX_ADDED_TOKENS:
        raise UnsafeFileError(f"{path}: {len(decoder)} added tokens; at most {MAX_ADDED_TOKENS} are read")
    contents: set[str] = set()
    for number, token in decoder.items():
        if not isinstance(token, dict) or not number.isdecimal() or len(number) > 9:
            raise CheckpointError(f"{path}: added_tokens_decoder: {shown(number)} is no id with a token")
        _check_token(path, token.get("content"), int(number))
        if token["content"] in contents:
            raise UnsafeFileError(f"{path}: added token {shown(token['content'])} has two ids")
        contents.add(token["content"])
    name = document.get("tokenizer_class")
    if name is not None and (not isinstance(name, str) or not _IDENTIFIER.fullmatch(name)):
        raise UnsafeFileError(f"{path}: tokenizer_class is {shown(name)}, which is no name of a class")
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = document.get(key) or []
        if not isinstance(extra, list | dict) or len(extra) > MAX_ADDED_TOKENS:
            raise UnsafeFileError(f"{path}: {key} is no list of at most {MAX_ADDED_TOKENS} tokens")


def _refuse_code(path: Path, document: Mapping[str, Any]) -> None:
    for key in _CODE_KEYS:
        if document.get(key) and not is_trusted(path.parent):
            raise UnsafeFileError(
                f"{path}: {key} chooses code to run; remove the key, or put the source into the trusted tier"
            )
    for key, value in document.items():
        if key.endswith("_file") and isinstance(value, str) and (value.startswith("/") or ".." in value):
            if key in ("special_tokens_map_file", "name_or_path"):
                continue  # transformers reads it no more, and many files on the Hub hold a path of their maker
            raise UnsafeFileError(f"{path}: {key} is {shown(value)}, outside of the folder; remove the key")


def _check_vocab_json(path: Path) -> None:
    document = read_json(path, TOKENIZER_BOUNDS)
    _check_vocabulary(path, document, {})


def _check_added_tokens_json(path: Path) -> None:
    document = read_json(path, TOKENIZER_BOUNDS)
    if len(document) > MAX_ADDED_TOKENS:
        raise UnsafeFileError(f"{path}: {len(document)} added tokens; at most {MAX_ADDED_TOKENS} are read")
    _check_vocabulary(path, document, {})


def _check_small_json(path: Path) -> None:
    read_json(path, SMALL)


def _check_lines(path: Path) -> None:
    content = read_bytes(path, MAX_FILE_BYTES)
    if content.count(b"\n") > MAX_TOKENS:
        raise UnsafeFileError(f"{path}: more than {MAX_TOKENS} lines")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: byte {error.start} is not UTF-8") from error


def _check_sentencepiece(path: Path) -> None:
    content = read_bytes(path, MAX_FILE_BYTES)
    kind = recognise_bytes(content[:512])
    if kind in ("pickle", "zip", "gguf", "executable", "script", "tar", "hdf5", "safetensors"):
        raise UnsafeFileError(f"{path}: is of the kind {kind}, no sentencepiece model, whatever its name says")


_CHECKS = {
    TOKENIZER_JSON: _check_tokenizer_json,
    TOKENIZER_CONFIG: _check_tokenizer_config,
    "special_tokens_map.json": _check_small_json,
    "added_tokens.json": _check_added_tokens_json,
    "vocab.json": _check_vocab_json,
    "merges.txt": _check_lines,
    "vocab.txt": _check_lines,
    "tokenizer.model": _check_sentencepiece,
}
