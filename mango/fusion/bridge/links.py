"""Which tokens of the trunk may come next where a guest says one of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mango.fusion.bridge.forms import Forms, Ints

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Links:
    """Pairs of a token of the guest's and one of the trunk's that agree in their bytes as far as both go.

    A token of the guest's with one partner gives it all its probability; one with several shares it among them as the
    trunk would. So the sum of all stays.

    Args:
        single: tokens of the guest's with one partner, and the partner, int64 ``[2, pairs]``.
        sharing: tokens of the guest's with several, int64 ``[tokens]``.
        several: place in `sharing`, and a partner, int64 ``[2, pairs]``.
        guests: all tokens of the guest's that have a partner, int64 ``[tokens]``.
    """

    single: Tensor
    sharing: Tensor
    several: Tensor
    guests: Tensor

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Links:
        """Return the links of pairs of a guest's token and a trunk's; what stands there twice counts once."""
        table: Ints = np.unique(np.asarray(list(pairs), dtype=np.int64).reshape(-1, 2), axis=0)
        tokens, place, count = np.unique(table[:, 0], return_inverse=True, return_counts=True)
        alone = count[place.reshape(-1)] == 1
        sharing, slot = np.unique(table[~alone, 0], return_inverse=True)
        several = np.stack([slot.reshape(-1), table[~alone, 1]])
        parts = (table[alone].T, sharing, several, tokens)
        return cls(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))

    @property
    def num_pairs(self) -> int:
        """Number of pairs."""
        return self.single.shape[1] + self.several.shape[1]

    def to(self, device: torch.device) -> Links:
        """Return them on a device."""
        return Links(*(part.to(device) for part in (self.single, self.sharing, self.several, self.guests)))

    def carry(self, said: Tensor, trunk: Tensor) -> Tensor:
        """Return what a guest says of its next token as probabilities of the trunk's.

        ``P(v) = sum_u P_guest(u) P_trunk(v) / sum_v' P_trunk(v')`` over the partners ``v'`` of ``u``.

        Args:
            said: probabilities of the guest's tokens, ``[guest's vocabulary, places]``.
            trunk: the trunk's own, above zero, ``[trunk's vocabulary, places]``.

        Returns:
            ``[trunk's vocabulary, places]``, of the same sum as what was said of tokens that have partners.
        """
        out = torch.zeros_like(trunk).index_add(0, self.single[1], said[self.single[0]])
        if not len(self.sharing):
            return out
        slot, partner = self.several
        weight = trunk[partner]
        total = trunk.new_zeros(len(self.sharing), trunk.shape[1]).index_add(0, slot, weight)
        return out.index_add(0, partner, weight * (said[self.sharing] / total)[slot])


def partners(guest: Forms, trunk: Forms, read: bytes = b"") -> Pairs:
    """Return the guest's tokens that begin with what it has read of them and go on, each with each of its partners.

    Of the bytes that go on, one partner is the longest token of the trunk's that they begin with. Others are the
    trunk's tokens that begin with all of these bytes, and with those of no longer token of the guest's.

    Args:
        guest: forms of the guest.
        trunk: forms of the trunk.
        read: bytes at the end of the text that the guest's token begins with; none where it begins at the end.
    """
    first, last = guest.starting(read)
    if read and first < last and guest.sorted[first] == read:
        first += 1
    owner: Ints = np.full(len(trunk.sorted), -1, dtype=np.int64)
    found: Pairs = []
    for place in range(first, last):
        rest = guest.sorted[place][len(read) :]
        begin, end = trunk.starting(rest)
        owner[begin:end] = place  # what extends a form stands behind it, and takes over what begins with it
        longest = trunk.longest(rest)
        if longest is not None:
            found.append((place, longest))
    owned = (owner >= 0).nonzero()[0]
    found += zip(owner[owned].tolist(), owned.tolist(), strict=True)
    return [(mine, theirs) for a, b in found for mine in guest.tokens(a) for theirs in trunk.tokens(b)]
