"""``mango moe``: dense models as the experts of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def moe(
    document: Annotated[Path, typer.Argument(help="YAML document that names the base, the experts and their prompts.")],
    out: Annotated[Path, typer.Argument(help="Folder of the mixture; replaced when it is whole.")],
    models: Annotated[
        Path | None, typer.Option(help="YAML file whose section `models` says where names are, as params.yaml does.")
    ] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Only show what would be written.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Assemble dense models into a mixture of experts; they are of one architecture."""
    from mango import console
    from mango.cli.devices import device_of, without_bars
    from mango.cli.model_names import named_models
    from mango.config import Settings
    from mango.surgery.moe import assemble, load_moe_document, plan_moe

    without_bars()
    settings = Settings.from_environ()
    loaded = load_moe_document(document)
    named = named_models(models)
    if only_plan:
        facts = plan_moe(loaded, named, cache=settings.cache).to_dict()
    else:
        device = device_of(settings.device)
        with console.Meter(f"assemble {out}") as meter:
            report = assemble(loaded, out, named, cache=settings.cache, device=device, on_tensor=meter)
        facts = report.to_dict()
    for note in facts["notes"]:
        console.note(f"note: {note}")
    if as_json:
        console.result_json(facts)
    else:
        shown = [[name, _shown(value)] for name, value in facts.items() if name != "notes"]
        console.result(console.table(shown, ["mixture", "value"]))


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(name if name == place else f"{name} ({place})" for name, place in value.items())
    if isinstance(value, tuple):
        return " ".join(f"{number:.2f}" for number in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)
