"""What calibration text says about a model's tensors: Fisher information, and Gram matrices of linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mango.errors import MergeError


def collect_fishers(model: nn.Module, sequences: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the diagonal of the empirical Fisher information of a causal language model.

    It is the mean over sequences of the squared gradient of their log-likelihood, with the tokens of the text as the
    labels.

    Args:
        model: takes ``input_ids`` and ``labels`` and returns an object with a ``loss``, as those of transformers do.
        sequences: token ids, each of shape [1, tokens] with at least two tokens.

    Returns:
        float64 of the shape of each parameter, by its name.

    Raises:
        MergeError: there are no sequences, or a loss is not finite.

    Source:
        Matena and Raffel (2021), arXiv:2111.09832, section 3.1.
    """
    parameters = dict(model.named_parameters())
    found = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    count = 0
    with _evaluating(model):
        for tokens in sequences:
            loss = model(input_ids=tokens, labels=tokens).loss * (tokens.shape[1] - 1)  # a sum, not a mean
            if not bool(torch.isfinite(loss)):
                raise MergeError(f"calibration: sequence {count} has a loss of {float(loss)}; wanted a number")
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(found.values(), gradients, strict=True):
                if gradient is not None:
                    total += gradient.double().square()
            count += 1
    if not count:
        raise MergeError("calibration: there are no sequences; give some text")
    return {name: total / count for name, total in found.items()}


def collect_grams(model: nn.Module, sequences: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the Gram matrix of the inputs of each linear layer.

    Args:
        model: takes ``input_ids``.
        sequences: token ids, each of shape [1, tokens].

    Returns:
        float64 ``[width_in, width_in]``, by the name of the layer's weight.

    Raises:
        MergeError: there are no sequences.

    Source:
        Jin et al. (2022), arXiv:2212.09849, section 4.
    """
    found: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], Any], None]:
        def add(_module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            found[name] = found[name] + rows.T @ rows if name in found else rows.T @ rows

        return add

    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hooks = [module.register_forward_hook(hook(f"{name}.weight")) for name, module in layers.items()]
    count = 0
    try:
        with _evaluating(model), torch.no_grad():
            for tokens in sequences:
                model(input_ids=tokens)
                count += 1
    finally:
        for handle in hooks:
            handle.remove()
    if not count:
        raise MergeError("calibration: there are no sequences; give some text")
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
