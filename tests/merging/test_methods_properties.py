"""The properties that merge methods must have, whatever the numbers are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mango.errors import MergeError
from mango.merging.methods import (
    breadcrumbs,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    emr_parts,
    fisher,
    iso_c,
    karcher,
    linear,
    magmax,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    passthrough,
    regmean,
    sce,
    slerp,
    task_arithmetic,
    ties,
    tsv,
)
from tests.merging.method_cases import CASES, MATRIX_CASES, Case

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ELEMENTS = st.floats(-4, 4, width=16, allow_nan=False).map(lambda x: x if abs(x) > 1e-3 else 0.0)
LISTS = st.integers(1, 24).flatmap(
    lambda n: st.lists(st.lists(ELEMENTS, min_size=n, max_size=n), min_size=3, max_size=3)
)
FIXED = [case for case in CASES if case.name not in ("linear sum", "karcher apart", "passthrough")]
FOUR = [torch.tensor(row) for row in ([0.3, -1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 0.5], [-0.2, 0.4, 3.0, -1.0])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*FIXED, *MATRIX_CASES], ids=lambda case: case.name)
@given(values=st.lists(ELEMENTS, max_size=20))
def test_equal_models_are_a_fixed_point(case: Case, dtype: torch.dtype, values: list[float]) -> None:
    base = torch.tensor(values, dtype=dtype)
    found = case.call(base, [base.clone() for _ in range(3)])
    assert found.dtype == dtype
    assert torch.equal(found, base) or (
        dtype == torch.float64 and torch.allclose(found, base, rtol=2e-15, atol=0)  # weights are rounded in float64
    )


@pytest.mark.parametrize("case", [c for c in [*CASES, *MATRIX_CASES] if c.symmetric], ids=lambda case: case.name)
@given(values=LISTS, order=st.permutations(range(3)))
def test_the_order_of_models_does_not_matter(case: Case, values: list[list[float]], order: list[int]) -> None:
    models = [torch.tensor(v, dtype=torch.float64) for v in values]
    base = torch.full_like(models[0], 0.125)
    found = case.call(base, [models[i] for i in order])
    assert torch.allclose(found, case.call(base, models), rtol=1e-9, atol=1e-9)


@given(values=LISTS, order=st.permutations(range(3)))
def test_the_order_of_models_with_their_weights_does_not_matter(values: list[list[float]], order: list[int]) -> None:
    models = [torch.tensor(v) for v in values]
    base, weight, density, seeds = torch.zeros(len(values[0])), [0.1, 0.7, 0.2], [0.3, 0.6, 1.0], [5, 6, 7]
    moved = [models[i] for i in order]
    w, d, s = [weight[i] for i in order], [density[i] for i in order], [seeds[i] for i in order]
    assert torch.equal(linear(moved, weight=w), linear(models, weight=weight))
    assert torch.equal(task_arithmetic(moved, base=base, weight=w), task_arithmetic(models, base=base, weight=weight))
    assert torch.equal(
        ties(moved, base=base, weight=w, density=d), ties(models, base=base, weight=weight, density=density)
    )
    for method in (dare_linear, dare_ties):
        assert torch.equal(
            method(moved, base=base, weight=w, density=d, seeds=s),
            method(models, base=base, weight=weight, density=density, seeds=seeds),
        )


@pytest.mark.parametrize("dtype", DTYPES)
@given(values=LISTS)
def test_slerp_starts_and_ends_at_its_models(dtype: torch.dtype, values: list[list[float]]) -> None:
    first, second = (torch.tensor(v, dtype=dtype) for v in values[:2])
    assert torch.equal(slerp([first, second], t=0.0), first)
    assert torch.equal(slerp([first, second], t=1.0), second)
    assert torch.equal(nearswap([first, second], t=0.0), first)
    assert torch.equal(nearswap([first, second], t=1e9).float(), second.float())
    if first.any() and second.any():
        assert torch.equal(nuslerp([first, second], weight=[1.0, 0.0]), first)
        assert torch.equal(nuslerp([first, second], weight=[0.0, 2.0]), second)


@given(values=LISTS, t=st.floats(0, 1))
def test_slerp_from_either_end_is_the_same(values: list[list[float]], t: float) -> None:
    first, second = (torch.tensor(v, dtype=torch.float64) for v in values[:2])
    assert torch.allclose(slerp([first, second], t=t), slerp([second, first], t=1 - t), rtol=1e-9, atol=1e-9)


@given(t=st.floats(0, 1), angle=st.floats(1e-3, 3.0))
def test_arcs_keep_the_length_of_unit_vectors(t: float, angle: float) -> None:
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    second = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    for found in (slerp([first, second], t=t), nuslerp([first, second], weight=[1 - t, t])):
        assert math.isclose(float(found.norm()), 1.0, rel_tol=1e-9)
        assert math.isclose(math.atan2(float(found[1]), float(found[0])), t * angle, rel_tol=1e-9, abs_tol=1e-9)
    middle = [karcher([first, second]), multislerp([first, second], weight=[1.0, 1.0], eps=0.0)]
    for found in middle:
        assert torch.allclose(found, slerp([first, second], t=0.5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("second", [[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0], [1.00001, 2.00001]])
def test_slerp_of_colinear_tensors_is_linear(second: list[float]) -> None:
    first, other = torch.tensor([1.0, 2.0]), torch.tensor(second)
    assert torch.allclose(slerp([first, other], t=0.25), 0.75 * first + 0.25 * other, rtol=1e-6, atol=1e-7)


@given(values=st.lists(ELEMENTS, min_size=1, max_size=40), density=st.floats(0.01, 1), gamma=st.floats(0, 0.5))
def test_the_density_asked_for_is_kept_at_every_size(values: list[float], density: float, gamma: float) -> None:
    change = torch.tensor([v or 1.0 for v in values])
    base, n = torch.zeros_like(change), len(values)
    wanted = min(n, max(1, math.floor(density * n + 1e-9)))
    kept = ties([change], base=base, weight=[1.0], density=[density]) != 0
    assert int(kept.sum()) == wanted
    if wanted < n:
        assert change[kept].abs().min() >= change[~kept].abs().max()
    kept = breadcrumbs([change], base=base, weight=[1.0], density=[density], gamma=[gamma]) != 0
    assert int(kept.sum()) == wanted


@pytest.mark.parametrize("method", [ties, breadcrumbs, dare_linear, dare_ties, della, della_linear])
def test_a_density_of_zero_keeps_nothing_and_of_one_everything(method: object) -> None:
    base, change = FOUR[0], FOUR[1]
    own = {"gamma": [0.0]} if method is breadcrumbs else {"epsilon": [0.1]} if method in (della, della_linear) else {}
    assert torch.equal(method([change], base=base, weight=[1.0], density=[0.0], **own), base)  # type: ignore[operator]
    assert torch.equal(method([change], base=base, weight=[1.0], density=[1.0], **own), change)  # type: ignore[operator]


def test_of_equals_the_first_are_kept() -> None:
    change = torch.tensor([1.0, -1.0, 1.0, 2.0])
    found = ties([change], base=torch.zeros(4), weight=[1.0], density=[0.5])
    assert found.tolist() == [1.0, 0.0, 0.0, 2.0]
    found = breadcrumbs([change], base=torch.zeros(4), weight=[1.0], density=[0.25], gamma=[0.5])
    assert found.tolist() == [0.0, -1.0, 0.0, 0.0]  # the 2 and the first 1 are outliers
    found = sce([change, -change], base=torch.zeros(4), select_topk=0.5)
    assert found.tolist() == [0.0, 0.0, 0.0, 0.0]


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


def test_random_thinning_is_unbiased_and_independent() -> None:
    size, density = 200_000, 0.3
    base, change = torch.zeros(size), torch.ones(size)
    for method, own, spread in ((dare_linear, {}, 0.0), (della_linear, {"epsilon": [0.2]}, 0.2**2 / 3)):
        found = method([change], base=base, weight=[1.0], density=[density], seeds=[3], **own)
        kept = found != 0
        deviation = math.sqrt(density * (1 - density) / size)
        assert abs(float(kept.double().mean()) - density) < 5 * deviation
        assert abs(float(found.double().mean()) - 1) < 0.03  # the expectation is the change itself
        other = method([change], base=base, weight=[1.0], density=[density], seeds=[4], **own) != 0
        both = density**2 + spread  # the mean of the squared probabilities
        assert abs(float((kept & other).double().mean()) - both) < 0.005
        assert abs(float((kept[1:] & kept[:-1]).double().mean()) - both) < 0.005
    assert set(dare_linear([change], base=base, weight=[1.0], density=[0.25]).unique().tolist()) == {0.0, 4.0}


def test_della_keeps_large_changes_more_often() -> None:
    rows = torch.linspace(1, 2, 100).repeat(2000, 1)
    kept = della_linear(
        [rows], base=torch.zeros_like(rows), weight=[1.0], density=[0.5], epsilon=[0.4], rescale=False
    ).bool()
    share = kept.double().mean(0)
    wanted = torch.linspace(0.1, 0.9, 100, dtype=torch.float64)
    assert (share - wanted).abs().max() < 5 * 0.5 / math.sqrt(2000)


def test_weights_that_sum_to_zero_are_refused() -> None:
    pair = [torch.ones(2), torch.ones(2)]
    with pytest.raises(MergeError, match=r"linear: the weights .* sum to zero"):
        linear(pair, weight=[1.0, -1.0])
    with pytest.raises(MergeError, match=r"task_arithmetic: the weights .* sum to zero"):
        task_arithmetic(pair, base=torch.zeros(2), weight=[1.0, -1.0], normalize=True)
    with pytest.raises(MergeError, match=r"multislerp: the weights .* sum to zero"):
        multislerp(pair, weight=[1.0, -1.0])
    with pytest.raises(MergeError, match=r"fisher: the weights .* sum to zero"):
        fisher(pair, fishers=pair, weight=[0.0, 0.0])
    assert linear(pair, weight=[1.0, -1.0], normalize=False).tolist() == [0.0, 0.0]
    assert task_arithmetic(pair, base=torch.zeros(2), weight=[0.0, 0.0], normalize=True).tolist() == [0.0, 0.0]


def test_probabilities_outside_of_zero_to_one_are_refused_without_elements() -> None:
    nothing = torch.empty(0)
    for method in (della, della_linear):
        with pytest.raises(MergeError, match=r"density 0\.1 and epsilon 0\.2 make probabilities from -0\.1 to 0\.3"):
            method([nothing], base=nothing, weight=[1.0], density=[0.1], epsilon=[0.2])


def test_statistics_for_some_models_only_are_refused() -> None:
    pair = [torch.ones(2, 2), torch.ones(2, 2)]
    with pytest.raises(MergeError, match="Gram matrices for 1 of 2 models"):
        regmean(pair, grams=[torch.eye(2), None])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_damage_does_not_disappear(case: Case, bad: float) -> None:
    base = torch.zeros(8)
    damaged = torch.linspace(-1, 1, 8)
    damaged[3] = bad
    found = case.call(base, [damaged, torch.linspace(1, 2, 8), torch.linspace(-2, 1, 8)])
    bounded = case.name == "nearswap" and math.isinf(bad)  # a step of bounded length towards infinity is a number
    assert bool(torch.isfinite(found).all()) == bounded


@pytest.mark.parametrize("case", [*CASES, *MATRIX_CASES], ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_are_left_alone(case: Case, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(5, 3, generator=generator).to(dtype) for _ in range(4)]
    before = [tensor.clone() for tensor in tensors]
    found = case.call(tensors[0], tensors[1:])
    found.zero_()  # nor is any of them given back
    assert all(torch.equal(x, y) for x, y in zip(before, tensors, strict=True))


def test_passthrough_copies_bits() -> None:
    odd = torch.tensor([math.nan, -0.0, 1e-45])
    found = passthrough([odd])
    assert torch.equal(found.view(torch.int32), odd.view(torch.int32))
    assert found.data_ptr() != odd.data_ptr()


def test_model_stock_goes_where_the_angles_say() -> None:
    base = torch.zeros(2, dtype=torch.float64)
    same = [torch.tensor([1.0, 0.0], dtype=torch.float64)] * 2
    assert torch.equal(model_stock(same, base=base), same[0])  # angle 0: the mean
    apart = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    assert torch.equal(model_stock(apart, base=base.float()), base.float())  # orthogonal: the base
    opposite = [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])]
    assert torch.equal(model_stock(opposite, base=base.float()), base.float())


@given(values=LISTS)
def test_magmax_takes_the_largest_change(values: list[list[float]]) -> None:
    models = [torch.tensor(v) for v in values]
    found = magmax(models, base=torch.zeros(len(values[0])))
    assert torch.equal(found.abs(), torch.stack(models).abs().amax(0))


def test_emr_gives_models_back_in_sign_and_size() -> None:
    base, models = torch.zeros(4), FOUR
    parts = emr_parts(models, base)
    for i, model in enumerate(models):
        back = parts.restore(i, base)
        assert math.isclose(float(back.abs().sum()), float(model.abs().sum()), rel_tol=1e-6)
        assert not (back * model < 0).any()


def test_isotropic_merging_flattens_the_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(6, 4, dtype=torch.float64)
    models = [torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    values = torch.linalg.svdvals(iso_c(models, base=base))
    assert torch.allclose(values, torch.linalg.svdvals(models[0] + models[1]).mean().expand(4), rtol=1e-12)


def test_tsv_of_one_model_is_that_model_and_of_orthogonal_ones_their_sum() -> None:
    base = torch.zeros(4, 4, dtype=torch.float64)
    first, second = base.clone(), base.clone()
    first[0, 0], first[1, 1], second[2, 2], second[3, 3] = 3.0, 2.0, 5.0, 1.0
    assert torch.allclose(tsv([first], base=base), first, rtol=1e-12, atol=1e-12)
    assert torch.allclose(tsv([first, second], base=base), first + second, rtol=1e-12, atol=1e-12)


def test_fisher_follows_the_model_that_depends_on_an_element() -> None:
    first, second = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 3.0])
    known = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 5.0, 0.0])]
    assert fisher([first, second], fishers=known, weight=[1.0, 1.0]).tolist() == [1.0, 3.0, 2.0]
    assert fisher([first, second], fishers=[None, None], weight=[1.0, 1.0]).tolist() == [2.0, 2.0, 2.0]


def test_regmean_gives_what_the_layers_give_on_inputs_that_do_not_overlap() -> None:
    first, second = torch.tensor([[1.0, 2.0, 7.0]]), torch.tensor([[3.0, 4.0, 9.0]])
    seen = [torch.diag(torch.tensor([2.0, 0.0, 0.0])), torch.diag(torch.tensor([0.0, 3.0, 0.0]))]
    assert regmean([first, second], grams=seen).tolist() == [[1.0, 4.0, 8.0]]  # the last: seen by none, the mean
