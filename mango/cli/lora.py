"""``mango extract-lora``: the difference of two models as an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mango.surgery.lora import AdapterReport


def extract_lora(
    finetuned: Annotated[
        str, typer.Argument(help="The fine-tuned model: a folder, a GGUF file or a Hub id[@revision].")
    ],
    base: Annotated[str, typer.Argument(help="The model that it was tuned from.")],
    out: Annotated[Path, typer.Argument(help="Folder of the adapter; replaced when it is whole.")],
    rank: Annotated[int, typer.Option(help="Largest rank of a layer.")] = 32,
    energy: Annotated[
        float | None, typer.Option(help="Smallest rank that keeps this share of a layer's squared norm.")
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="Smallest rank whose relative error in a layer is at most this.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Scale that the adapter declares; the rank by default.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the factors: float32, bfloat16 or float16.")] = "float32",
    embeddings: Annotated[
        str, typer.Option(help="full stores a changed embedding whole, lora decomposes it, skip leaves it out.")
    ] = "full",
    include: Annotated[list[str] | None, typer.Option(help="Regular expression on modules to take; repeat it.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Regular expression on modules to leave; repeat it.")
    ] = None,
    full: Annotated[list[str] | None, typer.Option(help="Regular expression on modules to store whole.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random sketches.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Extract a LoRA adapter from the difference of two models, a fine-tuned one and its base."""
    from mango import console
    from mango.config import Document, Settings, validate
    from mango.surgery.lora import ExtractionParams, extract_adapter

    given = {
        "rank": rank,
        "energy": energy,
        "error": error,
        "alpha": alpha,
        "dtype": dtype,
        "embeddings": embeddings,
        "include": include or [],
        "exclude": exclude or [],
        "full": full or [],
        "seed": seed,
    }
    params = validate(ExtractionParams, Document("options:", given)).value
    settings = Settings.from_environ()
    with console.Meter(f"extract {out}") as meter:
        report = extract_adapter(finetuned, base, out, params, cache=settings.cache, on_layer=meter)
    if as_json:
        console.result_json(report.to_dict())
    else:
        console.result(_shown(report))


def _shown(report: AdapterReport) -> str:
    from mango import console

    rows = [[layer.name, layer.kind, layer.rank or None, layer.norm, layer.error] for layer in report.layers]
    size = f"{report.num_parameters:,} parameters, {report.num_bytes / 2**20:.1f} MiB"
    return (
        f"{console.table(rows, ['tensor', 'stored as', 'rank', 'norm', 'relative error'])}\n\n"
        f"{report.out}: {size}, relative error {report.error:.4g}, {report.seconds:.1f} s"
    )
