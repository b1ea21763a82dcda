"""What calibration text says about a model's tensors: Fisher information, and Gram matrices of linear layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mango.merging.measuring import add_fishers, add_grams


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
    found = {
        name: torch.zeros_like(parameter, dtype=torch.float64, requires_grad=False)
        for name, parameter in model.named_parameters()
    }
    add_fishers(model, list(sequences), found)
    return found


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
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {
        f"{name}.weight": torch.zeros(
            layer.in_features, layer.in_features, dtype=torch.float64, device=layer.weight.device
        )
        for name, layer in layers.items()
    }
    add_grams(model, list(sequences), found)
    return found
