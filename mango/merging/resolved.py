"""The document that stands beside a merged model: everything that made it, said explicitly."""

from __future__ import annotations

import io
from typing import Any

from mango.checkpoints import ModelSource
from mango.merging.plan import MergePlan
from mango.merging.registry import MERGERS

DOCUMENT_NAME = "mango_merge.yaml"


def resolved_yaml(plan: MergePlan) -> str:
    """Return the plan's document as YAML, with defaults filled in and models named by where they are.

    It merges to the same bytes again. Where two names stand for one place, or a place is no single word, the names
    stay, and comments tell where they lead.
    """
    from ruamel.yaml import YAML

    places = {name: _place(model.source) for name, model in plan.inputs.items()}
    if None in places.values() or len(set(places.values())) < len(places):
        places = {name: name for name in places}
    entry = MERGERS.entry(plan.document.merge_method)
    data = plan.document.model_dump(mode="json", exclude_none=True, by_alias=True)
    defaults = entry.params().model_dump(mode="json", by_alias=True)
    required = {entry.params.model_fields[name].alias or name for name in plan.method.required}
    filled = {
        name: value for name, value in defaults.items() if name not in required and name not in data["parameters"]
    }
    data["parameters"] = {**data["parameters"], **filled}
    data["tokenizer_source"] = plan.tokenizer
    stream = io.StringIO()
    for name, model in plan.inputs.items():
        stream.write(f"# {name}: {_comment(model.source)}, tokenizer {model.tokenizer_sha256[:12]}\n")
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 4096
    writer.dump(_renamed(data, places), stream)
    return stream.getvalue()


def _place(source: ModelSource) -> str | None:
    if source.gguf_file is not None:
        return None
    return source.source if source.revision is None else f"{source.source}@{source.revision}"


def _comment(source: ModelSource) -> str:
    return ", ".join(f"{key} {value}" for key, value in source.model_dump(exclude_none=True).items())


def _renamed(data: dict[str, Any], places: dict[str, Any]) -> dict[str, Any]:
    for key in ("base_model", "tokenizer_source"):
        if key in data:
            data[key] = places.get(data[key], data[key])
    slices = data.get("slices", ())
    entries = [*data.get("models", ()), *(source for piece in slices for source in piece["sources"])]
    for entry in entries:
        entry["model"] = places[entry["model"]]
    for level in (*entries, *slices):
        if not level["parameters"]:
            del level["parameters"]
    return data
