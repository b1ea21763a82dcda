"""Each method against a float64 reference written from its paper, and the properties that it must have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mango.errors import MergeError
from mango.merging.methods import linear, slerp, task_arithmetic, ties
from mango.tensors.pieces import pieces
from tests.reference import merging as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0,), (1,), (2,), (3,), (7, 5), (64, 33), (), (200, 300)]
ULP = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
SMALLEST = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}


def family(shape: tuple[int, ...], dtype: torch.dtype, count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """A base and ``count`` models a little away from it, as fine-tuning leaves them."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    models = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count)]
    return tuple(tensor.to(dtype) for tensor in (base, *models))


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def assert_rounded(found: torch.Tensor, exact: np.ndarray, dtype: torch.dtype, at_least: float = 0.994) -> None:
    """Nearly all elements are the exact result correctly rounded, and all are within one unit in the last place."""
    assert found.dtype == dtype
    assert tuple(found.shape) == exact.shape
    if not exact.size:
        return
    rounded = torch.from_numpy(np.asarray(exact)).to(dtype)
    if exact.size >= 1000:  # a few elements lie so near to the middle of two that float64 cannot tell which is nearer
        assert (found == rounded).float().mean().item() >= at_least
    exponent = np.floor(np.log2(np.maximum(np.abs(exact), 1e-300)))
    unit = np.maximum(2.0**exponent * ULP[dtype], SMALLEST[dtype])
    noise = 1e-15  # of float64, where terms of about 1 cancel
    assert (np.abs(numbers(found) - exact) <= unit + noise).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
class TestAgainstThePapers:
    @pytest.mark.parametrize("normalize", [True, False])
    def test_linear(self, shape: tuple[int, ...], dtype: torch.dtype, normalize: bool) -> None:
        _, *models = family(shape, dtype, 3)
        weight = [0.2, 1.0, -0.3]
        exact = reference.linear([numbers(m) for m in models], weight, normalize)
        assert_rounded(linear(models, weight=weight, normalize=normalize), exact, dtype)

    def test_task_arithmetic(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        base, *models = family(shape, dtype, 4)
        weight = [1.0, 0.7, -0.2, 0.9]
        exact = reference.task_arithmetic(numbers(base), [numbers(m) for m in models], weight, 0.4)
        assert_rounded(task_arithmetic(models, base=base, weight=weight, lambda_=0.4), exact, dtype)

    @pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
    def test_slerp(self, shape: tuple[int, ...], dtype: torch.dtype, t: float) -> None:
        _, *models = family(shape, dtype, 2)
        exact = reference.slerp(numbers(models[0]), numbers(models[1]), t)
        assert_rounded(slerp(models, t=t), exact, dtype)

    @pytest.mark.parametrize("normalize", [True, False])
    def test_ties(self, shape: tuple[int, ...], dtype: torch.dtype, normalize: bool) -> None:
        base, *models = family(shape, dtype, 3)
        weight, density = [1.0, 0.5, 2.0], [0.2, 0.5, 1.0]
        exact = reference.ties(numbers(base), [numbers(m) for m in models], weight, density, 0.8, normalize)
        found = ties(models, base=base, weight=weight, density=density, lambda_=0.8, normalize=normalize)
        assert_rounded(found, exact, dtype)


ELEMENTS = st.floats(-4, 4, width=16, allow_nan=False).map(lambda x: x if abs(x) > 1e-3 else 0.0)
LISTS = st.integers(1, 24).flatmap(
    lambda n: st.lists(st.lists(ELEMENTS, min_size=n, max_size=n), min_size=3, max_size=3)
)
CALLS: dict[str, Any] = {
    "linear": lambda base, models: linear([base, *models], weight=[0.5, 1.5, 0.25][: len(models) + 1]),
    "task_arithmetic": lambda base, models: task_arithmetic(models, base=base, weight=[0.5, 1.5][: len(models)]),
    "ties": lambda base, models: ties(
        models, base=base, weight=[0.5, 1.5][: len(models)], density=[0.3, 0.8][: len(models)]
    ),
    "slerp": lambda base, models: slerp([base, models[0]], t=0.3),
}


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("method", sorted(CALLS))
@given(values=st.lists(ELEMENTS, max_size=20))
def test_equal_models_are_a_fixed_point(method: str, dtype: torch.dtype, values: list[float]) -> None:
    base = torch.tensor(values, dtype=dtype)
    found = CALLS[method](base, [base.clone(), base.clone()])
    assert found.dtype == dtype
    assert torch.equal(found, base) or (
        dtype == torch.float64 and torch.allclose(found, base, rtol=4e-16, atol=0)  # weights are rounded in float64
    )


@given(values=LISTS, order=st.permutations(range(3)))
def test_the_order_of_models_does_not_matter(values: list[list[float]], order: list[int]) -> None:
    models = [torch.tensor(v) for v in values]
    base, weight, density = torch.zeros(len(values[0])), [0.1, 0.7, 0.2], [0.3, 0.6, 1.0]
    moved = [models[i] for i in order]
    w, d = [weight[i] for i in order], [density[i] for i in order]
    assert torch.equal(linear(moved, weight=w), linear(models, weight=weight))
    assert torch.equal(task_arithmetic(moved, base=base, weight=w), task_arithmetic(models, base=base, weight=weight))
    assert torch.equal(
        ties(moved, base=base, weight=w, density=d), ties(models, base=base, weight=weight, density=density)
    )


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@given(values=LISTS)
def test_slerp_starts_and_ends_at_its_models(dtype: torch.dtype, values: list[list[float]]) -> None:
    first, second = (torch.tensor(v, dtype=dtype) for v in values[:2])
    assert torch.equal(slerp([first, second], t=0.0), first)
    assert torch.equal(slerp([first, second], t=1.0), second)


@given(values=LISTS, t=st.floats(0, 1))
def test_slerp_from_either_end_is_the_same(values: list[list[float]], t: float) -> None:
    first, second = (torch.tensor(v, dtype=torch.float64) for v in values[:2])
    assert torch.allclose(slerp([first, second], t=t), slerp([second, first], t=1 - t), rtol=1e-9, atol=1e-9)


@given(t=st.floats(0, 1), angle=st.floats(1e-3, 3.0))
def test_slerp_keeps_the_length_of_unit_vectors(t: float, angle: float) -> None:
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    second = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    found = slerp([first, second], t=t)
    assert math.isclose(float(found.norm()), 1.0, rel_tol=1e-9)
    assert math.isclose(math.atan2(float(found[1]), float(found[0])), t * angle, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("second", [[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0], [1.00001, 2.00001]])
def test_slerp_of_colinear_tensors_is_linear(second: list[float]) -> None:
    first, other = torch.tensor([1.0, 2.0]), torch.tensor(second)
    assert torch.allclose(slerp([first, other], t=0.25), 0.75 * first + 0.25 * other, rtol=1e-6, atol=1e-7)


@given(values=st.lists(ELEMENTS, min_size=1, max_size=40), density=st.floats(0.01, 1))
def test_ties_keeps_the_density_at_every_size(values: list[float], density: float) -> None:
    change = torch.tensor([v if v else 1.0 for v in values])
    found = ties([change], base=torch.zeros_like(change), weight=[1.0], density=[density])
    wanted = min(len(values), max(1, math.floor(density * len(values) + 0.5)))
    assert int((found != 0).sum()) == wanted
    kept = found != 0
    if wanted < len(values):
        assert change[kept].abs().min() >= change[~kept].abs().max()


def test_ties_keeps_the_first_of_equals() -> None:
    found = ties([torch.tensor([1.0, -1.0, 1.0, 2.0])], base=torch.zeros(4), weight=[1.0], density=[0.5])
    assert found.tolist() == [1.0, 0.0, 0.0, 2.0]


def test_ties_elects_by_weight_and_averages_those_that_agree() -> None:
    models = [torch.tensor([3.0, 1.0]), torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 0.0])]
    found = ties(models, base=torch.zeros(2), weight=[1.0, 1.0, 1.0], density=[1.0, 1.0, 1.0])
    assert found.tolist() == [2.0, 0.0]  # the second element: opposite and equal, so no sign is elected
    found = ties(models, base=torch.zeros(2), weight=[1.0, 5.0, 1.0], density=[1.0, 1.0, 1.0])
    assert found.tolist() == [-1.0, -1.0]


