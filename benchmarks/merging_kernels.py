"""Compare the kernels of an accelerator with torch there and on the CPU, bit by bit, and time both.

    python benchmarks/merging_kernels.py

It ends with an error where one bit differs. Times are of two bfloat16 models of 2**24 elements and their base, which is
as many as a piece has: choosing what TIES keeps, and joining it.
"""

from __future__ import annotations

import importlib
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mango.console import result, table
from mango.merging.methods import ties
from mango.tensors import keep_largest, kernels, selection

TIES = importlib.import_module("mango.merging.methods.ties")
SIZES = (1, 17, 1025, 70_001, (1 << 24) + 77)
HALF, FLOAT, BRAIN, DOUBLE = torch.float16, torch.float32, torch.bfloat16, torch.float64
TYPES = ((BRAIN,) * 4, (BRAIN,) * 3, (FLOAT,) * 3, (HALF,) * 3, (DOUBLE,) * 2, (BRAIN, FLOAT, HALF))
_REPEATS = 10


def use_kernels(use: bool) -> None:
    """Let merging take kernels, or torch alone."""
    for module in (TIES, selection):
        vars(module)["can_fuse"] = kernels.can_fuse if use else lambda *_: False


def models(size: int, dtypes: tuple[torch.dtype, ...], generator: torch.Generator) -> list[torch.Tensor]:
    """Return a base and models near it, with zeros of both signs and elements that did not change."""
    base = torch.randn(size, generator=generator, dtype=DOUBLE) * 0.02
    base[::7] = -0.0
    made = [base.to(dtypes[0])]
    for dtype in dtypes[1:]:
        model = (base + torch.randn(size, generator=generator, dtype=DOUBLE) * 0.002).to(dtype)
        model[::3] = made[0][::3].to(dtype)
        made.append(model)
    return made


def cases(seed: int) -> Iterator[tuple[str, list[torch.Tensor], dict[str, Any]]]:
    """Yield models of many sizes and types, with arguments of TIES."""
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    for size, dtypes in itertools.product(SIZES, TYPES):
        is_large = size > 1 << 20
        if is_large and dtypes != TYPES[0]:
            continue
        made = models(size, dtypes, generator)
        num = len(made) - 1
        for dtype in (BRAIN, FLOAT, HALF, DOUBLE) if dtypes == TYPES[0] else dtypes[:1]:
            for normalize, lambda_, rescale, least in (
                (True, 1.0, False, 0.1),
                (False, 0.7, False, -1),
                (True, 0.3, True, -1),
            ):
                if is_large and least < 0:
                    continue
                weight = [chance.uniform(least, 1) for _ in range(num)]
                density = [0.5 if is_large else chance.choice([1.0, 0.5, 0.2, 0.001, 0.0]) for _ in range(num)]
                given = {"weight": weight, "density": density, "normalize": normalize}
                yield (
                    f"{size} {dtypes} {dtype}",
                    made,
                    {**given, "lambda_": lambda_, "rescale": rescale, "dtype": dtype},
                )


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bits on the CPU."""
    return tensor.cpu().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def check_ties(device: torch.device) -> int:
    """Return how many results of TIES were compared; none may differ."""
    count = 0
    for name, made, arguments in cases(1):
        there = [tensor.to(device) for tensor in made]
        found = {}
        for use in (False, True):
            use_kernels(use)
            found[use] = bits(ties(there[1:], base=there[0], **arguments))
        if not torch.equal(found[False], found[True]):
            sys.exit(f"the kernel and torch differ on {device}: {name} {arguments}")
        if not torch.equal(found[True], bits(ties(made[1:], base=made[0], **arguments))):
            sys.exit(f"{device} and the CPU differ: {name} {arguments}")
        count += 1
    return count


def check_selection(device: torch.device) -> int:
    """Return how many choices of the largest were compared; none may differ."""
    generator, count = torch.Generator().manual_seed(2), 0
    for size in (3, 1000, 65_537, 300_001, 5_000_003):
        values = torch.randn(size, generator=generator)
        forms = values.bfloat16(), (values * 4).round() / 4, torch.full((size,), 0.5), values * (values > 2.5)
        for form, other in itertools.product(forms, (None, values.flip(0))):
            tensors = [form] if other is None else [form, other]
            counts = [n for n in (1, size // 10, size // 3, size // 2, size - 1) if 0 < n < size]
            there = [tensor.to(device) for tensor in tensors]
            use_kernels(False)
            plain = keep_largest(there, counts)
            use_kernels(True)
            if not plain == keep_largest(there, counts) == keep_largest(tensors, counts):
                sys.exit(f"choices of {counts} among {size} differ")
            count += 1
    return count


def milliseconds(call: Callable[[], object]) -> float:
    """Return how long a call takes, after one that is not counted."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(_REPEATS):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000 / _REPEATS


def main() -> None:
    """Check everything, then time a piece."""
    device = torch.device("cuda", 0)
    if (missing := kernels.what_is_missing(device)) is not None:
        sys.exit(missing)
    result(f"{check_ties(device)} merges and {check_selection(device)} choices have the same bits in all ways")
    base = torch.randn(1 << 24, device=device).bfloat16() * 0.02
    near = [base + torch.randn(1 << 24, device=device).bfloat16() * 0.002 for _ in range(2)]
    density = [0.5, 0.5]
    trims = TIES._measure(near, base=base, density=density)["trims"]
    rows = []
    for use in (False, True):
        use_kernels(use)
        measure = milliseconds(lambda: TIES._measure(near, base=base, density=density))
        join = milliseconds(lambda: ties(near, base=base, weight=[0.5, 0.5], density=density, trims=trims))
        rows.append(["kernels" if use else "torch", measure, join])
    result(table(rows, ["by", "choosing, ms", "joining, ms"]))


if __name__ == "__main__":
    main()
