"""Fused models of tiny random parts, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mango.blocks import BlockStore
from mango.fusion import ROUTERS as REGISTRY
from mango.fusion import AdapterParams, FusionParams, MolForCausalLM, RouterParams, build_fused
from tests.blocks.families import VOCAB, config_of

SOURCES = ("base", "sister", "brother", "stranger", "short")
"""A llama trunk of four blocks, two of its shape, a narrower GPT-2 of five blocks, and a GPT-NeoX of two."""


def config_named(name: str) -> tuple[str, PretrainedConfig]:
    """Return family and configuration of a source model of the fixtures."""
    if name == "stranger":
        config = config_of("gpt2")
        config.update({"n_embd": 24, "n_layer": 5, "n_inner": 40})
        return "gpt2", config
    if name == "short":
        config = config_of("gpt_neox")
        config.update({"num_hidden_layers": 2, "hidden_size": 48})
        return "gpt_neox", config
    values = config_of("llama").to_dict()
    values.update(num_hidden_layers=4, hidden_size=32)
    return "llama", type(config_of("llama"))(**values)


LAYOUTS: dict[str, list[Any]] = {
    "siblings": ["sister", "brother"],
    "whole": ["sister", "stranger", "brother"],
    "cut": ["sister", {"model": "stranger", "cut": "fine"}],
    "trunk edges": [{"model": "sister", "edges": "trunk"}, {"model": "stranger", "cut": "fine", "edges": "trunk"}],
    "extents": [
        {"model": "stranger", "cut": [{"enter": 1, "exit": 3, "blocks": [2, 4]}]},
        {
            "model": "short",
            "cut": [{"enter": 0, "exit": 1, "blocks": [0, 1]}, {"enter": 2, "exit": 4, "blocks": [1, 2]}],
        },
        "sister",
    ],
}
"""Experts beside the trunk; ``extents`` has spans that enter late, leave early and overlap short ones."""

ROUTERS: dict[str, dict[str, Any]] = {
    "simple": {"type": "simple", "simple": {"prompt": 6}},
    "simple k=1": {"type": "simple", "simple": {"prompt": 6, "k": 1, "catch_up": 3}},
    "simple k=2": {"type": "simple", "simple": {"prompt": 6, "k": 2, "catch_up": 16}},
    "token window": {"type": "token", "token": {"window": 4}},
    "token prompt": {"type": "token", "token": {"pooling": "prompt", "window": 4}},
    "token segment": {"type": "token", "token": {"pooling": "segment", "window": 3}},
    "top-1 window": {"type": "topk", "topk": {"window": 3, "catch_up": 3}},
    "top-1 one state": {"type": "topk", "topk": {"window": 1, "catch_up": 0}},
    "top-1 prompt": {"type": "topk", "topk": {"pooling": "prompt", "window": 5, "catch_up": 16}},
    "top-2 segment": {"type": "topk", "topk": {"pooling": "segment", "window": 3, "catch_up": 3, "k": 2}},
    "top-2 window": {"type": "topk", "topk": {"window": 2, "catch_up": 16, "k": 2}},
    "token windows": {"type": "token", "token": {"pooling": "windows", "windows": [1, 4, 9], "hidden": 8}},
    "token evidence": {"type": "token", "token": {"window": 2, "switch": 0.1}},
    "token sigmoid": {"type": "token", "token": {"window": 3, "gate": "sigmoid"}},
    "top-1 evidence": {"type": "topk", "topk": {"window": 1, "switch": 0.2, "catch_up": 3}},
    "top-1 sticky": {
        "type": "topk",
        "topk": {"pooling": "windows", "windows": [2, 5], "stickiness": 0.5, "catch_up": 3},
    },
    "top-3 budget": {"type": "topk", "topk": {"window": 2, "k": 3, "mass": 0.7, "catch_up": 3}},
    "top-1 segment": {"type": "topk", "topk": {"pooling": "segment", "window": 2, "catch_up": 0}},
}


def fuse(
    store: BlockStore,
    experts: Sequence[Any],
    router: dict[str, Any] | None = None,
    *,
    trunk: str = "base",
    span: int = 1,
    adapter: str = "linear",
    dtype: str = "float32",
    scatter: bool = True,
    seed: int = 0,
) -> MolForCausalLM:
    """Build a fused model whose routers, unless told otherwise, spread tokens over all experts."""
    model = build_fused(
        store,
        FusionParams.model_validate({"trunk": trunk, "experts": list(experts), "span": span, "dtype": dtype}),
        RouterParams.model_validate(router or ROUTERS["token window"]),
        AdapterParams(type=adapter),
        seed=seed,
    )
    if scatter:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for each in model.iter_routers():
                each.outer.weight.copy_(torch.randn(each.outer.weight.shape, generator=generator) * 0.7)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    """Return token ids without those of begin and end."""
    return torch.randint(2, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def left_padded(ids: Tensor, pads: Sequence[int]) -> Tensor:
    """Return an attention mask that hides so many first tokens of each row."""
    return (torch.arange(ids.shape[1]) >= torch.tensor(pads).unsqueeze(1)).long()


def to_expert(model: MolForCausalLM, place: int, force: float = 100.0) -> None:
    """Set every router so that all tokens take the expert in this place."""
    with torch.no_grad():
        for router in model.iter_routers():
            router.outer.weight.zero_()
            router.outer.bias.zero_()
            router.outer.bias[min(place, router.num_experts - 1)] = force


def copy_of(model: MolForCausalLM) -> MolForCausalLM:
    """Return an independent copy."""
    return deepcopy(model)


def with_router(model: MolForCausalLM, params: dict[str, Any], seed: int = 0) -> MolForCausalLM:
    """Give a fused model other routers, in place, that spread tokens over all experts."""
    chosen = RouterParams.model_validate(params)
    generator = torch.Generator().manual_seed(seed)
    for position, old in zip(list(model.routers), model.iter_routers(), strict=True):
        new = REGISTRY[chosen.type](old.width, old.num_experts, chosen.chosen())
        with torch.no_grad():
            for part in (new.temperature, new.switch, new.balance):
                if part is not None:
                    part.start_weights(0.02)
            new.outer.weight.copy_(torch.randn(new.outer.weight.shape, generator=generator) * 0.7)
            new.outer.bias.zero_()
        model.routers[position] = new.train(model.training)
    model.config.router = chosen.model_dump(mode="json")
    return model