def test_rounding_noise_elects_no_sign() -> None:
    models = [torch.tensor([6.0]), torch.tensor([10.0]), torch.tensor([-1.0])]
    assert 0.1 * 1.0 + 0.1 * 5.0 + 0.1 * -6.0 != 0.0
    found = ties(models, base=torch.tensor([5.0]), weight=[0.1, 0.1, 0.1], density=[1.0, 1.0, 1.0])
    assert found.tolist() == [5.0]


def test_weights_that_sum_to_zero_are_refused() -> None:
    pair = [torch.ones(2), torch.ones(2)]
    with pytest.raises(MergeError, match=r"linear: the weights .* sum to zero"):
        linear(pair, weight=[1.0, -1.0])
    with pytest.raises(MergeError, match=r"task_arithmetic: the weights .* sum to zero"):
        task_arithmetic(pair, base=torch.zeros(2), weight=[1.0, -1.0], normalize=True)
    assert linear(pair, weight=[1.0, -1.0], normalize=False).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", sorted(CALLS))
def test_damage_does_not_disappear(method: str, bad: float) -> None:
    base = torch.zeros(8)
    damaged = torch.linspace(-1, 1, 8)
    damaged[3] = bad
    found = CALLS[method](base, [damaged, torch.linspace(1, 2, 8)])
    assert not torch.isfinite(found).all()


@pytest.mark.parametrize("method", sorted(CALLS))
def test_inputs_are_left_alone(method: str) -> None:
    for dtype in (torch.float32, torch.float64):
        base, *models = family((5, 3), dtype, 2)
        before = [tensor.clone() for tensor in (base, *models)]
        CALLS[method](base, models)
        assert all(torch.equal(x, y) for x, y in zip(before, (base, *models), strict=True))


def test_pieces_make_the_whole() -> None:
    """What the engine does with large tensors: measure the whole, merge the pieces."""
    from mango.merging import MERGERS

    base, *models = family((40, 50), torch.bfloat16, 3)
    density, weight = (0.2, 0.5, 0.7), (1.0, 0.4, 2.0)
    method = MERGERS["ties"]
    measured = method.measure(models, base=base, density=density, weight=weight)  # type: ignore[misc]
    joined, position = [], 0
    for *parts, start in pieces([*models, base], 77):
        joined.append(
            ties(parts, base=start, weight=weight, density=density, first_position=position, kept=measured["kept"])
        )
        position += len(start)
    assert torch.equal(torch.cat(joined).view(40, 50), ties(models, base=base, weight=weight, density=density))
