"""``mango lm-eval``: models on tasks of the lm-evaluation-harness, outside of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mango.evaluation.harness import Scores


def lm_eval(
    models: Annotated[
        list[str],
        typer.Argument(help="The models: packages, folders, GGUF files or Hub ids[@revision]."),
    ],
    tasks: Annotated[
        list[str],
        typer.Option(
            "--tasks", "-t", help="Tasks that lm-eval ships, or paths of task files; several with commas or again."
        ),
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task; all by default.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Worked examples in each prompt; by default what each task asks for.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests a forward pass.")] = 4,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens that a model may see at once; by default as many as it takes.")
    ] = None,
    routing: Annotated[
        str | None, typer.Option(help="How fused models route: soft or hard; by default as each was made.")
    ] = None,
    metadata: Annotated[
        str | None,
        typer.Option(help="What tasks that make their own data are told, as JSON."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of worked examples, made data and sampling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the scores to a JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score models on tasks of lm-eval, side by side."""
    import json

    from mango import console
    from mango.auto import MODEL_TYPE
    from mango.checkpoints import read_configuration, write_file
    from mango.cli.devices import device_of, without_bars
    from mango.config import Document, Settings, validate
    from mango.errors import ConfigError
    from mango.evaluation import LmEvalParams
    from mango.evaluation.harness import Harness, document

    if len(set(models)) < len(models):
        raise ConfigError("a model is named twice")
    if out is not None and out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; name a file, such as {out / 'scores.json'}")
    given: dict[str, Any] = {
        "tasks": [name.strip() for text in tasks for name in text.split(",") if name.strip()],
        "limit": limit, "num_fewshot": num_fewshot, "batch_size": batch_size, "max_length": max_length,
    }  # fmt: skip
    if metadata is not None:
        try:
            given["metadata"] = json.loads(metadata)
        except ValueError as error:
            raise ConfigError(f"--metadata: is no JSON ({error})") from error
    params = validate(LmEvalParams, Document("options:", given)).value
    if not params.tasks:
        raise ConfigError("--tasks: names no task")
    without_bars()
    settings = Settings.from_environ()
    folders = {name: _folder(name, settings.cache) for name in models}
    if routing is not None and not any(
        read_configuration(folder).get("model_type") == MODEL_TYPE for folder in folders.values()
    ):
        raise ConfigError(f"--routing: {', '.join(models)}: no fused model, and nothing to route")
    harness = Harness(params, seed=seed, tokenizer=folders[models[0]])
    found = {}
    for name, folder in folders.items():
        model, tokenizer = _opened(folder, routing, device_of(settings.device))
        found[name] = harness.run(model, tokenizer)
        for line in found[name].lines():
            console.note(f"{name}: {line}")
    written = document(harness, found)
    if as_json:
        console.result_json(written)
    else:
        console.result(_table(found))
    if out is not None:  # last: what was scored is shown even where it cannot be written
        write_file(out, json.dumps(written, indent=1, allow_nan=False) + "\n")


def _folder(name: str, cache: Path | None) -> Path:
    """Return the local folder of a model."""
    from mango.checkpoints import ModelSource, resolve

    if Path(name).exists():
        return resolve(ModelSource(source=name), cache)
    source, _, revision = name.partition("@")
    return resolve(ModelSource(source=source, revision=revision or None), cache)


def _opened(folder: Path, routing: str | None, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model, ready to be run, and its tokenizer; every file of a package is compared with its manifest."""
    from torch.nn import Module

    from mango.checkpoints import open_model, open_tokenizer
    from mango.errors import EvaluationError
    from mango.fusion import MolPreTrainedModel
    from mango.packaging import open_package
    from mango.packaging.manifest import MANIFEST_FILE

    packed = (folder / MANIFEST_FILE).is_file()
    model, tokenizer = open_package(folder) if packed else (open_model(folder), open_tokenizer(folder))
    if tokenizer is None or not model.can_generate():
        raise EvaluationError(f"{folder}: holds a {type(model).__name__}, and tasks ask a model that writes text")
    if routing is not None and isinstance(model, MolPreTrainedModel):
        model.set_routing(routing)
    Module.to(model, device)  # the class's own `to` has no types
    return model, tokenizer


def _table(found: Mapping[str, Scores]) -> str:
    """Return the scores as a text table: a row for each metric, a column for each model."""
    from mango import console

    first = next(iter(found.values())).scores
    rows = [
        [first[i].task, first[i].name, *(scores.scores[i].shown for scores in found.values())]
        for i in range(len(first))
    ]
    return console.table(rows, ["task", "metric", *found])
