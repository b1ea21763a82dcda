"""What each token of a vocabulary stands for, in bytes, whatever style its tokenizer writes it in."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mango.checkpoints.opening import open_tokenizer
from mango.errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        forms: the bytes that each ordinary token stands for, by id; several ids may have one form.
        special: the text of each special token, by id.
        roles: id of the token for each role that the tokenizer gives (``"eos_token"``).
        size: one more than the largest id.
    """

    forms: dict[int, bytes]
    special: dict[int, str]
    roles: dict[str, int]
    size: int

    def by_form(self) -> dict[bytes, int]:
        """Return the id of each form, the smallest where there are several."""
        found: dict[bytes, int] = {}
        for number in sorted(self.forms):
            found.setdefault(self.forms[number], number)
        return found


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a model folder.

    Raises:
        CheckpointError: there is no tokenizer, or it is of a kind whose tokens cannot be told.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = open_tokenizer(folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"{folder}: a {type(tokenizer).__name__} does not say what its tokens are; wanted a fast one"
        )
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    style = style_of(document)
    added = tokenizer.added_tokens_decoder
    forms: dict[int, bytes] = {}
    special: dict[int, str] = {}
    unknown = document["model"].get("unk_token")
    for text, number in tokenizer.get_vocab().items():
        if number in added:
            if added[number].special:
                special[number] = text
            else:
                forms[number] = added[number].content.encode()  # added tokens are matched as plain text
        elif text == unknown:
            special[number] = text
        else:
            forms[number] = token_form(text, style)
    roles: dict[str, int] = {}
    for role in ROLES:
        if (text := getattr(tokenizer, role)) is not None:
            roles[role] = int(tokenizer.get_vocab()[str(text)])
    size = max([*forms, *special], default=-1) + 1
    return Vocabulary(forms, special, roles, size)


def style_of(document: dict[str, Any]) -> str:
    """Return how a ``tokenizer.json`` writes its tokens: ``byte_level``, ``metaspace``, ``wordpiece`` or ``plain``."""
    around = json.dumps([document.get("pre_tokenizer"), document.get("decoder"), document.get("normalizer")])
    if '"ByteLevel"' in around:
        return "byte_level"
    if '"Metaspace"' in around or "\\u2581" in around:
        return "metaspace"
    return "wordpiece" if document["model"].get("type") == "WordPiece" else "plain"


def token_form(text: str, style: str) -> bytes:
    """Return the bytes that a token stands for.

    Args:
        text: the token as the vocabulary has it.
        style: see `style_of`.
    """
    if style == "byte_level":
        if all(character in _BYTES for character in text):
            return bytes(_BYTES[character] for character in text)
        return text.encode()
    if style == "metaspace":
        if byte := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(byte[1], 16)])
        return text.replace("\u2581", " ").encode()
    if style == "wordpiece":
        return text.removeprefix("##").encode() if text.startswith("##") else b" " + text.encode()
    return text.encode()


def _byte_characters() -> dict[str, int]:
    """Return the byte behind each character of byte-level tokens: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()
