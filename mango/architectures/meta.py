"""Building and running models that hold no data: every tensor is on the ``meta`` device."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PretrainedConfig, PreTrainedModel

from mango.architectures.handlers import handler_for
from mango.architectures.inputs import LENGTH, InputMaker
from mango.architectures.limits import check_size
from mango.architectures.tasks import CAUSAL, build_class, class_for, task_of
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
    NameError,  # variables that are bound in the loop over blocks, where there are none
    StrictDataclassError,  # a configuration that contradicts itself
)


SMALL_PARAMETERS = 1 << 27
"""Models of at most so many parameters are run with data where they do not run without."""


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


def build_meta(
    config: PretrainedConfig, task: str | None = None, *, dtype: torch.dtype = torch.bfloat16
) -> PreTrainedModel:
    """Build the model of a configuration without allocating its weights.

    Args:
        config: configuration of any model that ``transformers`` knows; it is not changed.
        task: what it is to be built for; by default what :func:`mango.architectures.task_of` says.
        dtype: element type; by default bfloat16, since some kernels for mixtures of experts take no other.

    Returns:
        The model in evaluation mode, every tensor on the ``meta`` device. Its names and shapes are the real ones; its
        element type is not.

    Raises:
        ArchitectureError: ``transformers`` has no model of that task for it, cannot build it, or it would be absurdly
            large.
    """
    check_size(config)
    chosen = task_of(config) if task is None else task
    class_for(config, chosen)  # says which tasks there are
    what = "a causal language model" if chosen == CAUSAL else f"a model for {chosen}"
    try:
        found = build_class(config, chosen)
        if found is None:
            raise ValueError(f"transformers has no class for {chosen} of model type {config.model_type!r}")
        model_class, part = found
        with _on_meta():
            model = model_class._from_config(deepcopy(part), dtype=dtype)
    except MODEL_FAILURES as error:
        raise ArchitectureError(
            f"{_where(config)}: transformers cannot build {what} from it: {type(error).__name__}: {_first_line(error)}"
        ) from error
    assert isinstance(model, PreTrainedModel)
    model.train(False)
    return model


def is_unsaved(model: PreTrainedModel, name: str) -> bool:
    """Tell whether a tensor is in no checkpoint, since the model's constructor computes it.

    Args:
        model: the model.
        name: of one of its tensors.
    """
    return any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_save or ())


def run_meta(model: PreTrainedModel, *, length: int = 4) -> Any:
    """Run a causal language model on the ``meta`` device with token ids of shape ``[1, length]`` and its cache on.

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


def run_small(model: PreTrainedModel) -> tuple[PreTrainedModel, Any]:
    """Build a small model with weights and get it ready to be run, for models that read values on their way.

    Args:
        model: the model without weights.

    Returns:
        The model with random weights, and a function that runs it on the plainest inputs that it takes.

    Raises:
        ArchitectureError: it has more parameters than are built for this.
    """
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > SMALL_PARAMETERS:
        raise ArchitectureError(
            f"{_where(model.config)}: the forward pass of {type(model).__name__} reads values, so it does not run "
            f"without data, and with {size:,} parameters it is too large to be run with data for this alone"
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
        torch.manual_seed(0)
        model_class: Any = type(model)
        built: PreTrainedModel = model_class._from_config(deepcopy(model.config))
    built.train(False)

    def run() -> Any:
        with torch.device("cpu"):  # whatever is the default where the model is described
            return run_on_plainest()

    def run_on_plainest() -> Any:
        maker = InputMaker(built, batch=1, length=LENGTH)
        first: BaseException | None = None
        for inputs in handler_for(built.config.model_type).inputs(maker) or maker.candidates():
            try:
                with torch.random.fork_rng(devices=[]), torch.no_grad():
                    return built(**inputs)
            except MODEL_FAILURES as error:
                first = first or error
        reason = "no inputs can be made for it" if first is None else f"{type(first).__name__}: {_first_line(first)}"
        raise ArchitectureError(f"{_where(built.config)}: {type(built).__name__} does not run: {reason}")

    return built, run


def run_any_meta(model: PreTrainedModel) -> Any:
    """Run a model of any family on the ``meta`` device, on the plainest inputs that it takes.

    Args:
        model: a model from :func:`build_meta`, or a part of one.

    Returns:
        The model's output, whose tensors carry shapes only.

    Raises:
        ArchitectureError: it runs on none of the inputs that can be made for it.
    """
    maker = InputMaker(model, batch=1, length=LENGTH)
    first: BaseException | None = None
    tried: list[str] = []
    for inputs in handler_for(model.config.model_type).inputs(maker) or maker.candidates():
        tried = list(inputs)
        try:
            with _on_meta():
                moved = {name: _moved(value) for name, value in inputs.items()}
                return model(**moved)
        except MODEL_FAILURES as error:
            first = first or error
    if first is None:
        needs = ", ".join(n for n, p in maker.parameters.items() if p.default is p.empty) or model.main_input_name
        raise ArchitectureError(
            f"{_where(model.config)}: no inputs can be made for {type(model).__name__}, which takes {needs}"
        )
    raise ArchitectureError(
        f"{_where(model.config)}: the forward pass of {type(model).__name__} fails on {', '.join(tried)} without data: "
        f"{type(first).__name__}: {_first_line(first)}"
    ) from first


def _moved(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to("meta", torch.bfloat16) if value.is_floating_point() else value.to("meta")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:300]
