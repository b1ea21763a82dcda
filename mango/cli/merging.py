"""``mango merge``: merge models by documents."""

from __future__ import annotations

import gc
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mango.checkpoints import ModelSource
    from mango.merging import MergeDocument

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


def merge(
    documents: Annotated[
        list[Path], typer.Argument(help="YAML documents that say what to merge and how.", metavar="DOCUMENT...")
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="Folder of the merged checkpoint, replaced when the merge is done; of several documents, "
            "the folder of their folders."
        ),
    ],
    models: Annotated[
        Path | None, typer.Option(help="YAML file whose section `models` says where names are, as params.yaml does.")
    ] = None,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Only show what would be read, computed and written.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Annotated[
        str, typer.Option(help="Where to compute: cpu, cuda for all GPUs, cuda:0,cuda:1, or auto.")
    ] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that merge; by default one a processor.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file, as 2G or 500M bytes.")] = "2G",
) -> None:
    """Merge models by YAML documents into checkpoints."""
    from mango import console
    from mango.config import Settings
    from mango.lazy import defer

    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    settings = Settings.from_environ()
    size = _size(max_shard_size)
    defer("torch")  # weighted sums of ordinary models do without
    gc.disable()  # what the imports make stays; to look through it again and again is a fifth of their time
    from mango.merging import load_documents, merge_all

    gc.freeze()
    gc.enable()
    loaded: dict[str, MergeDocument] = {}
    for path in documents:
        found = load_documents(path)
        fresh = {path.stem: next(iter(found.values()))} if len(found) == 1 else found
        if twice := sorted(set(fresh) & set(loaded)):
            raise typer.BadParameter(f"two documents are called {twice[0]!r}: rename a file, or give them names")
        loaded.update(fresh)
    places = {name: out / Path(name).name if len(loaded) > 1 else out for name in loaded}
    named = {} if models is None else _models(models)
    run: dict[str, Any] = {"cache": settings.cache, "threads": threads or settings.threads}
    facts: list[dict[str, Any]] = []
    if only_plan:
        facts = _plans(loaded, places, named, run)
    else:
        reports = merge_all(
            loaded,
            places,
            named,
            **run,
            device=device,
            max_shard_bytes=size,
            watch=lambda name: console.Meter(f"merge into {places[name]}", unit="bytes"),
        )
        facts = [report.to_dict() for report in reports.values()]
    if as_json:
        console.result_json(facts[0] if len(loaded) == 1 else facts)
        return
    for fact in facts:
        shown = [[name, _shown(name, value)] for name, value in fact.items() if name not in ("notes", "tensors")]
        console.result(console.table(shown, ["merge", "value"]))
        if only_plan:
            rows = [[t["name"], t["dtype"], "x".join(map(str, t["shape"])), t["method"]] for t in fact["tensors"]]
            console.result("\n" + console.table(rows, ["tensor", "type", "shape", "method"]))
            for note in fact["notes"]:
                console.note(note)


def merge_alone() -> None:
    """Run ``mango merge`` under the name of a command of its own."""
    from mango.cli.app import leave_at_once, load_command, run

    leave_at_once(run(load_command("merge"), sys.argv[1:], "mol-merge"))


def _plans(
    loaded: Mapping[str, MergeDocument],
    places: Mapping[str, Path],
    named: Mapping[str, ModelSource],
    run: Mapping[str, Any],
) -> list[dict[str, Any]]:
    from mango.merging import plan_all
    from mango.merging.estimate import describe, estimate

    planned = plan_all(loaded, places, named, cache=run["cache"])
    return [describe(one, estimate(one, run["threads"]), places[name]) for name, one in planned.items()]


def _size(text: str) -> int:
    """Return the bytes that ``5G`` or ``500M`` mean."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGBT]?)B?", text.strip().upper())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size <= 0:
        raise typer.BadParameter(f"{text!r} is no size: wanted a number with K, M or G behind it, such as 5G")
    return size


def _models(path: Path) -> dict[str, ModelSource]:
    from pydantic import create_model

    from mango.checkpoints import ModelSource as Source
    from mango.config import Document, Frozen, read_document, validate

    schema = create_model("Models", __base__=Frozen, models=(dict[str, Source], ...))
    whole = read_document(path)
    section = Document(whole.name, {key: value for key, value in whole.data.items() if key == "models"}, whole.lines)
    return dict(vars(validate(schema, section).value)["models"])


def _shown(name: str, value: object) -> str:
    if isinstance(value, dict):
        pairs = ((key, "unknown" if inner is None else _shown(name, inner)) for key, inner in value.items())
        return ", ".join(key if key == inner else f"{key} ({inner})" for key, inner in pairs)
    if isinstance(value, int) and not isinstance(value, bool) and (name.endswith("_bytes") or name == "dtypes"):
        return f"{value / 1e9:.3f} GB"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
