"""One pass that trims differences from a base, elects signs and adds what agrees: the arithmetic of TIES."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from mango.tensors.kernels import Change, launch

_BLOCK = 1024
_ROUNDING = tl.constexpr(2.0**-50)
_TINY = tl.constexpr(1e-300)


def add_elected(
    base: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    changes: Sequence[Change],
    *,
    normalize: bool,
    lambda_: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the base plus the differences from it that agree with the sign elected for each element.

    The operations are those of :func:`mango.merging.methods.consensus.add_changes` with election, in their order, each
    rounded to float64 once, with fused products in the same places.

    Args:
        base: floating point, contiguous and flat.
        tensors: of its shape, each of its own type.
        changes: one for each of them.
        normalize: divide by the weights of the models that agree.
        lambda_: scale of the merged difference.
        dtype: type of the result.

    Returns:
        A flat tensor, rounded as torch rounds float64: to types of 16 bits by way of float32.
    """
    result = torch.empty(base.shape, dtype=dtype, device=base.device)
    size, weights = base.numel(), [change.weight for change in changes]
    if not size:
        return result
    limit = 1e-12 * sum(map(abs, weights)) if min(weights) < 0 else -1.0
    numbers = [lambda_, limit, *(float(number) for change in changes for number in change)]
    host = torch.tensor(numbers, dtype=torch.float64)
    given = host.to(base.device)
    launch(
        _elect,
        -(-size // _BLOCK),
        result,
        base,
        tuple(tensors),
        given,
        size,
        NUM=len(tensors),
        NORMALIZE=normalize,
        HAS_NEGATIVE=min(weights) < 0,
        SCALES=lambda_ != 1.0,
        BLOCK=_BLOCK,
    )
    return result


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def _elect(  # type: ignore[no-untyped-def]  # Triton reads annotations
    result,
    base,
    tensors,
    given,
    size,
    NUM: tl.constexpr,  # noqa: N803
    NORMALIZE: tl.constexpr,  # noqa: N803
    HAS_NEGATIVE: tl.constexpr,  # noqa: N803
    SCALES: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < size
    zero = tl.zeros([BLOCK], tl.float64)
    one = tl.full([BLOCK], 1.0, tl.float64)
    start = tl.load(base + place, mask=there, other=0.0).to(tl.float64)
    total, length, up, down = zero, zero, zero, zero
    for i in tl.static_range(NUM):
        weight = tl.load(given + 2 + i * 5)
        num_early = tl.load(given + 3 + i * 5)
        most = tl.where(place.to(tl.float64) < num_early, tl.load(given + 4 + i * 5), tl.load(given + 5 + i * 5))
        change = tl.load(tensors[i] + place, mask=there, other=0.0).to(tl.float64) - start
        change = tl.where(tl.abs(change) <= most, zero, change) * tl.load(given + 6 + i * 5)
        if i == 0:
            pull = change * weight
            goes_up = pull > 0.0
            goes_down = pull < 0.0
            total = pull
            length = tl.abs(pull)
        else:
            factor = zero + weight
            towards = tl.where(factor > 0.0, change, tl.where(factor < 0.0, -change, zero))
            goes_up = towards > 0.0
            goes_down = towards < 0.0
            total = tl.fma(change, factor, total)
            length = tl.fma(tl.abs(change), tl.abs(factor), length)
        if NORMALIZE:
            up += tl.where(goes_up, weight, 0.0)
            down += tl.where(goes_down, weight, 0.0)
    size_of_total = tl.abs(total)
    elected = size_of_total + length  # twice the larger side
    sign = tl.where(total > 0.0, one, tl.where(total < 0.0, -one, zero))
    if NORMALIZE:
        divisor = tl.where(total > 0.0, up, down)
        if HAS_NEGATIVE:  # those that agree may cancel out; their sum is left undivided then
            divisor = tl.where(tl.abs(divisor) <= tl.load(given + 1), one, divisor)
        else:
            divisor = tl.where(divisor < _TINY, zero + _TINY, divisor)
        elected = elected / divisor * sign
    else:
        elected = tl.where(total.to(tl.int64, bitcast=True) < 0, elected * -1.0, elected)  # -0.0 too
    elected = elected * 0.5 * tl.where(size_of_total > length * _ROUNDING, one, zero)
    if SCALES:
        elected = elected * tl.load(given)
    merged = start + elected
    if result.dtype.element_ty != tl.float64 and result.dtype.element_ty != tl.float32:
        merged = merged.to(tl.float32)
    tl.store(result + place, merged.to(result.dtype.element_ty), mask=there)
