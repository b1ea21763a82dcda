"""Merged models that are tried: filled into one model in memory, and said as a plain document."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mango.merging.document import MergeDocument, key_of
from mango.merging.names import place_of
from mango.merging.outputs import OutputTensor
from mango.merging.running import Runnable

OUTSIDE = "outside"
"""The group of tensors that are in no block."""


class Groups:
    """Which tensors of the result share values.

    Args:
        outputs: the tensors of the result.
        stacks: its stacks of blocks, with their number of blocks.
        count: groups of consecutive blocks; None for every block, and every tensor outside of blocks, by itself.
    """

    def __init__(self, outputs: Sequence[OutputTensor], stacks: Mapping[str, int], count: int | None) -> None:
        self._of: dict[str, str] = {}
        self._filters: dict[str, list[str]] = {}
        for output in outputs:
            name = output.spec.name
            place = place_of(name, stacks)
            if place.stack:
                number = stacks[place.stack]
                index = place.block if count is None else place.block * min(count, number) // number
                group = f"{place.stack}.{index}" if count is None else f"{index}"
                text = f"{place.stack}.{place.block}."
            else:
                group, text = (name if count is None else OUTSIDE), name
            self._of[name] = group
            filters = self._filters.setdefault(group, [])
            if text not in filters:
                filters.append(text)

    @property
    def names(self) -> list[str]:
        """The groups, in the order of the tensors."""
        return list(self._filters)

    def of(self, tensor: str) -> str:
        """Return the group of a tensor."""
        return self._of[tensor]

    def setting(self, values: Mapping[str, float]) -> Any:
        """Return a parameter's setting in a document: one number, or filter entries where groups differ.

        Args:
            values: the value of each group.
        """
        if len(set(values.values())) == 1:
            return next(iter(values.values()))
        rest = [{"value": values[OUTSIDE]}] if OUTSIDE in values else []
        entries = [(text, group) for group in values if group != OUTSIDE for text in self._filters[group]]
        # a tensor's name may be a part of another's: blocks first, then the longer names
        entries.sort(key=lambda entry: (not entry[0].endswith("."), -len(entry[0])))
        return [*({"filter": text, "value": values[group]} for text, group in entries), *rest]


def with_settings(
    document: MergeDocument, shared: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
) -> MergeDocument:
    """Return a document of whole models with some parameters set, and without its sections about text.

    Args:
        document: the document.
        shared: settings of parameters that all models share, by name.
        own: settings of parameters that each model has for itself, by name, and then by model.
    """
    data = document.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    data["merge_method"] = document.model_dump(mode="json")["merge_method"]
    for section in ("learn", "search"):
        data.pop(section, None)
    if not measures(document):
        data.pop("calibration", None)
    parameters = {k: v for k, v in data.get("parameters", {}).items() if k not in own} | dict(shared)
    data["parameters"] = parameters
    entries = {key_of(entry.model): dict(entry.parameters) for entry in document.models or ()}
    for name, settings in own.items():
        for model, setting in settings.items():
            entries[model][name] = setting
    for place, (entry, given) in enumerate(zip(document.models or (), entries.values(), strict=True)):
        del entry
        data["models"][place]["parameters"] = given
    return MergeDocument.model_validate(data)


def measures(document: MergeDocument) -> bool:
    """Tell whether a method of a document measures its models on text."""
    from mango.merging.registry import MERGERS

    return any(MERGERS[name].statistics for level in document.levels() for name in level.methods)


def fill(
    model: nn.Module,
    one: Runnable,
    tensors: Sequence[str],
    merged: Callable[[str], torch.Tensor],
    pool: ThreadPoolExecutor,
) -> None:
    """Put merged tensors into a model, several at a time.

    Args:
        model: what `Runnable.load` has built.
        one: the model.
        tensors: names of tensors of the merge.
        merged: returns the tensor of a name, in its shape.
        pool: threads that merge.
    """
    state = model.state_dict(keep_vars=True)

    def put(name: str) -> None:
        with torch.no_grad():
            state[one.own[name]].copy_(merged(name))

    list(pool.map(put, tensors))


class Notes:
    """A file of JSON lines in which every step is noted once it is done; a torn last line does not count.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: list[Any] = []
        if path.is_file():
            size = 0
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                try:
                    self.known.append(json.loads(line))
                except ValueError:
                    break
                size += len(line)
            os.truncate(path, size)  # the whole lines stay as they are, so that a kill here loses none

    def add(self, entry: Any) -> None:
        """Note a step."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
