"""Each method against a float64 reference written from its paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mango.merging import MERGERS
from mango.tensors.pieces import pieces
from tests.merging.method_cases import CASES, DELLA_DENSITY, MATRIX_CASES, SEEDS, Case

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0,), (1,), (2,), (3,), (7, 5), (64, 33), (), (1, 9), (9, 1), (0, 4), (3, 4, 5), (200, 300)]
LARGE = (331, 997)  # odd, more than two pieces, and more than what is sorted as a whole
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


def assert_rounded(
    found: torch.Tensor, exact: np.ndarray, dtype: torch.dtype, *, at_least: float = 0.994, noise: float = 1e-15
) -> None:
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
    assert (np.abs(numbers(found) - exact) <= unit + noise).all()  # noise: of float64, where terms of about 1 cancel


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
class TestAgainstThePapers:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_small(self, case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        base, *models = family(shape, dtype, 3)
        assert_rounded(case.call(base, models), case.exact(numbers(base), [numbers(m) for m in models]), dtype)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_large(self, case: Case, dtype: torch.dtype) -> None:
        base, *models = family(LARGE, dtype, 3)
        assert_rounded(case.call(base, models), case.exact(numbers(base), [numbers(m) for m in models]), dtype)


@pytest.mark.parametrize("case", MATRIX_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (33, 64)])
def test_methods_on_matrices_against_the_papers(case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, *models = family(shape, dtype, 3)
    # two singular value decompositions of one matrix, or a solution and a least-squares fit: 1e-13 was measured
    exact = case.exact(numbers(base), [numbers(m) for m in models])
    assert_rounded(case.call(base, models), exact, dtype, noise=1e-12)


def test_every_method_has_a_case() -> None:
    assert {case.name.split()[0] for case in [*CASES, *MATRIX_CASES]} == {
        name for name in MERGERS.names() if MERGERS[name].combine.__module__.startswith("mango.")
    }


# What a document would say, completed by the defaults of each method's parameter model
PARAMETERS = {
    "weight": (1.0, 0.5, 2.0),
    "density": tuple(DELLA_DENSITY),
    "gamma": (0.05, 0.1, 0.0),
    "epsilon": (0.1, 0.3, 0.0),
    "scale": (0.7, None, None),
    "t": 0.3,
    "coefficient": (0.3, 0.7, -0.1),
}


def arguments(name: str, num_models: int, **changes: object) -> dict[str, object]:
    """Every parameter of a method, as the engine gives them."""
    method = MERGERS[name]
    model = MERGERS.entry(name).params()
    given = {field: getattr(model, field) for field in type(model).model_fields}
    for field in given:
        if field in method.per_model:
            given[field] = PARAMETERS[field][:num_models]  # type: ignore[index]
        elif field in method.required:
            given[field] = PARAMETERS[field]
    if method.random:
        given["seeds"] = tuple(SEEDS[:num_models])
    return {**given, **changes}


ELEMENTWISE = [name for name in MERGERS.names() if MERGERS[name].elementwise]
OPTIONS = [
    *[(name, {}) for name in ELEMENTWISE],
    ("nuslerp", {"nuslerp_flatten": False}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("model_stock", {"filter_wise": True}),
    ("sce", {"select_topk": 0.4}),
    ("ties", {"rescale": True}),
    ("breadcrumbs", {"rescale": True}),
]


@pytest.mark.parametrize(("name", "changes"), OPTIONS)
@pytest.mark.parametrize("size", [77, 1000])
def test_pieces_make_the_whole(name: str, changes: dict[str, object], size: int) -> None:
    """What the engine does with large tensors: measure the whole, merge the pieces; the bits are the same."""
    method = MERGERS[name]
    base, *models = family((40, 50), torch.bfloat16, method.num_models or 3)
    given = arguments(name, len(models), **changes)
    with_base = {"base": base} if method.base in ("reference", "optional") else {}
    statistics = [m.double().square() for m in models]
    extra = {"fishers": statistics} if method.statistics else {}
    whole = method.combine(models, **with_base, **extra, **given, dtype=torch.float32)
    measured = {} if method.measure is None else method.measure(models, **with_base, **extra, **given)
    joined, position = [], 0
    for parts in pieces([*models, base, *statistics], size):
        own = {"base": parts[len(models)]} if with_base else {}
        if extra:
            own["fishers"] = parts[len(models) + 1 :]
        if method.takes_position:
            own["first_position"] = position
        joined.append(method.combine(parts[: len(models)], **own, **given, **measured, dtype=torch.float32))
        position += len(parts[0])
    assert torch.equal(torch.cat(joined).view(40, 50), whole)
