"""Every method of mergekit 0.1.5, called on tensors as a black box: equal up to rounding, or who is right is shown."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from mango.merging import MERGERS
from mango.merging.methods import (
    arcee_fusion,
    breadcrumbs,
    dare_linear,
    della_linear,
    karcher,
    model_stock,
    multislerp,
    sce,
    ties,
)

if os.environ.get("CI") == "true":
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.api import merge_tensors
else:
    registry = pytest.importorskip("mergekit.merge_methods.registry")
    merge_tensors = pytest.importorskip("mergekit.merge_methods.api").merge_tensors

NEW = {"adamerging", "adamerging_pp", "emr", "fisher", "iso_c", "iso_cts", "magmax", "regmean", "tsv"}
WITHOUT_BASE = {"linear", "karcher", "passthrough"}
ALONE = {"passthrough": 1, "slerp": 1, "nearswap": 1, "arcee_fusion": 1, "nuslerp": 2}
Shape = tuple[int, ...]

# name, parameters of the document, per-model parameters (their sequences)
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"weight": [0.2, 1.0, -0.3]}),
    ("linear", {"weight": [0.2, 1.0, 0.3], "normalize": False}),
    ("slerp", {"t": 0.3}),
    ("nuslerp", {"weight": [1.0, 3.0]}),
    ("nuslerp", {"weight": [1.0, 3.0], "nuslerp_flatten": False}),
    ("nuslerp", {"weight": [1.0, 3.0], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", {"weight": [1.0, 0.5, 2.0]}),
    ("multislerp", {"weight": [0.3, 0.5, 0.1], "normalize_weights": False}),
    ("karcher", {}),
    ("task_arithmetic", {"weight": [1.0, 0.7, -0.2], "lambda": 0.4}),
    ("task_arithmetic", {"weight": [1.0, 0.7, 0.2], "normalize": True}),
    ("ties", {"weight": [1.0, 0.5, 2.0], "density": [0.2, 0.5, 1.0]}),
    ("ties", {"weight": [1.0, -0.5, 2.0], "density": [0.2, 0.5, 1.0], "normalize": False, "lambda": 0.7}),
    ("ties", {"weight": [1.0, 0.5, 2.0], "density": [0.2, 0.5, 0.3], "rescale": True}),
    ("dare_linear", {"weight": [1.0, 0.5, 2.0], "density": [1.0, 1.0, 1.0]}),
    ("dare_ties", {"weight": [1.0, 0.5, 2.0], "density": [1.0, 1.0, 1.0], "normalize": True}),
    ("della", {"weight": [1.0, 0.5, 2.0], "density": [1.0, 1.0, 1.0], "epsilon": [0.1, 0.1, 0.1]}),
    ("della_linear", {"weight": [1.0, 0.5, 2.0], "density": [1.0, 1.0, 1.0], "epsilon": [0.1, 0.1, 0.1]}),
    ("breadcrumbs", {"weight": [1.0, 0.5, 2.0], "density": [0.2, 0.5, 0.9], "gamma": [0.05, 0.1, 0.2]}),
    ("breadcrumbs_ties", {"weight": [1.0, 0.5, 2.0], "density": [0.2, 0.5, 0.9], "gamma": [0.05, 0.1, 0.0]}),
    ("sce", {}),
    ("sce", {"select_topk": 0.4}),
    ("model_stock", {}),
    ("model_stock", {"filter_wise": True}),
    ("ram", {"epsilon": 0.05}),
    ("ramplus_tl", {"epsilon": 0.15, "r": 0.3, "alpha": 5.0}),
    ("nearswap", {"t": 0.05}),
    ("arcee_fusion", {}),
    ("passthrough", {"scale": [0.7]}),
]


def family(shape: Shape, count: int, change: float = 0.3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(shape, generator=generator)
    return base, *(base + change * torch.randn(shape, generator=generator) for _ in range(count))


def ours(name: str, base: torch.Tensor, models: list[torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    entry = MERGERS.entry(name)
    method, fields = entry.part, entry.params.model_fields
    names = {field.alias or key: key for key, field in fields.items()}
    given = {names[key]: value for key, value in settings.items()}
    scalars = {key: value for key, value in given.items() if key not in method.per_model}
    checked = entry.params.model_validate(scalars)
    full = {key: getattr(checked, key) for key in fields if key not in method.per_model}
    full |= {key: given.get(key, [getattr(checked, key)] * len(models)) for key in method.per_model}
    if method.base == "start":
        return method.combine([base, *models], **full, dtype=torch.bfloat16)
    extra = {"base": base} if method.base in ("reference", "optional") else {}
    return method.combine(models, **extra, **full, dtype=torch.bfloat16)


def theirs(name: str, base: torch.Tensor, models: list[torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    """As a document of ``dtype: float32`` and ``out_dtype: bfloat16`` computes it."""
    together = models if name in WITHOUT_BASE else [base, *models]
    found = merge_tensors(
        [tensor.clone() for tensor in together],
        name,
        parameters=settings,
        base_index=None if name in WITHOUT_BASE else 0,
        dtype=torch.float32,
        out_dtype=torch.bfloat16,
    )
    assert isinstance(found, torch.Tensor)
    return found


def test_all_of_its_methods_are_here_and_no_other_but_the_new() -> None:
    known = {method.spec.name for method in registry.registered_methods()}
    assert len(known) == 20
    assert set(MERGERS.names()) == known | NEW
    assert {name for name, _ in SETTINGS} == known


@pytest.mark.parametrize("name", sorted({name for name, _ in SETTINGS}))
def test_parameters_have_its_names_and_defaults(name: str) -> None:
    entry = MERGERS.entry(name)
    mine = {field.alias or key: field for key, field in entry.params.model_fields.items()}
    spec = {parameter.name: parameter for parameter in registry.get(name).spec.parameters}
    spec = {key: value for key, value in spec.items() if key != "int8_mask" and key not in entry.part.without_effect}
    assert set(mine) == set(spec)
    for key, parameter in spec.items():
        scope = parameter.scope.value != "shared"
        assert scope == (key in entry.part.per_model), key
        if parameter.required:
            assert key in entry.part.required
        else:
            assert mine[key].default == parameter.default, key


# In two elements, some of its methods keep nothing where the density keeps less than one: see TestWhoIsRight
CALLS = [
    (name, settings, shape)
    for name, settings in SETTINGS
    for shape in ((2,), (7, 5), (40, 33))
    if shape != (2,) or not (name.startswith("breadcrumbs") or "select_topk" in settings)
]


@pytest.mark.parametrize(("name", "settings", "shape"), CALLS)
def test_equal_up_to_rounding(name: str, settings: dict[str, Any], shape: Shape) -> None:
    base, *models = family(shape, ALONE.get(name, 3))
    found, wanted = ours(name, base, models, settings), theirs(name, base, models, settings)
    assert found.dtype == wanted.dtype == torch.bfloat16
    unit = wanted.float().abs().clamp(min=2.0**-20) * 2.0**-7  # a unit in the last place of bfloat16, or more
    noise = 2e-7  # of float32, where terms of about 1 cancel
    assert bool(((found.float() - wanted.float()).abs() <= unit + noise).all())
    assert (found == wanted).float().mean() >= 0.97 or shape == (2,)  # float32 rounds some to the other neighbour


class TestWhoIsRight:
    """Where the two differ beyond rounding, a property decides that needs neither."""

    def test_dare_and_della_expect_the_change_itself(self) -> None:
        """Ours divides by the probability, as the papers do; matching sums of magnitudes blows up small changes."""
        base, change = torch.zeros(4), torch.tensor([8.0, 1.0, 1.0, 1.0])
        runs = 4000
        settings = {"weight": [1.0], "density": [0.5], "rescale": True}
        torch.manual_seed(0)
        mean = sum(theirs("dare_linear", base, [change], settings).double() for _ in range(runs)) / runs
        assert abs(float(mean[1]) - 1) > 0.3
        for method, own in ((dare_linear, {}), (della_linear, {"epsilon": [0.1]})):
            drawn = [
                method([change], base=base, weight=[1.0], density=[0.5], seeds=[seed], **own) for seed in range(runs)
            ]
            assert torch.allclose(torch.stack(drawn).double().mean(0), change.double(), rtol=0.08)

    def test_a_row_of_one_element_is_thinned_too(self) -> None:
        settings = {"weight": [1.0], "density": [0.5], "epsilon": [0.1]}
        with pytest.raises(RuntimeError):
            theirs("della_linear", torch.zeros(3, 1), [torch.ones(3, 1)], settings)
        found = ours("della_linear", torch.zeros(3, 1), [torch.ones(3, 1)], settings)
        assert set(found.unique().tolist()) <= {0.0, 2.0}

    def test_opposite_equal_changes_elect_no_sign(self) -> None:
        """Turning every change around turns the result around; a sign that is elected anyway breaks that."""
        base, models = torch.zeros(1), [torch.ones(1), -torch.ones(1)]
        settings = {"weight": [1.0, 1.0], "density": [1.0, 1.0]}
        assert float(theirs("ties", base, models, settings)) == 1.0
        assert float(theirs("ties", base, [-m for m in models], settings)) == 1.0
        assert float(ties(models, base=base, weight=[1.0, 1.0], density=[1.0, 1.0])) == 0.0

    def test_breadcrumbs_keep_at_least_one_element(self) -> None:
        base, change = torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])
        settings = {"weight": [1.0], "density": [0.2], "gamma": [0.0]}
        assert not theirs("breadcrumbs", base, [change], settings).any()
        assert breadcrumbs([change], base=base, weight=[1.0], density=[0.2], gamma=[0.0]).tolist() == [0.0, 0.0, 3.0]

    @pytest.mark.parametrize("size", [1e-4])
    def test_results_scale_with_the_changes(self, size: float) -> None:
        """Small changes are merged as large ones are: the weights of SCE and the angles of Model Stock have no unit."""
        base, *models = family((6, 8), 3)
        base, models = torch.zeros(6, 8), [m * (i + 1) for i, m in enumerate(models)]
        small = [m * size for m in models]
        for name, method in (("sce", sce), ("model_stock", model_stock)):
            large = method(models, base=base, dtype=torch.float64)
            assert torch.allclose(method(small, base=base, dtype=torch.float64) / size, large, rtol=1e-5)
            off = (theirs(name, base, small, {}).double() / size - large).abs().max() / large.abs().max()
            assert off > 0.01

    def test_equal_small_tensors_are_their_own_karcher_mean(self) -> None:
        tiny = torch.full((4,), 1e-6)
        assert not theirs("karcher", tiny, [tiny, tiny], {}).any()
        assert torch.allclose(karcher([tiny, tiny]), tiny, rtol=1e-6)

    def test_frozen_tensors_merge_to_themselves(self) -> None:
        base = torch.linspace(-1, 1, 5)
        with pytest.raises(ValueError, match="weighted sum"):
            theirs("multislerp", base, [base.clone() for _ in range(3)], {"weight": [1.0, 1.0, 1.0]})
        assert torch.equal(multislerp([base] * 3, base=base, weight=[1.0] * 3), base)

    def test_fusion_of_large_tensors_is_the_same_each_time(self) -> None:
        base, model = family((1100, 1000), 1)
        torch.manual_seed(0)
        first, second = (theirs("arcee_fusion", base, [model], {}) for _ in range(2))
        assert not torch.equal(first, second)
        assert torch.equal(arcee_fusion([base, model]), arcee_fusion([base, model]))
