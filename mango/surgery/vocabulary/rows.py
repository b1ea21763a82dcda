"""The new rows of a table of tokens, each a combination of its old rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Combination:
    """A new row as a sum of old ones.

    Attributes:
        sources: rows of the old table.
        weights: their coefficients.
        share: how much of the mean of known rows is added.
    """

    sources: Sequence[int]
    weights: Sequence[float]
    share: float = 0.0


@dataclass(frozen=True)
class Rows:
    """How each row of a new table is made of the rows of the old one.

    Attributes:
        starts: int64 ``[rows + 1]``; the entries of row r are those from ``starts[r]`` up to ``starts[r + 1]``.
        sources: row of the old table, for each entry; int64.
        weights: its coefficient; float32.
        share: how much of the fill vector is added to each row, 1 where nothing is known of it; float32 ``[rows]``.
    """

    starts: Tensor
    sources: Tensor
    weights: Tensor
    share: Tensor

    @classmethod
    def of(cls, combinations: Sequence[Combination | None]) -> Rows:
        """Return the rows of combinations, None where a row is to be filled."""
        sizes = [0 if entry is None else len(entry.sources) for entry in combinations]
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(sizes, dtype=torch.int64).cumsum(0)])
        given = [entry for entry in combinations if entry is not None]
        sources = torch.tensor([i for entry in given for i in entry.sources], dtype=torch.int64)
        weights = torch.tensor([w for entry in given for w in entry.weights], dtype=torch.float32)
        share = torch.tensor([1.0 if entry is None else entry.share for entry in combinations], dtype=torch.float32)
        return cls(starts, sources, weights, share)

    def __len__(self) -> int:
        """Return the number of new rows."""
        return len(self.share)

    def apply(self, table: Tensor, fill: Tensor, *, noise: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the new table as flat pieces of its rows, in order, in the old table's type.

        Args:
            table: ``[old rows, width]``, or ``[old rows]`` for a bias.
            fill: float32 ``[width]``, what a row without an entry is.
            noise: float32 ``[rows without an entry, width]`` added to those, or None.
        """
        flat = table.ndim == 1
        wide = table.unsqueeze(1) if flat else table
        seen = 0
        for start in range(0, len(self), CHUNK_ROWS):
            end = min(start + CHUNK_ROWS, len(self))
            first, last = int(self.starts[start]), int(self.starts[end])
            sources = self.sources[first:last]
            known, inverse = torch.unique(sources, return_inverse=True)
            rows = torch.zeros(end - start, wide.shape[1], dtype=torch.float32)
            if len(known):
                sums = torch.nn.functional.embedding_bag(
                    inverse,
                    wide[known].float(),
                    self.starts[start:end] - first,
                    mode="sum",
                    per_sample_weights=self.weights[first:last],
                )
                rows.copy_(sums)
            rows += self.share[start:end].unsqueeze(1) * fill.reshape(1, -1)
            if noise is not None:
                empty = self.starts[start:end] == self.starts[start + 1 : end + 1]
                count = int(empty.sum())
                rows[empty] += noise[seen : seen + count]
                seen += count
            yield rows.to(table.dtype).reshape(-1)
