"""The bytes that the tokens of a vocabulary stand for, in the order in which a prefix stands before what extends it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]


class Forms:
    """The forms of a vocabulary, looked up by what they begin with.

    Several tokens may have one form, as a character and the token of its byte do.

    Args:
        by_id: the bytes of each token; None for tokens that stand for no text.
    """

    def __init__(self, by_id: Sequence[bytes | None]) -> None:
        self.by_id = list(by_id)
        tokens: dict[bytes, list[int]] = {}
        for number, form in enumerate(by_id):
            if form:
                tokens.setdefault(form, []).append(number)
        self.sorted = sorted(tokens)
        self._tokens = [tokens[form] for form in self.sorted]
        self._place = {form: place for place, form in enumerate(self.sorted)}
        self._longest = max(map(len, self.sorted), default=0)

    @classmethod
    def unpack(cls, text: Tensor, sizes: Tensor) -> Forms:
        """Return the forms that :meth:`pack` has packed.

        Args:
            text: the bytes of all forms, uint8 ``[bytes]``.
            sizes: number of bytes of each, int32 ``[tokens]``; -1 for none.
        """
        data, place = text.cpu().numpy().tobytes(), 0
        forms: list[bytes | None] = []
        for size in sizes.tolist():
            forms.append(data[place : place + size] if size >= 0 else None)
            place += max(size, 0)
        return cls(forms)

    def pack(self) -> tuple[Tensor, Tensor]:
        """Return the forms as tensors that a checkpoint can hold: the bytes of all, and the size of each."""
        sizes = [-1 if form is None else len(form) for form in self.by_id]
        joined = bytearray(b"".join(form or b"" for form in self.by_id))
        return torch.frombuffer(joined, dtype=torch.uint8).clone(), torch.tensor(sizes, dtype=torch.int32)

    def tokens(self, place: int) -> list[int]:
        """Return the tokens of a form, by its place in :attr:`sorted`."""
        return self._tokens[place]

    def token_of(self, form: bytes) -> int | None:
        """Return the first token that stands for these bytes; None where there is none."""
        place = self._place.get(form)
        return None if place is None else self._tokens[place][0]

    def starting(self, begin: bytes) -> tuple[int, int]:
        """Return where in :attr:`sorted` the forms that start with these bytes begin and end."""
        first = bisect_left(self.sorted, begin)
        stem = begin.rstrip(b"\xff")
        if not stem:
            return first, len(self.sorted)
        return first, bisect_left(self.sorted, stem[:-1] + bytes([stem[-1] + 1]), first)

    def longest(self, text: bytes) -> int | None:
        """Return the place of the longest form that a text starts with; None where it starts with none."""
        for size in range(min(len(text), self._longest), 0, -1):
            place = self._place.get(text[:size])
            if place is not None:
                return place
        return None
