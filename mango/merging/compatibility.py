"""Whether models fit together, as far as their configurations and headers tell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mango.errors import MergeError
from mango.merging.alignment import section_of
from mango.merging.document import MergeDocument
from mango.merging.inputs import Input
from mango.merging.vocabularies import conflict

_MUST_AGREE = (
    "hidden_size",
    "n_embd",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "num_experts",
    "num_local_experts",
)
_MAY_DIFFER = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "architectures",
    "tie_word_embeddings",
    "vocab_size",
}


_EXPERTS = re.compile(r"\.experts\.")
_TEXT_PARTS = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
"""Types of text parts that are a model of another type by all of their tensors."""


def check_compatible(document: MergeDocument, inputs: Mapping[str, Input]) -> None:
    """Check that models are of one architecture and vocabulary.

    Raises:
        MergeError: one line for each problem.
    """
    problems = [*_architecture_problems(document, inputs), *_head_problems(inputs)]
    if not problems:
        problems += _tensor_problems(document, inputs)
    problems += _tokenizer_problems(document, inputs)
    if problems:
        raise MergeError("\n".join(problems))


def config_notes(lead: Input, inputs: Mapping[str, Input], counted: set[str]) -> Iterator[str]:
    """Yield a note for each model whose configuration differs from the lead's, which is the one kept.

    Args:
        lead: the model that gives the configuration.
        inputs: all models.
        counted: keys that the output has a value of its own for.
    """
    ignored = {*_MAY_DIFFER, *counted}
    for model in inputs.values():
        if not model.config:
            continue
        kept, other = lead.config, model.config
        known = {*kept, *other}
        if _is_text_of(model, lead):
            kept = kept["text_config"]
            known = set(kept) & set(other) - {"model_type"}
        keys = sorted(key for key in known - ignored if kept.get(key) != other.get(key))
        if keys:
            yield (
                f"config.json of model {model.key!r} differs from that of {lead.key!r} in "
                f"{', '.join(keys)}; the latter is kept"
            )


def _architecture_problems(document: MergeDocument, inputs: Mapping[str, Input]) -> Iterator[str]:
    lead = next(iter(inputs.values()))
    for model in inputs.values():
        differing: list[str] = []
        if not model.config or not lead.config:
            continue
        sibling = _is_text_of(model, lead)
        words = ["model_type"]
        if sibling and document.modules is not None:
            cut = any(part.slices is not None for _, part in document.parts())
            words = [] if cut else ["num_hidden_layers"]
        for word in (*words, *_MUST_AGREE):
            pair = _value(model, word), _value(lead, word)
            if None not in pair and pair[0] != pair[1]:  # what only one of them says is no difference
                differing.append(f"{word} {pair[0]!r} against {pair[1]!r}")
        lengths = [one.stacks for one in (model, lead)]
        if document.slices is None and document.modules is None and not differing and lengths[0] != lengths[1]:
            shown = [", ".join(f"{count} in {stack}" for stack, count in one.items()) or "none" for one in lengths]
            differing.append(f"blocks: {shown[0]} against {shown[1]}")
        if differing:
            advice = ""
            if sibling and document.modules is None:
                advice = (
                    f". Its text part can be merged with it: name {lead.key!r} as base_model, and list both under "
                    "modules: {text_decoder: {models: ...}}"
                )
            elif _is_text_of(lead, model):
                advice = (
                    f". The text part of {model.key!r} can be merged with it: name {model.key!r} as base_model, and "
                    "list both under modules: {text_decoder: {models: ...}}"
                )
            yield (
                f"model {model.key!r} is of another architecture than {lead.key!r} "
                f"({'; '.join(differing)}): only models of one architecture can be merged{advice}"
            )


def _is_text_of(model: Input, other: Input) -> bool:
    """Tell whether a model is what the text part of another one is, which has more parts."""
    inner = other.config.get("text_config")
    if not isinstance(inner, Mapping) or isinstance(model.config.get("text_config"), Mapping):
        return False
    kind = str(inner.get("model_type"))
    return model.config.get("model_type") in (kind, _TEXT_PARTS.get(kind))


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _value(model: Input, word: str) -> Any:
    return model.config.get(word) if word == "model_type" else _text(model.config).get(word)


def _head_problems(inputs: Mapping[str, Input]) -> Iterator[str]:
    """Find models whose configuration speaks of a head of its own, and whose weights have none."""
    for model in inputs.values():
        names = [str(name) for name in model.config.get("architectures") or ()]
        generates = any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names)
        if generates and not model.tied and model.head is None and model.embedding is not None:
            yield (
                f"model {model.key!r}: config.json says that the head is a tensor of its own, and the weights have "
                f"none ({model.place}): set tie_word_embeddings: true there if it is the embedding"
            )


def _tensor_problems(document: MergeDocument, inputs: Mapping[str, Input]) -> Iterator[str]:
    """Find tensors that a model has beyond those of the lead; what it lacks shows when the outputs are planned."""
    lead = next(iter(inputs.values()))
    if document.slices is not None or document.modules is not None:
        return
    known = {*lead.tensors, lead.head, *([] if lead.spare_head is None else [lead.spare_head.name])}
    for model in inputs.values():
        heads = {model.head} if lead.tied else set()
        surplus = sorted(set(model.tensors) - known - heads)
        if not surplus:
            continue
        more = f" and {len(surplus) - 1} more" if len(surplus) > 1 else ""
        where = f" ({model.folder})" if model.folder else ""
        advice = ""
        if all(name.endswith(".bias") for name in surplus):
            advice = f"; name {model.key!r} as base_model, whose configuration has these biases"
        elif any(_EXPERTS.search(name) for name in surplus) and any(_EXPERTS.search(name) for name in lead.tensors):
            advice = (
                "; one of them stores the experts of a block in one tensor, and the other each in tensors of its own: "
                "save both in one form"
            )
        yield f"model {model.key!r} has {surplus[0]}{more} that {lead.key!r} does not have{where}{advice}"


def _tokenizer_problems(document: MergeDocument, inputs: Mapping[str, Input]) -> Iterator[str]:
    if section_of(document) is not None:
        return
    known = [model for model in inputs.values() if model.vocabulary is not None]
    for model in known[1:]:
        assert model.vocabulary is not None
        assert known[0].vocabulary is not None
        found = conflict(known[0].vocabulary, model.vocabulary)
        if found is not None:
            yield (
                f"the tokenizer of model {model.key!r} is not that of {known[0].key!r} ({found}): the same id stands "
                "for different tokens, so their embeddings cannot be merged. Bring them to one vocabulary with "
                "tokenizer: {source: union} or {source: base}"
            )


def vocabulary_notes(inputs: Mapping[str, Input]) -> Iterator[str]:
    """Yield what a person should know of models without a tokenizer, or with more tokens than others."""
    known = [model for model in inputs.values() if model.vocabulary is not None]
    lacking = [model.key for model in inputs.values() if model.vocabulary is None and model.config]
    if known and lacking:
        yield f"model {', '.join(map(repr, lacking))} has no tokenizer: it is taken to have that of {known[0].key!r}"
    elif lacking:
        yield "no model has a tokenizer: none is written"
    for model in known[1:]:
        first, other = known[0].vocabulary, model.vocabulary
        assert first is not None
        assert other is not None
        if not other.same_bytes(first) and other.digest != first.digest:
            sizes = f"{len(other.tokens)} tokens against {len(first.tokens)}"
            yield (
                f"the tokenizer of model {model.key!r} has other tokens than that of {known[0].key!r} ({sizes}), but "
                "no id stands for two: embeddings are merged row by row"
            )
