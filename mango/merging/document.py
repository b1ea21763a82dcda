"""Merge documents: a YAML file that says which models become one, and how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Discriminator, Field, Tag, field_serializer, model_validator

from mango.config import Document, Frozen, refuse, validate
from mango.merging import methods as _built_in  # noqa: F401  # registers the built-in methods
from mango.merging.references import plain_references
from mango.merging.sections import CalibrationSection, LearnSection, SearchSection

DTypeWord = Annotated[
    Literal["bfloat16", "float16", "float32", "float64", "bf16", "fp16", "fp32", "half", "float", "double"],
    BeforeValidator(lambda word: word.removeprefix("torch.") if isinstance(word, str) else word),
]
ModelText = Annotated[str, Field(min_length=1)]
ModelValue = Annotated[
    Annotated[str, Field(min_length=1), Tag("text")] | Annotated["MergeDocument", Tag("recipe")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "recipe"),
]
Parameters = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


class MethodEntry(Frozen):
    """The method of those tensors whose names a filter takes."""

    value: str = Field(description="name of a registered method")
    filter: str | None = Field(None, min_length=1, description="part of tensor names; none or '*' takes all")


MethodSetting = str | tuple[MethodEntry, ...]


class ModelEntry(Frozen):
    """One of the models of a document that merges whole models."""

    model: ModelValue = Field(description="a name, a folder, a Hub id[@revision][+adapter], or a document of its own")
    parameters: Parameters = Field(default_factory=dict)


class SliceSource(Frozen):
    """Consecutive blocks of one model."""

    model: ModelValue
    layer_range: tuple[int, int] = Field(description="first block, and the one behind the last")
    parameters: Parameters = Field(default_factory=dict)


class Slice(Frozen):
    """Blocks of the output: the merge of equally many consecutive blocks of several models."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    base_model: ModelValue | None = Field(None, description="what this slice's method compares with or starts from")
    merge_method: MethodSetting | None = Field(None, description="method of this slice alone")
    parameters: Parameters = Field(default_factory=dict)


class Module(Frozen):
    """One part of a model that has several, such as its vision tower: whole models, or slices of them."""

    models: tuple[ModelEntry, ...] | None = Field(None, min_length=1)
    slices: tuple[Slice, ...] | None = Field(None, min_length=1)
    merge_method: MethodSetting | None = Field(None, description="method of this module alone")
    parameters: Parameters = Field(default_factory=dict)


class TokenSource(Frozen):
    """Where a token's embedding comes from: zero, or a token of a model."""

    kind: Literal["zero", "model_token"]
    model: ModelText | None = None
    token: str | None = None
    token_id: int | None = Field(None, ge=0)


class TokenPolicy(Frozen):
    """What happens to one token's embedding."""

    source: ModelText | TokenSource | None = Field(None, description="for the models that lack the token")
    force: bool = Field(False, description="use the source for every model, also for those that have the token")


class TokenizerSection(Frozen):
    """Which vocabulary the result has, and where its embeddings come from."""

    source: ModelText = Field("union", description="union, base, or one of the models")
    tokens: dict[str, TokenPolicy] | None = None
    pad_to_multiple_of: int | None = Field(None, ge=1, description="rows of the embedding are a multiple of this")


@dataclass(frozen=True)
class Level:
    """One place where a document gives parameters.

    Attributes:
        path: dotted path of the section.
        parameters: what it gives.
        model: key of the model that it is for, or None.
        base: key of the base model there.
        methods: names of the methods that may run there.
    """

    path: str
    parameters: Mapping[str, Any]
    model: str | None
    base: str | None
    methods: tuple[str, ...]


