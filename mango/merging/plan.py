"""What a merge will do, worked out from headers: every error that they can show comes before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from mango.errors import MergeError
from mango.merging.alignment import Alignment, align
from mango.merging.calibrating import calibrated, text_for
from mango.merging.compatibility import check_compatible, config_notes, vocabulary_notes
from mango.merging.document import MergeDocument, key_of, parse_mapping
from mango.merging.inputs import Input, ModelValue, open_inputs
from mango.merging.layers import cuts
from mango.merging.measuring import Measurement
from mango.merging.nested import Merged
from mango.merging.outputs import COPY, OutputTensor, plan_outputs
from mango.merging.registry import MERGERS
from mango.merging.result_config import result_config
from mango.merging.running import Runnable, runnable
from mango.merging.settings import HINTS
from mango.merging.templates import choose_template
from mango.merging.tensor_sources import TensorSource, total_read
from mango.merging.texts import CalibrationText, text_files
from mango.merging.vocabularies import Vocabulary


class Quest(Protocol):
    """What calibration text decides about a document: the values of some of its parameters."""

    text: CalibrationText
    runnable: Runnable

    @property
    def num_flops(self) -> float:
        """About the floating point operations that it takes, merging not counted."""

    @property
    def num_merges(self) -> int:
        """How often all tensors are merged."""

    @property
    def words(self) -> str:
        """What is done, for people."""

    def solve(self, bench: Path, device: torch.device | str) -> MergeDocument:
        """Return the document with the values that were found, and without its sections about text.

        Args:
            bench: folder where every step is noted, so that a run after a killed one does not repeat it.
            device: where the merged model runs.
        """


@dataclass(frozen=True)
class MergePlan:
    """A merge that is ready to run.

    Attributes:
        document: what was asked for.
        inputs: the models by key, the lead first: it gives configuration and names.
        tensors: what will be written, in order.
        config: the content of the output's ``config.json``; empty where no model has one.
        vocabulary: the tokenizer that is written, or None.
        tokenizer: where that comes from, in words.
        alignment: where the tokens of the result are in the models, if vocabularies are aligned.
        tied: whether the output's head is its embedding.
        notes: what a person should know and is no error.
        measurements: what calibration text says of the models, to be measured before weights are merged; those of
            nested documents first.
        quest: what calibration text decides about the document itself, before weights are merged; until then the plan
            is that of the document's own values.
    """

    document: MergeDocument
    inputs: Mapping[str, Input]
    tensors: tuple[OutputTensor, ...]
    config: Mapping[str, Any]
    vocabulary: Vocabulary | None
    tokenizer: str
    alignment: Alignment | None
    tied: bool
    notes: tuple[str, ...]
    measurements: tuple[Measurement, ...] = ()
    quest: Quest | None = None

    @property
    def num_parameters(self) -> int:
        """The number of elements that will be written."""
        return sum(tensor.spec.num_elements for tensor in self.tensors)

    @property
    def num_bytes(self) -> int:
        """The size of the weights that will be written."""
        return sum(tensor.spec.num_bytes for tensor in self.tensors)

    @property
    def read_bytes(self) -> int:
        """About how much is read from files."""
        return sum(total_read(tensor.inputs) for tensor in self.tensors)

    @property
    def lead(self) -> Input:
        """The model that gives configuration and names."""
        return next(iter(self.inputs.values()))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that run, in order of their first tensor."""
        return tuple(dict.fromkeys(tensor.method for tensor in self.tensors if tensor.method != COPY))

    @property
    def unread(self) -> bool:
        """Whether of some model the headers alone are known, so that it is planned again before weights are read."""
        return any(model.unread for model in self.all_inputs())

    def all_inputs(self) -> Iterator[Input]:
        """Yield every model, those inside nested documents included, each place once."""
        for model in self.inputs.values():
            if isinstance(model.nested, MergePlan):
                yield from model.nested.all_inputs()
            else:
                yield model

    def text_files(self) -> Iterator[Path]:
        """Yield the files of calibration text, those of nested documents included."""
        section = self.document.calibration
        for source in () if section is None else (section, *section.models.values()):
            yield from text_files(source)
        for model in self.inputs.values():
            if isinstance(model.nested, MergePlan):
                yield from model.nested.text_files()


