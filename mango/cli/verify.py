"""``mango verify``: check everything of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    folder: Annotated[Path, typer.Argument(help="Package, fused model, block store or plain model folder.")],
    key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) whose owner must have signed the folder (`mango sign`).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Check every file of a folder, and all that the files say.

    That is hashes, headers, configuration, tensors, values, tokenizer and chat template.

    With a key also that its owner signed these files and no others.
    """
    from mango import console
    from mango.cli.devices import without_bars
    from mango.errors import IntegrityError
    from mango.packaging import examine
    from mango.security.keys import check_public_key, fingerprint
    from mango.security.signing import SIGNATURE_NAME, verify_folder

    if key is not None:
        check_public_key(key)
    without_bars()
    found = examine(folder)
    if key is not None:

        def look() -> str:
            verify_folder(folder, key)
            return f"by the owner of {key}, SHA-256 {fingerprint(key)[:12]}..."

        found.attempt("signature", folder / SIGNATURE_NAME, look)
    if as_json:
        console.result_json(found.to_dict())
    else:
        rows = [[check.what, "WRONG" if check.problem else "ok", check.detail or "see below"] for check in found.checks]
        console.result(console.table(rows, [found.kind, "result", str(folder)]))
    if found.problems:
        raise IntegrityError("\n".join(found.problems))
