"""Runs: tokens picked out of a rectangle and packed to the left, row by row, and put back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT = 16
"""Aligned runs have a length that is a multiple of this, or that of their source.

Kernels on the CPU sum in an order that depends on the number of rows that they are given, up to about this number, and
up to twice this number on whether it is odd. With runs of every length, a later token that changes its expert would
move the last bit of earlier ones.
"""


@dataclass(frozen=True)
class Runs:
    """For each row, the places of its picked tokens in order, packed to the left.

    Args:
        place: index of each packed token in its row, ``[rows, length]``; 0 where not valid.
        valid: which packed places hold a token, ``[rows, length]``.
        source_length: length of the rows that tokens are picked from.
        whole: whether every token of every row is picked, so that nothing moves.
    """

    place: Tensor
    valid: Tensor
    source_length: int
    whole: bool

    @classmethod
    def of(cls, mask: Tensor, *, align: bool) -> Runs:
        """Pick the tokens that `mask` (``[rows, length]``, bool) marks.

        Args:
            mask: marks them.
            align: whether the length of the runs follows :data:`ALIGNMENT`, or is that of the longest run.
        """
        count = mask.sum(1)
        longest = int(count.max()) if mask.numel() else 0
        whole = longest == mask.shape[1] and bool(mask.all())
        if whole:
            place = torch.arange(longest, device=mask.device).expand(mask.shape[0], -1)
            return cls(place, mask, mask.shape[1], True)
        if align:
            short = mask.shape[1] < 2 * ALIGNMENT
            longest = mask.shape[1] if short else min(-(-longest // ALIGNMENT) * ALIGNMENT, mask.shape[1])
        valid = torch.arange(longest, device=mask.device) < count.unsqueeze(1)
        # A stable sort brings marked tokens to the left and keeps their order.
        place = torch.sort((~mask).to(torch.uint8), dim=1, stable=True).indices[:, :longest]
        return cls(torch.where(valid, place, 0), valid, mask.shape[1], False)

    def pick(self, values: Tensor) -> Tensor:
        """Pick from ``[rows, source_length, ...]``; places that are not valid repeat the first token of the row."""
        if self.whole:
            return values
        index = self.place.view(*self.place.shape, *(1,) * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
        return values.gather(1, index)

    def put(self, packed: Tensor) -> Tensor:
        """Put ``[rows, length, ...]`` back into ``[rows, source_length, ...]``, with zeros elsewhere."""
        if self.whole:
            return packed
        out = packed.new_zeros(packed.shape[0], self.source_length, *packed.shape[2:])
        rows, columns = self.valid.nonzero(as_tuple=True)
        return out.index_put((rows, self.place[rows, columns]), packed[rows, columns])


def align_right(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order that packs each row's valid columns to the right, and the packed mask, without empty columns.

    Args:
        valid: bool ``[rows, length]``.

    Returns:
        Indices ``[rows, longest]`` and mask ``[rows, longest]``.
    """
    count = valid.sum(1)
    longest = int(count.max()) if valid.numel() else 0
    order = torch.sort(valid.to(torch.uint8), dim=1, stable=True).indices[:, valid.shape[1] - longest :]
    packed = torch.arange(longest, device=valid.device) >= (longest - count).unsqueeze(1)
    return order, packed


def processed_tokens(routed: Tensor, valid: Tensor, catch_up: int) -> Tensor:
    """Return which tokens each expert processes: those routed to it, and the last few before each entry.

    Args:
        routed: ``[rows, length, experts]``, each row one run of tokens.
        valid: ``[rows, length]``.
        catch_up: tokens that an expert reads first on an entry.

    Returns:
        bool ``[rows, length, experts]``.
    """
    routed = routed & valid.unsqueeze(-1)
    if catch_up == 0 or routed.shape[1] == 0:
        return routed
    before = torch.nn.functional.pad(routed, (0, 0, 1, 0))[:, :-1]
    entry = (routed & ~before).to(torch.int32)
    # A token is caught up on when an entry lies among the next `catch_up` tokens.
    total = torch.nn.functional.pad(entry.cumsum(1, dtype=torch.int32), (0, 0, 0, catch_up), mode="constant")
    length = routed.shape[1]
    total[:, length:] = total[:, length - 1 : length]
    near = (total[:, catch_up:] - total[:, :length]) > 0
    return (routed | near) & valid.unsqueeze(-1)
