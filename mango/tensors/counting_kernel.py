"""One pass that counts magnitudes above, at and between two values, and gathers those between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from mango.tensors.kernels import launch

_BLOCK = 1024
_STEPS = 8


def count_piece(
    parts: Sequence[torch.Tensor],
    ends: torch.Tensor,
    counts: torch.Tensor,
    num_gathered: torch.Tensor,
    gathered: torch.Tensor,
) -> None:
    """Look at the magnitudes of a flat piece, or of the difference of two.

    Args:
        parts: one or two contiguous floating point tensors of shape [n].
        ends: the lower and the higher value, float64 ``[2]``.
        counts: int64 ``[4]``; added to it are how many are between the ends, above, at the higher and at the lower.
        num_gathered: int64 ``[1]``; how many were between the ends in earlier pieces and, then, in this one as well.
        gathered: float64 ``[room]``; what is between the ends is put behind that of earlier pieces, in any order, as
            far as there is room.
    """
    size = parts[0].numel()
    launch(
        _count,
        -(-size // (_BLOCK * _STEPS)),
        parts[0],
        parts[-1],
        ends,
        counts,
        num_gathered,
        gathered,
        size,
        gathered.numel(),
        DIFFERS=len(parts) == 2,
        BLOCK=_BLOCK,
        STEPS=_STEPS,
    )


@triton.jit(do_not_specialize=["size", "room"])  # type: ignore[untyped-decorator]
def _count(  # type: ignore[no-untyped-def]  # Triton reads annotations
    first,
    second,
    ends,
    counts,
    num_gathered,
    gathered,
    size,
    room,
    DIFFERS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    STEPS: tl.constexpr,  # noqa: N803
):
    low = tl.load(ends)
    high = tl.load(ends + 1)
    inside_all = tl.zeros([BLOCK], tl.int32)
    above_all = tl.zeros([BLOCK], tl.int32)
    at_high_all = tl.zeros([BLOCK], tl.int32)
    at_low_all = tl.zeros([BLOCK], tl.int32)
    start = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    for step in range(STEPS):
        place = start + step * BLOCK + tl.arange(0, BLOCK)
        there = place < size
        value = tl.load(first + place, mask=there, other=0.0).to(tl.float64)
        if DIFFERS:
            value = value - tl.load(second + place, mask=there, other=0.0).to(tl.float64)
        value = tl.abs(value)
        is_inside = there & (value > low) & (value < high)
        inside = is_inside.to(tl.int32)
        inside_all += inside
        above_all += (there & (value > high)).to(tl.int32)
        at_high_all += (there & (value == high)).to(tl.int32)
        at_low_all += (there & (value == low)).to(tl.int32)
        here = tl.sum(inside, axis=0)
        if here > 0:
            slot = tl.atomic_add(num_gathered, here.to(tl.int64)) + tl.cumsum(inside, axis=0) - 1
            tl.store(gathered + slot, value, mask=is_inside & (slot < room))
    tl.atomic_add(counts, tl.sum(inside_all, axis=0).to(tl.int64))
    tl.atomic_add(counts + 1, tl.sum(above_all, axis=0).to(tl.int64))
    tl.atomic_add(counts + 2, tl.sum(at_high_all, axis=0).to(tl.int64))
    tl.atomic_add(counts + 3, tl.sum(at_low_all, axis=0).to(tl.int64))
