"""Modules that stand in the place of a source model's own, so that a span runs nothing beside its blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Zeros(nn.Module):
    """Stands for an embedding whose output is replaced before the first block, whatever it is looked up with.

    Args:
        width: of its vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return one vector of zeros, which stands for those of all tokens."""
        return torch.zeros(1, 1, self.width, device=ids.device)


class Same(nn.Module):
    """Returns the states that it is given, first or by name, among whatever else."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the states."""
        return args[0] if args else kwargs["inputs_embeds"]


class Passing(nn.Module):
    """Stands for a module behind the blocks: it returns the states that it is given.

    What a model reads of the module that it stands for, such as the element type of its weights, it still finds.

    Args:
        original: the module.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["_original"] = original  # no part of this one: it holds no data

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"], name)

    def forward(self, states: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the states."""
        return states


class PassingBehind(Passing):
    """Stands for a module that runs before the blocks and again behind them, where it returns the states it is given.

    Args:
        original: the module.
        base: the model whose forward pass runs it.
    """

    def __init__(self, original: nn.Module, base: nn.Module) -> None:
        super().__init__(original)
        self._ran = False
        base.register_forward_pre_hook(self._begin)

    def _begin(self, _module: nn.Module, _args: Any) -> None:
        self._ran = False

    def forward(self, states: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the module the first time in a pass, and return the states behind it."""
        if self._ran:
            return states
        self._ran = True
        return self.__dict__["_original"](states, *args, **kwargs)
