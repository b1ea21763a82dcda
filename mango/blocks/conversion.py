"""Tensors that a model computes from several of its checkpoint, such as one matrix of all experts from one for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from mango.checkpoints import Checkpoint
from mango.errors import CheckpointError
from mango.tensors import torch_dtype


@dataclass(frozen=True)
class Conversion:
    """How tensors of a model are made from tensors of its checkpoint, as ``transformers`` makes them.

    Args:
        name: the name of the first of them in the model.
        rule: the rule of ``transformers``.
        sources: for each tensor that goes in, the pattern that its name matches and its name in the checkpoint.
        shapes: the shape of each tensor that comes out by its name in the model.
        dtype: safetensors name of their element type.
    """

    name: str
    rule: WeightConverter
    sources: tuple[tuple[str, str], ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str

    def tensors(self, model: PreTrainedModel, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors that come out.

        Args:
            model: the model, with or without weights.
            read: gives a tensor of the checkpoint by its name.

        Raises:
            CheckpointError: the tensors that go in do not fit each other.
        """
        return _convert(self.rule, self.name, self.sources, model, read)


def plan(checkpoint: Checkpoint, model: PreTrainedModel) -> tuple[dict[str, str], list[Conversion]]:
    """Return what becomes of each tensor of a checkpoint; only headers are looked at.

    Args:
        checkpoint: the checkpoint.
        model: its model without weights.

    Returns:
        The name in the checkpoint by the name in the model, for tensors that stay as they are; and the conversions.

    Raises:
        CheckpointError: tensors that are to become one do not fit each other.
    """
    transforms: list[Any] = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    wanted = model.state_dict()
    prefix = model.base_model_prefix
    names: dict[str, str] = {}
    groups: dict[str, list[tuple[str, str]]] = {}
    for stored in sorted(checkpoint.names(), key=dot_natural_key):
        name, pattern = rename_source_key(stored, renamings, converters, prefix, wanted)
        if name not in wanted:
            plain, _ = rename_source_key(stored, [], [], prefix, wanted)
            if plain in wanted:
                name, pattern = plain, None
        if pattern is None:
            names[name] = stored
        else:
            groups.setdefault(name, []).append((pattern, stored))
    conversions: list[Conversion] = []
    for name, sources in groups.items():
        rule = by_pattern[sources[0][0]]
        dtypes = {checkpoint.info(stored).dtype for _, stored in sources}
        if len(dtypes) > 1:
            raise CheckpointError(
                f"{checkpoint.folder}: {sources[0][1]!r} and its like are to become {name!r}, but have the element "
                f"types {', '.join(sorted(dtypes))}; save the model again in one type"
            )
        found = _convert(rule, name, tuple(sources), model, lambda stored: _empty(checkpoint, stored))
        shapes = {key: tuple(value.shape) for key, value in found.items() if key in wanted}
        conversions.append(Conversion(name, rule, tuple(sources), shapes, dtypes.pop()))
    return names, conversions


def _empty(checkpoint: Checkpoint, stored: str) -> torch.Tensor:
    info = checkpoint.info(stored)
    return torch.empty(info.shape, dtype=torch_dtype(info.dtype), device="meta")


def _convert(
    rule: WeightConverter,
    name: str,
    sources: tuple[tuple[str, str], ...],
    model: PreTrainedModel,
    read: Callable[[str], torch.Tensor],
) -> dict[str, torch.Tensor]:
    own = deepcopy(rule)
    for pattern, stored in sources:
        own.add_tensor(name, stored, pattern, read(stored))  # type: ignore[arg-type]  # it takes tensors too
    try:
        found: dict[str, Any] = own.convert(name, model=model, config=model.config)
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(
            f"{sources[0][1]!r} and {len(sources) - 1} more tensors are to become {name!r}, which transformers cannot "
            f"make of them: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    return {key: value[0] if isinstance(value, list) else value for key, value in found.items()}
