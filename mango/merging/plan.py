"""What a merge will do, worked out from headers: every error that they can show comes before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mango.errors import MergeError
from mango.merging.alignment import Alignment, align
from mango.merging.compatibility import check_compatible, config_notes, vocabulary_notes
from mango.merging.document import MergeDocument, key_of, parse_mapping
from mango.merging.inputs import Input, ModelValue, open_inputs
from mango.merging.layers import cuts
from mango.merging.nested import Merged
from mango.merging.outputs import COPY, OutputTensor, plan_outputs
from mango.merging.registry import MERGERS
from mango.merging.result_config import result_config
from mango.merging.settings import HINTS
from mango.merging.templates import choose_template
from mango.merging.tensor_sources import TensorSource, total_read
from mango.merging.vocabularies import Vocabulary


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
    def remote(self) -> bool:
        """Whether weights of some model are still on the Hub."""
        return any(model.remote for model in self.all_inputs())

    def all_inputs(self) -> Iterator[Input]:
        """Yield every model, those inside nested documents included, each place once."""
        for model in self.inputs.values():
            if isinstance(model.nested, MergePlan):
                yield from model.nested.all_inputs()
            else:
                yield model


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
    check_compatible(document, inputs)
    put_together = cuts(document, inputs)
    tied = all(model.tied for model in inputs.values())
    alignment = align(document, inputs)
    tensors, notes = plan_outputs(document, inputs, put_together, alignment, tied)
    _check_names(tensors)
    _check_statistics(tensors)
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
        notes=(*_notes(document, inputs, tied), *config_notes(lead, inputs, changed), *notes),
    )


def _as_input(inner: MergePlan) -> Input:
    """Return a planned merge as a model whose tensors are computed when they are asked for."""
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
        remote=inner.remote,
        notes=inner.notes,
        nested=inner,
    )


def _check_names(tensors: tuple[OutputTensor, ...]) -> None:
    if not tensors:
        raise MergeError("the models have no tensors, so there is nothing to merge")


def _check_statistics(tensors: tuple[OutputTensor, ...]) -> None:
    needing = dict.fromkeys(t.method for t in tensors if t.method != COPY and MERGERS[t.method].statistics is not None)
    if needing:
        raise MergeError(
            f"{', '.join(needing)}: needs statistics of calibration data ({MERGERS[next(iter(needing))].statistics}), "
            "which a document cannot give; use the method's function with statistics of your own"
        )


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