class MergeDocument(Frozen):
    """A merge, as mergekit's YAML documents have it.

    A parameter may stand at several levels, the nearest wins: with a model (``models[].parameters``,
    ``slices[].sources[].parameters``), with a slice, with a module, and with the document. It is a scalar, a gradient
    over the depth of the model, or filter entries on tensor names; ``merge_method`` may be filter entries too.

    Attributes:
        merge_method: name of a registered method, or entries of ``filter`` and ``value`` for a method per tensor.
        models: whole models to merge; either these or slices or modules. A model may be a document of its own.
        slices: blocks of the output, in order.
        modules: models or slices for each part of a model that has several (``text_decoder``, ``vision_tower``,
            ``multi_modal_projector``, ``encoder``, ``decoder``, or ``default`` for all of it).
        base_model: what the method compares with or starts from, and the model that gives configuration and
            tokenizer; the first model gives them where there is none.
        parameters: parameters for all models and slices.
        dtype: type of the merged weights, by default that of the base (or first) model's; the computation is in
            float32 or better in any case.
        out_dtype: the same; it wins over ``dtype``.
        tokenizer_source: ``base``, ``union`` or one of the models: short for ``tokenizer: {source: ...}``.
        tokenizer: which vocabulary the result has. Without it, all models must have one vocabulary.
        chat_template: ``auto``, the name of a known template, or a Jinja template.
        seed: start of every random number of methods that drop at random.
        name: what the result is called, also by later documents of the same file.
        calibration: text on which models are measured, for methods and searches that do so.
        learn: how ``adamerging`` learns its coefficients; it does so where there is calibration text.
        search: parameters to search for on the calibration text.
    """

    merge_method: MethodSetting
    models: tuple[ModelEntry, ...] | None = Field(None, min_length=1)
    slices: tuple[Slice, ...] | None = Field(None, min_length=1)
    modules: dict[str, Module] | None = Field(None, min_length=1)
    base_model: ModelValue | None = None
    parameters: Parameters = Field(default_factory=dict)
    dtype: DTypeWord | None = None
    out_dtype: DTypeWord | None = None
    tokenizer_source: ModelText | None = None
    tokenizer: TokenizerSection | None = None
    chat_template: str | None = Field(None, min_length=1)
    seed: int = Field(0, ge=0, lt=2**32)
    name: str | None = Field(None, min_length=1, validation_alias=AliasChoices("name", "out_path"))
    calibration: CalibrationSection | None = None
    learn: LearnSection | None = None
    search: SearchSection | None = None

    @field_serializer("merge_method")
    def _plain_method(self, value: MethodSetting) -> Any:
        return value if isinstance(value, str) else [entry.model_dump(exclude_none=True) for entry in value]

    @model_validator(mode="after")
    def _check(self) -> MergeDocument:
        from mango.merging.document_checks import problems

        refuse(list(problems(self)))
        return self

    def references(self) -> tuple[str | MergeDocument, ...]:
        """Return every model that the document names, the base first, then in order of appearance."""
        found: dict[str, str | MergeDocument] = {}
        for value in self._named():
            found.setdefault(key_of(value), value)
        return tuple(found.values())

    def _named(self) -> Iterator[str | MergeDocument]:
        if self.base_model is not None:
            yield self.base_model
        for _, group in self.groups():
            if isinstance(group, Slice):
                yield from [] if group.base_model is None else [group.base_model]
                yield from (source.model for source in group.sources)
            else:
                yield from (entry.model for entry in group)
        if self.tokenizer is not None:  # a policy may take a token of a model that is not merged
            for policy in (self.tokenizer.tokens or {}).values():
                source = policy.source.model if isinstance(policy.source, TokenSource) else policy.source
                yield from [] if source is None else [source]

    def groups(self) -> Iterator[tuple[str, Slice | tuple[ModelEntry, ...]]]:
        """Yield (dotted path, models or slice) of everything that is merged with each other."""
        for path, part in self.parts():
            if part.models is not None:
                yield f"{path}models", part.models
            for i, piece in enumerate(part.slices or ()):
                yield f"{path}slices.{i}", piece

    def parts(self) -> Iterator[tuple[str, MergeDocument | Module]]:
        """Yield (dotted path with its dot, part) of what holds models or slices: the document, or its modules."""
        if self.modules is None:
            yield "", self
        for name, module in (self.modules or {}).items():
            yield f"modules.{name}.", module

    def method_names(self, *settings: MethodSetting | None) -> tuple[str, ...]:
        """Return the methods that may run where these settings, nearest first, stand before the document's own."""
        names: dict[str, None] = {}
        for setting in (*settings, self.merge_method):
            if isinstance(setting, str):
                return (*names, setting) if setting not in names else tuple(names)
            for entry in setting or ():
                names[entry.value] = None
                if entry.filter in (None, "*"):
                    return tuple(names)
        return tuple(names)

    def levels(self) -> Iterator[Level]:
        """Yield every level at which parameters stand."""
        base = None if self.base_model is None else key_of(self.base_model)
        everywhere = dict.fromkeys(self.method_names())
        for path, part in self.parts():
            here = (part.merge_method,) if isinstance(part, Module) else ()
            methods = self.method_names(*here)
            inside = dict.fromkeys(methods)
            for i, entry in enumerate(part.models or ()):
                yield Level(f"{path}models.{i}.parameters", entry.parameters, key_of(entry.model), base, methods)
            for i, piece in enumerate(part.slices or ()):
                own = self.method_names(piece.merge_method, *here)
                inside.update(dict.fromkeys(own))
                start = base if piece.base_model is None else key_of(piece.base_model)
                yield Level(f"{path}slices.{i}.parameters", piece.parameters, None, start, own)
                for j, source in enumerate(piece.sources):
                    at = f"{path}slices.{i}.sources.{j}.parameters"
                    yield Level(at, source.parameters, key_of(source.model), start, own)
            everywhere.update(inside)
            if isinstance(part, Module):
                yield Level(f"{path}parameters", part.parameters, None, base, tuple(inside))
        yield Level("parameters", self.parameters, None, base, tuple(everywhere))


def key_of(value: str | MergeDocument) -> str:
    """Return what a model is called inside a merge: its text, or a name for a nested document."""
    if isinstance(value, str):
        return value
    text = json.dumps(value.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=True)
    return f"{value.name or 'recipe'}#{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def choose_method(name: str, *settings: MethodSetting | None) -> str | None:
    """Return the method of a tensor: that of the nearest setting which takes its name.

    Args:
        name: the tensor's name.
        settings: nearest first; None says nothing.
    """
    for setting in settings:
        if isinstance(setting, str):
            return setting
        for entry in setting or ():
            if entry.filter in (None, "*") or entry.filter in name:
                return entry.value
    return None


def parse_mapping(data: Mapping[str, Any]) -> MergeDocument:
    """Return the merge document that a mapping holds.

    Raises:
        ConfigError: one line for each problem.
    """
    return validate(MergeDocument, Document("merge document", plain_references(dict(data)))).value


ModelEntry.model_rebuild()
SliceSource.model_rebuild()
Slice.model_rebuild()
Module.model_rebuild()
