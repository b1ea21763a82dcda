"""``mango config``: every parameter with its value and origin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def config(
    params: Annotated[Path, typer.Option(help="Parameter file.")] = Path("params.yaml"),
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every parameter with its value and where it came from."""
    import json

    from mango import console
    from mango.config import Settings
    from stages.params import load_with_origins

    loaded = load_with_origins(params, overrides=assignments or ())
    settings = Settings.from_environ()
    if as_json:
        rows = {key: {"value": value, "origin": origin} for key, value, origin in loaded.rows()}
        console.result_json({"parameters": rows, "settings": settings.model_dump(mode="json")})
        return
    shown = [[key, origin, json.dumps(value)] for key, value, origin in loaded.rows()]
    console.result(console.table(shown, ["parameter", "from", "value"]))
    console.result("")
    variables = [[f"MANGO_{name.upper()}", "-" if v is None else str(v)] for name, v in settings]
    console.result(console.table(variables, ["setting (changes no result)", "value"]))
