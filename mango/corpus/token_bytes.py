"""Tokens with the number of UTF-8 bytes that each stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mango.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ints = npt.NDArray[np.int64]
_BATCH = 64


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[tuple[Ints, Ints]]:
    """Yield the token ids of each text and the UTF-8 bytes of each token, without special tokens.

    The bytes of a text's tokens add up to the bytes of the text exactly: what lies between two tokens (a space that
    the tokenizer's offsets leave out) counts for the later one, what follows the last token counts for that one, and
    of the tokens that share a character the first one counts it whole.

    Args:
        tokenizer: a tokenizer that knows offsets (the fast kind).
        texts: the documents.

    Yields:
        For each text, ids and bytes: two int64 arrays of shape [tokens].

    Raises:
        DataError: the tokenizer has no offsets, or turns a text that is not empty into no token.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} gives no character offsets, which bits per byte need; "
            "use a model with a tokenizer.json"
        )
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        encoded = tokenizer(
            batch,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for text, ids, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if text and not ids:
                raise DataError(f"{type(tokenizer).__name__} turns the text {text[:40]!r} into no token")
            yield np.asarray(ids, dtype=np.int64), token_bytes(text, [end for _, end in offsets])


def token_bytes(text: str, ends: Sequence[int]) -> Ints:
    """Return the UTF-8 bytes that each token stands for.

    Args:
        text: the text that was tokenized.
        ends: for each token, the position in `text` (in characters) where it ends.

    Returns:
        Bytes of each token, int64 of shape [len(ends)]; their sum is the size of `text` when there is a token.
    """
    if not len(ends):
        return np.zeros(0, dtype=np.int64)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    width = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    position = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(width)])
    reached = np.maximum.accumulate(np.asarray(ends, dtype=np.int64))
    reached[-1] = len(text)
    return np.diff(position[reached], prepend=0)