def plan(
    document: MergeDocument | Mapping[str, Any],
    models: Mapping[str, ModelValue] | None = None,
    *,
    cache: Path | None = None,
    download: bool = False,
) -> MergePlan:
    """Work out a merge without reading a weight.

    Args:
        document: what to merge; a mapping is validated first.
        models: where the models are that the document names; state dicts and modules are taken as they are.
        cache: see :func:`mango.checkpoints.resolve`.
        download: fetch models from the Hub; otherwise only their headers and small files are.

    Returns:
        The plan.

    Raises:
        ConfigError: the document is wrong.
        MergeError: one line for each problem: models that are missing, of different architecture, shape or
            vocabulary, or parameters that a tensor lacks.
    """
    document = document if isinstance(document, MergeDocument) else parse_mapping(document)

    def nested(inner: MergeDocument) -> Input:
        return _as_input(plan(inner, models, cache=cache, download=download))

    inputs = open_inputs(document.references(), models or {}, cache, download=download, nested=nested)
    ready = plan_with(document, inputs)
    return replace(ready, quest=quest_of(ready)) if seeks(document) else ready


def plan_with(document: MergeDocument, inputs: Mapping[str, Input]) -> MergePlan:
    """Work out a merge of models that are opened already, as it is with the document's own values.

    Args:
        document: what to merge.
        inputs: the models by key, the lead first.

    Raises:
        MergeError: see `plan`.
    """
    check_compatible(document, inputs)
    put_together = cuts(document, inputs)
    tied = all(model.tied for model in inputs.values())
    alignment = align(document, inputs)
    tensors, notes = plan_outputs(document, inputs, put_together, alignment, tied)
    _check_names(tensors)
    inner = [model.nested for model in inputs.values() if isinstance(model.nested, MergePlan)]
    tensors, measurements, measured_notes = calibrated(document, inputs, tensors)
    lead = next(iter(inputs.values()))
    config = result_config(document, inputs, put_together, None if alignment is None else alignment.num_rows, tied)
    vocabulary, words = _vocabulary(document, inputs, alignment)
    changed = {path for path, value in config.items() if lead.config.get(path) != value}
    return MergePlan(
        document=document,
        inputs=inputs,
        tensors=tensors,
        config=config,
        vocabulary=vocabulary,
        tokenizer=words,
        alignment=alignment,
        tied=tied,
        notes=(*_notes(document, inputs, tied), *config_notes(lead, inputs, changed), *notes, *measured_notes),
        measurements=(*(m for part in inner for m in part.measurements), *measurements),
    )


def _as_input(inner: MergePlan) -> Input:
    """Return a planned merge as a model whose tensors are computed when they are asked for."""
    if inner.quest is not None:
        raise MergeError(
            "a recipe inside of another has fixed values: learn or search in a document of its own, and name its result"
        )
    word = inner.document.out_dtype or inner.document.dtype
    tensors: dict[str, TensorSource] = {}
    for output in inner.tensors:
        spec = output.spec
        dtype = spec.dtype if word is not None or output.method == COPY else "F32"
        made = replace(output, spec=replace(spec, dtype=dtype))
        tensors[spec.name] = Merged(spec.name, dtype, spec.shape, made, spec.dtype)
    return Input(
        key=key_of(inner.document),
        place=f"nested merge of {', '.join(inner.inputs)}",
        source=None,
        folder=None,
        config=inner.config,
        tensors=dict(sorted(tensors.items())),
        tied=inner.tied,
        vocabulary=inner.vocabulary,
        unread=inner.unread,
        notes=inner.notes,
        nested=inner,
    )


