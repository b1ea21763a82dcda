"""Kernels make the bits that torch makes, run here line by line with a stand-in for Triton."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mango.merging.methods import ties
from mango.merging.methods.trimming import Trim, measure_trims
from mango.tensors import keep_largest, kernels, selection
from mango.tensors.brackets import Bracket
from tests.tensors.triton_stand_in import triton_stand_in

CPU = torch.device("cpu")
TIES = importlib.import_module("mango.merging.methods.ties")
SIZES = (1, 7, 1024, 2500)


@pytest.fixture(autouse=True)
def _stand_in() -> Iterator[None]:
    with triton_stand_in():
        yield


def _models(size: int, *dtypes: torch.dtype) -> list[torch.Tensor]:
    """A base and models near it, with zeros of both signs and elements that did not change."""
    generator = torch.Generator().manual_seed(size)
    base = torch.randn(size, generator=generator, dtype=torch.float64) * 0.02
    base[::5] = -0.0
    first = base.to(dtypes[0])
    models = [first]
    for dtype in dtypes[1:]:
        model = (base + torch.randn(size, generator=generator, dtype=torch.float64) * 0.002).to(dtype)
        model[::3] = first[::3].to(dtype)
        models.append(model)
    return models


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _both(monkeypatch: pytest.MonkeyPatch, call: object) -> tuple[object, object]:
    """Return what a call makes with torch, and what it makes with kernels."""
    assert callable(call)
    plain = call()
    for module in (TIES, selection):
        monkeypatch.setattr(module, "can_fuse", lambda *_: True)
    fused = call()
    monkeypatch.undo()
    return plain, fused


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16,) * 4,
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.float64,) * 3,
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [(0.3, 0.7, 1.1), (0.3, -0.7, 0.4), (0.0, 0.5, 0.5), (0.5, -0.5, 0.0)])
def test_ties_has_the_same_bits(
    size: int,
    dtypes: tuple[torch.dtype, ...],
    dtype: torch.dtype,
    weights: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, *tensors = _models(size, *dtypes)
    weight = weights[: len(tensors)]
    for normalize, lambda_, density, rescale in (
        (True, 1.0, (0.5, 0.2, 1.0), False),
        (False, 0.7, (1.0, 0.3, 0.0), False),
        (True, 0.3, (0.1, 0.9, 0.5), True),
    ):
        plain, fused = _both(
            monkeypatch,
            lambda normalize=normalize, lambda_=lambda_, density=density, rescale=rescale: ties(
                tensors,
                base=base,
                weight=weight,
                density=density[: len(tensors)],
                normalize=normalize,
                rescale=rescale,
                lambda_=lambda_,
                dtype=dtype,
            ),
        )
        assert isinstance(plain, torch.Tensor)
        assert isinstance(fused, torch.Tensor)
        assert fused.dtype == dtype
        assert torch.equal(_bits(plain), _bits(fused))


def test_pieces_cut_ties_at_the_same_element(monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.zeros(3000)
    changed = torch.full((3000,), 0.5)  # all magnitudes are ties
    trims = measure_trims([changed], base, density=[0.4], gamma=None, rescale=False)
    monkeypatch.setattr(TIES, "can_fuse", lambda *_: True)
    found = [
        ties([changed[i : i + 700]], base=base[i : i + 700], weight=[1.0], density=[0.4], trims=trims, first_position=i)
        for i in range(0, 3000, 700)
    ]
    assert torch.equal(torch.cat(found), torch.where(torch.arange(3000) < 1200, 0.5, 0.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_is_not_finite_stays_so(value: float, where: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models = _models(100, torch.float32, torch.float32, torch.float32)
    models[where][41] = value
    plain, fused = _both(
        monkeypatch, lambda: ties(models[1:], base=models[0], weight=(0.5, 0.5), density=(0.5, 0.3), rescale=False)
    )
    assert isinstance(plain, torch.Tensor)
    assert isinstance(fused, torch.Tensor)
    assert not fused[41].isfinite()
    assert torch.equal(plain.nan_to_num(7.0), fused.nan_to_num(7.0))


@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "few", "sorted"])
@pytest.mark.parametrize("size", [3, 9000, 70_001])
def test_selection_is_the_same(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    made = {
        "normal": values,
        "ties": (values * 4).round() / 4,
        "equal": torch.full((size,), 0.5),
        "few": values * (values > 2),
        "sorted": values.sort().values,
    }[kind]
    counts = [count for count in (1, size // 3, size // 2, size - 1) if 0 < count < size]
    for tensors in ([made], [made, values.flip(0).bfloat16()]):
        plain, fused = _both(monkeypatch, lambda tensors=tensors: keep_largest(tensors, counts))
        assert plain == fused


def test_more_than_there_is_room_for_is_gathered_again() -> None:
    values = torch.linspace(-1, 1, 5001, dtype=torch.float64)
    small, large = Bracket(0.2, 0.9, room=3), Bracket(0.2, 0.9)
    for bracket in (small, large):
        bracket.look_at_once([[values[:3000]], [values[3000:]]])
    assert small.room > 3
    assert small.find(1500) == large.find(1500)
    assert small.find(1500) is not None


def test_outliers_are_no_kernels_matter() -> None:
    kept = selection.Kept(0.5, 3)
    assert Trim(kept).as_change(2.0, 0, 10) == kernels.Change(2.0, 4, *kept.limits(0, 10)[1:], 1.0)
    with pytest.raises(AssertionError, match="no kernel drops outliers"):
        replace(Trim(kept), outliers=kept).as_change(2.0, 0, 10)


def test_the_first_to_ask_may_launch() -> None:
    kernels._found_missing.cache_clear()
    found: list[str | None] = []
    asking = threading.Thread(target=lambda: found.append(kernels.what_is_missing(CPU)), daemon=True)
    asking.start()
    asking.join(30)
    assert found == [None], "who finds out waits for itself"
    kernels._found_missing.cache_clear()


def test_without_triton_torch_is_taken_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels._found_missing.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert kernels.what_is_missing(CPU) == kernels.what_is_missing(CPU) == "Triton is not installed"
    kernels._found_missing.cache_clear()
    assert [record.message for record in caplog.records] == [
        "Triton is not installed on cpu: merging there takes more passes over memory, and longer"
    ]


def test_a_kernel_that_does_not_run_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    kernels._found_missing.cache_clear()
    monkeypatch.setattr(kernels, "launch", fail)
    with caplog.at_level(logging.WARNING):
        assert kernels.what_is_missing(CPU) == "Triton does not run here (Failed to find C compiler)"
    kernels._found_missing.cache_clear()
    assert len(caplog.records) == 1


def test_the_cpu_and_other_types_take_torch() -> None:
    assert not kernels.can_fuse(torch.ones(3))
    assert not kernels.can_fuse(torch.ones(3, device="meta"))
