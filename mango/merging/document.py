"""Merge documents: a YAML file that says which models become one, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mango.config import Document, Frozen, Problem, near, read_document, refuse, validate
from mango.merging import methods as _built_in  # noqa: F401  # registers the built-in methods
from mango.merging.registry import MERGERS, MergeMethod
from mango.merging.settings import HINTS, check_parameters

DTypeWord = Literal["bfloat16", "float16", "float32", "float64", "bf16", "fp16", "fp32", "half", "float", "double"]


class ModelEntry(Frozen):
    """One of the models of a document that merges whole models."""

    model: str = Field(min_length=1, description="a name from the models section, a folder, or a Hub id[@revision]")
    parameters: dict[str, Any] = Field(default_factory=dict)


class SliceSource(Frozen):
    """Consecutive blocks of one model."""

    model: str = Field(min_length=1)
    layer_range: tuple[int, int] = Field(description="first block, and the one behind the last")
    parameters: dict[str, Any] = Field(default_factory=dict)


class Slice(Frozen):
    """Blocks of the output: the merge of equally many consecutive blocks of several models."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict)


class MergeDocument(Frozen):
    """A merge, as mergekit's YAML documents have it.

    A parameter may stand at three levels, the nearest wins: with a model (``models[].parameters``,
    ``slices[].sources[].parameters``), with a slice (``slices[].parameters``), and with the document
    (``parameters``). It is a scalar, a gradient over the depth of the model, or filter entries on tensor names.

    Attributes:
        merge_method: name of a registered method.
        models: whole models to merge; either these or slices.
        slices: blocks of the output, in order.
        base_model: what the method compares with or starts from, and the model that gives configuration and
            tokenizer; the first model gives them where there is none.
        parameters: parameters for all models and slices.
        dtype: type of the merged weights, by default that of the base (or first) model's; the computation is in
            float64 in any case.
        out_dtype: the same; it wins over ``dtype``.
        tokenizer_source: ``base``, ``union`` or one of the models. All tokenizers of a merge must be one vocabulary,
            so this only decides whose files are copied.
        name: what the result is called.
    """

    merge_method: str
    models: tuple[ModelEntry, ...] | None = Field(None, min_length=1)
    slices: tuple[Slice, ...] | None = Field(None, min_length=1)
    base_model: str | None = Field(None, min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict)
    dtype: DTypeWord | None = None
    out_dtype: DTypeWord | None = None
    tokenizer_source: str | None = Field(None, min_length=1)
    name: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> MergeDocument:
        problems = list(self._structure_problems())
        names = MERGERS.names()
        if self.merge_method not in names:
            hint = near(self.merge_method, names) or "."
            message = f"unknown merge method {self.merge_method!r}{hint} Known: {', '.join(names)}"
            problems.append(Problem("merge_method", message))
        else:
            problems += self._method_problems(MERGERS[self.merge_method])
        refuse(problems)
        return self

    def references(self) -> tuple[str, ...]:
        """Return every model that the document names, the base first, then in order of appearance."""
        found: dict[str, None] = {} if self.base_model is None else {self.base_model: None}
        for entry in self.models or ():
            found[entry.model] = None
        for piece in self.slices or ():
            found.update((source.model, None) for source in piece.sources)
        return tuple(found)

    def _structure_problems(self) -> Iterator[Problem]:
        if self.models is None and self.slices is None:
            yield Problem("models", "is missing: list the models to merge, or give slices")
        if self.models is not None and self.slices is not None:
            yield Problem("slices", "stands beside models: keep one of them", ("models",))
        for key, names in self._groups():
            for i, name in enumerate(names):
                if name in names[:i]:
                    yield Problem(
                        f"{key}.{i}.model", f"{name!r} is listed twice: list it once, with the sum of the weights"
                    )
        for i, piece in enumerate(self.slices or ()):
            lengths = [source.layer_range[1] - source.layer_range[0] for source in piece.sources]
            for j, source in enumerate(piece.sources):
                start, end = source.layer_range
                at = f"slices.{i}.sources.{j}.layer_range"
                if not 0 <= start < end:
                    yield Problem(at, f"[{start}, {end}] is no range: wanted 0 <= first < end")
                elif lengths[j] != lengths[0]:
                    yield Problem(at, f"[{start}, {end}] has {lengths[j]} blocks; the first source has {lengths[0]}")
        known = self.references()
        if self.tokenizer_source not in (None, "base", "union", *known):
            hint = near(str(self.tokenizer_source), ("base", "union", *known)) or "."
            message = f"{self.tokenizer_source!r} is neither base nor union nor a model of this document{hint}"
            yield Problem("tokenizer_source", message)
        if self.tokenizer_source == "base" and self.base_model is None:
            yield Problem("tokenizer_source", "base: the document has no base_model", ("base_model",))

    def _groups(self) -> Iterator[tuple[str, list[str]]]:
        if self.models is not None:
            yield "models", [entry.model for entry in self.models]
        for i, piece in enumerate(self.slices or ()):
            yield f"slices.{i}.sources", [source.model for source in piece.sources]

    def levels(self) -> Iterator[tuple[str, Mapping[str, Any], str | None]]:
        """Yield (dotted path, parameters, model or None) of every level."""
        yield "parameters", self.parameters, None
        for i, entry in enumerate(self.models or ()):
            yield f"models.{i}.parameters", entry.parameters, entry.model
        for i, piece in enumerate(self.slices or ()):
            yield f"slices.{i}.parameters", piece.parameters, None
            for j, source in enumerate(piece.sources):
                yield f"slices.{i}.sources.{j}.parameters", source.parameters, source.model

    def _method_problems(self, method: MergeMethod) -> Iterator[Problem]:
        params = MERGERS.entry(self.merge_method).params
        aliases = {field.alias or name: name for name, field in params.model_fields.items()}
        for at, given, model in self.levels():
            yield from check_parameters(given, params, at)
            if model is None:
                continue
            if method.base == "reference" and model == self.base_model and given:
                yield Problem(at, f"belongs to the base model, which {self.merge_method} only compares with: remove it")
            for name in given:
                if name in HINTS or (name in aliases and aliases[name] not in method.per_model):
                    yield Problem(f"{at}.{name}", "is the same for all models: move it to the document's parameters")
        if method.base in ("reference", "start") and self.base_model is None:
            yield Problem("base_model", f"is missing: {self.merge_method} needs one")
            return
        for key, names in self._groups():
            yield from self._group_problems(method, key, names)

    def _group_problems(self, method: MergeMethod, key: str, names: list[str]) -> Iterator[Problem]:
        others = [name for name in names if name != self.base_model]
        if method.base == "reference":
            if not others:
                yield Problem(key, "has no model besides the base: add one", ("base_model",))
            if key != "models" and len(others) == len(names):
                yield Problem(key, f"lacks the base model {self.base_model!r}: add it with its layer_range")
            counted = len(others)
        else:
            counted = len(names)
            if self.base_model is not None and len(others) == len(names):
                if method.base == "start" and key == "models" and len(names) + 1 == method.num_models:
                    return  # the base is the other end, and need not be listed
                hint = near(self.base_model, names) or ": it must be one of them"
                yield Problem("base_model", f"{self.base_model!r} is not in {key}{hint}", (key,))
        if method.num_models is not None and counted != method.num_models:
            yield Problem(key, f"has {counted}; {self.merge_method} takes {method.num_models}")


def load_document(path: Path | str) -> MergeDocument:
    """Read a merge document.

    Raises:
        ConfigError: one line for each problem: file, line, key, what was found and what was wanted.
    """
    return validate(MergeDocument, read_document(Path(path))).value


def parse_mapping(data: Mapping[str, Any]) -> MergeDocument:
    """Return the merge document that a mapping holds.

    Raises:
        ConfigError: one line for each problem.
    """
    return validate(MergeDocument, Document("merge document", dict(data))).value
