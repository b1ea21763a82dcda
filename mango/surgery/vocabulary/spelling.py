"""Spelling a string of bytes with the tokens of a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping


class Speller:
    """Spells bytes with the fewest tokens of a vocabulary; of two ways with as many, the one that starts longer.

    Args:
        tokens: id by form.
    """

    def __init__(self, tokens: Mapping[bytes, int]) -> None:
        self._tokens = tokens
        self._longest = max(map(len, tokens), default=0)

    def spell(self, form: bytes) -> list[int]:
        """Return the tokens that spell ``form``, or none where they cannot."""
        length = len(form)
        fewest: list[int | None] = [*([None] * length), 0]  # tokens that spell what starts at each place
        taken = [0] * length  # how long the first of them is
        for start in range(length - 1, -1, -1):
            for end in range(min(length, start + self._longest), start, -1):
                rest = fewest[end]
                if rest is None or form[start:end] not in self._tokens:
                    continue
                best = fewest[start]
                if best is None or rest + 1 < best:
                    fewest[start], taken[start] = rest + 1, end - start
        if length == 0 or fewest[0] is None:
            return []
        spelt, place = [], 0
        while place < length:
            spelt.append(self._tokens[form[place : place + taken[place]]])
            place += taken[place]
        return spelt
