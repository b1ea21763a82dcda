"""The vocabulary of an input or of the result: its files, its tokens, and whether two agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mango.checkpoints import check_tokenizer, copy_tokenizer, open_tokenizer, read_json, tokenizer_sha256, write_file
from mango.checkpoints.tokenizer_rules import CONFIG_BOUNDS
from mango.errors import CheckpointError, MergeError

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, as files.

    Attributes:
        folder: where its files are.
        changed: files that take the place of those in the folder, by name.
        removed: names of files that are left out.
    """

    folder: Path
    changed: Mapping[str, bytes] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, folder: Path) -> Vocabulary | None:
        """Return the vocabulary of a model folder, or None where it has none."""
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            return None
        check_tokenizer(folder)  # before any library reads it
        return cls(folder)

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Every token with its id."""
        from tokenizers import Tokenizer

        if "tokenizer.json" in self.changed:
            return dict(Tokenizer.from_str(self.changed["tokenizer.json"].decode()).get_vocab(with_added_tokens=True))
        if (self.folder / "tokenizer.json").is_file():
            try:
                return dict(Tokenizer.from_file(str(self.folder / "tokenizer.json")).get_vocab(with_added_tokens=True))
            except Exception as error:  # the library raises bare exceptions
                raise CheckpointError(f"{self.folder / 'tokenizer.json'}: is no tokenizer ({error})") from error
        return dict(self._converted().get_vocab())

    def backend(self) -> Any:
        """Return the tokenizer as an object of the ``tokenizers`` library, which may be changed."""
        from tokenizers import Tokenizer

        if "tokenizer.json" in self.changed:
            return Tokenizer.from_str(self.changed["tokenizer.json"].decode())
        if (self.folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        converted = self._converted()
        if not hasattr(converted, "backend_tokenizer"):
            raise MergeError(f"{self.folder}: its tokenizer has no fast form, so it cannot be changed")
        return Tokenizer.from_str(converted.backend_tokenizer.to_str())

    def settings(self) -> dict[str, Any]:
        """Return the content of ``tokenizer_config.json``; empty where there is none."""
        if "tokenizer_config.json" in self.changed:
            return dict(json.loads(self.changed["tokenizer_config.json"]))
        path = self.folder / "tokenizer_config.json"
        return read_json(path, CONFIG_BOUNDS) if path.is_file() else {}

    def template(self) -> str | None:
        """Return the chat template, if there is one."""
        if "chat_template.jinja" in self.changed:
            return self.changed["chat_template.jinja"].decode()
        if (self.folder / "chat_template.jinja").is_file():
            return (self.folder / "chat_template.jinja").read_text("utf-8")
        found = self.settings().get("chat_template")
        if isinstance(found, list):
            found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
        return found if isinstance(found, str) else None

    def same_bytes(self, other: Vocabulary) -> bool:
        """Tell whether two tokenizers have the same main file; cheap, and no for different forms of one."""
        return self._main_digest is not None and self._main_digest == other._main_digest

    @cached_property
    def _main_digest(self) -> str | None:
        if "tokenizer.json" in self.changed:
            return hashlib.sha256(self.changed["tokenizer.json"]).hexdigest()
        for name in _VOCABULARIES:
            if (path := self.folder / name).is_file():
                if name == "vocab.json":  # merges and added tokens lie in files of their own
                    return None
                return f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        return None

    @cached_property
    def digest(self) -> str:
        """A hash that identifies the vocabulary, whatever wrote it."""
        if self.changed.get("tokenizer.json") is not None:
            return str(self._main_digest)
        return tokenizer_sha256(self.folder)

    def write(self, target: Path) -> list[str]:
        """Write all files into a folder and return their names."""
        names = set(copy_tokenizer(self.folder, target, generation_config=False))
        for name in names & self.removed:
            (target / name).unlink()
        for name, content in self.changed.items():
            write_file(target / name, content)
        return sorted((names - self.removed) | set(self.changed))

    def _converted(self) -> Any:
        return open_tokenizer(self.folder)


def conflict(first: Vocabulary, second: Vocabulary) -> str | None:
    """Return one id that stands for two tokens, or one token with two ids, as words; None where both agree."""
    if first.same_bytes(second) or first.digest == second.digest:
        return None
    by_id = {number: token for token, number in first.tokens.items()}
    for token, number in sorted(second.tokens.items(), key=lambda item: item[1]):
        if by_id.get(number, token) != token:
            return f"id {number} is {by_id[number]!r} in one and {token!r} in the other"
        if first.tokens.get(token, number) != number:
            return f"{token!r} is id {first.tokens[token]} in one and {number} in the other"
    return None