def seeks(document: MergeDocument) -> bool:
    """Tell whether calibration text decides about values of a document."""
    if document.calibration is None:
        return False
    return document.search is not None or any(
        MERGERS[name].learned for level in document.levels() for name in level.methods
    )


def quest_of(ready: MergePlan) -> Quest:
    """Return what calibration text decides about a document, checked as far as headers and text allow.

    Raises:
        MergeError: the result cannot be run, or there is no text for it.
    """
    from mango.merging.learning import Learning
    from mango.merging.search import Search

    document = ready.document
    assert document.calibration is not None, "a document that seeks names its text"
    result = replace(_as_input(ready), key=document.name or "result")
    one = runnable(result)
    if ready.vocabulary is None:
        raise MergeError("calibration: none of the models has a tokenizer, so text has no tokens")
    text = text_for(document.calibration, one, ready.vocabulary, result.key)
    return Learning(ready, one, text) if document.search is None else Search(ready, one, text)


def _check_names(tensors: tuple[OutputTensor, ...]) -> None:
    if not tensors:
        raise MergeError("the models have no tensors, so there is nothing to merge")


def _vocabulary(
    document: MergeDocument, inputs: Mapping[str, Input], alignment: Alignment | None
) -> tuple[Vocabulary | None, str]:
    if alignment is not None:
        vocabulary: Vocabulary | None = alignment.vocabulary
        words = alignment.words
        if alignment.num_rows != alignment.num_tokens:
            words += f", padded to {alignment.num_rows} rows"
    else:
        owner = next((model for model in inputs.values() if model.vocabulary is not None), None)
        vocabulary, words = (None, "none") if owner is None else (owner.vocabulary, f"that of {owner.key!r}")
    if document.chat_template is not None:
        template = choose_template(document.chat_template, inputs)
        if vocabulary is None:
            raise MergeError("chat_template: no model has a tokenizer that could take it")
        if template is not None:
            vocabulary = _with_template(vocabulary, template)
            words += ", with another chat template"
    return vocabulary, words


def _with_template(vocabulary: Vocabulary, template: str) -> Vocabulary:
    import json

    changed = {**vocabulary.changed, "chat_template.jinja": template.encode()}
    settings = vocabulary.settings()
    if "chat_template" in settings:
        del settings["chat_template"]
        changed["tokenizer_config.json"] = (json.dumps(settings, ensure_ascii=False, indent=2) + "\n").encode()
    return Vocabulary(vocabulary.folder, changed, vocabulary.removed | {"chat_template.json"})


def _notes(document: MergeDocument, inputs: Mapping[str, Input], tied: bool) -> Iterator[str]:
    if not tied and any(model.tied for model in inputs.values()):
        yield "some models tie head and embedding and some do not: the result has a head of its own"
    for model in inputs.values():
        if model.left_out:
            count = len(model.left_out)
            yield f"model {model.key!r}: {count} tensors that the architecture does not read are left out"
        yield from model.notes
    if document.tokenizer is None and document.tokenizer_source is None:
        yield from vocabulary_notes(inputs)
    base = None if document.base_model is None else key_of(document.base_model)
    for path, group in document.groups():
        names = [key_of(entry.model) for entry in group] if isinstance(group, tuple) else [base]
        methods = [MERGERS[name] for name in document.method_names()]
        if base is not None and base not in names and any(method.base == "none" for method in methods):
            yield f"{path}: the base model {base!r} is not listed there, and is merged too, after the others"
    for level in document.levels():
        methods = [MERGERS[name] for name in level.methods]
        hints = HINTS.union(*(method.without_effect for method in methods))
        for name in sorted(hints & set(level.parameters)):
            yield f"parameter {name!r} changes nothing here"
        compares = methods and all(method.base in ("reference", "optional") for method in methods)
        if level.model is not None and level.model == level.base and level.parameters and compares:
            yield f"{level.path}: belong to the base model, which is only compared with: they change nothing"
