"""How alike the states are that models have of the same text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def state_grams(model: nn.Module, blocks_path: str, sequences: list[Tensor]) -> list[Tensor]:
    """Return, for each block, the scalar products of its output states at all tokens but the first of each sequence.

    The first token's states are far larger than any other's in most models, and would be all that counts.

    Args:
        model: a causal language model.
        blocks_path: path of its block list.
        sequences: token ids, each ``[length]``.

    Returns:
        float64 ``[tokens, tokens]`` for each block.
    """
    blocks = list(model.get_submodule(blocks_path).children())
    found: list[list[Tensor]] = [[] for _ in blocks]

    def watch(index: int) -> Callable[..., None]:
        def note(_: Any, __: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            found[index].append(states[0, 1:].double().cpu())

        return note

    hooks = [block.register_forward_hook(watch(index)) for index, block in enumerate(blocks)]
    try:
        for ids in sequences:
            model(input_ids=ids.unsqueeze(0).to(next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    grams = []
    for index in range(len(blocks)):
        states = torch.cat(found[index])
        found[index] = []
        grams.append(states @ states.T)
    return grams


def cka(first: Tensor, second: Tensor) -> float:
    """Return the centred kernel alignment of two sets of states from their scalar products.

    The unbiased estimate of the independence criterion is taken, which does not rise to 1 by itself where there are
    fewer tokens than dimensions; it may fall a little below 0.

    Args:
        first: ``[tokens, tokens]``, at least 4 tokens.
        second: the same for the other model, at the same tokens.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited" (2019), equation 3, with the
    estimator of Song et al., "Feature Selection via Dependence Maximization" (2012), equation 5.
    """
    both = _unbiased(first, second)
    own = _unbiased(first, first) * _unbiased(second, second)
    return float(both / own**0.5) if own > 0 else 0.0


def _unbiased(first: Tensor, second: Tensor) -> float:
    n = len(first)
    k, m = first.clone(), second.clone()
    k.fill_diagonal_(0.0)
    m.fill_diagonal_(0.0)
    trace = float((k * m.T).sum())
    sums = float(k.sum()) * float(m.sum()) / ((n - 1) * (n - 2))
    mixed = 2.0 / (n - 2) * float(k.sum(0) @ m.sum(1))
    return (trace + sums - mixed) / (n * (n - 3))
