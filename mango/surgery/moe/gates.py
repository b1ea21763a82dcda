"""The gates of a mixture: one direction for each expert in each layer, read off prompts or drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mango.checkpoints import open_tokenizer
from mango.errors import MergeError
from mango.surgery.moe.document import BY_PROMPT, ExpertEntry, MoeDocument
from mango.surgery.opened import OpenedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_gates(
    document: MoeDocument, entries: Sequence[ExpertEntry], base: OpenedModel, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the gates of some experts in every layer.

    A gate that is made from prompts is the mean over positive prompts, less that over negative ones, at unit length.
    States are what the base's feed-forward layer reads, since that is what the gate will see.

    Args:
        document: the mixture.
        entries: the experts that need gates.
        base: the base model.
        device: where the base runs, for the modes that run it.

    Returns:
        float32 ``[layers, experts, width]``.

    Raises:
        MergeError: a prompt has no tokens, or positive and negative prompts cancel out.
    """
    layers, width = base.parts.num_blocks, base.parts.width
    shape = (layers, len(entries), width)
    generator = torch.Generator().manual_seed(document.seed)
    mode = document.gate_mode
    if mode == "uniform":
        return torch.zeros(shape)
    if mode == "random":
        return torch.randn(shape, generator=generator)
    if mode == "uniform_random":
        bound = math.sqrt(1.0 / width)
        return (torch.rand(shape, generator=generator) * 2 - 1) * bound
    assert mode in BY_PROMPT
    tokens = [[_tokens(base, prompts) for prompts in _prompts(entry)] for entry in entries]
    if mode == "cheap_embed":
        table = base.tensor(base.embeddings)
        means = [
            [None if not ids else torch.stack([table[i].float().mean(0) for i in ids]).mean(0) for ids in pair]
            for pair in tokens
        ]
        one = torch.stack([_direction(pair, entry) for pair, entry in zip(means, entries, strict=True)])
        return one.unsqueeze(0).expand(shape).contiguous()
    model = base.load(device)
    found = []
    for pair, entry in zip(tokens, entries, strict=True):
        states = [None if not ids else _states(model, base, ids, mode == "hidden_avg") for ids in pair]
        found.append(_direction(states, entry))
    return torch.stack(found, dim=1)


def overlaps(gates: Tensor) -> list[float]:
    """Return, for each layer, the largest cosine between the gates of two experts; 0 where there is one expert."""
    if gates.shape[1] < 2:
        return [0.0] * len(gates)
    unit = torch.nn.functional.normalize(gates.double(), dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    index = torch.triu_indices(gates.shape[1], gates.shape[1], offset=1)
    return [float(layer[index[0], index[1]].max()) for layer in cosines]


def _prompts(entry: ExpertEntry) -> tuple[Sequence[str], Sequence[str]]:
    return entry.positive_prompts or (), entry.negative_prompts or ()


def _tokens(base: OpenedModel, prompts: Sequence[str]) -> list[Tensor]:
    """Return the ids of each prompt, with the start token before them where the tokenizer has one."""
    if not prompts:
        return []
    tokenizer = open_tokenizer(base.folder)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not ids:
            raise MergeError(f"the prompt {prompt!r} has no tokens in the vocabulary of {base.reference}: give it text")
        found.append(torch.tensor([*start, *ids]))
    return found


def _direction(states: Sequence[Tensor | None], entry: ExpertEntry) -> Tensor:
    positive, negative = states
    assert positive is not None
    difference = positive if negative is None else positive - negative
    length = difference.norm(dim=-1, keepdim=True)
    if not bool((length > 1e-6).all()):
        raise MergeError(
            f"expert {entry.source_model}: its positive and negative prompts give the same states, so it has no gate"
        )
    unit: Tensor = difference / length
    return unit


@torch.no_grad()
def _states(model: PreTrainedModel, base: OpenedModel, prompts: Sequence[Tensor], average: bool) -> Tensor:
    """Return the mean over prompts of what each layer's feed-forward part reads, float32 ``[layers, width]``."""
    blocks = model.get_submodule(base.parts.blocks_path)
    seen: dict[int, Tensor] = {}

    def watch(index: int) -> Any:
        def note(_: Any, inputs: tuple[Tensor, ...]) -> None:
            states = inputs[0][0].float()
            # the start token's states are far larger than any other's, and the same in every prompt
            seen[index] = states[min(1, len(states) - 1) :].mean(0) if average else states[-1]

        return note

    hooks = [
        block.get_submodule("mlp").register_forward_pre_hook(watch(index))
        for index, block in enumerate(blocks.children())
    ]
    try:
        total = torch.zeros(base.parts.num_blocks, base.parts.width)
        for ids in prompts:
            model(input_ids=ids.unsqueeze(0).to(model.device), use_cache=False)
            total += torch.stack([seen[index].cpu() for index in range(base.parts.num_blocks)])
    finally:
        for hook in hooks:
            hook.remove()
    return total / len(prompts)
