"""Running a model's blocks alone, behind wrappers, and stubbed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from mango.architectures import Stack
from mango.architectures.handlers import Handler
from mango.architectures.trace import first_hidden, named_arguments, tensors_in

SEED = 11


class Proxy(nn.Module):
    """Stands for a block: runs it and answers for its attributes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Stub:
    """A forward pass of a block that is left out: notes what it is given and lets the stream pass.

    The block itself stays where it is, so that its model collects its outputs as it does otherwise.
    """

    def __init__(self, inner: nn.Module, like: Any, handler: Handler, notes: list[dict[str, Any]]) -> None:
        self.inner = inner
        self.own = inner.forward
        self.like = like
        self.handler = handler
        self.notes = notes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.inner.forward = self.own
        try:
            arguments = named_arguments(self.inner, args, kwargs)
            self.notes.append(clone(arguments))
            stream = first_hidden(args) if first_hidden(args) is not None else first_hidden(kwargs)
            return self.handler.stub(self.inner, arguments, _shaped(self.like, stream))
        finally:
            self.inner.forward = self


@contextmanager
def stubbed(blocks: list[nn.Module], stubs: list[Stub]) -> Iterator[None]:
    """Let blocks do what stubs do for a while."""
    try:
        for block, stub in zip(blocks, stubs, strict=True):
            block.forward = stub
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


def _shaped(like: Any, stream: Any) -> Any:
    """Return a stream in the form of a block's output, with nothing beside it."""
    if isinstance(like, torch.Tensor):
        return stream
    if isinstance(like, tuple):
        return (stream, *(None for _ in like[1:]))
    if isinstance(like, list):
        return [stream, *(None for _ in like[1:])]
    return stream


def clone(value: Any) -> Any:
    """Return a copy of nested arguments whose tensors nobody else writes into."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) is tuple:
        return tuple(clone(item) for item in value)
    if type(value) is list:
        return [clone(item) for item in value]
    if type(value) is dict:
        return {key: clone(item) for key, item in value.items()}
    return copy.deepcopy(value) if isinstance(value, Cache) else value


@dataclass
class Ran:
    """One call of a block, as it was before and after."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rng: torch.Tensor
    output: Any

    def named(self) -> dict[str, Any]:
        return named_arguments(self.block, self.args, self.kwargs)


def run(model: PreTrainedModel, inputs: dict[str, Any]) -> Any:
    """Run a model; random numbers that it draws are the same each time."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        return model(**{name: clone(value) for name, value in inputs.items()})


def record(model: PreTrainedModel, stack: Stack, inputs: dict[str, Any]) -> list[Ran]:
    """Run a model and return what each block of a stack was given and returned."""
    calls: list[Ran] = []
    handles = []

    def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Ran(block, clone(args), clone(kwargs), torch.get_rng_state(), None))

    def leave(block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        next(call for call in reversed(calls) if call.block is block).output = clone(output)

    for block in model.get_submodule(stack.path).children():
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave))
    try:
        run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def same(left: Any, right: Any) -> bool:
    """Tell whether two nested values hold the same bits."""
    lefts, rights = list(tensors_in(_plain(left))), list(tensors_in(_plain(right)))
    return len(lefts) == len(rights) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        if a.is_floating_point()
        else torch.equal(a, b)
        for a, b in zip(lefts, rights, strict=True)
    )


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "keys") and not isinstance(value, dict) else value


def replay(calls: list[Ran]) -> str | None:
    """Run each block alone with what it was given; return what differs first, or None."""
    for number, call in enumerate(calls):
        torch.set_rng_state(call.rng)
        with torch.no_grad():
            found = call.block(*clone(call.args), **clone(call.kwargs))
        if not same(found, call.output):
            return f"block {number} returns other bits alone than inside the model"
    return None


@contextmanager
def swapped(model: PreTrainedModel, stack: Stack, new: list[nn.Module]) -> Iterator[None]:
    """Put other modules in the places of a stack's blocks for a while."""
    holder = model.get_submodule(stack.path)
    old = dict(holder.named_children())
    for name, module in zip(old, new, strict=True):
        holder._modules[name] = module
    try:
        yield
    finally:
        for name, module in old.items():
            holder._modules[name] = module


def differing(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Return the names of arguments, the stream apart, whose tensors or plain values differ."""
    stream = _stream_name(left)
    return [name for name in left if name != stream and not _equal(left[name], right.get(name))]


def _stream_name(arguments: dict[str, Any]) -> str | None:
    stream = first_hidden(arguments)
    return next((name for name, value in arguments.items() if any(t is stream for t in tensors_in(value))), None)


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        return isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor) and same(left, right)
    if isinstance(left, (tuple, list)):
        return isinstance(right, (tuple, list)) and len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, (int, float, str, bool, type(None))):
        return bool(left == right)
    return type(left) is type(right)


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """Give a model weights of which none is a constant, and no block the same as another."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model.eval()


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return an independent copy."""
    return copy.deepcopy(model)
