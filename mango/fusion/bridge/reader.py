"""A text in a guest's tokens, as it is read up to each token of the trunk's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mango.fusion.bridge.forms import Forms

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Reader:
    """Reads rows of the trunk's tokens as the guest's.

    What the guest reads of a text depends on no later token: up to each token of the trunk's it is what its own
    tokenizer makes of the text so far, behind a token for the beginning. Bytes at the end that are no whole character
    yet are spelt byte by byte.

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


def _unfinished(text: bytes) -> int:
    """Return how many bytes at the end of a text are the beginning of a character that is not whole."""
    for back in range(1, min(3, len(text)) + 1):
        byte = text[-back]
        if byte >= 0xC0:
            return back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0
