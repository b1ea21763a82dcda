"""What a merge will do, worked out from headers: every error that they can show comes before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mango.checkpoints import ModelSource
from mango.merging.compatibility import check_compatible, config_notes
from mango.merging.document import MergeDocument, parse_mapping
from mango.merging.inputs import Input, open_inputs
from mango.merging.outputs import OutputTensor, plan_outputs
from mango.merging.registry import MERGERS, MergeMethod
from mango.merging.settings import HINTS
from mango.tensors import dtype_name, parse_dtype, torch_dtype


@dataclass(frozen=True)
class MergePlan:
    """A merge that is ready to run.

    Attributes:
        document: what was asked for.
        method: the merge method.
        inputs: the models by reference, the lead first: it gives configuration and names.
        tensors: what will be written, in order.
        config: the content of the output's ``config.json``.
        tokenizer: reference of the model whose tokenizer is copied.
        tied: whether the output's head is its embedding.
        notes: what a person should know and is no error.
    """

    document: MergeDocument
    method: MergeMethod
    inputs: Mapping[str, Input]
    tensors: tuple[OutputTensor, ...]
    config: Mapping[str, Any]
    tokenizer: str
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
    def lead(self) -> Input:
        """The model that gives configuration and names."""
        return next(iter(self.inputs.values()))


def plan(
    document: MergeDocument | Mapping[str, Any],
    models: Mapping[str, ModelSource] | None = None,
    *,
    cache: Path | None = None,
) -> MergePlan:
    """Work out a merge without reading a weight.

    Args:
        document: what to merge; a mapping is validated first.
        models: where the models are that the document names.
        cache: see :func:`mango.checkpoints.resolve`.

    Returns:
        The plan.

    Raises:
        ConfigError: the document is wrong.
        MergeError: one line for each problem: models that are missing, of different architecture, shape or
            vocabulary, or parameters that a tensor lacks.
    """
    document = document if isinstance(document, MergeDocument) else parse_mapping(document)
    method = MERGERS[document.merge_method]
    inputs = open_inputs(document.references(), models or {}, cache)
    check_compatible(document, inputs)
    lead = next(iter(inputs.values()))
    tied = all(model.parts.tied for model in inputs.values())
    tensors = plan_outputs(document, method, inputs, tied)
    tokenizer = document.tokenizer_source
    return MergePlan(
        document=document,
        method=method,
        inputs=inputs,
        tensors=tensors,
        config=_config(document, lead, tied),
        tokenizer=lead.reference if tokenizer in (None, "base", "union") else str(tokenizer),
        tied=tied,
        notes=tuple(_notes(document, inputs, tied)),
    )


def _config(document: MergeDocument, lead: Input, tied: bool) -> dict[str, Any]:
    config = {key: value for key, value in lead.config.items() if key != "_name_or_path"}
    if document.slices is not None:
        ranges = [piece.sources[0].layer_range for piece in document.slices]
        config[lead.layers_key] = sum(end - start for start, end in ranges)
    if lead.parts.tied and not tied:
        config["tie_word_embeddings"] = False
    word = document.out_dtype or document.dtype
    if word is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(torch_dtype(dtype_name(parse_dtype(word)))).removeprefix("torch.")
    return config


def _notes(document: MergeDocument, inputs: Mapping[str, Input], tied: bool) -> Iterator[str]:
    lead = next(iter(inputs.values()))
    if not tied and any(model.parts.tied for model in inputs.values()):
        yield "some models tie head and embedding and some do not: the result has a head of its own"
    for model in inputs.values():
        if model.left_out:
            count = len(model.left_out)
            yield f"model {model.reference!r}: {count} tensors that the architecture does not read are left out"
    yield from config_notes(lead, inputs)
    for _, parameters, _ in document.levels():
        for hint in sorted(HINTS & set(parameters)):
            yield f"parameter {hint!r} changes nothing here"
