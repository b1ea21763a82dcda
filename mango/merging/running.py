"""Models of a merge that are run: checked by their headers in the plan, built one at a time when their turn comes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mango.errors import MangoError, MergeError
from mango.merging.inputs import Input
from mango.merging.names import translation

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

LINEAR, TURNED = "linear", "turned"
"""Layers ``[width_out, width_in]``, and those of GPT-2, which are stored the other way round."""


@dataclass(frozen=True, eq=False)
class Runnable:
    """A model that can be built from its configuration and run on tokens.

    Attributes:
        model: the model of the merge.
        config: its configuration.
        built: its class.
        names: what each tensor of the class is called in the merge; one name for tensors that are one.
        own: the class's own name of each tensor of the merge, those that are one with another included.
        stored: for the latter, by their name in the merge, the tensor of the merge that they are.
        linear: kind of each linear layer, by the name of its weight in the merge.
        num_parameters: all of its parameters.
        max_positions: longest sequence that it takes, or None.
        num_rows: rows of its embedding.
    """

    model: Input
    config: PretrainedConfig
    built: Any
    names: Mapping[str, str]
    own: Mapping[str, str]
    stored: Mapping[str, str]
    linear: Mapping[str, str]
    num_parameters: int
    max_positions: int | None
    num_rows: int

    def load(self, device: torch.device | str = "cpu") -> PreTrainedModel:
        """Build the model in float32, ready to be run; its weights are read through the merge's own sources.

        Args:
            device: where it is to run.
        """
        from transformers.initialization import no_init_weights

        with torch.random.fork_rng(devices=[]), no_init_weights(), torch.no_grad():
            model: PreTrainedModel = self.built._from_config(deepcopy(self.config), dtype=torch.float32)
        model.tie_weights()
        state = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for own, name in self.names.items():
                state[own].copy_(self.model.tensors[name].load())
        torch.nn.Module.to(model, device)
        model.train(False)
        return model


def runnable(model: Input) -> Runnable:
    """Find out, from headers alone, whether a model can be built and run on tokens.

    Args:
        model: the model of a merge.

    Raises:
        MergeError: it has no configuration, is no causal language model that transformers knows, does not run, or
            lacks a tensor of its class.
    """
    from mango.architectures import build_meta, describe, task_of
    from mango.architectures.tasks import CAUSAL
    from mango.blocks.layout import read_config

    where = f"model {model.key!r} cannot be run on calibration text"
    if not model.config:
        raise MergeError(f"{where}: it has no config.json; give a folder or a module")
    try:
        config = read_config(dict(model.config), f"config.json of model {model.key!r}")
        if (task := task_of(config)) != CAUSAL:
            raise MergeError(f"{where}: it is built for {task}, and a causal language model was wanted")
        parts = describe(config, CAUSAL)
        meta = build_meta(config, CAUSAL)
    except MergeError:
        raise
    except MangoError as error:
        raise MergeError(f"{where}: {error}") from error
    state = meta.state_dict(keep_vars=True)
    names, called, stored = _names(model, state, where)
    kinds = {}
    for path, module in meta.named_modules():
        kind = LINEAR if isinstance(module, torch.nn.Linear) else TURNED if _is_turned(module) else None
        if kind is not None:
            kinds[called[f"{path}.weight"]] = kind
    return Runnable(
        model=model,
        config=config,
        built=type(meta),
        names=names,
        own={merged: own for own, merged in reversed(called.items())},
        stored=stored,
        linear=kinds,
        num_parameters=sum(parameter.numel() for parameter in meta.parameters()),
        max_positions=parts.max_positions,
        num_rows=parts.vocab_size,
    )


def _is_turned(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _names(
    model: Input, state: Mapping[str, torch.Tensor], where: str
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Return the names of stored tensors in the merge, those of all tensors, and what the others are one with."""
    found = translation(list(state), set(model.tensors))
    one: dict[int, list[str]] = {}
    for own, tensor in state.items():
        one.setdefault(id(tensor), []).append(own)
    names, stored = {}, {}
    for same in one.values():
        own = next((name for name in same if found[name] in model.tensors), same[0])
        name, wanted = found[own], tuple(state[own].shape)
        if name not in model.tensors:
            raise MergeError(
                f"{where}: it has no tensor {name!r}, which its class holds, or stores it in another layout"
            )
        if model.tensors[name].shape != wanted:
            found_shape = list(model.tensors[name].shape)
            raise MergeError(f"{where}: {name!r} has shape {found_shape}, and its class wants {list(wanted)}")
        names[own] = name
        stored.update({found[other]: name for other in same if found[other] != name})
    return names, {own: found[own] for own in state}, stored
