"""What source models do on calibration text: their losses on each token, and the states at the cuts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mango.architectures import block_list


@contextmanager
def recorded_states(model: PreTrainedModel, at: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Record, in each forward pass, the states that enter block ``b`` for every ``b`` in `at`.

    The number of blocks stands for what leaves the last one.
    """
    blocks = block_list(model)
    states: dict[int, Tensor] = {}
    handles = []

    def before(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states[index] = (args[0] if args else kwargs["hidden_states"]).detach()

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states[len(blocks)] = (output if isinstance(output, Tensor) else output[0]).detach()

    for index in sorted(set(at)):
        if index == len(blocks):
            handles.append(blocks[-1].register_forward_hook(after))
        else:
            handles.append(blocks[index].register_forward_pre_hook(before(index), with_kwargs=True))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def best_expert(losses: Tensor, window: int) -> Tensor:
    """Return, for each token, the model with the lowest mean loss around it.

    Args:
        losses: ``[models, rows, length - 1]``; entry t is the loss of predicting token t + 1 from token t.
        window: tokens that are averaged, half of them before and half after.

    Returns:
        Numbers of models, int64 ``[rows, length]``; the last token takes its neighbour's.
    """
    length = losses.shape[-1]
    window = min(window, length)
    left = (window - 1) // 2
    padded = torch.nn.functional.pad(losses.double().cumsum(-1), (1, 0))
    place = torch.arange(length)
    start = (place - left).clamp(min=0)
    stop = (place - left + window).clamp(max=length)
    mean = (padded[..., stop] - padded[..., start]) / (stop - start)
    best = mean.argmin(0)
    return torch.cat([best, best[:, -1:]], 1)
