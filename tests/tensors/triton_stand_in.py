"""What kernels use of Triton, done with torch on the CPU: their own lines run where there is no accelerator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

KERNELS = ("mango.tensors.counting_kernel", "mango.tensors.electing_kernel")


class Values(torch.Tensor):
    """A block of numbers, or one."""

    def to(self, dtype: torch.dtype, bitcast: bool = False) -> Any:  # type: ignore[override]
        return self.view(dtype) if bitcast else super().to(dtype)

    def __iadd__(self, other: Any) -> Any:  # type: ignore[override,misc]
        return self + other  # Triton's values do not change


class Pointer:
    """A place in a tensor, or many."""

    def __init__(self, flat: torch.Tensor, place: Any = 0) -> None:
        self.flat, self.place = flat, place
        self.dtype = SimpleNamespace(element_ty=flat.dtype)

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.flat, self.place + more)

    def places(self, mask: Any) -> torch.Tensor:
        place = torch.as_tensor(self.place).as_subclass(torch.Tensor)
        return place if mask is None else torch.where(mask.as_subclass(torch.Tensor), place, 0)


def _load(pointer: Pointer, mask: Any = None, other: float = 0.0) -> Any:
    found = pointer.flat[pointer.places(mask)]
    if mask is not None:
        found = torch.where(mask.as_subclass(torch.Tensor), found, torch.tensor(other, dtype=found.dtype))
    return found.as_subclass(Values)


def _store(pointer: Pointer, values: torch.Tensor, mask: Any) -> None:
    assert values.dtype == pointer.flat.dtype, "Triton would convert it, which it does in its own way"
    chosen = mask.as_subclass(torch.Tensor)
    pointer.flat[pointer.places(None)[chosen]] = values.as_subclass(torch.Tensor)[chosen]


def _atomic_add(pointer: Pointer, value: torch.Tensor) -> Any:
    before = pointer.flat[pointer.place].clone()
    pointer.flat[pointer.place] += value.as_subclass(torch.Tensor)
    return before.as_subclass(Values)


def _fma(first: torch.Tensor, second: torch.Tensor, total: torch.Tensor) -> Any:
    return torch.add(total, first, alpha=float(second[0]))  # the second is one number everywhere


class _Kernel:
    def __init__(self, body: Callable[..., None], language: ModuleType) -> None:
        self.body, self.language = body, language

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def run(*arguments: Any, enable_fp_fusion: bool, **constants: Any) -> None:
            assert not enable_fp_fusion
            given = [_pointers(argument) for argument in arguments]
            for program in range(grid[0]):
                self.language.program_id = lambda _axis, n=program: torch.tensor(n).as_subclass(Values)  # type: ignore[attr-defined]
                self.body(*given, **constants)

        return run


def _pointers(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(map(_pointers, argument))
    return Pointer(argument.view(-1)) if isinstance(argument, torch.Tensor) else argument


def _language() -> ModuleType:
    language = ModuleType("triton.language")
    for name in ("float64", "float32", "int64", "int32", "where", "abs"):
        setattr(language, name, getattr(torch, name))
    own: dict[str, Any] = {
        "constexpr": lambda value: value,
        "static_range": range,
        "arange": lambda first, end: torch.arange(first, end).as_subclass(Values),
        "zeros": lambda shape, dtype: torch.zeros(shape, dtype=dtype).as_subclass(Values),
        "full": lambda shape, value, dtype: torch.full(shape, value, dtype=dtype).as_subclass(Values),
        "sum": lambda values, axis: values.sum(axis),
        "cumsum": lambda values, axis: values.cumsum(axis),
        "load": _load,
        "store": _store,
        "atomic_add": _atomic_add,
        "fma": _fma,
    }
    vars(language).update(own)
    return language


@contextmanager
def triton_stand_in() -> Iterator[None]:
    """Let kernels be imported anew with this in the place of Triton."""
    language, triton = _language(), ModuleType("triton")

    def jit(**_: Any) -> Callable[[Callable[..., None]], _Kernel]:
        return lambda body: _Kernel(body, language)

    triton.jit = jit  # type: ignore[attr-defined]
    triton.language = language  # type: ignore[attr-defined]
    errors = ModuleType("triton.errors")
    errors.TritonError = type("TritonError", (Exception,), {})  # type: ignore[attr-defined]
    triton.__spec__ = ModuleSpec("triton", None)
    with pytest.MonkeyPatch.context() as patch:
        for name in KERNELS:
            patch.delitem(sys.modules, name, raising=False)
        patch.setitem(sys.modules, "triton", triton)
        patch.setitem(sys.modules, "triton.language", language)
        patch.setitem(sys.modules, "triton.errors", errors)
        yield
        for name in KERNELS:
            sys.modules.pop(name, None)
