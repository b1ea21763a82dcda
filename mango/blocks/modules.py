"""Blocks as modules: built once without weights, then filled."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from copy import deepcopy

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import nn
from transformers import PretrainedConfig
from transformers.initialization import no_init_weights

from mango.architectures import ComponentMap, build_class
from mango.errors import ArchitectureError, IntegrityError

_building = threading.Lock()  # the contexts below patch torch for the whole process


class BlockShells:
    """The blocks of one model without weights, each a pattern for modules that hold them.

    A block's parameters take no memory here. Buffers that no checkpoint stores, such as causal masks, have their
    real values.

    Args:
        config: the model's configuration.
        components: the map of its parts.
    """

    def __init__(self, config: PretrainedConfig, components: ComponentMap) -> None:
        # The random state moves on where a constructor draws numbers; nothing here is random, so it is put back.
        with _building, torch.random.fork_rng(devices=[]), no_init_weights(), init_empty_weights(include_buffers=False):
            found = build_class(config, components.task)
            if found is None:
                raise ArchitectureError(f"{components.architecture}: transformers has no model for {components.task}")
            model = found[0]._from_config(found[1])
        model.train(False)
        self._shells = list(model.get_submodule(components.blocks_path).children())
        self._shared = {id(part): part for part in (model.config, model.config.get_text_config())}
        self._name = components.architecture

    def fill(self, index: int, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """Return a new module for a block that holds the given tensors themselves, not copies.

        Args:
            index: the block's place in the model.
            tensors: the block's tensors by name inside it.

        Returns:
            The module, in evaluation mode.

        Raises:
            IntegrityError: tensors are missing or surplus, or their shapes are not the block's.
        """
        block: nn.Module = deepcopy(self._shells[index], memo=dict(self._shared))
        try:
            block.load_state_dict(dict(tensors), strict=True, assign=True)
        except RuntimeError as error:
            raise IntegrityError(f"block {index} of {self._name}: its tensors do not fit: {error}") from error
        return block
