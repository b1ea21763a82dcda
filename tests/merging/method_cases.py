"""Every merge method with its reference: what the tests of methods go through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mango.merging.methods import (
    adamerging,
    adamerging_pp,
    arcee_fusion,
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    emr,
    fisher,
    iso_c,
    iso_cts,
    karcher,
    linear,
    magmax,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    passthrough,
    ram,
    ramplus_tl,
    regmean,
    sce,
    slerp,
    task_arithmetic,
    ties,
    tsv,
)
from mango.tensors import keep_at_random, uniform
from tests.reference import merging as reference
from tests.reference import merging_more as more

Tensors = list[torch.Tensor]
Call = Callable[[torch.Tensor, Tensors], torch.Tensor]
Exact = Callable[[np.ndarray, list[np.ndarray]], np.ndarray]

WEIGHT, DENSITY, GAMMA, EPSILON = [1.0, 0.5, 2.0], [0.2, 0.5, 1.0], [0.05, 0.1, 0.0], [0.1, 0.3, 0.0]
DELLA_DENSITY = [0.2, 0.5, 1.0]
SEEDS = [11, 12, 13]


@dataclass(frozen=True)
class Case:
    """A method with all of its arguments, called on a base and three models, and the reference for it."""

    name: str
    call: Call
    exact: Exact
    symmetric: bool = False  # whether the order of the models does not matter


def turned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).flip(0).view(tensor.shape)


def dare_masks(base: np.ndarray) -> list[np.ndarray]:
    return [
        keep_at_random(seed, 0, base.size, share).numpy().reshape(base.shape) > 0
        for seed, share in zip(SEEDS, DENSITY, strict=True)
    ]


def dare(base: np.ndarray, models: list[np.ndarray], elect: bool, normalize: bool) -> np.ndarray:
    chances = [np.full(base.shape, share) for share in DENSITY]
    return reference.thinned(base, models, WEIGHT, dare_masks(base), chances, 0.8, elect, normalize)


def della_exact(base: np.ndarray, models: list[np.ndarray], elect: bool, normalize: bool) -> np.ndarray:
    chances, kept = [], []
    taus = [model - base for model in models]  # float64: exact enough for ranks, as the library takes them
    for tau, share, span, seed in zip(taus, DELLA_DENSITY, EPSILON, SEEDS, strict=True):
        chance = np.ones(base.shape) if share >= 1 else reference.della_chances(tau, share, span)
        chances.append(chance)
        drawn = uniform(seed, 0, base.size).numpy()
        if base.ndim > 2:  # numbers follow the rows, which lie along the second dimension
            drawn = np.moveaxis(drawn.reshape(np.moveaxis(base, 1, -1).shape), -1, 1)
        kept.append(drawn.reshape(base.shape) < chance)
    return reference.thinned(base, models, WEIGHT, kept, chances, 0.8, elect, normalize)


def fishers(models: list[np.ndarray]) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    found = [generator.random(model.shape) ** 4 for model in models]
    for matrix in found:
        matrix.reshape(-1)[: matrix.size // 5] = 0.0  # nothing is known of these
    return found


def inputs(models: list[np.ndarray]) -> list[np.ndarray]:
    generator = np.random.default_rng(6)
    return [generator.standard_normal((3 * model.shape[-1] + 2, model.shape[-1])) for model in models]


def call_regmean(models: Tensors, transposed: bool = False) -> torch.Tensor:
    if models[0].dim() != 2:
        return regmean(models, grams=[None] * len(models))
    x = [torch.from_numpy(rows) for rows in inputs([(m.T if transposed else m).double().numpy() for m in models])]
    merged = regmean(models, grams=[rows.T @ rows for rows in x], reduction=0.9, transposed=transposed)
    return merged.T if transposed else merged


def exact_regmean(models: list[np.ndarray]) -> np.ndarray:
    if models[0].ndim != 2:
        return reference.linear(models, [1.0] * len(models))
    return more.regmean(models, inputs(models), 0.9)


def _fisher_tensors(models: Tensors) -> Tensors:
    return [torch.from_numpy(np.asarray(f)) for f in fishers([m.double().numpy() for m in models])]


CASES = [
    Case("linear", lambda b, m: linear(m, weight=WEIGHT), lambda b, m: reference.linear(m, WEIGHT)),
    Case(
        "linear sum",
        lambda b, m: linear(m, weight=[0.2, 1.0, -0.3], normalize=False),
        lambda b, m: reference.linear(m, [0.2, 1.0, -0.3], False),
    ),
    Case("slerp", lambda b, m: slerp([b, m[0]], t=0.3), lambda b, m: reference.slerp(b, m[0], 0.3)),
    Case(
        "nuslerp",
        lambda b, m: nuslerp(m[:2], weight=[1.0, 3.0]),
        lambda b, m: reference.nuslerp(None, m[:2], [1.0, 3.0]),
    ),
    Case(
        "nuslerp from base",
        lambda b, m: nuslerp(m[:2], base=b, weight=[1.0, 3.0]),
        lambda b, m: reference.nuslerp(b, m[:2], [1.0, 3.0]),
    ),
    Case(
        "nuslerp along last",
        lambda b, m: nuslerp(m[:2], base=b, weight=[1.0, 3.0], nuslerp_flatten=False),
        lambda b, m: reference.nuslerp(b, m[:2], [1.0, 3.0], flatten=False),
    ),
    Case(
        "nuslerp along first",
        lambda b, m: nuslerp(m[:2], weight=[1.0, 3.0], nuslerp_flatten=False, nuslerp_row_wise=True),
        lambda b, m: reference.nuslerp(None, m[:2], [1.0, 3.0], flatten=False, along_first=True),
    ),
    Case("multislerp", lambda b, m: multislerp(m, weight=WEIGHT), lambda b, m: reference.multislerp(None, m, WEIGHT)),
    Case(
        "multislerp from base",
        lambda b, m: multislerp(m, base=b, weight=WEIGHT),
        lambda b, m: reference.multislerp(b, m, WEIGHT),
    ),
    Case("karcher", lambda b, m: karcher(m), lambda b, m: reference.karcher(m), symmetric=True),
    Case(
        "karcher apart",  # so far that the steps matter
        lambda b, m: karcher([m[0], turned(m[1]), m[2] * -2], max_iter=50, tol=1e-12),
        lambda b, m: reference.karcher([m[0], m[1].reshape(-1)[::-1].reshape(m[1].shape), m[2] * -2], 50, 1e-12),
    ),
    Case(
        "task_arithmetic",
        lambda b, m: task_arithmetic(m, base=b, weight=[1.0, 0.7, -0.2], lambda_=0.4),
        lambda b, m: reference.task_arithmetic(b, m, [1.0, 0.7, -0.2], 0.4),
    ),
    Case(
        "task_arithmetic mean",
        lambda b, m: task_arithmetic(m, base=b, weight=WEIGHT, normalize=True),
        lambda b, m: reference.task_arithmetic(b, m, WEIGHT, 1.0, True),
    ),
    Case(
        "ties",
        lambda b, m: ties(m, base=b, weight=WEIGHT, density=DENSITY, lambda_=0.8),
        lambda b, m: reference.ties(b, m, WEIGHT, DENSITY, 0.8),
    ),
    Case(
        "ties sum, rescaled, negative weight",
        lambda b, m: ties(m, base=b, weight=[1, -0.5, 2], density=DENSITY, normalize=False, rescale=True),
        lambda b, m: reference.ties(b, m, [1, -0.5, 2], DENSITY, 1.0, False, True),
    ),
    Case(
        "breadcrumbs",
        lambda b, m: breadcrumbs(m, base=b, weight=WEIGHT, density=DENSITY, gamma=GAMMA, lambda_=0.8),
        lambda b, m: reference.breadcrumbs(b, m, WEIGHT, DENSITY, GAMMA, 0.8, False),
    ),
    Case(
        "breadcrumbs_ties",
        lambda b, m: breadcrumbs_ties(
            m, base=b, weight=WEIGHT, density=DENSITY, gamma=GAMMA, normalize=True, rescale=True
        ),
        lambda b, m: reference.breadcrumbs(b, m, WEIGHT, DENSITY, GAMMA, 1.0, True, True, True),
    ),
    Case(
        "dare_linear",
        lambda b, m: dare_linear(m, base=b, weight=WEIGHT, density=DENSITY, seeds=SEEDS, lambda_=0.8),
        lambda b, m: dare(b, m, False, False),
    ),
    Case(
        "dare_ties",
        lambda b, m: dare_ties(m, base=b, weight=WEIGHT, density=DENSITY, seeds=SEEDS, lambda_=0.8, normalize=True),
        lambda b, m: dare(b, m, True, True),
    ),
    Case(
        "della",
        lambda b, m: della(m, base=b, weight=WEIGHT, density=DELLA_DENSITY, epsilon=EPSILON, seeds=SEEDS, lambda_=0.8),
        lambda b, m: della_exact(b, m, True, True),
    ),
    Case(
        "della_linear",
        lambda b, m: della_linear(
            m, base=b, weight=WEIGHT, density=DELLA_DENSITY, epsilon=EPSILON, seeds=SEEDS, lambda_=0.8
        ),
        lambda b, m: della_exact(b, m, False, False),
    ),
    Case("sce", lambda b, m: sce(m, base=b), lambda b, m: more.sce(b, m, 1.0), symmetric=True),
    Case("sce half", lambda b, m: sce(m, base=b, select_topk=0.5), lambda b, m: more.sce(b, m, 0.5)),
    Case("model_stock", lambda b, m: model_stock(m, base=b), lambda b, m: more.model_stock(b, m), symmetric=True),
    Case(
        "model_stock by row",
        lambda b, m: model_stock(m, base=b, filter_wise=True),
        lambda b, m: more.model_stock(b, m, True),
    ),
    Case("ram", lambda b, m: ram(m, base=b, epsilon=0.05), lambda b, m: more.ram(b, m, 0.05), symmetric=True),
    Case(
        "ramplus_tl",
        lambda b, m: ramplus_tl(m, base=b, epsilon=0.15, r=0.3, alpha=5.0),
        lambda b, m: more.ram(b, m, 0.15, 0.3, 5.0),
        symmetric=True,
    ),
    Case("nearswap", lambda b, m: nearswap([b, m[0]], t=0.05), lambda b, m: more.nearswap(b, m[0], 0.05)),
    Case("arcee_fusion", lambda b, m: arcee_fusion([b, m[0]]), lambda b, m: more.arcee_fusion(b, m[0])),
    Case("passthrough", lambda b, m: passthrough([m[0]], scale=[0.7]), lambda b, m: m[0] * 0.7),
    Case("magmax", lambda b, m: magmax(m, base=b, lambda_=0.8), lambda b, m: more.magmax(b, m, 0.8), symmetric=True),
    Case("emr", lambda b, m: emr(m, base=b, lambda_=0.8), lambda b, m: more.emr(b, m, 0.8), symmetric=True),
    Case(
        "fisher",
        lambda b, m: fisher(m, fishers=_fisher_tensors(m), weight=WEIGHT),
        lambda b, m: more.fisher(m, fishers(m), WEIGHT),
    ),
    Case(
        "adamerging",
        lambda b, m: adamerging(m, base=b, coefficient=[0.31, 0.73, -0.17]),
        lambda b, m: more.adamerging(b, m, [0.31, 0.73, -0.17]),
    ),
    Case(
        "adamerging_pp",
        lambda b, m: adamerging_pp(m, base=b, coefficient=[0.31, 0.73, -0.17], density=DENSITY),
        lambda b, m: more.adamerging(b, m, [0.31, 0.73, -0.17], DENSITY),
    ),
]
"""Methods whose maths is elementwise or sums: exact to the last bits of float64."""

MATRIX_CASES = [
    Case("tsv", lambda b, m: tsv(m, base=b, lambda_=0.8), lambda b, m: more.tsv(b, m, 0.8)),
    Case("iso_c", lambda b, m: iso_c(m, base=b, lambda_=0.8), lambda b, m: more.iso_c(b, m, 0.8), symmetric=True),
    Case(
        "iso_cts",
        lambda b, m: iso_cts(m, base=b, lambda_=0.8, common_space=0.7),
        lambda b, m: more.iso_cts(b, m, 0.8, 0.7),
    ),
    Case("regmean", lambda b, m: call_regmean(m), lambda b, m: exact_regmean(m)),
    Case(
        "regmean of a transposed layer",
        lambda b, m: call_regmean([t.T for t in m], transposed=True) if m[0].dim() == 2 else call_regmean(m),
        lambda b, m: exact_regmean(m),
    ),
]
"""Methods that decompose matrices: exact to about 1e-13 of the largest element."""
