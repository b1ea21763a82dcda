"""``mango merge``: merge models by a document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mango.checkpoints import ModelSource
    from mango.merging import MergePlan


def merge(
    document: Annotated[Path, typer.Argument(help="YAML document that says what to merge and how.")],
    out: Annotated[Path, typer.Argument(help="Folder of the merged checkpoint; replaced when the merge is done.")],
    models: Annotated[
        Path | None, typer.Option(help="YAML file whose section `models` says where names are, as params.yaml does.")
    ] = None,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Only show what would be read, computed and written.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Merge models of one shape by a YAML document into a checkpoint."""
    from mango import console
    from mango.config import Settings
    from mango.merging import load_document, plan
    from mango.merging import merge as merge_models

    settings = Settings.from_environ()
    loaded = load_document(document)
    named = {} if models is None else _models(models)
    if only_plan:
        facts = _facts(plan(loaded, named, cache=settings.cache))
    else:
        with console.Meter(f"merge into {out}") as meter:
            report = merge_models(loaded, out, named, cache=settings.cache, on_tensor=meter)
        facts = report.to_dict()
    if as_json:
        console.result_json(facts)
    else:
        shown = [[name, _shown(value)] for name, value in facts.items() if name != "notes"]
        console.result(console.table(shown, ["merge", "value"]))


def _models(path: Path) -> dict[str, ModelSource]:
    from pydantic import create_model

    from mango.checkpoints import ModelSource as Source
    from mango.config import Document, Frozen, read_document, validate

    schema = create_model("Models", __base__=Frozen, models=(dict[str, Source], ...))
    whole = read_document(path)
    section = Document(whole.name, {key: value for key, value in whole.data.items() if key == "models"}, whole.lines)
    return dict(vars(validate(schema, section).value)["models"])


def _facts(planned: MergePlan) -> dict[str, object]:
    return {
        "method": planned.document.merge_method,
        "models": {name: model.source.source for name, model in planned.inputs.items()},
        "tokenizer": planned.tokenizer,
        "tied": planned.tied,
        "num_tensors": len(planned.tensors),
        "num_parameters": planned.num_parameters,
        "num_bytes": planned.num_bytes,
        "notes": list(planned.notes),
    }


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(name if name == place else f"{name} ({place})" for name, place in value.items())
    return f"{value:.2f}" if isinstance(value, float) else str(value)
