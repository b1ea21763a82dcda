"""The merge methods, by name, and what the engine must know of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from mango.config import Frozen
from mango.registry import Registry

BaseRole = Literal["none", "optional", "reference", "start"]
Statistic = Literal["fishers", "grams"]
Combine = Callable[..., Any]
Measure = Callable[..., Mapping[str, Any]]
F = TypeVar("F", bound=Combine)


@dataclass(frozen=True)
class Learned:
    """A parameter, one of each model's own, in which a method's result is linear.

    Attributes:
        parameter: its name.
        directions: ``directions(tensors, base, *, first_position, **arguments)`` returns for flat pieces what each
            model's value multiplies, float64.
    """

    parameter: str
    directions: Callable[..., list[torch.Tensor]]


@dataclass(frozen=True)
class Shares:
    """How a weighted sum is made.

    Attributes:
        coefficients: of the base, where the method compares with one, and of each tensor.
        divisor: what their sum is divided by.
    """

    coefficients: tuple[float, ...]
    divisor: float = 1.0


@dataclass(frozen=True)
class MergeMethod:
    """A merge method as the engine calls it.

    ``combine(tensors, *, dtype, **parameters)`` gets the models' tensors in the order of the document and returns
    the merged one, computed in float64 and rounded once to ``dtype``. Parameters come by the names of the fields of
    the method's parameter model. All tensors of a call lie on one device, where the result lies too.

    Attributes:
        combine: the pure function.
        base: what ``base_model`` is to the method: ``"none"``, one model like the others, which gives configuration
            and tokenizer; ``"reference"``, what the others are compared with, passed as ``base``; ``"optional"``, the
            same where the document has a ``base_model``, and ``base=None`` where it has none; ``"start"``, one of
            the models, which is passed first.
        per_model: parameters that each model has for itself; they come as tuples, in the order of the tensors.
        required: parameters that a document must give.
        num_models: how many models it takes, the reference not counted; None for any number.
        min_models: how many it takes at least, counted in the same way.
        measure: ``measure(tensors, **parameters)`` returns what must be known of whole tensors before single
            elements can be merged, as further arguments of ``combine``. It gets all that ``combine`` gets (``base``,
            ``seeds``, statistics) but ``dtype`` and ``first_position``, goes through the tensors piece by piece in
            bounded memory, and may run at the same time for several tensors.
        elementwise: with the result of ``measure`` given, elements are independent of each other: the engine then
            passes flat pieces. Otherwise it passes whole tensors in their shape; such methods keep to a bounded
            memory beyond their result where their maths allows it.
        random: it takes ``seeds``, one for each tensor in their order, each being
            :func:`mango.tensors.tensor_seed` of the document's seed, the output tensor's name and the model's
            reference. Random numbers are functions of the seed and of an element's position in the whole tensor, so
            that no result depends on order, threads, pieces or shards.
        statistics: it takes a tuple under this name, for each model what calibration found for this tensor, or None:
            ``"fishers"``, the diagonal Fisher information, of the tensor's shape (flat pieces in step with it when
            elementwise); ``"grams"``, ``[width_in, width_in]`` Gram matrices of a linear layer's inputs.
        shares: of a method whose result is a weighted sum of base and tensors: ``shares(**arguments)`` returns its
            coefficients. Such sums are made without torch where they can be, and ``measure`` then gets flat arrays
            (see :mod:`mango.tensors.arrays`) instead of tensors.
        on_arrays: ``combine`` also takes flat arrays of stored elements (see :mod:`mango.tensors.arrays`), and the
            safetensors name of the type of the result as ``dtype``; it is elementwise and takes no statistics. It
            raises NotFiniteError where an element of the result is not finite.
        learned: the parameter that calibration text teaches where a document names some.
        without_effect: parameters that mergekit's documents may give this method and that change nothing: read, and
            noted.
    """

    combine: Combine
    base: BaseRole
    per_model: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    num_models: int | None = None
    min_models: int = 1
    measure: Measure | None = None
    elementwise: bool = False
    random: bool = False
    statistics: Statistic | None = None
    shares: Callable[..., Shares] | None = None
    on_arrays: bool = False
    learned: Learned | None = None
    without_effect: frozenset[str] = frozenset()

    @property
    def takes_position(self) -> bool:
        """Whether pieces come with ``first_position``, the flat position of their first element in the tensor."""
        return self.elementwise and (self.measure is not None or self.random)


MERGERS: Registry[MergeMethod] = Registry("mergers", "merge method")


def merge_method(
    name: str,
    params: type[Frozen],
    *,
    base: BaseRole,
    per_model: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    num_models: int | None = None,
    min_models: int = 1,
    measure: Measure | None = None,
    elementwise: bool = False,
    random: bool = False,
    statistics: Statistic | None = None,
    shares: Callable[..., Shares] | None = None,
    on_arrays: bool = False,
    learned: Learned | None = None,
    without_effect: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """Return a decorator that registers a pure function as a merge method; see `MergeMethod` for the arguments.

    Args:
        name: what documents call it.
        params: the model that validates its parameters, with numeric bounds.
        base: what ``base_model`` is to it.
        per_model: parameters that each model has for itself.
        required: parameters that a document must give.
        num_models: how many models it takes.
        min_models: how many models it takes at least.
        measure: what it must know of whole tensors.
        elementwise: whether it can be applied to pieces.
        random: whether it takes seeds.
        statistics: what calibration must find for it.
        shares: its coefficients, if it is a weighted sum.
        on_arrays: whether it takes arrays as well.
        learned: which parameter calibration text can teach.
        without_effect: parameters that are read and change nothing.

    Returns:
        The decorator; the function stays as it is.
    """

    def decorate(function: F) -> F:
        method = MergeMethod(
            combine=function,
            base=base,
            per_model=frozenset(per_model),
            required=frozenset(required),
            num_models=num_models,
            min_models=num_models or min_models,
            measure=measure,
            elementwise=elementwise,
            random=random,
            statistics=statistics,
            shares=shares,
            on_arrays=on_arrays,
            learned=learned,
            without_effect=frozenset(without_effect),
        )
        MERGERS.register(name, params)(method)
        return function

    return decorate
