"""The merge methods, by name, and what the engine must know of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from mango.config import Frozen
from mango.registry import Registry

BaseRole = Literal["none", "reference", "start"]
Combine = Callable[..., torch.Tensor]
Measure = Callable[..., Mapping[str, Any]]
F = TypeVar("F", bound=Combine)


@dataclass(frozen=True)
class MergeMethod:
    """A merge method as the engine calls it.

    ``combine(tensors, *, dtype, **parameters)`` gets the models' tensors in the order of the document and returns
    the merged one, computed in float32 or better and rounded once to ``dtype``. Parameters come by the names of the
    fields of the method's parameter model.

    Attributes:
        combine: the pure function.
        base: what ``base_model`` is to the method: ``"none"``, one model like the others, which gives configuration
            and tokenizer; ``"reference"``, what the others are compared with, passed as ``base``; ``"start"``, one of
            the models, which is passed first.
        per_model: parameters that each model has for itself; they come as tuples, in the order of the tensors.
        required: parameters that a document must give.
        num_models: how many models it takes, the reference not counted; None for any number.
        measure: ``measure(tensors, **parameters)`` returns what must be known of whole tensors before single
            elements can be merged, as further arguments of ``combine``.
        elementwise: with the result of ``measure`` given, elements are independent of each other: the engine then
            passes flat pieces, and the flat position of their first element as ``first_position`` if there is a
            ``measure``. Otherwise it passes whole tensors in their shape.
    """

    combine: Combine
    base: BaseRole
    per_model: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    num_models: int | None = None
    measure: Measure | None = None
    elementwise: bool = False


MERGERS: Registry[MergeMethod] = Registry("mergers", "merge method")


def merge_method(
    name: str,
    params: type[Frozen],
    *,
    base: BaseRole,
    per_model: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    num_models: int | None = None,
    measure: Measure | None = None,
    elementwise: bool = False,
) -> Callable[[F], F]:
    """Return a decorator that registers a pure function as a merge method; see `MergeMethod` for the arguments.

    Args:
        name: what documents call it.
        params: the model that validates its parameters, with numeric bounds.
        base: what ``base_model`` is to it.
        per_model: parameters that each model has for itself.
        required: parameters that a document must give.
        num_models: how many models it takes.
        measure: what it must know of whole tensors.
        elementwise: whether it can be applied to pieces.

    Returns:
        The decorator; the function stays as it is.
    """

    def decorate(function: F) -> F:
        method = MergeMethod(
            function, base, frozenset(per_model), frozenset(required), num_models, measure, elementwise
        )
        MERGERS.register(name, params)(method)
        return function

    return decorate
