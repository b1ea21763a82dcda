from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mango.tensors import (
    ITEM_BYTES,
    dtype_name,
    item_bytes,
    keep_largest,
    measure_angle,
    num_kept,
    parse_dtype,
    torch_dtype,
)
from mango.tensors.pieces import pieces


@given(
    values=st.lists(st.one_of(st.floats(0, 10), st.sampled_from([0.0, 1.0, 2.0, 5e-324])), max_size=60),
    count=st.integers(0, 70),
    size=st.integers(1, 20),
)
def test_the_largest_are_kept_exactly(values: list[float], count: int, size: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    kept = keep_largest([tensor], [count])[0]
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    wanted = [i in order[:count] for i in range(len(values))]
    assert kept.mask(tensor).tolist() == wanted
    parts = [kept.mask(part, i * size) for i, part in enumerate(tensor.split(size))] if values else []
    assert [bool(x) for part in parts for x in part] == wanted


@given(density=st.floats(1e-6, 1), size=st.integers(0, 10**7))
def test_a_density_keeps_what_it_says_rounded_down_and_never_nothing(density: float, size: int) -> None:
    count = num_kept(density, size)
    assert 0 <= count <= size
    assert (count == 0) == (size == 0)
    assert -1e-6 <= density * size - count < 1 or (count == 1 and density * size < 1)


def test_a_product_that_misses_a_whole_number_by_rounding_is_that_number() -> None:
    assert int(0.29 * 100) == 28
    assert num_kept(0.29, 100) == 29
    assert num_kept(0.0, 100) == 0


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.5, math.pi / 2, 3.0, math.pi - 1e-9, math.pi])
def test_angles_are_exact_everywhere(angle: float) -> None:
    first = torch.tensor([2.0, 0.0], dtype=torch.float64)
    second = 3 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    found = measure_angle(first, second)
    assert math.isclose(found.radians, angle, rel_tol=1e-12, abs_tol=1e-15)
    assert math.isclose(found.first_norm, 2.0, rel_tol=1e-12)
    assert math.isclose(found.second_norm, 3.0, rel_tol=1e-12)


def test_angles_of_nothing_are_zero_and_of_nan_are_nan() -> None:
    assert measure_angle(torch.zeros(3), torch.ones(3)).radians == 0.0
    assert measure_angle(torch.empty(0), torch.empty(0)).radians == 0.0
    assert math.isnan(measure_angle(torch.tensor([math.nan]), torch.ones(1)).radians)


def test_pieces_cover_tensors_in_step() -> None:
    a, b = torch.arange(7), torch.arange(7) * 2
    found = list(pieces([a, b], 3))
    assert [len(x) for x, _ in found] == [3, 3, 1]
    assert torch.equal(torch.cat([y for _, y in found]), b)
    assert list(pieces([torch.empty(0)])) == []


def test_dtype_names_go_both_ways() -> None:
    for name in ITEM_BYTES:
        dtype = torch_dtype(name)
        assert dtype_name(dtype) == name
        assert item_bytes(name) == torch.empty(0, dtype=dtype).element_size()
    assert parse_dtype("bf16") == parse_dtype("torch.bfloat16") == torch.bfloat16
    with pytest.raises(KeyError, match="int3"):
        parse_dtype("int3")
