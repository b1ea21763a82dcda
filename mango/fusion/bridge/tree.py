"""Texts that begin alike, as a tree of tokens: each token is read once, and sees those that it follows in its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """Tokens of several texts of one row.

    Args:
        tokens: the token of each node.
        parents: the node before each; -1 for the first of a text.
        depths: how many nodes stand before each in its text.
        paths: the nodes of each text, in order.
        known: how many nodes, the first ones, have been read before.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    paths: list[list[int]]
    known: int

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], before: Sequence[int] = ()) -> Tree:
        """Return the tree of texts; of a text that was read before, the part stays known that all of them begin with.

        Args:
            texts: tokens of each.
            before: tokens that were read before.
        """
        known = min((_common(before, text) for text in texts), default=0)
        tokens, parents, depths = list(before[:known]), list(range(-1, known - 1)), list(range(known))
        after = {(place - 1, token): place for place, token in enumerate(tokens)}
        paths: list[list[int]] = []
        for text in reversed(texts):  # the last, which the next tokens go on from, is one run of nodes
            node, path = -1, []
            for depth, token in enumerate(text):
                key = (node, token)
                if key not in after:
                    after[key] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                    depths.append(depth)
                node = after[key]
                path.append(node)
            paths.append(path)
        return cls(tokens, parents, depths, paths[::-1], known)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_new(self) -> int:
        """Number of nodes that are to be read."""
        return len(self.tokens) - self.known

    def sees(self) -> Tensor:
        """Return which nodes each new one sees, bool ``[new, nodes]``: those of its text up to itself."""
        seen = torch.zeros(self.num_new, len(self), dtype=torch.bool)
        for row, node in enumerate(range(self.known, len(self))):
            parent = self.parents[node]
            if parent >= self.known:
                seen[row] = seen[parent - self.known]
            else:
                seen[row, : parent + 1] = True
            seen[row, node] = True
        return seen


def _common(before: Sequence[int], text: Sequence[int]) -> int:
    """Return how many tokens two texts have in common at their beginning."""
    number = 0
    for one, other in zip(before, text, strict=False):
        if one != other:
            break
        number += 1
    return number
