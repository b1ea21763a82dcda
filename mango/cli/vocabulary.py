"""``mango transplant``: a model with another model's vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def transplant_tokenizer(
    model: Annotated[str, typer.Argument(help="The model: a folder, a GGUF file or a Hub id[@revision].")],
    donor: Annotated[
        str, typer.Argument(help="The model whose vocabulary it gets, or a folder with a tokenizer alone.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the result; replaced when it is whole.")],
    approximation: Annotated[
        str, typer.Option(help="How unknown tokens are made: auto, omp, subword, mean, zero or random.")
    ] = "auto",
    k: Annotated[int, typer.Option("-k", "--k", help="Most tokens of a sparse combination (omp).")] = 32,
    pad_to_multiple_of: Annotated[
        int | None, typer.Option(help="Make the tables' rows a multiple of this; the donor's rows by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random rows.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Give a model another model's vocabulary: tokenizer, embeddings and head."""
    from mango import console
    from mango.cli.devices import device_of
    from mango.config import Document, Settings, validate
    from mango.surgery.vocabulary import TransplantParams, transplant

    given = {"approximation": approximation, "k": k, "pad_to_multiple_of": pad_to_multiple_of, "seed": seed}
    params = validate(TransplantParams, Document("options:", given)).value
    settings = Settings.from_environ()
    facts = transplant(
        model, donor, out, params, cache=settings.cache, device=device_of(settings.device)
    ).to_dict()  # fmt: skip
    for note in facts["notes"]:
        console.note(f"note: {note}")
    if as_json:
        console.result_json(facts)
    else:
        rows = [[name, value] for name, value in facts.items() if name != "notes"]
        console.result(console.table([[name, str(value)] for name, value in rows], ["transplant", "value"]))
