"""Building and running models that hold no data: every tensor is on the ``meta`` device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from mango.errors import ArchitectureError

# What a foreign model's construction or forward pass raises when it cannot be built or run here.
MODEL_FAILURES = (
    RuntimeError,  # NotImplementedError is one
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ImportError,
    AssertionError,
    ArithmeticError,
)


class ValueFree(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers the few operators that need data on ``meta`` tensors, so that shapes can flow on.

    A number read from a tensor is zero, a truth is true, and no element is non-zero. Models read values to choose a
    rotary table, to see whether a mask hides anything, to check arguments, or to send tokens to experts; none of that
    changes which blocks run or how wide they are.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator, or answer it where ``meta`` has no value to give."""
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.is_meta:
            if func is torch.ops.aten._local_scalar_dense.default:
                return True if first.dtype == torch.bool else 0.0 if first.is_floating_point() else 0
            if func is torch.ops.aten.nonzero.default:
                return torch.empty((0, first.ndim), dtype=torch.long, device="meta")
            if func is torch.ops.aten.equal.default:
                return True
        return func(*args, **(kwargs or {}))


@contextmanager
def _on_meta() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad(), ValueFree():  # type: ignore[no-untyped-call]
        yield


def _where(config: PretrainedConfig) -> str:
    name = getattr(config, "name_or_path", "") or "this configuration"
    return f"{name} (model type {config.model_type!r})"


def build_meta(config: PretrainedConfig) -> PreTrainedModel:
    """Build the causal language model of a configuration without allocating its weights.

    Args:
        config: configuration of any causal language model that ``transformers`` knows; it is not changed.

    Returns:
        The model in evaluation mode, every tensor on the ``meta`` device. Its names and shapes are the real ones; its
        element type is not.

    Raises:
        ArchitectureError: ``transformers`` has no causal language model for it, or cannot build it.
    """
    try:
        with _on_meta():
            # bfloat16, since some kernels for mixtures of experts take no other type
            model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    except MODEL_FAILURES as error:
        raise ArchitectureError(
            f"{_where(config)}: transformers cannot build a causal language model from it: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    assert isinstance(model, PreTrainedModel)
    model.train(False)
    return model


def run_meta(model: PreTrainedModel, *, length: int = 4) -> Any:
    """Run a model on the ``meta`` device with token ids of shape ``[1, length]`` and its cache on.

    Args:
        model: a model from :func:`build_meta`.
        length: number of tokens.

    Returns:
        The model's output, whose tensors carry shapes only.

    Raises:
        ArchitectureError: the forward pass needs more than token ids and a mask, reads values, or does not fit itself.
    """
    try:
        with _on_meta():
            tokens = torch.zeros(1, length, dtype=torch.long)
            return model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=True)
    except MODEL_FAILURES as error:
        raise ArchitectureError(
            f"{_where(model.config)}: the forward pass of {type(model).__name__} fails on token ids without data: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:300]
