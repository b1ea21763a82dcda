"""A text in a guest's tokens, as it is read up to each token of the trunk's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mango.fusion.bridge.forms import Forms

if TYPE_CHECKING:
    from tokenizers import Tokenizer


PIECE = 1024
"""Bytes from which on a text is tokenized in pieces."""


class Reader:
    """Reads rows of the trunk's tokens as the guest's.

    What the guest reads of a text depends on no later token: up to each token of the trunk's it is what its own
    tokenizer makes of the text so far, behind a token for the beginning. Bytes at the end that are no whole character
    yet are spelt byte by byte. Of a long text, what stands before white space some :data:`PIECE` bytes back is
    tokenized once and for all, so that reading costs as much as the text is long and not its square.

    Args:
        tokenizer: the guest's.
        trunk: forms of the trunk.
        guest: forms of the guest.
        special: the guest's token for each special token of the trunk's that it has one for; others it does not see.
        begin: the guest's token for the beginning of a text.
    """

    def __init__(
        self, tokenizer: Tokenizer, trunk: Forms, guest: Forms, special: Mapping[int, int], begin: int
    ) -> None:
        self._tokenizer = tokenizer
        self._trunk = trunk
        self._special = dict(special)
        self._begin = begin
        self._bytes = [guest.token_of(bytes([byte])) for byte in range(256)]
        # One that begins each text with a space of its own, or leaves white space out, cannot be given pieces.
        spaced = tokenizer.encode(" a", add_special_tokens=False).ids
        self._in_pieces = b"".join(guest.by_id[token] or b"" for token in spaced) == b" a"

    def read(self, ids: Sequence[int], first: int = 0) -> list[list[int]]:
        """Return the guest's tokens of the text up to each token from `first` on.

        Args:
            ids: a row of the trunk's tokens, without padding.
            first: number of the first token that it is wanted for.
        """
        done = [self._begin]
        out: list[list[int]] = []
        run, pending = b"", list[bytes]()
        for number, token in enumerate(ids):
            form = self._trunk.by_id[token] if token < len(self._trunk.by_id) else None
            if form is not None:
                run += form
                cut = _cut(run, len(form)) if self._in_pieces else None
                if cut is not None:
                    out += [done + spelt for spelt in self._spell(pending)]
                    done, run, pending = [*done, *self._spell([run[:cut]])[0]], run[cut:], []
                if number >= first:
                    pending.append(run)
                continue
            out += [done + spelt for spelt in self._spell(pending)]
            if token in self._special:  # what separates texts is read as the guest's own token for it
                done = [*done, *(self._spell([run])[0] if run else []), self._special[token]]
                run = b""
            pending = []
            if number >= first:
                out.append([*done, *(self._spell([run])[0] if run else [])])
        return out + [done + spelt for spelt in self._spell(pending)]

    def _spell(self, texts: Sequence[bytes]) -> list[list[int]]:
        ends = [len(text) - _unfinished(text) for text in texts]
        whole = [text[:end].decode("utf-8", "replace") for text, end in zip(texts, ends, strict=True)]
        encoded = self._tokenizer.encode_batch(whole, add_special_tokens=False)
        return [
            [*one.ids, *(number for byte in text[end:] if (number := self._bytes[byte]) is not None)]
            for one, text, end in zip(encoded, texts, ends, strict=True)
        ]


def _cut(run: bytes, new: int) -> int | None:
    """Return the place of the first white space behind other text, :data:`PIECE` bytes in or more.

    Args:
        run: a text.
        new: how many of its last bytes are new: there is none before them.
    """
    for place in range(max(PIECE, len(run) - new), len(run)):
        if run[place : place + 1].isspace() and not run[place - 1 : place].isspace():
            return place
    return None


def _unfinished(text: bytes) -> int:
    """Return how many bytes at the end of a text are the beginning of a character that is not whole."""
    for back in range(1, min(3, len(text)) + 1):
        byte = text[-back]
        if byte >= 0xC0:
            return back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0
