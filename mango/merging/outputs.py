"""What each tensor of the output is made of, by which method and with which parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mango.checkpoints import TensorSpec
from mango.errors import MergeError
from mango.merging.alignment import Alignment, aligned, is_identity
from mango.merging.document import MergeDocument, choose_method
from mango.merging.inputs import Input
from mango.merging.layers import Cut, Group, Member, groups
from mango.merging.names import Place, is_embedding, is_head
from mango.merging.registry import MERGERS, MergeMethod
from mango.merging.settings import evaluate
from mango.merging.tensor_sources import Renamed, TensorSource, Zeros
from mango.tensors import floating_name, tensor_seed

_MERGEABLE = {"F64", "F32", "F16", "BF16"}
COPY = "copy"
"""What stands for a method where a tensor is taken from the lead as it is."""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the merged model.

    Attributes:
        spec: its name, type and shape.
        method: name of the method; ``copy`` for tensors that are taken as they are, and must be equal in all models.
        sources: (model, tensor) of what is merged, in the order that the method gets them.
        base: (model, tensor) of what they are compared with, for methods that do so.
        arguments: the method's parameters for this tensor.
        seeds: a seed for each source, for methods that draw at random.
        statistics: what calibration text says of each source, for methods that ask; None where it says nothing.
    """

    spec: TensorSpec
    method: str
    sources: tuple[tuple[str, TensorSource], ...]
    base: tuple[str, TensorSource] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    statistics: tuple[TensorSource | None, ...] = ()

    @property
    def inputs(self) -> list[TensorSource]:
        """Every tensor that is read for it."""
        return [source for _, source in (*self.sources, *(() if self.base is None else (self.base,)))]


def not_finite(output: OutputTensor) -> MergeError:
    """Return the error for a result that has elements which are NaN or infinite in its type."""
    return MergeError(
        f"{output.spec.name}: the result has elements that are not finite in {output.spec.dtype}: a model holds "
        "NaN or infinity there, or the values are too large for that type (try out_dtype: float32)"
    )


def not_equal(output: OutputTensor) -> MergeError:
    """Return the error for integers that would have to be equal in all models."""
    return MergeError(f"{output.spec.name}: holds integers that differ between the models, which cannot be merged")


def plan_outputs(
    document: MergeDocument,
    inputs: Mapping[str, Input],
    put_together: Mapping[str, Cut],
    alignment: Alignment | None,
    tied: bool,
) -> tuple[tuple[OutputTensor, ...], tuple[str, ...]]:
    """Work out every tensor of the output.

    Args:
        document: what to merge.
        inputs: the models by key, the lead first.
        put_together: the stacks that slices put together.
        alignment: where the tokens of the result are in the models, if vocabularies are aligned.
        tied: whether the output's head is its embedding.

    Returns:
        The tensors in the order in which they are written, and what a person should know.

    Raises:
        MergeError: one line for each problem: a tensor that a model lacks, shapes or types that do not fit,
            parameters that are missing or that the method refuses.
    """
    outputs = _Outputs(document, inputs, alignment, tied)
    tensors = tuple(outputs.build(put_together))
    if outputs.problems:
        raise MergeError("\n".join(_shortened(outputs.problems)))
    return tensors, tuple(outputs.notes)


def _shortened(problems: list[str], at_most: int = 20) -> list[str]:
    more = len(problems) - at_most
    return problems if more <= 0 else [*problems[:at_most], f"... and {more} problems more"]


