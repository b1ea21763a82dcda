"""What source models do on calibration text: their losses on each token, and the states at the cuts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from mango.architectures import block_list
from mango.blocks import BlockStore


def load_source(store: BlockStore, name: str, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """Return a source model as it is, in evaluation mode."""
    folder = store.tokenizer_folder(name)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.to(device)  # type: ignore[arg-type]
    model.train(False)
    return model


@torch.no_grad()
def token_losses(model: nn.Module, input_ids: Tensor, batch_size: int) -> Tensor:
    """Return the loss of each token given those before it, in nats, float32 ``[rows, length - 1]``.

    Args:
        model: a causal language model.
        input_ids: ``[rows, length]``, on any device.
        batch_size: rows a forward pass.
    """
    device = next(model.parameters()).device
    losses: list[Tensor] = []
    for ids in input_ids.split(batch_size):
        ids = ids.to(device)
        logits = model(input_ids=ids).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        losses.append(loss.view(len(ids), -1).cpu())
    return torch.cat(losses)


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
