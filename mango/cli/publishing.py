"""``mango upload``: a verified model folder to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def upload(
    folder: Annotated[Path, typer.Argument(help="A model folder with its MANIFEST.json.")],
    repo_id: Annotated[str, typer.Argument(help="The repository, OWNER/NAME; made where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str, typer.Option(help="Branch; made where there is none.")] = "main",
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and send nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Upload a verified model folder to the Hub: every file is checked against its manifest first."""
    from mango import console
    from mango.checkpoints.upload import upload as send

    report = send(folder, repo_id, private=private, revision=revision, message=message, dry_run=dry_run)
    if as_json:
        console.result_json(report.to_dict())
        return
    console.result(console.table([[name, size] for name, size in report.files.items()], ["file", "bytes"]))
    where = "nothing was sent" if report.url is None else report.url
    console.result(
        f"\n{report.repo_id}@{report.revision}: {len(report.files)} files, {report.num_bytes:,} bytes: {where}"
    )