class _Outputs:
    """Goes through the output's tensors and gathers problems on the way."""

    def __init__(
        self, document: MergeDocument, inputs: Mapping[str, Input], alignment: Alignment | None, tied: bool
    ) -> None:
        self.document = document
        self.inputs = inputs
        self.lead = next(iter(inputs.values()))
        self.alignment = alignment
        self.tied = tied
        self.problems: list[str] = []
        self.notes: dict[str, None] = {}
        self._zeroed: dict[str, int] = {}
        self._checked: dict[tuple[str, str], dict[str, Any] | None] = {}
        self._word = document.out_dtype or document.dtype

    def build(self, put_together: Mapping[str, Cut]) -> Iterator[OutputTensor]:
        extra = []
        if not self.tied and self.lead.tied:  # the output has a head of its own, and the lead's is its embedding
            extra = [model.head for model in self.inputs.values() if not model.tied and model.head][:1]
        for name, place, group in groups(self.document, self.inputs, put_together, extra):
            yield from self._tensor(name, place, group)
        for key, count in self._zeroed.items():
            self.notes[f"model {key!r} lacks {count} biases, which are taken as zero"] = None

    def _tensor(self, name: str, place: Place, group: Group) -> Iterator[OutputTensor]:
        method = choose_method(name, *group.methods, self.document.merge_method)
        if method is None:
            self.problems.append(f"{name}: no merge method takes it: end merge_method with an entry without filter")
            return
        found = self._found(name, place, group)
        if found is None or (found := self._aligned(name, found, group)) is None:
            return
        lead = self.lead.key if self.lead.key in found else group.members[0].key
        for key, source in found.items():
            if source.shape != found[lead].shape:
                sizes = f"{list(source.shape)} in model {key!r} and {list(found[lead].shape)} in {lead!r}"
                advice = "models must have one shape to be merged"
                if is_embedding(name) or is_head(name):
                    advice = "bring them to one vocabulary with tokenizer: {source: union} or {source: base}"
                self.problems.append(f"{name}: {sizes}; {advice}")
                return
        yield from self._output(name, place, group, method, found, lead)

    def _found(self, name: str, place: Place, group: Group) -> dict[str, TensorSource] | None:
        found: dict[str, TensorSource] = {}
        lacking = []
        for member in group.members:
            model = self.inputs[member.key]
            source = self._find(model, place, member)
            if source is None:
                lacking.append(member)
            else:
                found[member.key] = source
        shapes = {source.shape for source in found.values()}
        for member in lacking:
            model = self.inputs[member.key]
            if name.endswith(".bias") and len(shapes) == 1 and len(next(iter(shapes))) == 1:
                first = next(iter(found.values()))
                found[member.key] = Zeros(name, first.dtype, first.shape)
                self._zeroed[member.key] = self._zeroed.get(member.key, 0) + 1
                continue
            where = f" ({model.folder})" if model.folder else ""
            wanted = name if not place.stack else f"{place.rest} of block {member.block}"
            self.problems.append(f"{name}: model {member.key!r} has no tensor {wanted}{where}")
            return None
        return {member.key: found[member.key] for member in group.members}

    def _find(self, model: Input, place: Place, member: Member) -> TensorSource | None:
        wanted = Place(place.stack, member.block, place.rest).name if place.stack else place.rest
        if wanted not in model.tensors and model.tied and is_head(wanted) and wanted.endswith(".weight"):
            if model.embedding is None:
                return None
            source = model.tensors[model.embedding]  # a tied model's head is its embedding
            return Renamed(wanted, source.dtype, source.shape, source)
        return model.tensors.get(wanted)

    def _aligned(self, name: str, found: dict[str, TensorSource], group: Group) -> dict[str, TensorSource] | None:
        alignment = self.alignment
        if alignment is None or not (is_embedding(name) or is_head(name)):
            return found
        keys = list(found)
        if all(is_identity(alignment, self.inputs[key]) for key in keys):
            return found
        donors = {}
        for key, model in self.inputs.items():
            place = Place("", -1, name)
            source = found.get(key) or self._find(model, place, Member(key, -1, {}))
            if source is not None:
                donors[key] = source
        try:
            return aligned(alignment, found, donors, group.base, keys)
        except MergeError as error:
            self.problems.append(f"{name}: {error}")
            return None

    def _output(
        self, name: str, place: Place, group: Group, method_name: str, found: dict[str, TensorSource], lead: str
    ) -> Iterator[OutputTensor]:
        kinds = {source.dtype for source in found.values()}
        if method_name == COPY or (not kinds & _MERGEABLE and len(kinds) == 1 and found[lead].dtype[0] in "IUB"):
            keep = {lead: found[lead]} if method_name == COPY else found
            spec = TensorSpec(name, self._written(found[lead]), found[lead].shape)
            yield OutputTensor(spec, COPY, tuple(keep.items()))
            return
        if unknown := kinds - _MERGEABLE:
            self.problems.append(f"{name}: element type {sorted(unknown)[0]} cannot be merged; wanted a float type")
            return
        method, order = MERGERS[method_name], [member.key for member in group.members]
        base = None
        if method.base in ("reference", "optional") and group.base is not None:
            base = group.base
            order = [key for key in order if key != base]
            if base not in found:
                self.problems.append(f"{name}: lacks the base model {base!r}: add it to the slice")
                return
        elif method.base == "start":
            order.sort(key=lambda key: key != group.base)
        arguments = self._arguments(place, group, method_name, method, order)
        if arguments is None:
            return
        yield OutputTensor(
            spec=TensorSpec(name, self._written(found[lead]), found[lead].shape),
            method=method_name,
            sources=tuple((key, found[key]) for key in order),
            base=None if base is None else (base, found[base]),
            arguments=arguments,
            seeds=tuple(tensor_seed(self.document.seed, name, key) for key in order) if method.random else (),
        )

    def _written(self, source: TensorSource) -> str:
        if source.kept_dtype not in _MERGEABLE:
            return source.kept_dtype
        return floating_name(self._word) if self._word else source.kept_dtype

    def _arguments(
        self, place: Place, group: Group, method_name: str, method: MergeMethod, order: list[str]
    ) -> dict[str, Any] | None:
        """Return the parameters; filters see a model's own tensor name for what each model has for itself."""
        name, params = place.name, MERGERS.entry(method_name).params
        members = {member.key: member for member in group.members}
        shared = (*group.levels, self.document.parameters)
        given: list[dict[str, Any]] = [{} for _ in order]
        for field_name, described in params.model_fields.items():
            key = described.alias or field_name
            own = field_name in method.per_model
            for i, model in enumerate(order if own else order[:1]):
                levels = (members[model].parameters, *shared) if own else shared
                inside = own and place.stack
                seen = Place(place.stack, members[model].block, place.rest).name if inside else name
                values = (evaluate(level[key], group.depth, seen) for level in levels if key in level)
                value = next((value for value in values if value is not None), None)
                if value is not None:
                    given[i][key] = value
                elif field_name in method.required:
                    whose = f" of model {model!r}" if own else ""
                    self.problems.append(f"{name}: no parameter {key!r}{whose}: give it one, or a filter that takes it")
                    return None
        known = (method_name, repr(given))
        if known not in self._checked:
            self._checked[known] = self._validated(name, method_name, method, given)
        return self._checked[known]

    def _validated(
        self, name: str, method_name: str, method: MergeMethod, given: list[dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Return the arguments, after a call of the method without elements has shown whether it refuses them."""
        params = MERGERS.entry(method_name).params
        models = [params.model_validate(values) for values in given]
        arguments = {
            field_name: tuple(getattr(model, field_name) for model in models)
            if field_name in method.per_model
            else getattr(models[0], field_name)
            for field_name in params.model_fields
        }
        if not method.elementwise:
            return arguments
        try:
            _try(method, len(models), arguments)
        except MergeError as error:
            self.problems.append(f"{name}: {error}")
            return None
        return arguments


def _try(method: MergeMethod, num_models: int, arguments: Mapping[str, Any]) -> None:
    """Call a method on no elements, to learn whether it refuses its arguments."""
    if method.shares is not None:
        nothing = np.empty(0)
        base: dict[str, Any] = {"base": nothing} if method.base in ("reference", "optional") else {}
        measured = {} if method.measure is None else method.measure([nothing] * num_models, **base, **arguments)
        method.shares(**{**arguments, **measured})
        return
    empty = np.empty(0) if method.on_arrays else torch.empty(0)
    extra: dict[str, Any] = {"base": empty} if method.base == "reference" else {}
    if method.random:
        extra["seeds"] = tuple(range(num_models))
    if method.statistics is not None:
        extra[method.statistics] = [empty] * num_models
    if method.on_arrays:
        extra["dtype"] = "F64"
    method.combine([empty] * num_models, **extra, **arguments)
