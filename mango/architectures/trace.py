"""The order in which a model calls its modules, seen by forward hooks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Call:
    """One call of a module.

    Args:
        path: the module's path inside the traced root.
        parents: paths of the calls that were open when this one began, outermost first.
        input_shape: shape of the first floating tensor given to it, or None.
        output_shape: shape of the first floating tensor that it returned, or None.
        arguments: of an entry of a list, what it was given by the names of its forward pass; empty for other modules.
        output: of an entry of a list, what it returned.
        lengths: sizes that lists and dictionaries among the arguments had when the call began.
    """

    path: str
    parents: tuple[str, ...]
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None = None
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)
    output: Any = field(default=None, repr=False)
    lengths: dict[str, int] = field(default_factory=dict)


@dataclass
class Trace:
    """All calls of one forward pass, in the order in which they began."""

    calls: list[Call] = field(default_factory=list)

    def count(self) -> dict[str, int]:
        """Return how often each path was called."""
        counts: dict[str, int] = {}
        for call in self.calls:
            counts[call.path] = counts.get(call.path, 0) + 1
        return counts

    def first(self, path: str) -> int:
        """Return the position of the first call of ``path``."""
        return next(i for i, call in enumerate(self.calls) if call.path == path)

    def inside(self, path: str) -> list[Call]:
        """Return the calls made within calls of ``path``."""
        return [call for call in self.calls if path in call.parents]


def first_hidden(values: Any) -> torch.Tensor | None:
    """Return the first floating tensor of two or more dimensions in nested arguments, or None."""
    if isinstance(values, torch.Tensor):
        return values if values.is_floating_point() and values.ndim >= 2 else None
    if isinstance(values, dict):
        # Arguments named for the residual stream come before masks and rotary tables.
        items = sorted(values.items(), key=lambda item: "hidden" not in str(item[0]))
        values = [value for _, value in items]
    if isinstance(values, list | tuple):
        for value in values:
            found = first_hidden(value)
            if found is not None:
                return found
    return None


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in nested tuples, lists and dictionaries."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what a module is called with by the names of its forward pass; surplus ones are numbered."""
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    given = {(names[i] if i < len(names) else str(i)): value for i, value in enumerate(args)}
    return given | kwargs


def _shape(values: Any) -> tuple[int, ...] | None:
    tensor = first_hidden(values)
    return None if tensor is None else tuple(tensor.shape)


@contextmanager
def tracing(root: nn.Module) -> Iterator[Trace]:
    """Record every module call under ``root`` while the context is open.

    Args:
        root: the module whose descendants, itself included, are hooked.

    Yields:
        A trace that fills as the root runs.
    """
    trace = Trace()
    stack: list[Call] = []
    handles = []
    listed = {
        id(entry) for module in root.modules() if isinstance(module, nn.ModuleList | nn.Sequential) for entry in module
    }

    def enter(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is root:  # what an earlier attempt left that failed on its way
                trace.calls.clear()
                stack.clear()
            shape = _shape(args) or _shape(kwargs)
            call = Call(path, tuple(open_call.path for open_call in stack), shape)
            if id(module) in listed:
                call.arguments = named_arguments(module, args, kwargs)
                call.lengths = {k: len(v) for k, v in call.arguments.items() if isinstance(v, list | dict)}
            trace.calls.append(call)
            stack.append(call)

        return hook

    def leave(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        call = stack.pop()
        call.output_shape = _shape(output)
        if id(module) in listed:
            call.output = output

    for path, module in root.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()
