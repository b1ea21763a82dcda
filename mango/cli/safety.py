"""``mango scan`` and ``mango convert``: what a checkpoint would do, and its weights without that."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class TierOption(StrEnum):
    """How far a checkpoint is trusted."""

    TRUSTED = "trusted"
    UNKNOWN = "unknown"


def scan(
    source: Annotated[Path, typer.Argument(help="Model folder or checkpoint file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Show a model's tier and what scanners say of its pickles: picklescan and fickling, in the sandbox."""
    from mango import console
    from mango.checkpoints import scan_pickles, tier_of_folder

    tier = tier_of_folder(source).value
    found = scan_pickles(source)
    if as_json:
        console.result_json({"source": str(source), "tier": tier, "files": found})
        return
    rows = [
        [name, scanner, item["severity"], item["what"]]
        for name, scanners in found.items()
        for scanner, said in scanners.items()
        for item in (said["findings"] or [{"severity": said["status"], "what": "nothing found"}])
    ]
    console.note(f"{source}: tier {tier}")
    console.result(console.table(rows, ["file", "scanner", "severity", "finding"]) if rows else "no pickles")


def convert(
    source: Annotated[Path, typer.Argument(help="Model folder or checkpoint file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the result; replaced when it is whole.")],
    tier: Annotated[
        TierOption, typer.Option(help="Convert in the sandbox, or as weights only in this process.")
    ] = TierOption.UNKNOWN,
) -> None:
    """Convert a pickled checkpoint to safetensors in the sandbox."""
    from mango import console
    from mango.checkpoints import write_converted
    from mango.security import Tier

    for line in write_converted(source, out, tier=Tier(tier.value)):
        console.note(line)
    console.result(str(out))
