"""Whether models fit together, as far as their configurations and headers tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mango.errors import MergeError
from mango.merging.document import MergeDocument
from mango.merging.inputs import Input

_MUST_AGREE = ("model_type", "width", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size")
_MAY_DIFFER = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "architectures",
    "tie_word_embeddings",
}


def check_compatible(document: MergeDocument, inputs: Mapping[str, Input]) -> None:
    """Check that models are of one architecture and vocabulary, and that slices lie inside of them.

    Raises:
        MergeError: one line for each problem.
    """
    problems = [*_architecture_problems(document, inputs), *_tensor_problems(document, inputs)]
    problems += [*_tokenizer_problems(document, inputs), *_range_problems(document, inputs)]
    if problems:
        raise MergeError("\n".join(problems))


def config_notes(lead: Input, inputs: Mapping[str, Input]) -> Iterator[str]:
    """Yield a note for each model whose configuration differs from the lead's, which is the one kept."""
    ignored = {*_MAY_DIFFER, lead.layers_key}
    for model in inputs.values():
        keys = sorted(
            key for key in {*lead.config, *model.config} - ignored if lead.config.get(key) != model.config.get(key)
        )
        if keys:
            yield (
                f"config.json of model {model.reference!r} differs from that of {lead.reference!r} in "
                f"{', '.join(keys)}; the latter is kept"
            )


def _architecture_problems(document: MergeDocument, inputs: Mapping[str, Input]) -> Iterator[str]:
    lead = next(iter(inputs.values()))
    for model in inputs.values():
        fields = [*_MUST_AGREE, *(["num_blocks"] if document.slices is None else [])]
        differing = [
            f"{field} {getattr(model.parts, field)!r} against {getattr(lead.parts, field)!r}"
            for field in fields
            if getattr(model.parts, field) != getattr(lead.parts, field)
        ]
        if differing:
            yield (
                f"model {model.reference!r} is of another architecture than {lead.reference!r} "
                f"({'; '.join(differing)}): only models of one architecture can be merged"
            )


def _tensor_problems(document: MergeDocument, inputs: Mapping[str, Input]) -> Iterator[str]:
    """Find tensors that a model has beyond those of the lead; what it lacks shows when the outputs are planned."""
    lead = next(iter(inputs.values()))
    if document.slices is not None or any(model.parts.model_type != lead.parts.model_type for model in inputs.values()):
        return
    for model in inputs.values():
        known = {*lead.tensors, lead.head}
        if surplus := sorted(info.name for place, info in model.tensors.items() if place not in known):
            more = f" and {len(surplus) - 1} more" if len(surplus) > 1 else ""
            lacking = f"that {lead.reference!r} does not have ({model.folder})"
            yield f"model {model.reference!r} has {surplus[0]}{more} {lacking}"


def _tokenizer_problems(document: MergeDocument, inputs: Mapping[str, Input]) -> Iterator[str]:
    lead = next(iter(inputs.values()))
    others = [model.reference for model in inputs.values() if model.tokenizer_sha256 != lead.tokenizer_sha256]
    if others:
        union = "; tokenizer_source: union would need new embeddings, which no method here makes"
        yield (
            f"the tokenizer of model {', '.join(map(repr, others))} is not that of {lead.reference!r}: the same id "
            f"stands for different tokens, so their embeddings cannot be merged. Merge models of one vocabulary"
            f"{union if document.tokenizer_source == 'union' else ''}"
        )


def _range_problems(document: MergeDocument, inputs: Mapping[str, Input]) -> Iterator[str]:
    for i, piece in enumerate(document.slices or ()):
        for j, source in enumerate(piece.sources):
            num_blocks = inputs[source.model].parts.num_blocks
            if source.layer_range[1] > num_blocks:
                yield (
                    f"slices.{i}.sources.{j}.layer_range: {list(source.layer_range)} goes beyond the {num_blocks} "
                    f"blocks of model {source.model!r}"
                )
