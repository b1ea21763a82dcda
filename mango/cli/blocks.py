"""``mango inspect`` and ``mango extract``: what is inside a model, and its blocks in a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mango.blocks import Inspection
    from mango.checkpoints import ModelSource

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


class ModeOption(StrEnum):
    """How blocks are stored."""

    REFERENCE = "reference"
    COPY = "copy"


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="Model folder, GGUF file or Hub id.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="GGUF file inside the folder or repository.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Show where a model keeps its blocks and what they measure; no weight is loaded."""
    from mango import console
    from mango.blocks import inspect_model
    from mango.checkpoints import ModelSource

    found = inspect_model(_checked(partial(ModelSource, source=source, revision=revision, gguf_file=gguf_file)))
    if as_json:
        console.result_json(found.to_dict())
    else:
        console.result(console.table(_rows(found), ["part", "value"]))


@app.command()
def extract(
    sources: Annotated[list[str], typer.Argument(help="Models, each as SOURCE or NAME=SOURCE.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the block store; replaced when it is whole.")],
    mode: Annotated[
        ModeOption, typer.Option(help="Point into the models' files, or copy their tensors.")
    ] = ModeOption.REFERENCE,
    hashed: Annotated[bool, typer.Option("--hash", help="Read every block now and note its SHA-256.")] = False,
) -> None:
    """Extract the blocks of models into a block store."""
    from mango import console
    from mango.blocks import extract as extract_models

    store = extract_models(_named(sources), out, mode.value, hashed=hashed)
    rows = [
        [
            name,
            len(model.blocks),
            model.architecture.block_class,
            model.architecture.width,
            sum(block.num_parameters for block in model.blocks),
            (model.blocks[0].sha256 or "not read")[:12],
        ]
        for name, model in sorted(store.manifest.models.items())
    ]
    console.result(console.table(rows, ["model", "blocks", "class", "width", "parameters", "first block"]))
    console.note(f"{out}: {len(rows)} models by {mode.value}")


def _named(sources: Sequence[str]) -> dict[str, ModelSource]:
    from mango.checkpoints import ModelSource
    from mango.errors import ConfigError

    models: dict[str, ModelSource] = {}
    for given in sources:
        name, equals, place = given.partition("=")
        if not equals:
            place = given
            name = Path(given).stem if given.endswith(".gguf") else Path(given).name
        if name in models:
            raise ConfigError(f"{given}: a model is already called {name!r}; give it a name: NAME={place}")
        models[name] = _checked(partial(ModelSource, source=place))
    return models


def _checked(make: Callable[[], ModelSource]) -> ModelSource:
    """Return a source, or raise ConfigError with what its model says is wrong."""
    from pydantic import ValidationError

    from mango.errors import ConfigError

    try:
        return make()
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise ConfigError("\n".join(problems)) from error


def _rows(found: Inspection) -> list[list[object]]:
    parts = found.components
    per_block = sorted(set(found.block_parameters))
    sizes = f"{per_block[0]:,}" if len(per_block) == 1 else f"{per_block[0]:,} to {per_block[-1]:,}"
    head = "none" if parts.head is None else f"{parts.head}{' (tied to the embedding)' if parts.tied else ''}"
    origin = "as stored" if found.stored else f"as {found.dtype}"
    rows: list[list[object]] = [
        ["model", f"{parts.architecture} ({parts.model_type})"],
        ["family", f"{parts.family}, for {parts.task}"],
        ["parameters", f"{found.num_parameters:,} ({found.dtype})"],
        ["blocks", f"{parts.num_blocks} x {parts.block_class} in {parts.blocks_path}, {sizes} parameters each"],
        ["width", str(parts.width)],
        ["heads", f"{parts.num_heads} ({parts.num_kv_heads} cached), {parts.head_dim} wide"],
        ["feed-forward width", "-" if parts.intermediate_size is None else str(parts.intermediate_size)],
        ["longest sequence", "-" if parts.max_positions is None else str(parts.max_positions)],
        ["before the blocks", ", ".join(parts.before) or "-"],
        ["after the blocks", ", ".join(parts.after) or "-"],
        ["positions", ", ".join(parts.position_embeddings) or "-"],
        ["final norm", parts.final_norm or "-"],
        ["vocabulary", f"{parts.vocab_size:,} in {parts.embeddings}" if parts.embeddings else "-"],
        ["head", head],
        ["edges", f"{found.edge_parameters:,} parameters"],
        ["memory for weights", f"{found.weight_bytes / 2**20:,.1f} MiB {origin}"],
        ["memory for the cache", f"{found.cache_bytes_per_token / 2**10:,.1f} KiB a token"],
    ]
    for stack in parts.stacks:
        kinds = ", ".join(f"{stack.attention.count(kind)} {kind}" for kind in dict.fromkeys(stack.attention))
        again = f", run {len(stack.order)} times" if len(stack.order) > stack.num_blocks else ""
        passed = f"; passes {', '.join(stack.carried)} on" if stack.carried else ""
        width = f"width {stack.width}" if stack.width else "widths that change"
        rows.append(
            [f"stack {stack.role}", f"{stack.num_blocks} x {stack.block_class} in {stack.path}{again}, {width}, "
             f"attention: {kinds}{passed}"]
        )  # fmt: skip
    known = {None: "unknown", True: "yes", False: "no"}
    rows += [["host", known[found.host]], ["guest", known[found.guest]]]
    if found.fusion.possible:
        rows.append(["fused with", f"{len(found.fusion.partners)} model types that share its tokenizer"])
        rows += [["adapters", line] for line in found.fusion.adapters]
    else:
        rows.append(["fused with", f"none: {found.fusion.reason}"])
    return rows
