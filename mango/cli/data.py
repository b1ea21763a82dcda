"""``mango data``: look after the corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def data() -> None:
    """Look after the corpus."""


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder with the splits and provenance.json.")] = Path("data/corpus"),
) -> None:
    """Compare the text of every source with the hash that its provenance gives."""
    from mango import console
    from mango.corpus import verify_corpus

    rows = verify_corpus(folder)
    console.result(console.table(rows, ["source", "licence", "documents", "bytes"]))
    console.note(f"{folder}: every source holds the text that provenance.json says")
