"""``mango architectures``: the support table."""

from __future__ import annotations

from typing import Annotated

import typer


def architectures(
    model_type: Annotated[str | None, typer.Argument(help="One model type; all without.")] = None,
    family: Annotated[str | None, typer.Option(help="Only those of a family, such as causal or vision.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Show which model types can be hosts and guests, which decode with a cache, and why not."""
    from dataclasses import asdict

    from mango import console
    from mango.architectures.support import support, support_table
    from mango.errors import ConfigError

    rows = [support(model_type)] if model_type is not None else list(support_table().values())
    if family is not None:
        known = sorted({row.family for row in support_table().values()})
        if family not in known:
            raise ConfigError(f"--family {family}: unknown. Known: {', '.join(known)}")
        rows = [row for row in rows if row.family == family]
    if as_json:
        console.result_json([asdict(row) for row in rows])
        return

    def mark(value: bool) -> str:
        return "yes" if value else "no"

    cells = [
        [
            row.model_type,
            row.family,
            *map(mark, (row.host, row.guest, row.fused, row.cached_decode)),
            row.reason or "",
        ]
        for row in rows
    ]
    console.result(console.table(cells, ["model type", "family", "host", "guest", "fused", "cached decode", "reason"]))
