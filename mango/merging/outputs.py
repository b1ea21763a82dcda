"""What each tensor of the output is made of, and with which parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mango.checkpoints import TensorInfo, TensorSpec
from mango.errors import MergeError
from mango.merging.document import MergeDocument
from mango.merging.inputs import Input, Place
from mango.merging.layers import Group, block_groups, edge_group
from mango.merging.registry import MERGERS, MergeMethod
from mango.merging.settings import evaluate
from mango.tensors import dtype_name, parse_dtype

_MERGEABLE = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the merged model.

    Attributes:
        spec: its name, type and shape.
        sources: (model, tensor) of what is merged, in the order that the method gets them.
        base: (model, tensor) of what they are compared with, for methods that do so.
        arguments: the method's parameters for this tensor; None for integer tensors, which must be equal in all
            models and are copied.
    """

    spec: TensorSpec
    sources: tuple[tuple[str, TensorInfo], ...]
    base: tuple[str, TensorInfo] | None
    arguments: Mapping[str, Any] | None


def plan_outputs(
    document: MergeDocument, method: MergeMethod, inputs: Mapping[str, Input], tied: bool
) -> tuple[OutputTensor, ...]:
    """Work out every tensor of the output.

    Args:
        document: what to merge.
        method: its merge method.
        inputs: the models by reference, the lead first.
        tied: whether the output's head is its embedding.

    Returns:
        The tensors in the order in which they are written.

    Raises:
        MergeError: one line for each problem: a tensor that a model lacks, shapes or types that do not fit,
            parameters that are missing or that the method refuses.
    """
    outputs = _Outputs(document, method, inputs, tied)
    tensors = tuple(outputs.build())
    if outputs.problems:
        raise MergeError("\n".join(_shortened(outputs.problems)))
    return tensors


def _shortened(problems: list[str], at_most: int = 20) -> list[str]:
    more = len(problems) - at_most
    return problems if more <= 0 else [*problems[:at_most], f"... and {more} problems more"]


class _Outputs:
    """Goes through the output's tensors and gathers problems on the way."""

    def __init__(self, document: MergeDocument, method: MergeMethod, inputs: Mapping[str, Input], tied: bool) -> None:
        self.document = document
        self.method = method
        self.inputs = inputs
        self.lead = next(iter(inputs.values()))
        self.tied = tied
        self.params = MERGERS.entry(document.merge_method).params
        self.problems: list[str] = []
        self._tried: set[str] = set()

    def build(self) -> Iterator[OutputTensor]:
        lead = self.lead
        for place, info in sorted(lead.tensors.items()):
            if place.block == -1:
                yield from self._tensor(info.name, place, edge_group(self.document, lead, place))
        if not self.tied and lead.parts.tied and lead.parts.head is not None:
            place = Place(-1, f"{lead.base_name(lead.parts.head)}.weight")
            yield from self._tensor(f"{lead.parts.head}.weight", place, edge_group(self.document, lead, place))
        for index, group in enumerate(block_groups(self.document, self.inputs)):
            first = self.inputs[group.members[0].model]
            names = sorted(place.name for place in first.tensors if place.block == group.members[0].block)
            for name in names:
                yield from self._tensor(f"{lead.prefix}{lead.parts.blocks}.{index}.{name}", Place(index, name), group)

    def _tensor(self, name: str, place: Place, group: Group) -> Iterator[OutputTensor]:
        found = {}
        for member in group.members:
            model = self.inputs[member.model]
            info = self._find(model, Place(member.block, place.name))
            if info is None:
                wanted = name if member.block == -1 else f"{place.name} of block {member.block}"
                self.problems.append(f"{name}: model {member.model!r} has no tensor {wanted} ({model.folder})")
            else:
                found[member.model] = info
        if len(found) < len(group.members):
            return
        lead_model = self.lead.reference if self.lead.reference in found else group.members[0].model
        shape = found[lead_model].shape
        for reference, info in found.items():
            if info.shape != shape:
                sizes = f"{list(info.shape)} in model {reference!r} and {list(shape)} in {lead_model!r}"
                self.problems.append(f"{name}: {sizes}; models must have one shape to be merged")
                return
        yield from self._output(name, group, found, lead_model)

    def _find(self, model: Input, place: Place) -> TensorInfo | None:
        if place == model.head and model.parts.tied:
            place = model.embeddings  # the output has a head of its own: a tied model's head is its embedding
        return model.tensors.get(place)

    def _output(self, name: str, group: Group, found: dict[str, TensorInfo], lead_model: str) -> Iterator[OutputTensor]:
        base, order = None, [member.model for member in group.members]
        if self.method.base == "reference":
            base = self.document.base_model
            order = [model for model in order if model != base]
        elif self.method.base == "start":
            order.sort(key=lambda model: model != self.document.base_model)
        lead_dtype = found[lead_model].dtype
        sources = tuple((model, found[model]) for model in order)
        reference = None if base is None else (base, found[base])
        kinds = {info.dtype for info in found.values()}
        if not kinds & _MERGEABLE and lead_dtype[0] in "IUB" and len(kinds) == 1:
            yield OutputTensor(TensorSpec(name, lead_dtype, found[lead_model].shape), sources, reference, None)
            return
        if unknown := kinds - _MERGEABLE:
            self.problems.append(f"{name}: element type {sorted(unknown)[0]} cannot be merged; wanted a float type")
            return
        arguments = self._arguments(name, group, order)
        if arguments is None:
            return
        word = self.document.out_dtype or self.document.dtype
        dtype = dtype_name(parse_dtype(word)) if word else lead_dtype
        yield OutputTensor(TensorSpec(name, dtype, found[lead_model].shape), sources, reference, arguments)

    def _arguments(self, name: str, group: Group, order: list[str]) -> dict[str, Any] | None:
        members = {member.model: member for member in group.members}
        values: list[dict[str, Any]] = []
        for model in order:
            levels = (members[model].parameters, group.parameters, self.document.parameters)
            given = {}
            for field, described in self.params.model_fields.items():
                key = described.alias or field
                found = (evaluate(level[key], group.depth, name) for level in levels if key in level)
                value = next((value for value in found if value is not None), None)
                if value is not None:
                    given[key] = value
                elif field in self.method.required:
                    whose = f" of model {model!r}" if field in self.method.per_model else ""
                    self.problems.append(f"{name}: no parameter {key!r}{whose}: give it one, or a filter that takes it")
                    return None
            checked = self.params.model_validate(given)
            values.append({field: getattr(checked, field) for field in self.params.model_fields})
        arguments = {
            field: tuple(value[field] for value in values) if field in self.method.per_model else values[0][field]
            for field in self.params.model_fields
        }
        return arguments if self._try(name, arguments, len(order)) else None

    def _try(self, name: str, arguments: dict[str, Any], num_models: int) -> bool:
        """Call the method without elements, so that parameters that it refuses show before weights are read."""
        if not self.method.elementwise or repr(arguments) in self._tried:
            return True
        self._tried.add(repr(arguments))
        empty = torch.empty(0)
        extra = {"base": empty} if self.method.base == "reference" else {}
        try:
            self.method.combine([empty] * num_models, **extra, **arguments)
        except MergeError as error:
            self.problems.append(f"{name}: {error}")
            return False
        return True
