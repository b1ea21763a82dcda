"""Centred kernel alignment and closed-form maps, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mango.tensors import ProcrustesFit, held_out_fit, linear_cka


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int, seed: int = 5) -> Tensor:
    return torch.linalg.qr(noise(width, width, seed=seed)).Q


def test_cka_is_that_of_the_paper() -> None:
    x, y = noise(40, 6), noise(40, 4, seed=1)
    y[:, :3] += x[:, :3]
    # The form with kernels, eq. 3 and 4 of the paper.
    centre = np.eye(40) - np.ones((40, 40)) / 40
    k, m = (centre @ (side @ side.T).numpy() @ centre for side in (x, y))
    wanted = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert linear_cka(x, y) == pytest.approx(wanted, rel=1e-9)
    assert linear_cka(y, x) == pytest.approx(wanted, rel=1e-9)


def test_cka_sees_neither_rotation_nor_scale_nor_shift() -> None:
    x = noise(50, 7)
    assert linear_cka(x, 3.0 * x @ rotation(7) + 2.0) == pytest.approx(1.0)
    assert linear_cka(x, torch.ones(50, 3)) == 0.0
    assert linear_cka(noise(4000, 3), noise(4000, 3, seed=9)) < 0.01


def test_procrustes_finds_the_rotation_and_the_shift_batch_by_batch() -> None:
    x, turn = noise(60, 8) + 4.0, rotation(8)
    fit = ProcrustesFit(8, 8, ridge=0.0)
    for part in (slice(0, 20), slice(20, 21), slice(21, 60)):
        fit.add(x[part], x[part] @ turn - 3.0)
    weight, bias, share = fit.solve()
    torch.testing.assert_close(weight, turn, atol=1e-9, rtol=0)
    torch.testing.assert_close(bias, torch.full((8,), -3.0, dtype=torch.float64), atol=1e-8, rtol=0)
    assert share == pytest.approx(1.0)


def test_procrustes_is_the_best_of_all_rotations() -> None:
    x = noise(80, 5)
    y = x @ noise(5, 5, seed=2) + noise(80, 5, seed=3)
    fit = ProcrustesFit(5, 5, ridge=0.0)
    fit.add(x, y)
    weight, bias, _ = fit.solve()
    torch.testing.assert_close(weight @ weight.T, torch.eye(5, dtype=torch.float64), atol=1e-9, rtol=0)
    best = (x @ weight + bias - y).square().sum()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        small = torch.randn(5, 5, generator=generator, dtype=torch.float64) * 0.1
        other = weight @ torch.linalg.matrix_exp(small - small.T)
        shift = (y - x @ other).mean(0)
        assert (x @ other + shift - y).square().sum() > best
    with pytest.raises(ValueError, match="equal widths, not 5 to 4"):
        ProcrustesFit(5, 4, ridge=0.0)


def test_a_fit_is_judged_on_pairs_that_it_has_not_seen() -> None:
    x = noise(200, 6)
    turn = rotation(6)
    assert held_out_fit(x, x, kind="identity", ridge=1e-6) == pytest.approx(1.0)
    assert held_out_fit(x, x @ turn, kind="identity", ridge=1e-6) < 0.5
    assert held_out_fit(x, x @ turn, kind="procrustes", ridge=1e-6) == pytest.approx(1.0)
    assert held_out_fit(x, x @ noise(6, 3, seed=1), kind="ridge", ridge=1e-9) == pytest.approx(1.0)
    # As many unknowns as pairs: perfect on what it was fitted on, and worth nothing.
    wide, chance = noise(40, 30, seed=7), noise(40, 10, seed=8)
    assert held_out_fit(wide, chance, kind="ridge", ridge=1e-9) < 0.1
    assert held_out_fit(x, torch.ones(200, 2), kind="ridge", ridge=1e-6) == 1.0
