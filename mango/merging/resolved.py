"""The document that stands beside a merged model: everything that made it, said explicitly."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from mango.merging.document import MergeDocument, key_of
from mango.merging.inputs import Input
from mango.merging.loading import substitute
from mango.merging.plan import MergePlan
from mango.merging.registry import MERGERS

DOCUMENT_NAME = "mango_merge.yaml"


def resolved_yaml(plan: MergePlan) -> str:
    """Return the plan's document as YAML, with defaults filled in and models named by where they are.

    It merges to the same bytes again. Where two names stand for one place, or a place is no single word, the names
    stay, and comments tell where they lead.
    """
    from ruamel.yaml import YAML

    data = _data(plan)
    stream = io.StringIO()
    for model in plan.all_inputs():
        tokenizer = "no tokenizer" if model.vocabulary is None else f"tokenizer {model.vocabulary.digest[:12]}"
        stream.write(f"# {model.key}: {_comment(model)}, {tokenizer}\n")
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 4096
    writer.dump(data, stream)
    return stream.getvalue()


def _data(plan: MergePlan) -> dict[str, Any]:
    places = {key: _place(model) for key, model in plan.inputs.items() if model.nested is None}
    if None in places.values() or len(set(places.values())) < len(places):
        places = {key: key for key in places}
    inner = {key: model.nested for key, model in plan.inputs.items() if isinstance(model.nested, MergePlan)}

    def value(reference: str | MergeDocument) -> str | MergeDocument:
        key = key_of(reference)
        if key in inner:
            return MergeDocument.model_validate(_data(inner[key]))
        return str(places.get(key, key))

    named = substitute(plan.document, value)
    data = named.model_dump(mode="json", exclude_none=True, exclude_defaults=True, by_alias=True)
    data["merge_method"] = plan.document.model_dump(mode="json")["merge_method"]
    if isinstance(plan.document.merge_method, str) and len(plan.methods) <= 1:
        own = [set(entry.parameters) for entry in plan.document.models or () if key_of(entry.model) != _base(plan)]
        said = set.intersection(*own) if own else set()
        defaults = {name: value for name, value in _defaults(plan).items() if name not in said}
        data["parameters"] = {**defaults, **data.get("parameters", {})}
        if not data["parameters"]:
            del data["parameters"]
    return data


def _base(plan: MergePlan) -> str | None:
    return None if plan.document.base_model is None else key_of(plan.document.base_model)


def _defaults(plan: MergePlan) -> Mapping[str, Any]:
    entry = MERGERS.entry(str(plan.document.merge_method))
    required = {entry.params.model_fields[name].alias or name for name in entry.part.required}
    known = {field.alias or name: field for name, field in entry.params.model_fields.items()}
    plain = {
        name: field.get_default(call_default_factory=True)
        for name, field in known.items()
        if name not in required and not field.is_required()
    }
    return {name: value for name, value in plain.items() if isinstance(value, bool | int | float | str)}


def _place(model: Input) -> str | None:
    source, reference = model.source, model.reference
    if source is None or source.gguf_file is not None:
        return None
    text = source.source if source.revision is None else f"{source.source}@{source.revision}"
    if reference is not None and reference.lora is not None:
        text += f"+{reference.lora}" + ("" if reference.lora_revision is None else f"@{reference.lora_revision}")
    return text


def _comment(model: Input) -> str:
    if model.source is None:
        return model.place
    return ", ".join(f"{key} {value}" for key, value in model.source.model_dump(exclude_none=True).items())
