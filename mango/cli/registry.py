"""Commands of the model registry: promote, rollback, why, sync, ui."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Register models, choose the champion, ask where it came from.", no_args_is_help=True)


class Mode(StrEnum):
    """Whether less or more of a metric is better."""

    min = "min"
    max = "max"


_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_Name = Annotated[str, typer.Argument(help="Registered model, for instance mango-tiny.")]


@app.command()
def promote(
    name: Annotated[str | None, typer.Argument(help="Registered model; the package's own name if not given.")] = None,
    package: Annotated[Path, typer.Option(help="Package folder that holds mango.json.")] = Path("models/package"),
    metric: Annotated[str | None, typer.Option(help="Metric to compare; the package's own if not given.")] = None,
    min_delta: Annotated[
        float | None, typer.Option(help="Improvement that is asked for; package.min_delta if not given.")
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="Which is better; as the package says if not given.")] = None,
    gate: Annotated[list[str] | None, typer.Option(help="Gate that must have been run; repeat for more.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="Public key whose owner must have signed the package, beside package.signed_by.")
    ] = None,
    params: Annotated[
        Path, typer.Option(help="Parameter file; its package.signed_by says whose signature the registry asks for.")
    ] = Path("params.yaml"),
    require: Annotated[bool, typer.Option("--require", help="Exit 1 unless the package is champion.")] = False,
    json: _Json = False,
) -> None:
    """Register the package and make it champion if it is better."""
    from mango import console, tracking
    from mango.errors import RegistryError

    asked = _signed_by(params)
    if asked is not None and key is not None and asked.resolve() != key.resolve():
        raise RegistryError(
            f"{params} asks for a signature by the owner of {asked}, --key names {key}: give one of them"
        )
    result = tracking.promote(
        name,
        package,
        metric=metric,
        min_delta=min_delta,
        mode=None if mode is None else mode.value,
        gates=gate or (),
        run_id=_run_of(Path("reports/package.json")),
        key=key or asked,
    )
    if json:
        console.result_json(result.as_dict())
    else:
        console.result(f"models:/{result.name}: {result.reason}")
    if require and result.champion != result.version:
        raise typer.Exit(1)


@app.command()
def rollback(name: _Name, json: _Json = False) -> None:
    """Give the champion's alias back to the previous version."""
    from mango import console, tracking

    result = tracking.rollback(name)
    if json:
        console.result_json(result.as_dict())
    else:
        console.result(f"models:/{name}: version {result.champion} is champion again, {result.previous} is previous")


@app.command()
def why(
    uri: Annotated[str, typer.Argument(help="models:/NAME@champion or models:/NAME/VERSION.")], json: _Json = False
) -> None:
    """Say what made a registered model and how to make it again."""
    from mango import console, tracking

    answer = tracking.why(uri)
    if json:
        console.result_json(answer.as_dict())
    else:
        console.result(answer.text())


@app.command()
def sync(json: _Json = False) -> None:
    """Give experiments that ran nothing or elsewhere their runs."""
    from mango import console, tracking

    made = tracking.sync()
    if json:
        console.result_json([run.as_dict() for run in made])
    elif not made:
        console.result("every finished experiment has its run")
    for run in () if json else made:
        console.result(f"{run.name}: run {run.run_id}")


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes a free one.")] = 5000,
) -> None:
    """Open the tracking pages in small form."""
    from mango import console, tracking

    console.note("starting the MLflow UI")
    tracking.serve_ui(port, announce=lambda address: console.result(f"{address}  (Ctrl-C ends it)"))


def _signed_by(params: Path) -> Path | None:
    """Return the key that the parameter file asks for, or None where it asks for none or is not there."""
    from mango.config import read_document
    from mango.errors import ConfigError

    if not params.is_file():
        return None
    section = read_document(params).data.get("package")  # its schema would cost seconds: it lives beside the models
    asked = section.get("signed_by") if isinstance(section, dict) else None
    if asked is None:
        return None
    if not isinstance(asked, str):
        raise ConfigError(f"{params}: package.signed_by: found {asked!r}, wanted the path of a public key")
    return params.parent / Path(asked).expanduser()


def _run_of(report: Path) -> str | None:
    """Return the run that a stage's metrics file names, if the file is there and tracking was on."""
    from json import loads

    if not report.is_file():
        return None
    run_id = loads(report.read_text()).get("run_id")
    return run_id if isinstance(run_id, str) else None
