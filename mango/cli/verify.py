"""``mango verify``: check everything of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    folder: Annotated[Path, typer.Argument(help="Package, fused model, block store or plain model folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Check every file of a folder: hashes, headers, configuration, tensors, values, tokenizer, chat template."""
    from mango import console
    from mango.errors import IntegrityError
    from mango.packaging import examine

    found = examine(folder)
    if as_json:
        console.result_json(found.to_dict())
    else:
        rows = [[check.what, "WRONG" if check.problem else "ok", check.detail or "see below"] for check in found.checks]
        console.result(console.table(rows, [found.kind, "result", str(folder)]))
    if found.problems:
        raise IntegrityError("\n".join(found.problems))
